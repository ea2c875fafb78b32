use vellum_abi::port::Port;
use vellum_backend::boot::selector;
use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::state::Xcr0;
use vellum_layout::Gpa;
use vellum_layout::amd64::user::{EXCEPTION_STACK, MACHINE_AREA, MONITOR_CODE_AREA};

use super::{VECTORS, amd64_machine, machine_page};
use crate::memory::PAGE_LEN_BYTES;

/// The page, read as the processor reads it: by the addresses in its registers.
struct Machine {
    page: [u8; PAGE_LEN_BYTES],
}

/// A segment descriptor (Intel SDM volume 3, section 3.4.5).
struct Descriptor(u64);

impl Descriptor {
    fn is_present(&self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    fn ring(&self) -> u64 {
        self.0 >> 45 & 3
    }

    fn is_code_or_data(&self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    fn kind(&self) -> u64 {
        self.0 >> 40 & 15
    }

    fn is_64_bit(&self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    fn low_base(&self) -> u64 {
        self.0 >> 16 & 0xFF_FFFF | (self.0 >> 56) << 24
    }

    fn limit(&self) -> u64 {
        self.0 & 0xFFFF | (self.0 >> 48 & 15) << 16
    }
}

impl Machine {
    fn new() -> Self {
        Self {
            page: machine_page(),
        }
    }

    fn word(&self, address: u64) -> u64 {
        let at = usize::try_from(address - MACHINE_AREA.start().as_u64()).expect("in the page");
        u64::from_le_bytes(self.page[at..at + 8].try_into().expect("eight bytes"))
    }

    fn descriptor(&self, selector: u16) -> Descriptor {
        Descriptor(self.word(registers().gdt.base + u64::from(selector & !7)))
    }

    /// Whether ring 3 may use `width` ports from `port` on by the bitmap (Intel SDM volume 1, section 19.5.2).
    fn allows(&self, port: u16, width: u16) -> bool {
        let tss = registers().tss;
        let bitmap =
            u64::from(self.byte(tss.base + 0x66)) | u64::from(self.byte(tss.base + 0x67)) << 8;
        (port..=port.saturating_add(width - 1)).all(|port| {
            // The processor reads two bytes, and denies what the limit does not cover.
            let offset = bitmap + u64::from(port / 8);
            offset < u64::from(tss.limit) && self.byte(tss.base + offset) >> (port % 8) & 1 == 0
        })
    }

    fn byte(&self, address: u64) -> u8 {
        self.page[usize::try_from(address - MACHINE_AREA.start().as_u64()).expect("in the page")]
    }

    fn gate(&self, vector: usize) -> (u64, u64) {
        let at = registers().idt.base + vector as u64 * 16;
        (self.word(at), self.word(at + 8))
    }
}

fn registers() -> vellum_backend::boot::Amd64Machine {
    let model = CpuModel {
        profile: CpuProfile::V1,
        leaves: Vec::new(),
        xcr0: Xcr0::RESET,
        cr4_features: 0x30_0000,
    };
    amd64_machine(Gpa::literal(0x5000), &model)
}

#[test]
fn the_registers_name_tables_inside_the_page_and_pass_the_rest_on() {
    let registers = registers();
    assert_eq!(registers.root, Gpa::literal(0x5000));
    assert_eq!(
        (registers.xcr0, registers.cr4_features),
        (Xcr0::RESET, 0x30_0000)
    );
    let mut tables = [registers.gdt, registers.tss, registers.idt];
    tables.sort_by_key(|table| table.base);
    let end = MACHINE_AREA.start().as_u64() + PAGE_LEN_BYTES as u64;
    for pair in tables.windows(2) {
        assert!(pair[0].base + u64::from(pair[0].limit) < pair[1].base);
    }
    assert!(tables[0].base >= MACHINE_AREA.start().as_u64());
    assert!(tables[2].base + u64::from(tables[2].limit) < end);
}

#[test]
fn the_segments_are_flat_code_and_data_of_both_rings() {
    let machine = Machine::new();
    let cases = [
        (selector::KERNEL_CODE, 0, 0b1011, true),
        (selector::KERNEL_DATA, 0, 0b0011, false),
        (selector::USER_DATA, 3, 0b0011, false),
        (selector::USER_CODE, 3, 0b1011, true),
    ];
    for (selector, ring, kind, is_64_bit) in cases {
        let descriptor = machine.descriptor(selector);
        assert!(
            descriptor.is_present() && descriptor.is_code_or_data(),
            "{selector:#x}"
        );
        assert_eq!(u64::from(selector & 3), ring);
        assert_eq!(
            (descriptor.ring(), descriptor.kind()),
            (ring, kind),
            "{selector:#x}"
        );
        assert_eq!(descriptor.is_64_bit(), is_64_bit, "{selector:#x}");
    }
    assert_eq!(machine.descriptor(0).0, 0, "the null descriptor");
}

#[test]
fn the_task_segment_is_busy_and_describes_the_task_state() {
    let machine = Machine::new();
    let descriptor = machine.descriptor(selector::TSS);
    let high = machine.word(registers().gdt.base + u64::from(selector::TSS) + 8);
    assert!(descriptor.is_present() && !descriptor.is_code_or_data());
    // A busy 64-bit TSS; the limit counts bytes.
    assert_eq!((descriptor.kind(), descriptor.0 >> 55 & 1), (0b1011, 0));
    assert_eq!(descriptor.low_base() | high << 32, registers().tss.base);
    assert_eq!(descriptor.limit(), u64::from(registers().tss.limit));
}

#[test]
fn exceptions_and_double_faults_have_stacks_of_their_own() {
    let machine = Machine::new();
    let rsp0 = machine.word(registers().tss.base + 4);
    let ist1 = machine.word(registers().tss.base + 0x24);
    assert_eq!(rsp0, EXCEPTION_STACK.end().as_u64());
    assert_eq!(ist1, rsp0 - EXCEPTION_STACK.len_bytes() / 2);
    assert!(rsp0.is_multiple_of(16) && ist1.is_multiple_of(16));
}

#[test]
fn every_vector_has_an_interrupt_gate_to_its_stub() {
    let machine = Machine::new();
    for vector in 0..VECTORS {
        let (low, high) = machine.gate(vector);
        let handler = low & 0xFFFF | (low >> 48) << 16 | high << 32;
        assert_eq!(
            handler,
            MONITOR_CODE_AREA.start().as_u64() + vector as u64 * 16
        );
        assert_eq!(low >> 16 & 0xFFFF, u64::from(selector::KERNEL_CODE));
        // Present, interrupt gate (which masks interrupts), for ring 0 only but the breakpoint's.
        let expected = if vector == 3 { 0xEE } else { 0x8E };
        assert_eq!(low >> 40 & 0xFF, expected, "vector {vector}");
        assert_eq!(low >> 32 & 7, u64::from(vector == 8), "vector {vector}");
        assert_eq!(high >> 32, 0);
    }
    assert_eq!(usize::from(registers().idt.limit) + 1, VECTORS * 16);
}

#[test]
fn the_bitmap_allows_accesses_of_four_bytes_to_the_ports_of_ring_3() {
    let machine = Machine::new();
    for port in vellum_abi::port::USER {
        assert!(machine.allows(port.number(), 4), "{port:?}");
    }
    assert!(
        !machine.allows(Port::Fault.number(), 4),
        "the monitor's own port"
    );
}

#[test]
fn the_bitmap_denies_every_access_that_begins_elsewhere() {
    let machine = Machine::new();
    let user: Vec<u16> = vellum_abi::port::USER
        .iter()
        .map(|port| port.number())
        .collect();
    for port in (0..=u16::MAX).filter(|port| !user.contains(port)) {
        assert!(!machine.allows(port, 4), "port {port:#x}");
    }
    // The last byte within the limit is all ones, so that an access across the end is denied.
    let tss = registers().tss;
    assert_eq!(machine.byte(tss.base + u64::from(tss.limit)), 0xFF);
}
