//! Every request to MSHV and to KVM fails once, with each error that its kind documents: while an engine opens, a sandbox is made, called, frozen,
//! restored and copied.
//!
//! What comes is an error of a kind, or success where the request was not needed or was made again; the sandbox says that it must be restored, and a
//! restore brings it back, or it says that it cannot be used any more; nothing leaks; the process and its other sandboxes do not notice.

mod double;
mod sandboxes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vellum_backend::kvm::{Kvm, OpenError};
use vellum_mshv_double::inject::{self, OPEN, Request, Target};
use vellum_sandbox::{
    CowMode, Engine, EngineKind, Error, ErrorKind, GuestImage, Sandbox, Snapshot,
};

use sandboxes::{count, host, new_sandbox};

/// The tests count the descriptors and mappings of the process, so they run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

const MSHV_RUN_VP: u64 = 0x8100_B800;

/// Requests of one kind that fail one by one; of those beyond, only the last does.
const EACH_OF_A_KIND: usize = 8;

/// What each request may fail with (Linux `drivers/hv/mshv_root_main.c` and `Documentation/virt/kvm/api.rst`, sections 4 and 5). EINTR and
/// EAGAIN are asked for separately. The kernel's memory may be exhausted at any request.
fn documented(request: &Request) -> &'static [i32] {
    match request.number {
        OPEN => &[libc::ENOENT, libc::EACCES, libc::EMFILE],
        // KVM_RUN, MSHV_RUN_VP
        0xAE80 | MSHV_RUN_VP => &[libc::EFAULT, libc::EIO, libc::ENOMEM],
        // KVM_CREATE_VM, KVM_CREATE_VCPU, MSHV_CREATE_PARTITION, MSHV_CREATE_VP
        0xAE01 | 0xAE41 | 0x4010_B800 | 0x4004_B801 => &[libc::EMFILE, libc::ENOMEM, libc::EINVAL],
        // KVM_SET_USER_MEMORY_REGION
        0x4020_AE46 => &[libc::EINVAL, libc::EEXIST, libc::ENOMEM],
        // MSHV_SET_GUEST_MEMORY
        0x4020_B802 => &[libc::EINVAL, libc::EEXIST, libc::EFAULT, libc::ENOMEM],
        number if is_mshv(number) => &[libc::EINVAL, libc::EIO],
        _ => &[libc::EINVAL, libc::ENOMEM],
    }
}

/// Bits 8 to 15 are those of the driver.
const fn is_mshv(number: u64) -> bool {
    number >> 8 & 0xFF == 0xB8
}

/// An engine whose requests fail.
#[derive(Clone, Copy, Debug)]
struct Tested {
    kind: EngineKind,
    cow: CowMode,
}

impl Tested {
    fn open(self) -> Result<Engine, Error> {
        Engine::builder().kind(self.kind).cow_mode(self.cow).build()
    }

    /// The engine, if this machine has its device.
    fn engine(self) -> Option<Engine> {
        let device = match self.kind {
            EngineKind::Mshv => double::open().map(drop),
            _ => open_kvm(),
        };
        if let Err(reason) = device {
            // Written directly, because the harness hides what a passing test prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED on {self:?}: {reason}");
            return None;
        }
        Some(self.open().expect("the device runs guests"))
    }

    fn target(self) -> Target {
        match self.kind {
            EngineKind::Mshv => Target::Mshv,
            _ => Target::Kvm,
        }
    }
}

/// Why there is no KVM, if there is none.
fn open_kvm() -> Result<(), String> {
    vellum_mshv_double::link();
    match Kvm::open() {
        Ok(_) => Ok(()),
        Err(error @ (OpenError::Absent | OpenError::Permission)) => Err(error.to_string()),
        Err(error) => panic!("{error:?}"),
    }
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the process holds open and mapped of hypervisors and snapshots, and all mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    mappings: usize,
    lines: usize,
}

