//! What a host tells its guests while they run: generations and mappings. Every guest library must understand it.

use vellum_abi::mapping::{FLAG_WRITABLE, MappingEntry, encode_label};
use vellum_abi::message::ErrorCode;
use vellum_test_guests::{c_user, i686_c, i686_rust, rust_user};

use crate::host::{Host, Owned, Reply};

/// The guests that there are, of either architecture and language.
fn guests() -> impl Iterator<Item = (&'static str, Host)> {
    [
        ("amd64 in Rust", Some(rust_user())),
        ("amd64 in C", c_user()),
        ("i686 in Rust", i686_rust()),
        ("i686 in C", i686_c()),
    ]
    .into_iter()
    .filter_map(|(name, elf)| {
        if elf.is_none() {
            eprintln!("SKIPPED: no toolchain for {name}");
        }
        Some((name, Host::start(elf?)))
    })
}

fn mapping(label: &str, gpa: u64, ptr: u64, len_bytes: u64, flags: u32) -> MappingEntry {
    MappingEntry {
        gpa,
        ptr,
        len_bytes,
        flags,
        label_len_bytes: u32::try_from(label.len()).expect("short"),
        label: encode_label(label).expect("a label"),
    }
}

fn number(value: u64) -> Reply {
    Reply::Value(Owned::U64(value))
}

#[test]
fn a_guest_goes_on_behind_a_checkpoint_and_knows_which_copy_it_is() {
    for (name, mut guest) in guests() {
        assert_eq!(guest.call("generation", &[]), number(0), "{name}");
        let arguments = [Owned::U32(7), Owned::U64(5)];
        let reply = guest.call("checkpoint_then_count", &arguments);
        assert_eq!(reply, number(1005), "{name}");
        assert_eq!(guest.call("generation", &[]), number(1), "{name}");
        let reply = guest.call("checkpoint", &[Owned::U32(u32::MAX)]);
        assert_eq!(reply, number(2), "{name}");
        assert_eq!(guest.checkpoints, [7, u32::MAX], "{name}");
    }
}

#[test]
fn mappings_are_found_by_their_labels_as_the_table_is_at_the_moment() {
    let longest = "x".repeat(32);
    let first = mapping("config", 0x8000_0000, 0x1234_0000, 77, 0);
    let second = mapping(&longest, 0x9000_0000, 0, 0x1_0000_0001, FLAG_WRITABLE);
    for (name, mut guest) in guests() {
        let label = |text: &str| [Owned::String(text.into())];
        let is_missing = |reply| matches!(reply, Reply::Failed(ErrorCode::FunctionFailed, _));
        assert!(
            is_missing(guest.call("mapping_gpa", &label("config"))),
            "{name}"
        );
        guest.set_mappings(&[first, second]);
        for (entry, text) in [(first, "config"), (second, longest.as_str())] {
            assert_eq!(
                guest.call("mapping_gpa", &label(text)),
                number(entry.gpa),
                "{name}"
            );
            assert_eq!(
                guest.call("mapping_address", &label(text)),
                number(entry.ptr),
                "{name}"
            );
            assert_eq!(
                guest.call("mapping_len", &label(text)),
                number(entry.len_bytes),
                "{name}"
            );
            let is_writable = Reply::Value(Owned::Bool(entry.is_writable()));
            assert_eq!(
                guest.call("mapping_is_writable", &label(text)),
                is_writable,
                "{name}"
            );
        }
        assert_eq!(guest.call("mapping_count", &[]), number(2), "{name}");
        for absent in ["", "confi", "config2", &"x".repeat(31), &"x".repeat(33)] {
            assert!(
                is_missing(guest.call("mapping_gpa", &label(absent))),
                "{name}: {absent}"
            );
        }
        guest.set_mappings(&[second]);
        assert!(
            is_missing(guest.call("mapping_gpa", &label("config"))),
            "{name}"
        );
        let reply = guest.call("mapping_gpa", &label(&longest));
        assert_eq!(reply, number(second.gpa), "{name}");
    }
}

#[test]
fn bytes_at_addresses_are_read_and_written() {
    for (name, mut guest) in guests().filter(|(name, _)| name.ends_with("Rust")) {
        let at = guest.places().heap + 0x10_0FFD;
        let bytes = vec![1, 2, 3, 4, 5, 6];
        let reply = guest.call("poke", &[Owned::U64(at), Owned::Bytes(bytes.clone())]);
        assert_eq!(reply, Reply::Value(Owned::Unit), "{name}");
        let reply = guest.call("peek", &[Owned::U64(at - 1), Owned::U32(8)]);
        let expected = [&[0], bytes.as_slice(), &[0]].concat();
        assert_eq!(reply, Reply::Value(Owned::Bytes(expected)), "{name}");
    }
}
