//! A guest in ring 0 with descriptor tables, page tables and handlers, made anew for each case.
#![expect(unsafe_code, reason = "lends memory to guests")]

use std::fmt::Write;

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::{CpuModel, CpuProfile};
use vellum_backend::state::{DescriptorTable, Segment, Xcr0};
use vellum_backend::{Exit, HostMemory, Hypervisor, Protection, Tracking, VcpuState, Vm, VmConfig};
use vellum_layout::{Gpa, GpaRange, Gva};

use crate::cases::Case;

/// The processor of both guests.
pub(crate) const PROFILE: CpuProfile = CpuProfile::V1;
/// Where a handler says that it was called, and where code says that it is done.
pub(crate) const HANDLER_PORT: u16 = 0xE1;
pub(crate) const DONE_PORT: u8 = 0xE0;

const MEMORY_LEN_BYTES: u64 = 0x4_0000;
const ROOT: u64 = 0x1000;
const LEVEL_3: u64 = 0x2000;
const LEVEL_2: u64 = 0x3000;
const LEVEL_1: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const LDT: u64 = 0x8000;
/// The top of the stack of handlers.
const HANDLER_STACK: u64 = 0xA000;
const HANDLERS: u64 = 0xB000;
const CODE: u64 = 0xC000;
pub(crate) const STACK: u64 = 0xE000;
pub(crate) const DATA: u64 = 0x1_0000;
/// Pages with rights of their own: absent, read-only, of the supervisor.
pub(crate) const ABSENT: u64 = 0x2_0000;
pub(crate) const READ_ONLY: u64 = 0x2_1000;
pub(crate) const SUPERVISOR: u64 = 0x2_2000;
/// `hlt`, which fills pages of data that somebody may jump to.
const HALT: u8 = 0xF4;
/// Where everything that a case can change lies.
const COMPARED: std::ops::Range<u64> = ROOT..0x1_1000;

/// Descriptors from selector 0 on.
const DESCRIPTORS: [u64; 19] = [
    0,
    0x00AF_9B00_0000_FFFF,             // 8: code
    0x00CF_9300_0000_FFFF,             // 10: data
    0x00CF_F300_0000_FFFF,             // 18: data of ring 3
    0x00AF_FB00_0000_FFFF,             // 20: code of ring 3
    0x0000_8B00_0000_0067 | TSS << 16, // 28: the TSS, busy
    0,
    0x00CF_1300_0000_FFFF,             // 38: data that is not present
    0x00CF_9100_0000_FFFF,             // 40: data that is read-only
    0x00AF_9F00_0000_FFFF,             // 48: conforming code
    0x00CF_9200_1234_FFFF,             // 50: data that was never used
    0x0000_8200_0000_001F | LDT << 16, // 58: a local table
    0,
    0x0000_8900_0000_0067 | TSS << 16, // 68: a TSS that is available
    0,
    0x00AF_1B00_0000_FFFF, // 78: code that is not present
    0x00AF_9900_0000_FFFF, // 80: code that cannot be read
    0x00CF_9700_0000_0FFF, // 88: data that grows down
    0x0000_0900_0000_0067, // 90: a TSS that is not present
];

/// A guest on one engine.
pub(crate) struct Machine {
    vm: Box<dyn Vm>,
    memory: HostMemory,
}

impl Machine {
    pub(crate) fn new(hypervisor: &dyn Hypervisor, model: &CpuModel) -> Self {
        let config = VmConfig::new(model.clone(), Tracking::None);
        let mut vm = hypervisor.create_vm(&config).expect("a vm");
        let memory = HostMemory::zeroed(MEMORY_LEN_BYTES).expect("memory");
        let range = GpaRange::new(Gpa::literal(0), MEMORY_LEN_BYTES).expect("a range");
        // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
        unsafe { vm.map(range, memory.hva(), Protection::Write) }.expect("mapped");
        Self { vm, memory }
    }

    /// Carries a case out, up to its first exit.
    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        write_machine(&self.memory);
        self.memory.write(CODE, &case.code).expect("in bounds");
        let mut state = start();
        case.fill(&mut state.general);
        state.restore(self.vm.as_mut()).expect("restored");
        let exit = self.vm.run().expect("ran");
        let state = VcpuState::save(self.vm.as_mut()).expect("saved");
        let mut memory = vec![0; (COMPARED.end - COMPARED.start) as usize];
        self.memory
            .read(COMPARED.start, &mut memory)
            .expect("in bounds");
        Outcome {
            exit,
            state,
            memory,
        }
    }
}

fn start() -> VcpuState {
    let table = |base, limit| DescriptorTable { base, limit };
    let machine = Amd64Machine {
        root: Gpa::literal(ROOT),
        gdt: table(GDT, DESCRIPTORS.len() as u16 * 8 - 1),
        idt: table(IDT, 32 * 16 - 1),
        tss: table(TSS, 0x67),
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    };
    let start = EntryPoint {
        entry: Gva::literal(CODE),
        stack_top: Gva::literal(STACK),
        peb: Gva::literal(0),
    };
    boot::amd64_kernel(&machine, &start)
}

