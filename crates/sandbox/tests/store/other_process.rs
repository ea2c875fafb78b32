//! A snapshot that another process loads.

use std::process::Command;

use vellum_sandbox::Snapshot;

use super::support::{
    Directory, count, counter, each_way, touch, with_each_kernel, with_user_guest,
};

/// The environment variable that tells the other process where the store is.
const STORE_VARIABLE: &str = "VELLUM_TEST_STORE";
const VALUE: u64 = 4711;

#[test]
fn another_process_runs_what_this_one_saved() {
    let directory = Directory::new();
    with_user_guest(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, VALUE);
        touch(&mut sandbox, 9);
        let snapshot = sandbox.snapshot().expect("taken");
        snapshot.save(directory.path(), lab.name).expect("saved");
        run_the_other_process(
            &directory,
            "other_process::the_other_process_for_user_guests",
        );
    });
}

#[test]
fn another_process_runs_a_kernel_that_this_one_saved() {
    let directory = Directory::new();
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        count(&mut sandbox, VALUE);
        let snapshot = sandbox.snapshot().expect("taken");
        // Another mode's snapshot takes the place of this one.
        snapshot.save(directory.path(), lab.name).expect("saved");
    });
    if directory.path().exists() {
        run_the_other_process(&directory, "other_process::the_other_process_for_kernels");
    }
}

fn run_the_other_process(directory: &Directory, test: &str) {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program)
        .args(["--exact", "--ignored", test])
        .env(STORE_VARIABLE, directory.path())
        .output()
        .expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
#[ignore = "runs in the process that another test starts"]
fn the_other_process_for_user_guests() {
    let store = std::env::var_os(STORE_VARIABLE).expect("the other test sets it");
    with_user_guest(|lab| {
        for options in each_way() {
            let snapshot = Snapshot::load(&store, lab.name, &options).expect("loaded");
            let mut sandbox = lab.fork(&snapshot);
            assert_eq!(counter(&mut sandbox), VALUE);
            let word: u64 = sandbox.call("read_arena", (8 * 4096_u64,)).expect("called");
            assert_eq!(word, 8 + 0x5EED);
        }
    });
}

#[test]
#[ignore = "runs in the process that another test starts"]
fn the_other_process_for_kernels() {
    let store = std::env::var_os(STORE_VARIABLE).expect("the other test sets it");
    with_each_kernel(|lab| {
        for options in each_way() {
            let snapshot = Snapshot::load(&store, lab.name, &options).expect("loaded");
            let mut sandbox = lab.fork(&snapshot);
            assert_eq!(counter(&mut sandbox), VALUE, "{}", lab.name);
        }
    });
}
