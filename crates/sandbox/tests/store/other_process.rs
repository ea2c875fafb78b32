//! A snapshot that another process loads.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

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

#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_whole_snapshot() {
    with_user_guest(|lab| {
        for saves in 1..=8 {
            let directory = Directory::new();
            let last_line = kill_after(&directory, saves);
            for options in each_way() {
                let loaded = Snapshot::load(directory.path(), "tag", &options).expect("loaded");
                let found = counter(&mut lab.fork(&loaded));
                // Further saves may have ended that were not heard of.
                assert!(found >= last_line, "{found} after {last_line}");
                assert_eq!(
                    found,
                    loaded.generation(),
                    "state and generation of one snapshot"
                );
            }
        }
    });
}

/// Kills a process that saves for ever, once it has reported so many saves. Returns the last number that it reported.
fn kill_after(directory: &Directory, saves: usize) -> u64 {
    let program = std::env::current_exe().expect("this program has a path");
    let test = "other_process::the_other_process_saves_for_ever";
    let mut child = Command::new(program)
        .args(["--exact", "--ignored", "--nocapture", test])
        .env(STORE_VARIABLE, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let output = BufReader::new(child.stdout.take().expect("it has an output"));
    let numbers = output.lines().map_while(Result::ok);
    let numbers = numbers.filter_map(|line| line.strip_prefix("saved ")?.parse().ok());
    let last = numbers.take(saves).last().expect("it saves");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    last
}

#[test]
#[ignore = "runs in the process that another test starts, and is killed"]
fn the_other_process_saves_for_ever() {
    let store = std::env::var_os(STORE_VARIABLE).expect("the other test sets it");
    with_user_guest(|lab| {
        let mut sandbox = lab.sandbox();
        for number in 1_u64.. {
            count(&mut sandbox, 1);
            touch(&mut sandbox, number * 20 % 300);
            let snapshot = sandbox.snapshot().expect("taken");
            snapshot.save(&store, "tag").expect("saved");
            println!();
            println!("saved {number}");
            // The reader may be gone.
            let _ = std::io::stdout().flush();
        }
    });
}
