//! The memory-map page of the documentation, generated from the constants.

use core::fmt;

use crate::address::Gpa;
use crate::amd64::{self, user};
use crate::bookkeeping as top;
use crate::hole::{Hole, IO_APIC_PAGE, LOCAL_APIC_PAGE};
use crate::i686;
use crate::kind::GuestKind;
use crate::plan::{MemoryPlan, PlanRequest, RegionName, ScratchRequest};
use crate::range::GvaRange;

/// The content of `docs/memory-map.md`: its [`Display`](fmt::Display) is the whole page as
/// Markdown, ending with a line feed. It depends on nothing but the constants of this crate, so a check
/// can compare the page in the repository with it byte by byte.
///
/// ```
/// # extern crate std;
/// # use std::string::ToString;
/// let page = vellum_layout::MemoryMapPage.to_string();
/// assert!(page.starts_with("# Memory map\n"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMapPage;

/// A length in binary units, exactly: `64 KiB`, `1 GiB 4 KiB`.
struct Size(u64);

/// Lengths of the plans that the page shows; round numbers that leave every region visible.
const EXAMPLE: ScratchRequest = ScratchRequest {
    len_bytes: 0x400_0000,
    input_len_bytes: 0x1_0000,
    output_len_bytes: 0x1_0000,
    tables_len_bytes: 0x10_0000,
};

/// Length of the image of those plans.
const EXAMPLE_IMAGE_LEN_BYTES: u64 = 0x80_0000;

impl fmt::Display for MemoryMapPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "# Memory map\n\n\
             <!-- Generated from the constants of crates/layout by\n\
             `cargo run -p vellum-layout --example memory_map`; do not edit. -->\n\n\
             Addresses are hexadecimal and both ends of a range are inclusive. The reason for each\n\
             value stands beside its constant in `crates/layout`.\n",
        )?;
        limits(f)?;
        holes(f)?;
        bookkeeping(f)?;
        user_addresses(f)?;
        scratch_for_guest(f)?;
        f.write_str(
            "\n## Examples of plans\n\n\
             Each plan has the same lengths and no holes but the local APIC page",
        )?;
        writeln!(
            f,
            ": an image of {},\nscratch of {}, buffers of {} each, page tables of {} where there \
             is paging.",
            Size(EXAMPLE_IMAGE_LEN_BYTES),
            Size(EXAMPLE.len_bytes),
            Size(EXAMPLE.input_len_bytes),
            Size(EXAMPLE.tables_len_bytes),
        )?;
        for kind in GuestKind::ALL {
            plan(f, kind, &[])?;
        }
        f.write_str(
            "\nWith an in-kernel interrupt controller the I/O APIC page is a hole as well, and the\n\
             scratch of an i686 guest lies below it:\n",
        )?;
        plan(f, GuestKind::I686Identity, &[IO_APIC_PAGE])
    }
}

fn limits(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "\n## Limits\n\n\
         | constant | amd64 | i686 |\n\
         |---|---|---|\n",
    )?;
    writeln!(
        f,
        "| `BASE_ADDRESS` | {:#x} | {:#x} |",
        amd64::BASE_ADDRESS,
        i686::BASE_ADDRESS
    )?;
    writeln!(
        f,
        "| `MAX_GPA` | {:#x} | {:#x} |",
        amd64::MAX_GPA,
        i686::MAX_GPA
    )?;
    writeln!(
        f,
        "| `MAX_GVA` | {:#x} | identity: {:#x} (equals `MAX_GPA`); 2-level: {:#x} |",
        amd64::MAX_GVA,
        i686::MAX_GVA_IDENTITY,
        i686::MAX_GVA_PAGED,
    )?;
    writeln!(
        f,
        "| longest scratch | {} | {} |",
        Size(amd64::MAX_SCRATCH_LEN_BYTES),
        Size(i686::MAX_SCRATCH_LEN_BYTES),
    )
}

fn holes(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "\n## Holes in guest-physical memory\n\n\
         | hole | from | to | when |\n\
         |---|---|---|---|\n",
    )?;
    let rows: [(Hole, &str); 2] = [
        (IO_APIC_PAGE, "with an in-kernel interrupt controller"),
        (LOCAL_APIC_PAGE, "always"),
    ];
    for (hole, when) in rows {
        let range = hole.range;
        writeln!(
            f,
            "| {} | {:#x} | {:#x} | {when} |",
            hole.name,
            range.start(),
            range.last()
        )?;
    }
    f.write_str("| TSS and identity-map pages of KVM | | | where the backend puts them |\n")
}

