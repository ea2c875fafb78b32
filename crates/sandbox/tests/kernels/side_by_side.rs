//! Guests of every kind in one process, at the same time.

use vellum_sandbox::{Engine, ErrorKind, GuestImage, HostFunctions, Sandbox, Snapshot};

use super::support::{HEAP_LEN_BYTES, Kernel, Lab, call, count, counter, host, with_each_kernel};

/// One sandbox of each kind that this machine has: amd64 user, and every kernel in every mode.
fn one_of_each() -> Vec<(String, Sandbox)> {
    let all = std::cell::RefCell::new(Vec::new());
    with_each_kernel(|lab: &Lab| {
        let name = format!("{} {}", lab.kernel, lab.engine.cow_mode());
        let mut all = all.borrow_mut();
        if lab.kernel == Kernel::Amd64 {
            all.push((
                format!("amd64-user {}", lab.engine.cow_mode()),
                user(&lab.engine),
            ));
        }
        all.push((name, lab.sandbox()));
    });
    all.into_inner()
}

fn user(engine: &Engine) -> Sandbox {
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("valid");
    let host: HostFunctions = host()
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text));
    Sandbox::builder(&image)
        .heap_len_bytes(HEAP_LEN_BYTES)
        .host_functions(&host)
        .build(engine)
        .expect("a sandbox can be built")
}

#[test]
fn guests_of_every_kind_are_called_in_turn_with_snapshots_in_between() {
    let mut all = one_of_each();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for round in 1..=4_u64 {
        for (name, sandbox) in &mut all {
            count(sandbox, round);
            assert_eq!(
                call::<_, i32>(sandbox, "call_host_add", (40, 2)),
                42,
                "{name}"
            );
            if round == 2 {
                snapshots.push(sandbox.snapshot().expect("a snapshot"));
            }
        }
    }
    for (name, sandbox) in &mut all {
        assert_eq!(counter(sandbox), 1 + 2 + 3 + 4, "{name}");
    }
    for round in 0..3 {
        for ((name, sandbox), snapshot) in all.iter_mut().zip(&snapshots) {
            sandbox.restore(snapshot).expect("restored");
            assert_eq!(counter(sandbox), 1 + 2, "{name}, round {round}");
            count(sandbox, 50);
        }
    }
}

#[test]
fn a_snapshot_of_another_kernel_is_refused_and_changes_nothing() {
    let mut all = one_of_each();
    let snapshots: Vec<Snapshot> = all
        .iter_mut()
        .map(|(_, sandbox)| sandbox.snapshot().expect("a snapshot"))
        .collect();
    for (mine, (name, sandbox)) in all.iter_mut().enumerate() {
        for snapshot in &snapshots {
            if snapshot.image().kind() == snapshots[mine].image().kind() {
                continue;
            }
            let error = sandbox.restore(snapshot).expect_err("another image");
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{name}: {error}");
        }
        count(sandbox, 1);
        assert_eq!(counter(sandbox), 1, "{name}");
    }
}
