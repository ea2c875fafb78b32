//! Descriptors of segments, gates and task-state segments, as the processor reads them.
//!
//! Sections of the Intel SDM, volume 3A: 3.4.5 "Segment Descriptors", 6.11 "IDT Descriptors", 6.14.1 "64-Bit Mode IDT",
//! 8.2.3 "TSS Descriptor in 64-bit mode".

/// A code segment for 64-bit code in ring 0: present, executable, readable, accessed, L = 1.
///
/// The accessed bit is set in this and the following, so that the processor never writes to the table.
pub const CODE_64: u64 = 0x00AF_9B00_0000_FFFF;

/// A code segment for 32-bit code in ring 0 that covers 4 GiB: present, executable, readable, accessed, D = 1, G = 1.
pub const CODE_32: u64 = 0x00CF_9B00_0000_FFFF;

/// A data segment for ring 0 that covers 4 GiB: present, writable, accessed, B = 1, G = 1.
pub const DATA: u64 = 0x00CF_9300_0000_FFFF;

/// Present, for ring 0, interrupt gate: bits 40 to 47 of a gate.
const INTERRUPT_GATE: u64 = 0x8E;

/// Present, for ring 0, available task-state segment: bits 40 to 47 of a descriptor.
const AVAILABLE_TSS: u64 = 0x89;

/// An interrupt gate of 32-bit mode: enters `handler` in the code segment `selector`.
#[must_use]
pub const fn gate_32(handler: u32, selector: u16) -> u64 {
    let handler = handler as u64;
    (handler & 0xFFFF) | (selector as u64) << 16 | INTERRUPT_GATE << 40 | (handler >> 16) << 48
}

/// An interrupt gate of 64-bit mode: enters `handler` in the code segment `selector`, on the stack `stack_index` of the
/// task-state segment's interrupt stack table (1 to 7), or for 0 on the current one.
#[must_use]
pub const fn gate_64(handler: u64, selector: u16, stack_index: u8) -> [u64; 2] {
    let low = (handler & 0xFFFF)
        | (selector as u64) << 16
        | (stack_index as u64 & 0x7) << 32
        | INTERRUPT_GATE << 40
        | ((handler >> 16) & 0xFFFF) << 48;
    [low, handler >> 32]
}

/// The two entries of a 64-bit task-state segment of `len_bytes` bytes at `base`.
#[must_use]
pub const fn tss_64(base: u64, len_bytes: u16) -> [u64; 2] {
    let low = (len_bytes as u64 - 1)
        | (base & 0x00FF_FFFF) << 16
        | AVAILABLE_TSS << 40
        | ((base >> 24) & 0xFF) << 56;
    [low, base >> 32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_spread_the_address_over_their_fields() {
        assert_eq!(gate_32(0x1234_5678, 0x08), 0x1234_8E00_0008_5678);
        assert_eq!(gate_32(u32::MAX, 0xFFFF), 0xFFFF_8E00_FFFF_FFFF);
        assert_eq!(
            gate_64(0x0123_4567_89AB_CDEF, 0x08, 0),
            [0x89AB_8E00_0008_CDEF, 0x0123_4567]
        );
        assert_eq!(gate_64(0, 0x08, 1), [0x0000_8E01_0008_0000, 0]);
    }

    #[test]
    fn a_tss_descriptor_spreads_its_base_over_four_fields() {
        assert_eq!(
            tss_64(0xFFFF_FFFF_8123_4567, 104),
            [0x8100_8923_4567_0067, 0xFFFF_FFFF]
        );
    }

    #[test]
    fn segments_are_flat_and_say_which_code_they_hold() {
        for (segment, l, d) in [(CODE_64, 1, 0), (CODE_32, 0, 1), (DATA, 0, 1)] {
            // Base and limit: SDM volume 3A, figure 3-8.
            let base = (segment >> 16 & 0xFF_FFFF) | (segment >> 56) << 24;
            let limit = (segment & 0xFFFF) | (segment >> 48 & 0xF) << 16;
            assert_eq!((base, limit), (0, 0xF_FFFF), "{segment:#x}");
            assert_eq!(segment >> 53 & 1, l, "{segment:#x}");
            assert_eq!(segment >> 54 & 1, d, "{segment:#x}");
            assert_eq!(segment >> 40 & 1, 1, "accessed: {segment:#x}");
        }
    }
}
