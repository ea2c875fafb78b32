//! A small guest, and what is said about tests that ran and that could not.

use std::fs::OpenOptions;
use std::io::{self, Write};

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::kvm::{Kvm, KvmVm, OpenError};
use vellum_backend::state::{DescriptorTable, Xcr0};
use vellum_backend::{Exit, HostMemory, IoWidth, Protection, VcpuState, Vm};
use vellum_backend::{Tracking, VmConfig};
use vellum_layout::{Gpa, GpaRange, Gva};

/// The environment variable that names the file for lines about what ran.
const REPORT_VARIABLE: &str = "VELLUM_TEST_REPORT";

pub(crate) const MEMORY_LEN_BYTES: u64 = 0x10_0000;
pub(crate) const CODE: u64 = 0x5000;
pub(crate) const PD: u64 = 0x3000;
pub(crate) const PT: u64 = 0x4000;
pub(crate) const STACK_TOP: u64 = 0x1_0000;
pub(crate) const PRESENT_WRITE_USER_USED: u64 = 0x67;

/// A 4-level identity map of the first 2 MiB: root, second and third level, page table.
const TABLES: [(u64, u64); 3] = [(0x1000, 0x2000), (0x2000, PD), (PD, PT)];

/// The task-state segment lies at 0; its I/O bitmap follows it, allows ports 0 to 255, and ends in a byte of ones.
const TSS_LEN_BYTES: u16 = 0x68;
const TSS_LAST: u16 = TSS_LEN_BYTES + 32;

/// Memory at GPA 0, mapped one to one in long mode, with code at [`CODE`]. The memory outlives the VM.
pub(crate) struct Guest {
    pub(crate) vm: KvmVm,
    pub(crate) memory: HostMemory,
}

impl Guest {
    /// Runs to the next exit.
    pub(crate) fn run(&mut self) -> Exit {
        self.vm.run().expect("ran")
    }

    /// The state, once what the last exit left half done is complete.
    pub(crate) fn settled(&mut self) -> VcpuState {
        VcpuState::save(&mut self.vm).expect("saved")
    }
}

/// Opens KVM for a test that counts as run, or says why not.
pub(crate) fn kvm() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => {
            println!("{:?}", kvm.capabilities());
            report("tests=1");
            Some(kvm)
        }
        Err(error @ (OpenError::Absent | OpenError::Permission)) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Says that something could not be tested here.
pub(crate) fn skip(reason: &str) {
    // Written directly, because the harness hides what a passing test prints.
    let _ = writeln!(io::stderr(), "SKIPPED on kvm: {reason}");
    report(&format!("skipped={reason}"));
}

fn report(outcome: &str) {
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else {
        return;
    };
    let line = format!("engine=kvm suite=backend {outcome}\n");
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("the report can be written");
}

pub(crate) fn guest(kvm: &Kvm, code: &[u8], protection: Protection) -> Guest {
    guest_of(kvm, code, protection, MEMORY_LEN_BYTES)
}

/// A guest of `len_bytes`. Memory above the first 2 MiB is mapped by 2 MiB pages.
pub(crate) fn guest_of(kvm: &Kvm, code: &[u8], protection: Protection, len_bytes: u64) -> Guest {
    tracked_guest(kvm, code, (protection, Tracking::FirstWrites), len_bytes)
}

/// As [`guest_of`], with a way of tracking writes.
#[expect(unsafe_code, reason = "lends memory to the guest")]
pub(crate) fn tracked_guest(
    kvm: &Kvm,
    code: &[u8],
    (protection, tracking): (Protection, Tracking),
    len_bytes: u64,
) -> Guest {
    let memory = HostMemory::zeroed(len_bytes).expect("memory");
    write_machine(&memory);
    memory.write(CODE, code).expect("in bounds");
    let model = kvm.cpu_model(CpuProfile::Best).expect("a model");
    let config = VmConfig::new(model, tracking);
    let mut vm = kvm.create_vm(&config).expect("a vm");
    // SAFETY: the memory lives in the same struct and is dropped after the VM; nothing borrows its bytes.
    unsafe { vm.map(range(0, len_bytes), memory.hva(), protection) }.expect("mapped");
    Guest { vm, memory }
}

fn write_machine(memory: &HostMemory) {
    /// PS: the entry maps 2 MiB (Intel SDM volume 3, table 4-17).
    const LARGE: u64 = 1 << 7;
    let write = |at, value| memory.write_u64(at, value).expect("in bounds");
    for (table, next) in TABLES {
        write(table, next | PRESENT_WRITE_USER_USED);
    }
    for page in 0..(memory.len_bytes() >> 12).min(512) {
        write(PT + page * 8, page << 12 | PRESENT_WRITE_USER_USED);
    }
    for large in 1..memory.len_bytes().div_ceil(1 << 21) {
        write(
            PD + large * 8,
            large << 21 | LARGE | PRESENT_WRITE_USER_USED,
        );
    }
    memory
        .write(0x66, &TSS_LEN_BYTES.to_le_bytes())
        .expect("in bounds");
    memory
        .write(u64::from(TSS_LAST), &[0xFF])
        .expect("in bounds");
}

pub(crate) fn range(start: u64, len_bytes: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start).expect("an address"), len_bytes).expect("a range")
}

pub(crate) fn machine() -> Amd64Machine {
    Amd64Machine {
        root: Gpa::literal(0x1000),
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        tss: DescriptorTable {
            base: 0,
            limit: TSS_LAST,
        },
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    }
}

pub(crate) fn start() -> EntryPoint {
    EntryPoint {
        entry: Gva::literal(CODE),
        stack_top: Gva::literal(STACK_TOP),
        peb: Gva::literal(0),
    }
}

/// Ring 3 in long mode, at [`CODE`].
pub(crate) fn user_state() -> VcpuState {
    boot::amd64_user(&machine(), &start())
}

/// 32-bit protected mode without paging, at [`CODE`], with 40 in EAX and 2 in EBX.
pub(crate) fn flat_state() -> VcpuState {
    boot::flat32(Gpa::literal(CODE), Gpa::literal(STACK_TOP), 40, 2)
}

/// The value of a 4-byte `out` to port 0xE0.
pub(crate) fn out_data(exit: Exit) -> u32 {
    match exit {
        Exit::IoOut {
            port: 0xE0,
            width: IoWidth::Dword,
            data,
        } => data,
        other => panic!("{other:?}"),
    }
}
