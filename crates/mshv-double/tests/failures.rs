//! Every request that a program makes fails once, with every errno that its kind of request documents.
//!
//! Whatever fails, the outcome is a typed error or success after a repetition; the sandbox is marked and a restore brings it back, or it says that it
//! cannot; nothing leaks; and the process goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::sync::Mutex;

use vellum_mshv_double::inject::{self, OPEN, Request, Target};
use vellum_sandbox::{
    CowMode, Engine, EngineKind, Error, ErrorKind, GuestImage, HostFunctions, Sandbox,
};

/// The tests count the descriptors and mappings of the process, so they run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

const RUN_VP: u64 = 0x8100_B800;
const KVM_RUN: u64 = 0xAE80;

/// What each request may fail with (Linux `drivers/hv/mshv_root_main.c` and `Documentation/virt/kvm/api.rst`). EINTR and EAGAIN are asked for separately.
fn documented(request: &Request) -> &'static [i32] {
    match request.number {
        OPEN => &[libc::ENOENT, libc::EACCES, libc::EMFILE],
        RUN_VP | KVM_RUN => &[libc::EIO, libc::ENOMEM],
        // Make a descriptor.
        0x4010_B800 | 0x4004_B801 | 0xAE01 | 0xAE41 => &[libc::ENOMEM, libc::EMFILE],
        // Change memory.
        0x4020_B802 => &[libc::ENOMEM, libc::EEXIST, libc::EFAULT],
        0x4020_AE46 => &[libc::ENOMEM, libc::EEXIST],
        _ => &[libc::EINVAL, libc::EIO],
    }
}

fn open(kind: EngineKind) -> Result<Engine, Error> {
    Engine::builder()
        .kind(kind)
        .cow_mode(CowMode::HostSide)
        .build()
}

/// An engine, or why there is none.
fn engine(kind: EngineKind) -> Option<Engine> {
    vellum_mshv_double::link();
    match open(kind) {
        Ok(engine) => Some(engine),
        Err(error) if error.kind() == ErrorKind::NoHypervisor => {
            let _ = writeln!(std::io::stderr(), "SKIPPED on {kind}: {error:?}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn image() -> GuestImage {
    GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid")
}

fn new_sandbox(engine: &Engine, image: &GuestImage) -> Result<Sandbox, Error> {
    let host = HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text));
    Sandbox::builder(image)
        .heap_len_bytes(1 << 20)
        .host_functions(&host)
        .build(engine)
}

/// Descriptors and mappings of this process.
fn holdings() -> (usize, usize) {
    let descriptors = fs::read_dir("/proc/self/fd").expect("Linux has it").count();
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux has it");
    (descriptors, maps.lines().count())
}

/// The plans that fail each of `made` once, with each of its errnos. Of many requests of the same kind the first, the second and the last
/// stand for all.
fn plans(made: &[Request]) -> Vec<(usize, i32)> {
    let mut places: BTreeMap<(u64, Option<u16>), Vec<usize>> = BTreeMap::new();
    for (index, request) in made.iter().enumerate() {
        let key = (request.number, request.hypercall);
        places.entry(key).or_default().push(index);
    }
    let mut plans = Vec::new();
    for indexes in places.values() {
        let mut chosen: Vec<usize> = indexes.iter().copied().take(2).collect();
        chosen.extend(indexes.last());
        chosen.dedup();
        for index in chosen {
            let errnos = documented(&made[index]);
            plans.extend(errnos.iter().map(|&errno| (index, errno)));
        }
    }
    plans
}

fn count(sandbox: &mut Sandbox) -> Result<u64, Error> {
    sandbox.call("counter_add", (1_u64,))
}

fn target(kind: EngineKind) -> Target {
    match kind {
        EngineKind::Mshv => Target::Mshv,
        _ => Target::Kvm,
    }
}

/// Opening the hypervisor and making a sandbox: an error, and nothing is left behind.
fn building_fails_cleanly(kind: EngineKind) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if engine(kind).is_none() {
        return;
    }
    let image = image();
    let build = || {
        let engine = open(kind)?;
        new_sandbox(&engine, &image).map(drop)
    };
    let (result, made) = inject::recorded(target(kind), build);
    result.expect("works undisturbed");
    let before = holdings();
    let plans = plans(&made);
    let mut refused = 0;
    for &(index, errno) in &plans {
        let (result, _) = inject::failing(target(kind), index, errno, build);
        refused += usize::from(result.is_err());
        let after = holdings();
        assert_eq!(after.0, before.0, "descriptors: {:?} {errno}", made[index]);
        // The allocator of the system may map a little for itself.
        assert!(
            after.1 <= before.1 + 8,
            "mappings: {:?} {errno}",
            made[index]
        );
    }
    println!("{kind}: {refused} of {} failures are errors", plans.len());
    assert!(refused * 2 > plans.len(), "{refused} of {}", plans.len());
    build().expect("works afterwards");
}

