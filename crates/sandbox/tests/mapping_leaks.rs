//! Mapping and unmapping leaves nothing behind in the host process. The only test of its process, because it counts what the whole
//! process has mapped.

use std::fs;
use std::io::Write as _;

use vellum_sandbox::{
    CowMode, Engine, ErrorKind, Gpa, GuestImage, HostFunctions, Mapping, Sandbox, SharedMemory,
};

const AT: Gpa = Gpa::literal(0x4000_0000);
const ELSEWHERE: Gpa = Gpa::literal(0x5000_0000);
const ROUNDS: usize = 40;

/// What a process has: lines of its map that name the file or are shared memory, all lines, open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    mapped: usize,
    lines: usize,
    files: usize,
}

fn held(name: &str) -> Held {
    let maps = fs::read_to_string("/proc/self/maps").expect("readable");
    let mapped = |line: &&str| line.contains(name) || line.contains("/dev/zero");
    Held {
        mapped: maps.lines().filter(mapped).count(),
        lines: maps.lines().count(),
        files: fs::read_dir("/proc/self/fd").expect("readable").count(),
    }
}

fn sandbox(engine: &Engine) -> Sandbox {
    let image = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("a guest");
    let host = HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text));
    Sandbox::builder(&image)
        .heap_len_bytes(1 << 20)
        .host_functions(&host)
        .build(engine)
        .expect("a sandbox")
}

/// Maps a file and a memory, uses them, and takes every way out.
fn round(number: usize, sandbox: &mut Sandbox, path: &std::path::Path) {
    let memory = SharedMemory::new(3 * 4096).expect("memory");
    let file = Mapping::file("file", path).expect("a file").writable();
    let region = Mapping::region("region", &memory).expect("a region");
    sandbox.map(AT, &file).expect("mapped");
    sandbox.map(ELSEWHERE, &region).expect("mapped");
    assert!(sandbox.map(AT, &region).is_err());
    let at: u64 = sandbox.call("mapping_address", ("file",)).expect("called");
    let _: () = sandbox.call("write_address", (at, 7_u64)).expect("called");
    let snapshot = sandbox.snapshot().expect("a snapshot");
    if number.is_multiple_of(2) {
        sandbox.restore(&snapshot).expect("restored");
    }
    sandbox.unmap("region").expect("unmapped");
    sandbox.unmap("file").expect("unmapped");
    assert!(sandbox.unmap("file").is_err());
}

#[test]
fn nothing_stays_mapped() {
    let path = std::env::temp_dir().join(format!("vellum-leaks-{}", std::process::id()));
    fs::write(&path, vec![1; 10_000]).expect("written");
    let name = path.display().to_string();
    for cow in [CowMode::HostSide, CowMode::GuestSide] {
        let engine = match Engine::builder()
            .chosen_by_environment()
            .cow_mode(cow)
            .build()
        {
            Ok(engine) => engine,
            Err(error) if error.kind() == ErrorKind::NoHypervisor => {
                // Written directly, because the harness hides what a passing test prints.
                let _ = writeln!(std::io::stderr(), "SKIPPED {cow}: {error:?}");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        let mut kept = sandbox(&engine);
        let ready = kept.snapshot().expect("a snapshot");
        round(0, &mut kept, &path);
        kept.restore(&ready).expect("restored");
        let before = held(&name);
        assert_eq!(before.mapped, 0, "{cow}: {before:?}");
        for number in 0..ROUNDS {
            round(number, &mut kept, &path);
            // And a sandbox that is dropped with everything in place.
            let mut dropped = sandbox(&engine);
            let file = Mapping::file("file", &path).expect("a file");
            dropped.map(AT, &file).expect("mapped");
        }
        kept.restore(&ready).expect("restored");
        let after = held(&name);
        assert_eq!((after.mapped, after.files), (0, before.files), "{cow}");
        // The allocator may have grown a little; a leak would be of one line at least in each round.
        assert!(
            after.lines < before.lines + ROUNDS / 2,
            "{cow}: {before:?}, then {after:?}"
        );
    }
    fs::remove_file(&path).expect("removed");
}
