//! Two things that the backend must never forget, taken from it on their way to the device: without either of them the suite that every engine must
//! pass fails, and so does every sandbox.
#![expect(unsafe_code, reason = "lends memory to a guest")]

mod double;
mod sandboxes;
mod subject;

use std::io::Write as _;
use std::sync::Arc;

use vellum_backend::boot::{self, Amd64Machine, EntryPoint};
use vellum_backend::cpuid::CpuProfile;
use vellum_backend::hyperv::HypervViolation;
use vellum_backend::mshv::Mshv;
use vellum_backend::state::{Xcr0, cr0};
use vellum_backend::{
    Exit, HostMemory, IoWidth, Protection, StateGroup, Tracking, VcpuState, Vm, VmConfig, VmError,
};
use vellum_conformance::{Outcome, Subject, checks};
use vellum_layout::{Gpa, GpaRange, Gva};
use vellum_mshv_double::inject::{self, Request, Target};
use vellum_sandbox::{Engine, EngineKind, Error, GuestImage};

use sandboxes::{count, new_sandbox};

/// `HvX64RegisterCr0` (TLFS, appendix on register names).
const CR0: u32 = 0x40000;
/// `MSHV_SET_VP_STATE` (Linux `include/uapi/linux/mshv.h`), which the backend makes for the extended state only.
const SET_VP_STATE: u64 = 0xC010_B802;

fn writes_extended_state(request: &Request) -> bool {
    request.number == SET_VP_STATE
}

/// What a backend does that forgets CR0.ET.
fn without_et<T>(body: impl FnOnce() -> T) -> T {
    inject::altering(CR0, |value| value & !cr0::ET, body)
}

/// What a backend does that forgets to write the extended state.
fn without_extended_state<T>(body: impl FnOnce() -> T) -> T {
    inject::losing(Target::Mshv, writes_extended_state, body)
}

/// The engine, or why there is none.
fn engine() -> Option<Mshv> {
    double::open()
        .inspect_err(|reason| {
            let _ = writeln!(std::io::stderr(), "SKIPPED on mshv-double: {reason}");
        })
        .ok()
}

fn create_vm(engine: &Mshv) -> Box<dyn Vm> {
    let model = engine.cpu_model(CpuProfile::Best).expect("a cpu model");
    let config = VmConfig::new(Arc::new(model), Tracking::None);
    let vm = engine.create_vm(&config).expect("a vm");
    Box::new(vm)
}

