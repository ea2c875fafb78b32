//! The software MMU: what a processor does with tables, from the Intel SDM vol. 3A, chapter 5
//! (2-level paging: section 5.3; 4-level paging: section 5.5).
//!
//! It accumulates raw entries with AND and OR, and looks at rights only at the end.

use super::{Memory, Mode};

/// A translated page.
#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each bit of an entry"
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    /// First linear address, canonical.
    pub(crate) va: u64,
    /// First physical address.
    pub(crate) pa: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
    pub(crate) user: bool,
    pub(crate) executable: bool,
    pub(crate) global: bool,
    /// Software bits 9 to 11 of the leaf.
    pub(crate) software: u64,
    /// Memory-type selector: PAT, PCD, PWT.
    pub(crate) memory_type: u64,
}

/// How one mode cuts up addresses: (lowest address bit, number of entries) from the root down.
fn steps(mode: Mode) -> &'static [(u32, u64)] {
    match mode {
        Mode::FourLevel => &[(39, 512), (30, 512), (21, 512), (12, 512)],
        Mode::TwoLevel | Mode::TwoLevelPse => &[(22, 1024), (12, 1024)],
    }
}

fn entry(memory: &Memory, mode: Mode, table: u64, index: u64) -> Option<u64> {
    if mode == Mode::FourLevel {
        let bytes = memory.bytes(table + index * 8, 8)?;
        Some(u64::from_le_bytes(bytes.try_into().unwrap()))
    } else {
        let bytes = memory.bytes(table + index * 4, 4)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().unwrap())))
    }
}

enum Kind {
    Nothing,
    Next,
    Page(u64),
}

/// What an entry at `low_bit` is, and the physical address of the page it maps.
fn classify(mode: Mode, low_bit: u32, raw: u64) -> Kind {
    if raw & 1 == 0 {
        return Kind::Nothing;
    }
    let ps = raw & 0x80 != 0;
    match (mode, low_bit) {
        (Mode::FourLevel, 12) => Kind::Page(raw & 0x000f_ffff_ffff_f000),
        (_, 12) => Kind::Page(raw & 0xffff_f000),
        (Mode::FourLevel, 39) if raw & 0x180 != 0 => Kind::Nothing,
        (Mode::FourLevel, 30) if raw & 0x180 == 0x100 => Kind::Nothing,
        (_, _) if !ps => Kind::Next,
        (Mode::FourLevel, 30) if raw & 0x3fff_e000 != 0 => Kind::Nothing,
        (Mode::FourLevel, 30) => Kind::Page(raw & 0x000f_ffff_c000_0000),
        (Mode::FourLevel, 21) if raw & 0x1f_e000 != 0 => Kind::Nothing,
        (Mode::FourLevel, 21) => Kind::Page(raw & 0x000f_ffff_ffe0_0000),
        // 32-bit physical addresses: all PSE-36 bits and bit 21 are reserved.
        (Mode::TwoLevelPse, 22) if raw & 0x3f_e000 != 0 => Kind::Nothing,
        (Mode::TwoLevelPse, 22) => Kind::Page(raw & 0xffc0_0000),
        // Vellum's rule, not the processor's: PS without CR4.PSE is refused.
        _ => Kind::Nothing,
    }
}

fn next_table(mode: Mode, raw: u64) -> u64 {
    match mode {
        Mode::FourLevel => raw & 0x000f_ffff_ffff_f000,
        _ => raw & 0xffff_f000,
    }
}

fn page(mode: Mode, va: u64, pa: u64, low_bit: u32, words: (u64, u64, u64)) -> Page {
    let (all, any, leaf) = words;
    let pat = if low_bit == 12 { leaf >> 7 } else { leaf >> 12 } & 1;
    Page {
        va: mode.canonical(va),
        pa,
        bytes: 1 << low_bit,
        writable: all & 2 != 0,
        user: all & 4 != 0,
        executable: any >> 63 == 0,
        global: leaf & 0x100 != 0,
        software: leaf >> 9 & 7,
        memory_type: pat << 2 | leaf >> 3 & 3,
    }
}

/// The page that maps `linear`, if any.
pub(crate) fn resolve(memory: &Memory, mode: Mode, root: u64, linear: u64) -> Option<Page> {
    let (mut table, mut all, mut any) = (root, u64::MAX, 0);
    for &(low_bit, entries) in steps(mode) {
        let raw = entry(memory, mode, table, linear >> low_bit & (entries - 1))?;
        all &= raw;
        any |= raw;
        match classify(mode, low_bit, raw) {
            Kind::Nothing => return None,
            Kind::Next => table = next_table(mode, raw),
            Kind::Page(pa) => {
                let va = linear >> low_bit << low_bit;
                return Some(page(mode, va, pa, low_bit, (all, any, raw)));
            }
        }
    }
    None
}

/// Everything that is mapped, in ascending order. Exponential where tables contain themselves:
/// for tables with few entries.
pub(crate) fn enumerate(memory: &Memory, mode: Mode, root: u64) -> Vec<Page> {
    let mut pages = Vec::new();
    // Tables still to be visited: (address, depth, first linear address, AND, OR).
    let mut pending = vec![(root, 0, 0, u64::MAX, 0)];
    while let Some((table, depth, base, all, any)) = pending.pop() {
        let (low_bit, entries) = steps(mode)[depth];
        for index in 0..entries {
            let Some(raw) = entry(memory, mode, table, index) else {
                continue;
            };
            let va = base | index << low_bit;
            let (all, any) = (all & raw, any | raw);
            match classify(mode, low_bit, raw) {
                Kind::Nothing => {}
                Kind::Next => pending.push((next_table(mode, raw), depth + 1, va, all, any)),
                Kind::Page(pa) => pages.push(page(mode, va, pa, low_bit, (all, any, raw))),
            }
        }
    }
    pages.sort_by_key(|page| page.va);
    pages
}
