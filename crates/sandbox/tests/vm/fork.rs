//! A process that forks: KVM runs a vCPU only for the process that made it.
#![expect(unsafe_code, reason = "forks")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use vellum_sandbox::{EngineKind, ErrorKind, Sandbox, Snapshot};

use super::support::{Lab, add_to_counter, counter, in_each_mode, refused};

/// What the child does with the sandbox that it inherits: the vCPU does not run for it, and a restore makes another one. The emulator's VM
/// is memory of the process, and the child has a copy of it.
fn in_child(sandbox: &mut Sandbox, snapshot: &Snapshot) {
    if sandbox.engine().kind() != Some(EngineKind::Emulator) {
        let error = refused("a call", sandbox.call::<_, u64>("counter_get", ()));
        assert_eq!(error.kind(), ErrorKind::Hypervisor, "{error:?}");
        let error = refused("a call", sandbox.call::<_, u64>("counter_get", ()));
        assert_eq!(error.kind(), ErrorKind::NeedsRestore, "{error:?}");
    }
    sandbox.restore(snapshot).expect("restored");
    assert_eq!(counter(sandbox), 5);
    add_to_counter(sandbox, 1);
    sandbox.restore(snapshot).expect("restored");
    assert_eq!(counter(sandbox), 5);
}

/// Runs `child` in a forked process and returns its exit status.
fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child calls what an only thread may call, and ends without running anything of its parent's.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "the process can be forked");
    if pid == 0 {
        let status = i32::from(catch_unwind(AssertUnwindSafe(child)).is_err());
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: waits for the child, and writes to a local variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    status
}

fn prepare(lab: &Lab) -> (Sandbox, Snapshot) {
    let mut sandbox = lab.sandbox();
    add_to_counter(&mut sandbox, 5);
    let snapshot = sandbox.snapshot().expect("taken");
    add_to_counter(&mut sandbox, 2);
    (sandbox, snapshot)
}

#[test]
fn a_child_restores_what_it_inherits_in_a_vm_of_its_own_and_its_parent_goes_on() {
    in_each_mode(|lab| {
        let (mut sandbox, snapshot) = prepare(lab);
        assert_eq!(fork(|| in_child(&mut sandbox, &snapshot)), 0);
        assert_eq!(counter(&mut sandbox), 7);
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 5);
    });
}