fn held() -> Held {
    let maps = fs::read_to_string("/proc/self/maps").expect("readable");
    let is_ours = |line: &&str| line.contains("anon_inode:kvm") || line.contains("memfd");
    Held {
        descriptors: fs::read_dir("/proc/self/fd").expect("readable").count(),
        mappings: maps.lines().filter(is_ours).count(),
        lines: maps.lines().count(),
    }
}

fn image() -> GuestImage {
    GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid")
}

/// A sandbox's life. A step that fails ends it, after the sandbox has shown that it knows.
fn life(engine: &Engine, image: &GuestImage) -> Result<(), Error> {
    let mut sandbox = new_sandbox(engine, image)?;
    if let Err(error) = count(&mut sandbox, 1) {
        assert!(!sandbox.is_ready(), "ready after a call that failed");
        return Err(error);
    }
    let first = take_snapshot(&mut sandbox, 1)?;
    counts(&mut sandbox, 5, 6, &first)?;
    let second = take_snapshot(&mut sandbox, 6)?;
    counts(&mut sandbox, 7, 13, &first)?;
    for (snapshot, sum) in [(&first, 1), (&second, 6), (&first, 1)] {
        if let Err(error) = sandbox.restore(snapshot) {
            assert!(!sandbox.is_ready(), "ready after a restore that failed");
            recovers(&mut sandbox, &first);
            return Err(error);
        }
        counts(&mut sandbox, 2, sum + 2, &first)?;
    }
    let mut copy = Sandbox::from_snapshot(engine, &first, &host())?;
    counts(&mut copy, 2, 3, &first)
}

/// A snapshot that failed may have spoilt nothing. If the sandbox, whose counter stands at `sum`, says so, it is true.
fn take_snapshot(sandbox: &mut Sandbox, sum: u64) -> Result<Snapshot, Error> {
    sandbox.snapshot().or_else(|error| {
        if sandbox.is_ready() {
            assert_eq!(count(sandbox, 1)?, sum + 1, "after a failed snapshot");
        }
        Err(error)
    })
}

/// A call that adds to the counter; when it fails, a restore to `first`.
fn counts(
    sandbox: &mut Sandbox,
    amount: u64,
    expected: u64,
    first: &Snapshot,
) -> Result<(), Error> {
    match count(sandbox, amount) {
        Ok(sum) => {
            assert_eq!(sum, expected);
            Ok(())
        }
        Err(error) => {
            assert!(!sandbox.is_ready(), "ready after a call that failed");
            recovers(sandbox, first);
            Err(error)
        }
    }
}

/// A sandbox whose call or restore failed refuses calls until a restore brings it back, whole; or it cannot be used any more, and says so
/// each time. The counter of the snapshot stands at 1.
fn recovers(sandbox: &mut Sandbox, snapshot: &Snapshot) {
    let refused = count(sandbox, 1).expect_err("it must be restored first");
    let kinds = [ErrorKind::NeedsRestore, ErrorKind::Unusable];
    assert!(kinds.contains(&refused.kind()), "{refused:?}");
    match sandbox.restore(snapshot) {
        Ok(()) => assert_eq!(count(sandbox, 4).expect("restored"), 5),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
            let again = count(sandbox, 1).expect_err("it is unusable");
            assert_eq!(again.kind(), ErrorKind::Unusable, "{again:?}");
        }
    }
}

/// The kinds that a failing hypervisor may have for its caller.
fn is_expected(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Hypervisor
            | ErrorKind::NoHypervisor
            | ErrorKind::Unsupported
            | ErrorKind::Crashed
            | ErrorKind::Io
            | ErrorKind::Unusable
    )
}

/// The requests that fail, by their number: each of a kind, up to a limit, and the last.
fn chosen(made: &[Request]) -> Vec<usize> {
    let mut places: BTreeMap<(u64, Option<u16>), Vec<usize>> = BTreeMap::new();
    for (index, request) in made.iter().enumerate() {
        let key = (request.number, request.hypercall);
        places.entry(key).or_default().push(index);
    }
    let of_kind = |indexes: &Vec<usize>| {
        let last = indexes.iter().skip(EACH_OF_A_KIND).last();
        let first = indexes.iter().take(EACH_OF_A_KIND);
        first.chain(last).copied().collect::<Vec<usize>>()
    };
    places.values().flat_map(of_kind).collect()
}

