//! What cannot be mapped, or unmapped: typed errors that name both parties, and nothing changed.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use vellum_sandbox::{
    EngineKind, Error, ErrorKind, Gpa, GpaRange, Irqchip, Mapping, Sandbox, SharedMemory,
};

use crate::support::*;

const LOCAL_APIC: Gpa = Gpa::literal(0xFEE0_0000);
const IO_APIC: Gpa = Gpa::literal(0xFEC0_0000);

fn region(label: &str, len_bytes: u64) -> Mapping {
    let memory = SharedMemory::new(len_bytes).expect("memory");
    Mapping::region(label, &memory).expect("mapped")
}

/// The error with its causes.
fn text(error: &Error) -> String {
    format!("{error:?}")
}

fn assert_refused(
    what: &str,
    result: Result<impl std::fmt::Debug, Error>,
    kind: ErrorKind,
    words: &[&str],
) {
    let error = refused(what, result);
    assert_eq!(error.kind(), kind, "{what}: {error:?}");
    for word in words {
        assert!(text(&error).contains(word), "{what}: {error:?}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let directory = TempPath::new();
    fs::create_dir(directory.path()).expect("made");
    let fifo = TempPath::new();
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, fifo.path(), FileType::Fifo, mode, 0).expect("made");
    let socket = TempPath::new();
    let _listener = UnixListener::bind(socket.path()).expect("made");
    let cases = [
        (directory.path(), "a directory"),
        (fifo.path(), "a fifo"),
        (socket.path(), "a socket"),
        ("/dev/null".as_ref(), "a device"),
    ];
    for (path, what) in cases {
        let name = path.display().to_string();
        let result = Mapping::file("label", path);
        assert_refused(what, result, ErrorKind::Io, &[what, &name]);
    }
    let open = File::open(directory.path()).expect("opened");
    let result = Mapping::open_file("label", open);
    assert_refused("an open directory", result, ErrorKind::Io, &["a directory"]);
}

#[test]
fn a_file_that_is_empty_or_not_there_is_refused() {
    let empty = TempPath::file_with(&[]);
    let result = Mapping::file("label", empty.path());
    assert_refused("an empty file", result, ErrorKind::Io, &["is empty"]);
    let missing = TempPath::new();
    let name = missing.path().display().to_string();
    let result = Mapping::file("label", missing.path());
    assert_refused(
        "a missing file",
        result,
        ErrorKind::Io,
        &["cannot open", &name],
    );
    // A regular file with a length of 0 that can be read nevertheless.
    let result = Mapping::file("label", "/proc/self/status");
    assert_refused("a file of proc", result, ErrorKind::Io, &["is empty"]);
}

#[test]
fn labels_have_one_to_32_bytes() {
    let memory = SharedMemory::new(1).expect("memory");
    let longest = "l".repeat(32);
    for label in ["x", &longest] {
        let mapping = Mapping::region(label, &memory).expect("a label");
        assert_eq!(mapping.label(), label);
    }
    for label in ["", &"l".repeat(33)] {
        let result = Mapping::region(label, &memory);
        let len_bytes = format!("{} bytes", label.len());
        assert_refused(label, result, ErrorKind::InvalidConfig, &[&len_bytes]);
    }
}

#[test]
fn a_shared_memory_has_at_least_one_byte_and_at_most_what_the_system_gives() {
    let result = SharedMemory::new(0);
    assert_refused("nothing", result, ErrorKind::InvalidConfig, &["0 bytes"]);
    for len_bytes in [u64::MAX, 1 << 60] {
        let result = SharedMemory::new(len_bytes);
        assert_refused("too much", result, ErrorKind::Hypervisor, &[]);
    }
}

#[test]
fn an_address_that_cannot_be_is_refused() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        let cases = [
            (0x4000_0004, "not a multiple of 0x1000"),
            (0x4000_0FFF, "not a multiple of 0x1000"),
            (0, "lowest guest-physical address"),
        ];
        for (gpa, words) in cases {
            let gpa = Gpa::new(gpa).expect("an address");
            let result = sandbox.map(gpa, &region("m", PAGE));
            assert_refused(words, result, ErrorKind::InvalidConfig, &["\"m\"", words]);
        }
        assert_eq!(mapping_count(&mut sandbox), 0);
    });
}

#[test]
fn what_reaches_beyond_every_address_is_refused() {
    // Sparse: the file has no pages.
    let huge = TempPath::file_with(&[]);
    huge.truncate(1 << 40);
    let huge = Mapping::file("huge", huge.path()).expect("a file");
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        for gpa in [
            AT,
            Gpa::literal(0x10_0000_0000),
            Gpa::literal(0xF_0000_0000_0000),
        ] {
            let result = sandbox.map(gpa, &huge);
            assert_refused(
                "a huge file",
                result,
                ErrorKind::InvalidConfig,
                &["\"huge\""],
            );
        }
        let result = sandbox.map(Gpa::literal(0x10_0000_0000), &region("m", 1));
        let words = ["\"m\"", "highest guest-physical address"];
        assert_refused("too high", result, ErrorKind::InvalidConfig, &words);
        assert_eq!(mapping_count(&mut sandbox), 0);
    });
}

