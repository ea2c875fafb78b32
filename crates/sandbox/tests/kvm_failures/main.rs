//! Every request to KVM fails once, with each error that it may have: while an engine opens, a sandbox is made, called, frozen, restored and
//! copied. What comes is an error of a kind, or success where the request was not needed; the sandbox says that it must be restored; nothing
//! leaks; the process and its other sandboxes do not notice. Alone in its process, because it counts what the whole process holds.

mod interposer;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;

use interposer::{Request, failing, recorded};
use vellum_sandbox::{
    CowMode, Engine, Error, ErrorKind, GuestImage, HostFunctions, Sandbox, Snapshot,
};

/// Errors that a request is made to have. The memory of the kernel may be exhausted at any of them; what they say of their arguments
/// is `EINVAL` (Linux `Documentation/virt/kvm/api.rst`, sections 4 and 5).
fn errnos(request: Request) -> &'static [i32] {
    match request.number() {
        // KVM_CREATE_VM, KVM_CREATE_VCPU
        0x01 | 0x41 => &[libc::EMFILE, libc::ENOMEM, libc::EINVAL],
        // KVM_SET_USER_MEMORY_REGION
        0x46 => &[libc::EINVAL, libc::EEXIST, libc::ENOMEM],
        // KVM_RUN
        0x80 => &[libc::EFAULT, libc::EIO, libc::ENOMEM],
        _ => &[libc::EINVAL, libc::ENOMEM],
    }
}

/// What the process holds open and mapped of KVM's and of snapshots.
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

fn host() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

fn count(sandbox: &mut Sandbox, amount: u64) -> Result<u64, Error> {
    sandbox.call("counter_add", (amount,))
}

/// A sandbox's life. A step that fails ends it, after the sandbox has shown that it knows.
fn life(engine: &Engine, image: &GuestImage) -> Result<(), Error> {
    let mut sandbox = Sandbox::builder(image)
        .heap_len_bytes(1 << 20)
        .host_functions(&host())
        .build(engine)?;
    if let Err(error) = count(&mut sandbox, 1) {
        assert!(!sandbox.is_ready(), "ready after a call that failed");
        return Err(error);
    }
    let snapshot = match sandbox.snapshot() {
        Ok(snapshot) => snapshot,
        Err(error) => {
            // A snapshot that failed may have spoilt nothing. If the sandbox says so, it is true.
            if sandbox.is_ready() {
                assert_eq!(count(&mut sandbox, 1)?, 2, "after a snapshot that failed");
            }
            return Err(error);
        }
    };
    for amount in [5, 7] {
        match count(&mut sandbox, amount) {
            Ok(sum) => assert_eq!(sum, 1 + amount),
            Err(error) => {
                assert!(!sandbox.is_ready(), "ready after a call that failed");
                recovers(&mut sandbox, &snapshot);
                return Err(error);
            }
        }
        if let Err(error) = sandbox.restore(&snapshot) {
            assert!(!sandbox.is_ready(), "ready after a restore that failed");
            recovers(&mut sandbox, &snapshot);
            return Err(error);
        }
    }
    let mut copy = Sandbox::from_snapshot(engine, &snapshot, &host())?;
    if let Err(error) = count(&mut copy, 2).map(|sum| assert_eq!(sum, 3)) {
        recovers(&mut copy, &snapshot);
        return Err(error);
    }
    Ok(())
}

/// A sandbox whose call or restore failed refuses calls until a restore brings it back, whole; or it cannot be used any more, and says so
/// each time.
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

/// Lets each request of `body` fail in turn. Returns how often that was an error, and how often it did not matter.
fn each_request_fails(what: &str, body: impl Fn() -> Result<(), Error>) -> (usize, usize) {
    body().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let (result, requests) = recorded(&body);
    result.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let before = held();
    let (mut failures, mut harmless) = (0, 0);
    for (index, request) in requests.iter().copied().enumerate() {
        for &errno in errnos(request) {
            match failing(index, errno, &body) {
                Ok(()) => harmless += 1,
                Err(error) => {
                    failures += 1;
                    assert!(
                        is_expected(error.kind()),
                        "{what}: {request:?} with {errno}: {error:?}"
                    );
                }
            }
            let after = held();
            assert_eq!(
                (after.descriptors, after.mappings),
                (before.descriptors, before.mappings),
                "{what}: {request:?} with {errno} leaks"
            );
        }
    }
    // The allocator may have grown a little; a leak would be of a line at least for each failure.
    let after = held();
    assert!(
        after.lines < before.lines + failures / 2 + 8,
        "{what}: {before:?}, then {after:?}"
    );
    body().unwrap_or_else(|error| panic!("{what}: afterwards: {error:?}"));
    (failures, harmless)
}

#[test]
fn every_request_to_kvm_may_fail() {
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("a guest");
    for cow in [CowMode::HostSide, CowMode::GuestSide] {
        let open = || Engine::builder().require_hardware().cow_mode(cow).build();
        let engine = match open() {
            Ok(engine) => engine,
            Err(error) if error.kind() == ErrorKind::NoHypervisor => {
                // Written directly, because the harness hides what a passing test prints.
                let _ = writeln!(std::io::stderr(), "SKIPPED {cow}: {error:?}");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        let mut bystander = Sandbox::builder(&image)
            .heap_len_bytes(1 << 20)
            .host_functions(&host())
            .build(&engine)
            .expect("a sandbox");
        let kinds: BTreeSet<u64> = recorded(|| life(&engine, &image))
            .1
            .into_iter()
            .map(Request::number)
            .collect();
        assert!(
            kinds.len() >= 8,
            "the requests of a life are seen: {kinds:x?}"
        );
        let lives = each_request_fails("a life", || life(&engine, &image));
        let opened = each_request_fails("opening", || open().map(drop));
        println!("{cow}: errors and harmless failures: {lives:?} in a life, {opened:?} at opening");
        assert!(lives.0 > 20 && opened.0 > 10, "{lives:?} {opened:?}");
        assert_eq!(count(&mut bystander, 3).expect("another sandbox"), 3);
    }
}
