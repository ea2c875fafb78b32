//! Calls cost one `KVM_RUN` each and no other system call.
//!
//! Each case runs in a process of its own: this test binary again, with an environment variable that names the case. The
//! process makes a sandbox, warms it up, and then allows its thread nothing but `KVM_RUN` and the end of the process: the
//! kernel kills it for anything else.
#![expect(
    unsafe_code,
    reason = "ends a process without the library's cleaning up"
)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vellum_sandbox::{CallOptions, CancelToken, CowMode, EngineKind, Sandbox, Snapshot};

use super::support::{in_each_mode, in_mode};

/// Names the case and the mode, in the process that runs it.
const CASE_VARIABLE: &str = "VELLUM_SYSTEM_CALL_CASE";
/// The request number of `KVM_RUN` (Linux `include/uapi/linux/kvm.h`: `_IO(0xAE, 0x80)`).
const KVM_RUN: u64 = 0xAE80;
/// The test that the process runs.
const CHILD: &str = "system_calls::child";

/// What is done under the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    NullCalls,
    HostCalls,
    CancellableCalls,
    Restores,
    /// The negative control.
    AnotherSystemCall,
}

const CASES: [Case; 5] = [
    Case::NullCalls,
    Case::HostCalls,
    Case::CancellableCalls,
    Case::Restores,
    Case::AnotherSystemCall,
];

fn filter() -> BpfProgram {
    let is_run = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, KVM_RUN)
        .expect("valid");
    let rules = [
        (
            libc::SYS_ioctl,
            vec![SeccompRule::new(vec![is_run]).expect("valid")],
        ),
        (libc::SYS_exit_group, Vec::new()),
    ];
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    filter.expect("valid").try_into().expect("a short program")
}

/// Does it `count` times. Nothing here may allocate much: a system call for more memory is one too many.
fn perform(case: Case, sandbox: &mut Sandbox, snapshot: &Snapshot, count: u32) -> bool {
    let token = CancelToken::new();
    let options = CallOptions::new().cancel_token(&token);
    let Ok(null) = sandbox.function::<(), ()>("null") else {
        return false;
    };
    let Ok(touch) = sandbox.function::<(u64,), u64>("touch_pages") else {
        return false;
    };
    (0..count).all(|_| match case {
        Case::NullCalls => null.call(sandbox, ()).is_ok(),
        Case::HostCalls => sandbox
            .call::<_, i32>("call_host_add", (40, 2))
            .is_ok_and(|sum| sum == 42),
        Case::CancellableCalls => null.call_with(sandbox, (), &options).is_ok(),
        Case::Restores => touch.call(sandbox, (10,)).is_ok() && sandbox.restore(snapshot).is_ok(),
        Case::AnotherSystemCall => {
            // SAFETY: `getppid` has no preconditions.
            unsafe { libc::getppid() > 0 }
        }
    })
}

/// Runs in the child process; in the parent it has nothing to do.
#[test]
fn child() {
    let Ok(wanted) = std::env::var(CASE_VARIABLE) else {
        return;
    };
    for cow in [CowMode::HostSide, CowMode::GuestSide] {
        let Some(case) = CASES
            .into_iter()
            .find(|case| wanted == format!("{case:?} {cow}"))
        else {
            continue;
        };
        in_mode(cow, |lab| {
            let mut sandbox = lab.sandbox();
            let snapshot = sandbox.snapshot().expect("taken");
            assert!(perform(case, &mut sandbox, &snapshot, 10), "warming up");
            sandbox.restore(&snapshot).expect("restored");
            assert!(perform(case, &mut sandbox, &snapshot, 10), "warming up");
            seccompiler::apply_filter(&filter()).expect("the kernel takes the filter");
            let succeeded = perform(case, &mut sandbox, &snapshot, 100);
            end_with(i32::from(!succeeded));
        });
    }
}

fn end_with(status: i32) {
    // SAFETY: ends the process at once, which leaves nothing behind that anybody needs.
    unsafe { libc::_exit(status) }
}

fn run(case: Case, cow: CowMode) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", CHILD, "--nocapture", "--test-threads=1"])
        .env(CASE_VARIABLE, format!("{case:?} {cow}"))
        .env_remove("VELLUM_TEST_REPORT")
        .status()
        .expect("this binary can be started")
}

fn needs_only_kvm_run(case: Case) {
    in_each_mode(|lab| {
        let status = run(case, lab.engine.cow_mode());
        assert_eq!(status.code(), Some(0), "{case:?}: {status}");
    });
}

#[test]
fn a_hundred_null_calls_need_kvm_run_only() {
    needs_only_kvm_run(Case::NullCalls);
}

#[test]
fn a_hundred_host_calls_need_kvm_run_only() {
    needs_only_kvm_run(Case::HostCalls);
}

#[test]
fn a_hundred_cancellable_calls_need_kvm_run_only() {
    needs_only_kvm_run(Case::CancellableCalls);
}

#[test]
fn a_hundred_host_side_restores_need_kvm_run_only() {
    in_mode(CowMode::HostSide, |lab| {
        if lab.engine.kind() == Some(EngineKind::Emulator) {
            return Err("the emulator has no KVM_RUN, and memory of its own that grows");
        }
        let status = run(Case::Restores, lab.engine.cow_mode());
        assert_eq!(status.code(), Some(0), "{status}");
        Ok(())
    });
}

#[test]
fn another_system_call_is_killed_so_the_filter_works() {
    in_each_mode(|lab| {
        let status = run(Case::AnotherSystemCall, lab.engine.cow_mode());
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}");
    });
}