/// What became of failures.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    errors: usize,
    harmless: usize,
}

/// Lets the requests of `body` fail in turn.
fn each_request_fails(target: Target, what: &str, body: impl Fn() -> Result<(), Error>) -> Tally {
    body().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let (result, made) = inject::recorded(target, &body);
    result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let before = held();
    let mut tally = Tally::default();
    for index in chosen(&made) {
        let request = made[index];
        for &errno in documented(&request) {
            match inject::failing(target, index, errno, &body).0 {
                Ok(()) => tally.harmless += 1,
                Err(error) => {
                    tally.errors += 1;
                    assert!(
                        is_expected(error.kind()),
                        "{what}: {request:x?} with {errno}: {error:?}"
                    );
                }
            }
            let after = held();
            assert_eq!(
                (after.descriptors, after.mappings),
                (before.descriptors, before.mappings),
                "{what}: {request:x?} with {errno} leaks"
            );
        }
    }
    // The allocator may have grown a little; a leak would be of a line at least for each failure.
    let after = held();
    assert!(
        after.lines < before.lines + tally.errors / 2 + 8,
        "{what}: {before:?}, then {after:?}"
    );
    body().unwrap_or_else(|error| panic!("{what}: afterwards: {error:?}"));
    tally
}

fn every_request_may_fail(tested: Tested) {
    let _alone = alone();
    let Some(engine) = tested.engine() else {
        return;
    };
    let image = image();
    let mut bystander = new_sandbox(&engine, &image).expect("a sandbox");
    let target = tested.target();
    let made = inject::recorded(target, || life(&engine, &image)).1;
    let kinds: BTreeSet<_> = made.iter().map(|it| (it.number, it.hypercall)).collect();
    assert!(kinds.len() >= 8, "a life's requests are seen: {kinds:x?}");
    let lives = each_request_fails(target, "a life", || life(&engine, &image));
    let opened = each_request_fails(target, "opening", || tested.open().map(drop));
    println!("{tested:?}: {lives:?} in a life, {opened:?} at opening");
    for tally in [lives, opened] {
        assert!(tally.errors > 10, "{tally:?}");
        assert!(tally.errors > tally.harmless, "{tally:?}");
    }
    assert_eq!(count(&mut bystander, 3).expect("another sandbox"), 3);
}

#[test]
fn every_request_to_kvm_may_fail_host_side() {
    every_request_may_fail(Tested {
        kind: EngineKind::Kvm,
        cow: CowMode::HostSide,
    });
}

#[test]
fn every_request_to_kvm_may_fail_guest_side() {
    every_request_may_fail(Tested {
        kind: EngineKind::Kvm,
        cow: CowMode::GuestSide,
    });
}

#[test]
fn every_request_to_mshv_may_fail() {
    every_request_may_fail(MSHV);
}

const MSHV: Tested = Tested {
    kind: EngineKind::Mshv,
    cow: CowMode::HostSide,
};

#[test]
fn requests_to_mshv_that_are_only_delayed_succeed() {
    let _alone = alone();
    if MSHV.engine().is_none() {
        return;
    }
    let image = image();
    let build = || {
        let engine = MSHV.open()?;
        new_sandbox(&engine, &image).map(drop)
    };
    let (result, made) = inject::recorded(Target::Mshv, build);
    result.expect("works undisturbed");
    let mut seen = BTreeSet::new();
    for (index, request) in made.iter().enumerate() {
        let is_known = !seen.insert((request.number, request.hypercall));
        if request.number == OPEN || is_known {
            continue;
        }
        // A run that a signal ends is one that the caller is told about.
        let delays: &[i32] = match request.number {
            MSHV_RUN_VP => &[libc::EAGAIN],
            _ => &[libc::EAGAIN, libc::EINTR],
        };
        for &errno in delays {
            let (result, _) = inject::failing(Target::Mshv, index, errno, build);
            assert!(result.is_ok(), "{request:x?} {errno}: {result:?}");
        }
    }
}
