//! The generated memory-map page.

use vellum_layout::{GuestKind, MemoryMapPage, RegionName, amd64, i686};

#[test]
fn the_page_is_complete_and_the_same_each_time() {
    let page = MemoryMapPage.to_string();
    assert_eq!(page, MemoryMapPage.to_string());
    assert!(page.ends_with("|\n"));
    for kind in GuestKind::ALL {
        assert!(page.contains(&format!("### {kind}\n")), "{kind}");
    }
    for region in RegionName::PLACED {
        assert!(page.contains(&format!("| {region} |")), "{region}");
    }
    for address in [
        amd64::MAX_GPA.as_u64(),
        amd64::MAX_GVA.as_u64(),
        i686::MAX_GPA.as_u64(),
        i686::MAX_GVA_PAGED.as_u64(),
    ] {
        assert!(page.contains(&format!("{address:#x}")), "{address:#x}");
    }
}

#[test]
fn every_table_row_has_as_many_cells_as_its_heading() {
    let page = MemoryMapPage.to_string();
    let mut columns = None;
    for line in page.lines() {
        let cells = line.starts_with('|').then(|| line.matches('|').count());
        if let (Some(expected), Some(found)) = (columns, cells) {
            assert_eq!(found, expected, "{line}");
        }
        columns = cells;
    }
}

#[test]
fn lengths_are_exact_and_in_binary_units() {
    let page = MemoryMapPage.to_string();
    for length in ["| 16 GiB |", "| 192 bytes |", "63 GiB 1023 MiB 1020 KiB"] {
        assert!(page.contains(length), "{length}");
    }
}