/// Calls, snapshots and restores: after an error the sandbox refuses work until it is restored, and then it is as before; another one is not affected.
fn using_fails_cleanly(kind: EngineKind) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(engine) = engine(kind) else { return };
    let image = image();
    let mut neighbour = new_sandbox(&engine, &image).expect("a sandbox");
    let mut sandbox = new_sandbox(&engine, &image).expect("a sandbox");
    let base = sandbox.snapshot().expect("a snapshot");
    let first = count(&mut sandbox).expect("counts");
    sandbox.restore(&base).expect("restored");
    let session = |sandbox: &mut Sandbox| {
        count(sandbox)?;
        let later = sandbox.snapshot()?;
        count(sandbox)?;
        sandbox.restore(&base)?;
        count(sandbox)?;
        sandbox.restore(&later)?;
        sandbox.restore(&base)
    };
    let (result, made) = inject::recorded(target(kind), || session(&mut sandbox));
    result.expect("works undisturbed");
    let plans = plans(&made);
    let mut refused = 0;
    for &(index, errno) in &plans {
        let (result, _) = inject::failing(target(kind), index, errno, || session(&mut sandbox));
        refused += usize::from(result.is_err());
        let what = format!("{:?} {errno}", made[index]);
        if let Err(error) = result {
            let is_typed = matches!(
                error.kind(),
                ErrorKind::Hypervisor
                    | ErrorKind::Crashed
                    | ErrorKind::NeedsRestore
                    | ErrorKind::Unusable
            );
            assert!(is_typed, "{what}: {error:?}");
        }
        if sandbox.restore(&base).is_err() {
            // It said that it cannot be saved.
            sandbox = new_sandbox(&engine, &image).expect("another one");
            sandbox.restore(&base).expect("a new one is restored");
        }
        assert_eq!(count(&mut sandbox).expect(&what), first, "{what}");
        sandbox.restore(&base).expect(&what);
    }
    println!("{kind}: {refused} of {} failures are errors", plans.len());
    assert!(refused * 2 > plans.len(), "{refused} of {}", plans.len());
    count(&mut neighbour).expect("the neighbour lives");
}

#[test]
fn building_over_mshv_fails_cleanly() {
    building_fails_cleanly(EngineKind::Mshv);
}

#[test]
fn building_over_kvm_fails_cleanly() {
    building_fails_cleanly(EngineKind::Kvm);
}

#[test]
fn using_mshv_fails_cleanly() {
    using_fails_cleanly(EngineKind::Mshv);
}

#[test]
fn using_kvm_fails_cleanly() {
    using_fails_cleanly(EngineKind::Kvm);
}

#[test]
fn requests_over_mshv_that_are_only_delayed_succeed() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if engine(EngineKind::Mshv).is_none() {
        return;
    }
    let image = image();
    let build = || {
        let engine = open(EngineKind::Mshv)?;
        new_sandbox(&engine, &image).map(drop)
    };
    let (result, made) = inject::recorded(Target::Mshv, build);
    result.expect("works undisturbed");
    let mut seen = BTreeSet::new();
    for (index, request) in made.iter().enumerate() {
        let is_open = request.number == OPEN;
        let is_run = request.number == RUN_VP;
        let is_known = !seen.insert((request.number, request.hypercall));
        if is_open || is_known {
            continue;
        }
        // A run that a signal ends is one that the caller is told about.
        let delays: &[i32] = if is_run {
            &[libc::EAGAIN]
        } else {
            &[libc::EAGAIN, libc::EINTR]
        };
        for &errno in delays {
            let (result, _) = inject::failing(Target::Mshv, index, errno, build);
            assert!(result.is_ok(), "{request:?} {errno}: {result:?}");
        }
    }
}