#[test]
fn overlaps_name_both_parties() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &region("first", 2 * PAGE)).expect("mapped");
        let before = AT.checked_sub(PAGE).expect("an address");
        let within = AT.checked_add(PAGE).expect("an address");
        let cases = [
            (AT, 1, "mapping \"first\""),
            (within, PAGE, "mapping \"first\""),
            (before, PAGE + 1, "mapping \"first\""),
            (before, 4 * PAGE, "mapping \"first\""),
            (LOCAL_APIC, 1, "local APIC page"),
            (Gpa::literal(0xFED0_0000), 2 * MIB, "local APIC page"),
            (Gpa::literal(0x1000), PAGE, "image"),
        ];
        for (gpa, len_bytes, other) in cases {
            let result = sandbox.map(gpa, &region("second", len_bytes));
            // Scratch of 32-bit guests ends where the local APIC begins.
            let other = match lab.guest {
                Guest::User | Guest::Kernel => other,
                _ if gpa == Gpa::literal(0xFED0_0000) => "scratch",
                _ => other,
            };
            let words = ["\"second\"", other];
            assert_refused(other, result, ErrorKind::InvalidConfig, &words);
        }
        assert_eq!(mapping_count(&mut sandbox), 1);
        sandbox
            .map(
                AT.checked_add(2 * PAGE).expect("an address"),
                &region("second", PAGE),
            )
            .expect("neighbours do not overlap");
    });
}

#[test]
fn the_io_apic_is_in_the_way_where_there_is_one() {
    with_guests(
        |guest| matches!(guest, Guest::User | Guest::Kernel),
        |lab| {
            let mapping = region("m", PAGE);
            lab.sandbox().map(IO_APIC, &mapping).expect("mapped");
            if lab.engine.kind() == Some(EngineKind::Emulator) {
                return Err("the emulator has no interrupt controllers");
            }
            let builder = lab.builder().interrupt_controllers(Irqchip::InKernel);
            let mut sandbox = builder.build(&lab.engine).expect("a sandbox");
            let result = sandbox.map(IO_APIC, &mapping);
            let words = ["\"m\"", "I/O APIC page"];
            assert_refused("a hole", result, ErrorKind::InvalidConfig, &words);
            Ok(())
        },
    );
}

#[test]
fn scratch_is_in_the_way_wherever_it_lies() {
    with_each_guest(|lab| {
        // Scratch gives way to what is reserved, and mappings may lie there.
        let top = match lab.guest {
            Guest::User | Guest::Kernel => 0x10_0000_0000,
            _ => 0xFEE0_0000,
        };
        let last_page = Gpa::new(top - PAGE).expect("an address");
        let mapping = region("m", PAGE);
        let result = lab.sandbox().map(last_page, &mapping);
        let words = ["\"m\"", "scratch"];
        assert_refused("the top", result, ErrorKind::InvalidConfig, &words);
        let builder = lab
            .builder()
            .reserve("mine", GpaRange::literal(last_page, PAGE));
        let mut sandbox = builder.build(&lab.engine).expect("a sandbox");
        sandbox.map(last_page, &mapping).expect("mapped");
        let at = lab.locate(&mut sandbox, "m");
        assert_eq!(word(&mut sandbox, at), 0);
    });
}

#[test]
fn a_label_is_given_once() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &region("m", PAGE)).expect("mapped");
        let result = sandbox.map(ELSEWHERE, &region("m", PAGE));
        let words = ["\"m\"", "is taken", "0x40000000"];
        assert_refused("a label", result, ErrorKind::InvalidConfig, &words);
        assert_eq!(mapping_count(&mut sandbox), 1);
    });
}

#[test]
fn what_is_not_mapped_cannot_be_unmapped() {
    with_each_guest(|lab| {
        let mut sandbox = lab.sandbox();
        sandbox.map(AT, &region("m", PAGE)).expect("mapped");
        for label in ["n", "", "M", "m "] {
            let result = sandbox.unmap(label);
            let quoted = format!("{label:?}");
            assert_refused(label, result, ErrorKind::InvalidConfig, &[&quoted]);
        }
        assert_eq!(mapping_count(&mut sandbox), 1);
        sandbox.unmap("m").expect("unmapped");
        let result = sandbox.unmap("m");
        assert_refused("twice", result, ErrorKind::InvalidConfig, &["\"m\""]);
    });
}

#[test]
fn a_future_guest_is_refused_when_it_is_built() {
    with_each_guest(|lab| {
        let builder = lab
            .builder()
            .map(AT, &region("m", PAGE))
            .map(AT, &region("n", PAGE));
        let result: Result<Sandbox, Error> = builder.build(&lab.engine);
        let words = ["\"n\"", "mapping \"m\""];
        assert_refused("two at one place", result, ErrorKind::InvalidConfig, &words);
    });
}
