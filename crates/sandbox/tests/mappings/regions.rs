//! Memory that host and guests share.

use vellum_sandbox::{Mapping, Sandbox, SharedMemory};

use crate::support::*;

fn host_word(memory: &SharedMemory, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    memory.read(offset, &mut bytes).expect("in bounds");
    u32::from_le_bytes(bytes)
}

/// Memory that a new sandbox may write, the sandbox, and the address in it.
fn shared_with(lab: &Lab, len_bytes: u64) -> (SharedMemory, Sandbox, u64) {
    let memory = SharedMemory::new(len_bytes).expect("memory");
    let mapping = Mapping::region("shared", &memory).expect("mapped");
    let mut sandbox = lab.sandbox();
    sandbox.map(AT, &mapping.writable()).expect("mapped");
    let at = lab.locate(&mut sandbox, "shared");
    (memory, sandbox, at)
}

#[test]
fn host_and_guest_see_each_others_writes() {
    with_each_guest(|lab| {
        let (memory, mut sandbox, at) = shared_with(lab, 2 * PAGE);
        memory.write(16, &7_u32.to_le_bytes()).expect("in bounds");
        assert_eq!(word(&mut sandbox, at + 16), 7);
        write(&mut sandbox, at + PAGE, 8).expect("written");
        assert_eq!(host_word(&memory, PAGE), 8);
        memory.store(24, 9).expect("in bounds");
        assert_eq!(word(&mut sandbox, at + 24), 9);
    });
}

#[test]
fn sandboxes_share_it_with_each_other_each_with_its_own_rights() {
    with_each_guest(|lab| {
        let memory = SharedMemory::new(100).expect("memory");
        let read_only = Mapping::region("shared", &memory).expect("mapped");
        let (mut writer, mut reader) = (lab.sandbox(), lab.sandbox());
        writer
            .map(AT, &read_only.clone().writable())
            .expect("mapped");
        reader.map(ELSEWHERE, &read_only).expect("mapped");
        let at = lab.locate(&mut writer, "shared");
        write(&mut writer, at + 32, 7).expect("written");
        let at = lab.locate(&mut reader, "shared");
        assert_eq!(word(&mut reader, at + 32), 7);
        let result = write(&mut reader, at + 32, 8);
        assert_stopped("a write", &reader, result);
        assert_eq!(host_word(&memory, 32), 7);
    });
}

#[test]
fn no_restore_puts_it_back() {
    with_each_guest(|lab| {
        let (memory, mut sandbox, at) = shared_with(lab, PAGE);
        let ready = sandbox.snapshot().expect("a snapshot");
        write(&mut sandbox, at, 7).expect("written");
        sandbox.restore(&ready).expect("restored");
        let at = lab.locate(&mut sandbox, "shared");
        assert_eq!(word(&mut sandbox, at), 7);
        assert_eq!(host_word(&memory, 0), 7);
    });
}

#[test]
fn it_outlives_its_sandboxes_and_they_their_handle() {
    with_each_guest(|lab| {
        let (memory, mut sandbox, at) = shared_with(lab, PAGE);
        write(&mut sandbox, at, 7).expect("written");
        drop(sandbox);
        assert_eq!(host_word(&memory, 0), 7);

        let mapping = Mapping::region("shared", &memory).expect("mapped");
        let mapping = mapping.writable();
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &mapping).expect("mapped");
        drop((memory, mapping));
        let at = lab.locate(&mut sandbox, "shared");
        assert_eq!(word(&mut sandbox, at), 7);
    });
}

#[test]
fn threads_of_the_host_use_it_while_a_guest_does() {
    with_each_guest(|lab| {
        let (memory, mut sandbox, at) = shared_with(lab, PAGE);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                for value in 1..=1000 {
                    memory.store(64, value).expect("in bounds");
                }
            });
            for value in 0..20 {
                write(&mut sandbox, at, value).expect("written");
                assert_eq!(host_word(&memory, 0), value);
            }
            other.join().expect("the thread ends");
        });
        assert_eq!(word(&mut sandbox, at + 64), 1000);
    });
}