fn write_machine(memory: &HostMemory) {
    /// Present, writable, of ring 3, accessed, dirty.
    const RIGHTS: u64 = 0x67;
    memory
        .zero(COMPARED.start, COMPARED.end - COMPARED.start)
        .expect("in bounds");
    for page in [DATA, ABSENT - 0x1000, ABSENT, READ_ONLY, SUPERVISOR] {
        memory
            .write_words(page, &[HALT; 0x1000])
            .expect("in bounds");
    }
    let write = |at, value| memory.write_u64(at, value).expect("in bounds");
    write(ROOT, LEVEL_3 | RIGHTS);
    write(LEVEL_3, LEVEL_2 | RIGHTS);
    write(LEVEL_2, LEVEL_1 | RIGHTS);
    for page in 0..MEMORY_LEN_BYTES / 0x1000 {
        let rights = match page << 12 {
            ABSENT => 0,
            READ_ONLY => RIGHTS & !2,
            SUPERVISOR => RIGHTS & !4,
            _ => RIGHTS,
        };
        write(LEVEL_1 + page * 8, page << 12 | rights);
    }
    for (at, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        write(at, descriptor);
    }
    // Data of ring 0 and of ring 3.
    write(LDT + 8, DESCRIPTORS[2]);
    write(LDT + 16, DESCRIPTORS[3]);
    for vector in 0..32 {
        let address = HANDLERS + vector * 16;
        // An interrupt gate with the first stack of the table; that of vector 20 is not present, that of 3 is for ring 3.
        let kind = match vector {
            20 => 0x0E01,
            3 => 0xEE01,
            _ => 0x8E01,
        };
        let low = address & 0xFFFF | 8 << 16 | kind << 32 | (address >> 16 & 0xFFFF) << 48;
        write(IDT + vector * 16, low);
        // push vector; out HANDLER_PORT, eax
        let stub = [0x6A, vector as u8, 0xE7, HANDLER_PORT as u8];
        memory.write(address, &stub).expect("in bounds");
    }
    let rsp0 = HANDLER_STACK - 0x800;
    for (offset, value) in [(4, rsp0), (0x24, HANDLER_STACK)] {
        memory
            .write(TSS + offset, &value.to_le_bytes())
            .expect("in bounds");
    }
    memory.write(TSS + 0x66, &[0x68, 0]).expect("in bounds");
}

/// RFLAGS.RF.
const RESUME_FLAG: u64 = 1 << 16;

/// What a case left.
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) state: VcpuState,
    memory: Vec<u8>,
}

impl Outcome {
    fn word(&self, at: u64) -> u64 {
        let offset = (at - COMPARED.start) as usize;
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.memory[offset..offset + 8]);
        u64::from_le_bytes(raw)
    }

    /// The vector whose handler was called: what it pushed last.
    pub(crate) fn vector(&self) -> u64 {
        self.word(
            self.state
                .general
                .rsp
                .clamp(COMPARED.start, COMPARED.end - 8),
        )
    }

    /// In what the emulator differs.
    pub(crate) fn difference(&self, emulated: &Self) -> Option<String> {
        let mut text = String::new();
        if self.exit != emulated.exit {
            let _ = writeln!(
                text,
                "  processor {:?}, emulator {:?}",
                self.exit, emulated.exit
            );
            let _ = writeln!(
                text,
                "  processor vector {}, emulator {}",
                self.vector(),
                emulated.vector()
            );
            return Some(text);
        }
        // What a shutdown leaves is not defined (AMD APM volume 2, section 8.2.9).
        if self.exit == Exit::TripleFault {
            return None;
        }
        let mut compare = |what: &str, native: String, emulated: String| {
            if native != emulated {
                let _ = writeln!(text, "  {what}: processor {native}, emulator {emulated}");
            }
        };
        for ((what, native), (_, emulated)) in
            self.comparable().into_iter().zip(emulated.comparable())
        {
            compare(what, native, emulated);
        }
        for at in COMPARED.step_by(8) {
            // RF in the flags of a frame: QEMU leaves it, KVM sets it.
            let mask = if (HANDLER_STACK - 0x40..HANDLER_STACK).contains(&at) {
                !RESUME_FLAG
            } else {
                u64::MAX
            };
            let (native, emulated) = (self.word(at) & mask, emulated.word(at) & mask);
            if native != emulated {
                let _ = writeln!(
                    text,
                    "  memory at {at:#x}: processor {native:#x}, emulator {emulated:#x}"
                );
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// What is compared of a state, by name.
    fn comparable(&self) -> Vec<(&'static str, String)> {
        let state = &self.state;
        let special = &state.special;
        let segment = |it: &Segment| {
            // What a segment that is not usable keeps is the processor's own choice.
            if it.attributes.is_present() {
                format!("{it:x?}")
            } else {
                format!("{:#x}, not usable", it.selector)
            }
        };
        // QEMU empties SS at every change of stack, processors where the privilege changes (Intel SDM volume 3, section 7.14.4).
        let stack = if matches!(
            self.exit,
            Exit::IoOut {
                port: HANDLER_PORT,
                ..
            }
        ) {
            String::new()
        } else {
            segment(&special.ss)
        };
        vec![
            ("general registers", format!("{:x?}", state.general)),
            ("cs", segment(&special.cs)),
            ("ds", segment(&special.ds)),
            ("es", segment(&special.es)),
            ("fs", segment(&special.fs)),
            ("gs", segment(&special.gs)),
            ("ss", stack),
            ("ldtr", segment(&special.ldtr)),
            ("tr", segment(&special.tr)),
            ("tables", format!("{:x?} {:x?}", special.gdtr, special.idtr)),
            ("cr0", format!("{:#x}", special.cr0)),
            ("cr2", format!("{:#x}", special.cr2)),
            ("cr3", format!("{:#x}", special.cr3)),
            ("cr4", format!("{:#x}", special.cr4)),
            ("cr8", format!("{:#x}", special.cr8)),
            ("efer", format!("{:#x}", special.efer)),
            ("debug registers", format!("{:x?}", state.debug)),
            ("msrs", format!("{:x?}", state.msrs)),
        ]
    }
}
