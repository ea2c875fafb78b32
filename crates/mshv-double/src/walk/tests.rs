use std::collections::BTreeMap;

use super::*;

fn values(cr0: u64, cr4: u64, efer: u64) -> Values {
    let mut values = Values::default();
    values.set(name::CR0, cr0);
    values.set(name::CR3, 0x1000_u64);
    values.set(name::CR4, cr4);
    values.set(name::EFER, efer);
    values
}

/// Memory that holds these entries, of 64 bits each.
fn memory(entries: &[(u64, u64)]) -> impl Fn(u64) -> Option<u64> {
    let entries: BTreeMap<u64, u64> = entries.iter().copied().collect();
    move |at| entries.get(&at).copied()
}

#[test]
fn without_paging_linear_is_physical() {
    let values = values(1, 0, 0);
    assert_eq!(
        physical(&values, 0x1_2345_6789, memory(&[])),
        Some(0x2345_6789)
    );
}

#[test]
fn tables_of_four_levels_lead_to_pages_of_every_size() {
    let values = values(CR0_PG, CR4_PAE, EFER_LMA);
    let memory = memory(&[
        (0x1000, 0x2001),
        (0x2000, 0x3001),
        (0x2008, 0xC000_0081),
        (0x3000, 0x4001),
        (0x3008, 0xA0_0081),
        (0x4010, 0x8000_0000_0004_5007),
        (0x4018, 0x5006),
    ]);
    let cases = [
        (0x2123, Some(0x4_5123)),
        (0x3123, None),
        (0x20_1234, Some(0xA0_1234)),
        (0x4000_1234, Some(0xC000_1234)),
        (0x8000_0000, None),
        (0x80_0000_0000, None),
    ];
    for (linear, expected) in cases {
        assert_eq!(physical(&values, linear, &memory), expected, "{linear:#x}");
    }
}

#[test]
fn tables_of_two_levels_have_narrow_entries() {
    let memory = memory(&[
        (0x1000, 0x0040_0083_0000_2001),
        (0x2000, 0x0000_7001_0000_0000),
    ]);
    let with_large_pages = values(CR0_PG, CR4_PSE, 0);
    assert_eq!(physical(&with_large_pages, 0x1234, &memory), Some(0x7234));
    assert_eq!(physical(&with_large_pages, 0x234, &memory), None);
    assert_eq!(
        physical(&with_large_pages, 0x40_1234, &memory),
        Some(0x40_1234)
    );
}

#[test]
fn tables_of_three_levels_have_wide_entries_below_four_roots() {
    let memory = memory(&[(0x1008, 0x2001), (0x2000, 0x60_0081)]);
    let values = values(CR0_PG, CR4_PAE, 0);
    assert_eq!(physical(&values, 0x4000_0042, &memory), Some(0x60_0042));
    assert_eq!(physical(&values, 0x42, &memory), None);
}
