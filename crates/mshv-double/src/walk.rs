//! Where a linear address lies, by the guest's own tables.
//!
//! KVM can be asked as well, but answers as to a read of ring 0, which SMAP keeps from the pages of ring 3.

use crate::registers::{Values, name};

/// CR0.PG; CR4.PSE, PAE and LA57; EFER.LMA (Intel SDM volume 3, sections 2.5 and 2.2.1).
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

/// Of an entry: present, and a large page (Intel SDM volume 3, tables 5-15 to 5-20).
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// The frame of an entry of 64 bits.
const FRAME: u64 = 0x000F_FFFF_FFFF_F000;
const PAGE_BITS: u32 = 12;

/// Tables of one kind.
struct Format {
    /// Bytes of an entry, and bits of the address that each table decodes.
    entry_len_bytes: u64,
    index_bits: u32,
    levels: u32,
    /// Whether an entry of level 2 may be a large page; those of level 3 may where entries of level 2 may, in long mode.
    has_large_pages: bool,
}

fn format(values: &Values) -> Format {
    let cr4 = values.u64(name::CR4);
    if values.u64(name::EFER) & EFER_LMA != 0 {
        return Format {
            entry_len_bytes: 8,
            index_bits: 9,
            levels: if cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            has_large_pages: true,
        };
    }
    let has_wide_entries = cr4 & CR4_PAE != 0;
    Format {
        entry_len_bytes: if has_wide_entries { 8 } else { 4 },
        index_bits: if has_wide_entries { 9 } else { 10 },
        levels: if has_wide_entries { 3 } else { 2 },
        has_large_pages: has_wide_entries || cr4 & CR4_PSE != 0,
    }
}

/// The guest-physical address of a linear one; `None` where a table says that nothing is there, or is not in memory itself. `word` reads 64 bits of
/// guest memory.
pub(crate) fn physical(
    values: &Values,
    linear: u64,
    word: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    let is_long = values.u64(name::EFER) & EFER_LMA != 0;
    let linear = if is_long {
        linear
    } else {
        linear & 0xFFFF_FFFF
    };
    if values.u64(name::CR0) & CR0_PG == 0 {
        return Some(linear);
    }
    let format = format(values);
    // The four entries of PAE's third level lie at any multiple of 32.
    let root_mask = if is_long { FRAME } else { 0xFFFF_FFE0 };
    let mut table = values.u64(name::CR3) & root_mask;
    for level in (1..=format.levels).rev() {
        let shift = PAGE_BITS + format.index_bits * (level - 1);
        let index = linear >> shift & ((1 << format.index_bits) - 1);
        let at = table + index * format.entry_len_bytes;
        // A narrow entry may be the last of its page.
        let entry = match format.entry_len_bytes {
            8 => word(at)?,
            _ => word(at & !7)? >> (at % 8 * 8) & 0xFFFF_FFFF,
        };
        if entry & PRESENT == 0 {
            return None;
        }
        let may_be_large = level == 2 || (level == 3 && is_long);
        let is_page = level == 1 || (may_be_large && format.has_large_pages && entry & LARGE != 0);
        let offset = (1_u64 << shift) - 1;
        if is_page {
            return Some(entry & FRAME & !offset | linear & offset);
        }
        table = entry & FRAME;
    }
    None
}

#[cfg(test)]
mod tests;