/// The boot state of every kind of guest.
fn boot_states() -> [(&'static str, VcpuState); 5] {
    let root = Gpa::literal(0x1000);
    let machine = Amd64Machine::bare(root, Xcr0::RESET);
    let start = EntryPoint {
        entry: Gva::literal(0x8000),
        stack_top: Gva::literal(0x9000),
        peb: Gva::literal(0),
    };
    let (entry, stack) = (Gpa::literal(0x8000), Gpa::literal(0x9000));
    [
        ("real mode", boot::real_mode(0, 0x8000)),
        ("flat", boot::flat32(entry, stack, 0, 0)),
        ("paged", boot::i686_paged(root, &start)),
        ("kernel", boot::amd64_kernel(&machine, &start)),
        ("user", boot::amd64_user(&machine, &start)),
    ]
}

#[test]
fn a_boot_state_without_et_is_refused_before_the_device_sees_it() {
    let Some(engine) = engine() else { return };
    for (kind, mut state) in boot_states() {
        let mut vm = create_vm(&engine);
        state
            .restore(vm.as_mut())
            .unwrap_or_else(|error| panic!("{kind}: {error:?}"));
        state.special.cr0 &= !cr0::ET;
        let (result, made) =
            inject::recorded(Target::Mshv, || vm.set_state(StateGroup::Special, &state));
        let is_typed = matches!(
            result,
            Err(VmError::InvalidState(HypervViolation::ExtensionTypeClear(it))) if it == state.special.cr0
        );
        assert!(is_typed, "{kind}: {result:?}");
        assert!(made.is_empty(), "{kind}: {made:?}");
    }
}

#[test]
fn the_device_refuses_it_as_well() {
    let Some(engine) = engine() else { return };
    for (kind, state) in boot_states() {
        let mut vm = create_vm(&engine);
        let result = without_et(|| state.restore(vm.as_mut()));
        assert!(
            matches!(result, Err(VmError::Hypervisor { .. })),
            "{kind}: {result:?}"
        );
        state.restore(vm.as_mut()).expect(kind);
    }
}

/// A guest of one instruction, in real mode, on a virtual processor to which nobody wrote but registers. Its VM is made by `create`.
fn first_run(create: impl FnOnce() -> Box<dyn Vm>) -> Exit {
    let range = GpaRange::literal(Gpa::literal(0), 0x10_000);
    let memory = HostMemory::zeroed(range.len_bytes()).expect("memory");
    let mut vm = create();
    // out 0x10, al
    memory.write(0x8000, &[0xE6, 0x10]).expect("in bounds");
    // SAFETY: the memory is dropped after the VM, and nothing borrows it.
    unsafe { vm.map(range, memory.hva(), Protection::Write) }.expect("mapped");
    let state = boot::real_mode(0, 0x8000);
    for group in [StateGroup::Special, StateGroup::General] {
        vm.set_state(group, &state).expect("set");
    }
    let exit = vm.run().expect("runs");
    drop(vm);
    exit
}

#[test]
fn the_extended_state_is_initialised_before_the_first_run() {
    let Some(engine) = engine() else { return };
    let exit = first_run(|| create_vm(&engine));
    let output = Exit::IoOut {
        port: 0x10,
        width: IoWidth::Byte,
        data: 0,
    };
    assert_eq!(exit, output);
    let exit = first_run(|| without_extended_state(|| create_vm(&engine)));
    assert!(
        matches!(exit, Exit::InvalidState { .. }),
        "without: {exit:?}"
    );
}

/// How the checks about boot states end.
fn boots(subject: &Subject) -> Vec<(&'static str, Outcome)> {
    checks()
        .iter()
        .filter(|check| check.name.starts_with("boots::"))
        .map(|check| (check.name, check.on(subject)))
        .filter(|(_, outcome)| !matches!(outcome, Outcome::NotHere(_)))
        .collect()
}

#[test]
fn without_either_the_suite_of_all_engines_fails() {
    if engine().is_none() {
        return;
    }
    let subject = subject::subject("mshv-double");
    for (check, outcome) in boots(&subject) {
        assert!(matches!(outcome, Outcome::Passed), "{check}: {outcome}");
    }
    let mutated = [
        ("CR0.ET", without_et(|| boots(&subject))),
        (
            "the extended state",
            without_extended_state(|| boots(&subject)),
        ),
    ];
    for (what, outcomes) in mutated {
        assert!(!outcomes.is_empty());
        for (check, outcome) in outcomes {
            assert!(
                matches!(outcome, Outcome::Failed(_)),
                "without {what}: {check}: {outcome}"
            );
            println!("without {what}: {check}: {outcome}");
        }
    }
}

fn life(engine: &Engine, image: &GuestImage) -> Result<u64, Error> {
    let mut sandbox = new_sandbox(engine, image)?;
    let result = count(&mut sandbox, 1);
    assert_eq!(sandbox.is_ready(), result.is_ok(), "{result:?}");
    result
}

#[test]
fn without_either_no_sandbox_runs() {
    if engine().is_none() {
        return;
    }
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("a guest");
    let engine = Engine::builder()
        .kind(EngineKind::Mshv)
        .build()
        .expect("an engine");
    assert_eq!(life(&engine, &image).expect("works undisturbed"), 1);
    let mutated = [
        ("CR0.ET", without_et(|| life(&engine, &image))),
        (
            "the extended state",
            without_extended_state(|| life(&engine, &image)),
        ),
    ];
    for (what, result) in mutated {
        let error = result.expect_err(what);
        println!("without {what}: {:?}: {error}", error.kind());
    }
    assert_eq!(life(&engine, &image).expect("works afterwards"), 1);
}