fn bookkeeping(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "\n## Top of scratch\n\n\
         Offsets are counted down from the exclusive end of scratch; an entry grows upwards from\n\
         its offset. The same for both architectures.\n\n\
         | offset | length | what |\n\
         |---|---|---|\n",
    )?;
    let rows: [(u64, u64, &str); 9] = [
        (top::SCRATCH_TOP_SIZE_OFFSET, 8, "length of scratch"),
        (
            top::SCRATCH_TOP_ALLOCATOR_OFFSET,
            8,
            "allocator: GPA of the next free frame",
        ),
        (
            top::SCRATCH_TOP_SNAPSHOT_PT_GPA_BASE_OFFSET,
            8,
            "GPA base of the snapshot's page tables",
        ),
        (
            top::SCRATCH_TOP_SNAPSHOT_GENERATION_OFFSET,
            8,
            "snapshot generation",
        ),
        (
            top::FAULT_RECORD_OFFSET,
            top::FAULT_RECORD_MAX_LEN_BYTES,
            "fault record",
        ),
        (
            top::MONITOR_DATA_OFFSET,
            top::MONITOR_DATA_LEN_BYTES,
            "monitor data",
        ),
        (
            top::BOOKKEEPING_LEN_BYTES,
            top::BOOKKEEPING_LEN_BYTES,
            "bookkeeping page, holds all of the above",
        ),
        (
            top::EXCEPTION_STACK_OFFSET + top::EXCEPTION_STACK_LEN_BYTES,
            top::EXCEPTION_STACK_LEN_BYTES,
            "exception stack",
        ),
        (
            top::GUARD_OFFSET,
            top::GUARD_LEN_BYTES,
            "guard page, never mapped",
        ),
    ];
    for (offset, len_bytes, what) in rows {
        writeln!(f, "| {offset:#06x} | {} | {what} |", Size(len_bytes))?;
    }
    Ok(())
}

fn user_addresses(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "\n## Guest-virtual addresses of the amd64 user guest\n\n\
         | from | to | length | what | who |\n\
         |---|---|---|---|---|\n",
    )?;
    let rows: [(GvaRange, &str, &str); 11] = [
        (user::ELF_AREA, "ELF segments", "ring 3"),
        (user::HEAP_AREA, "heap, from the bottom", "ring 3"),
        (
            user::IO_AREA,
            "PEB, resume page, input buffer, output buffer",
            "ring 3",
        ),
        (
            user::STACK_AREA,
            "guard page and stack, from the top",
            "ring 3",
        ),
        (
            user::MAPPINGS_WINDOW,
            "window on mapped files and memories",
            "ring 3",
        ),
        (
            user::PHYSICAL_WINDOW,
            "window on guest-physical memory",
            "ring 0",
        ),
        (user::MONITOR_CODE_AREA, "monitor code", "ring 0"),
        (user::MACHINE_AREA, "GDT, TSS, IDT", "ring 0"),
        (
            user::EXCEPTION_STACK_GUARD,
            "guard page, never mapped",
            "nobody",
        ),
        (user::EXCEPTION_STACK, "exception stack", "ring 0"),
        (user::BOOKKEEPING, "bookkeeping page", "ring 0"),
    ];
    for (range, what, who) in rows {
        writeln!(
            f,
            "| {:#018x} | {:#018x} | {} | {what} | {who} |",
            range.start(),
            range.last(),
            Size(range.len_bytes())
        )?;
    }
    Ok(())
}

fn scratch_for_guest(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(
        "\n## What the guest sees\n\n\
         Where the regions of the example plans below begin for the guest itself; `-` where the\n\
         layout gives no address.\n\n\
         | region |",
    )?;
    for kind in GuestKind::ALL {
        write!(f, " {kind} |")?;
    }
    f.write_str("\n|---|---|---|---|---|\n")?;
    for region in RegionName::PLACED {
        write!(f, "| {region} |")?;
        for kind in GuestKind::ALL {
            match example(kind, &[])?.guest_ptr(region) {
                Ok(pointer) => write!(f, " {pointer} |")?,
                Err(_) => f.write_str(" - |")?,
            }
        }
        f.write_str("\n")?;
    }
    Ok(())
}

fn plan(f: &mut fmt::Formatter<'_>, kind: GuestKind, holes: &[Hole]) -> fmt::Result {
    let plan = example(kind, holes)?;
    write!(
        f,
        "\n### {kind}{}\n\n\
         | from | to | length | region |\n\
         |---|---|---|---|\n",
        if holes.is_empty() { "" } else { ", with holes" }
    )?;
    for (name, range) in plan.regions() {
        row(f, range.start(), range.last(), range.len_bytes(), name)?;
    }
    Ok(())
}

fn row(
    f: &mut fmt::Formatter<'_>,
    from: Gpa,
    to: Gpa,
    len_bytes: u64,
    name: RegionName,
) -> fmt::Result {
    writeln!(
        f,
        "| {from:#011x} | {to:#011x} | {} | {name} |",
        Size(len_bytes)
    )
}

/// The example plan of a kind. A test proves that it never fails.
fn example(kind: GuestKind, holes: &[Hole]) -> Result<MemoryPlan, fmt::Error> {
    let tables_len_bytes = if kind == GuestKind::I686Identity {
        0
    } else {
        EXAMPLE.tables_len_bytes
    };
    MemoryPlan::new(&PlanRequest {
        kind,
        image_len_bytes: EXAMPLE_IMAGE_LEN_BYTES,
        scratch: ScratchRequest {
            tables_len_bytes,
            ..EXAMPLE
        },
        holes,
        reserved: &[],
    })
    .map_err(|_| fmt::Error)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
            (1, "bytes"),
        ];
        let mut rest = self.0;
        let mut separator = "";
        for (unit, name) in UNITS {
            let count = rest / unit;
            rest %= unit;
            if count != 0 {
                write!(f, "{separator}{count} {name}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}
