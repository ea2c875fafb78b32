//! The i686 kernels. A process runs their code in ring 3, so what only ring 0 may do ends in a signal here.

use object::elf::{EM_386, ET_EXEC, FileHeader32, PF_W, PF_X, PT_INTERP, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, U16};
use vellum_abi::function::{FunctionEntry, Signature};
use vellum_abi::message::ErrorCode;
use vellum_abi::note::GuestNote;
use vellum_abi::value::ValueType::{self, Bytes, I32, String as Text, U32, U64, Unit};
use vellum_layout::{GuestKind, i686};
use vellum_test_guests::{i686_c, i686_rust};

use crate::host::{Host, Owned, Reply};
use crate::machine::{BUFFER_LEN_BYTES, HEAP_LEN_BYTES, tables};

/// Where scratch may begin in the tests of this repository; the image lies below.
const IMAGE_END: u32 = 0xE000_0000;

/// What both kernels export.
const FUNCTIONS: [(&str, &[ValueType], ValueType); 16] = [
    ("null", &[], Unit),
    ("add", &[I32, I32], I32),
    ("greet", &[Text], Text),
    ("counter_add", &[U64], U64),
    ("counter_get", &[], U64),
    ("call_host_add", &[I32, I32], I32),
    ("sum_bytes", &[Bytes], U64),
    ("touch_pages", &[U64], U64),
    ("read_address", &[U64], U64),
    ("write_address", &[U64, U64], Unit),
    ("peb_address", &[], U64),
    ("get_cr0", &[], U32),
    ("do_panic", &[Text], Unit),
    ("halt", &[], Unit),
    ("triple_fault", &[], Unit),
    ("spin", &[], Unit),
];

/// The kernels that there are, and notes on the terminal about those that there are not.
fn kernels() -> Vec<(&'static str, &'static [u8])> {
    [("C", i686_c()), ("Rust", i686_rust())]
        .into_iter()
        .filter_map(|(language, elf)| {
            if elf.is_none() {
                eprintln!("SKIPPED: no toolchain for the i686 kernel in {language}");
            }
            Some((language, elf?))
        })
        .collect()
}

/// Runs a test on each kernel.
fn on_each(test: impl Fn(&str, &mut Host)) {
    for (language, elf) in kernels() {
        test(language, &mut Host::start(elf));
    }
}

fn value(value: Owned) -> Reply {
    Reply::Value(value)
}

fn text(text: &str) -> Owned {
    Owned::String(text.into())
}

#[test]
fn both_files_are_static_programs_for_a_32_bit_machine_with_separate_pages_for_code() {
    for (language, elf) in kernels() {
        let header = FileHeader32::<LittleEndian>::parse(elf).expect("a 32-bit ELF");
        assert_eq!(
            header.e_machine,
            U16::new(LittleEndian, EM_386),
            "{language}"
        );
        assert_eq!(header.e_type, U16::new(LittleEndian, ET_EXEC), "{language}");
        let headers = header
            .program_headers(LittleEndian, elf)
            .expect("program headers");
        let mut next_free = u32::try_from(i686::BASE_ADDRESS.as_u64()).expect("small");
        let mut entry_is_code = false;
        for segment in headers {
            let flags = segment.p_flags(LittleEndian);
            let start = segment.p_vaddr(LittleEndian);
            assert_ne!(segment.p_type(LittleEndian), PT_INTERP, "{language}");
            if segment.p_type(LittleEndian) != PT_LOAD {
                continue;
            }
            let end = start
                .checked_add(segment.p_memsz(LittleEndian))
                .expect("below 4 GiB");
            assert_ne!(flags & (PF_W | PF_X), PF_W | PF_X, "{language}: {start:#x}");
            assert_eq!(start, segment.p_paddr(LittleEndian), "{language}");
            assert!(
                start & !0xFFF >= next_free,
                "{language}: {start:#x} shares a page"
            );
            assert!(end <= IMAGE_END, "{language}: {end:#x}");
            next_free = end.next_multiple_of(0x1000);
            entry_is_code |=
                flags & PF_X == PF_X && (start..end).contains(&header.e_entry.get(LittleEndian));
        }
        assert!(entry_is_code, "{language}");
    }
}

#[test]
fn both_files_carry_the_note_and_tables_with_64_bit_pointers() {
    for (language, elf) in kernels() {
        let tables = tables(elf);
        let kind = GuestKind::I686Identity;
        assert_eq!(
            GuestNote::parse(&tables.notes),
            Ok(GuestNote { kind }),
            "{language}"
        );
        for section in [&tables.functions, &tables.imports] {
            let entries = FunctionEntry::parse_table(section).expect("whole entries");
            assert!(entries.len() > 0, "{language}");
            for entry in entries {
                entry.signature().expect("a sound entry");
                assert!(entry.name_ptr < IMAGE_END.into(), "{language}: {entry:x?}");
                assert!(entry.entry < IMAGE_END.into(), "{language}: {entry:x?}");
            }
        }
    }
}

#[test]
fn both_export_the_same_functions_with_the_same_types() {
    on_each(|language, host| {
        for (name, params, ret) in FUNCTIONS {
            assert_eq!(
                host.signature(name),
                Signature::new(params, ret),
                "{name} in {language}"
            );
        }
    });
}

#[test]
fn calls_state_and_host_calls_work() {
    on_each(|language, host| {
        let calls = [
            ("null", vec![], Owned::Unit),
            (
                "add",
                vec![Owned::I32(i32::MAX), Owned::I32(1)],
                Owned::I32(i32::MIN),
            ),
            ("greet", vec![text("Vellum")], text("Hello, Vellum!")),
            ("greet", vec![text("")], text("Hello, !")),
            ("counter_get", vec![], Owned::U64(0)),
            (
                "counter_add",
                vec![Owned::U64(u64::MAX - 1)],
                Owned::U64(u64::MAX - 1),
            ),
            ("counter_add", vec![Owned::U64(5)], Owned::U64(3)),
            ("counter_get", vec![], Owned::U64(3)),
            (
                "call_host_add",
                vec![Owned::I32(-40), Owned::I32(-2)],
                Owned::I32(-42),
            ),
            (
                "sum_bytes",
                vec![Owned::Bytes(vec![255; 300])],
                Owned::U64(76_500),
            ),
            ("sum_bytes", vec![Owned::Bytes(vec![])], Owned::U64(0)),
        ];
        for (function, arguments, expected) in calls {
            assert_eq!(
                host.call(function, &arguments),
                value(expected),
                "{function} in {language}"
            );
        }
    });
}

#[test]
fn values_larger_than_the_buffer_go_both_ways() {
    on_each(|language, host| {
        let long = "ü".repeat(usize::try_from(BUFFER_LEN_BYTES).expect("small"));
        let reply = host.call("greet", &[text(&long)]);
        assert_eq!(reply, value(text(&format!("Hello, {long}!"))), "{language}");
        let bytes = vec![7; 1_000_000];
        let reply = host.call("sum_bytes", &[Owned::Bytes(bytes)]);
        assert_eq!(reply, value(Owned::U64(7_000_000)), "{language}");
        let too_many = vec![0; usize::try_from(HEAP_LEN_BYTES).expect("small") + 1];
        let reply = host.call("sum_bytes", &[Owned::Bytes(too_many)]);
        assert!(
            matches!(reply, Reply::Failed(ErrorCode::TooLarge, _)),
            "{language}: {reply:?}"
        );
        assert_eq!(host.call("null", &[]), value(Owned::Unit), "{language}");
    });
}

#[test]
fn pages_are_touched_in_any_number_that_the_heap_has() {
    on_each(|language, host| {
        for count in [1, 0, 1024, 16] {
            let reply = host.call("touch_pages", &[Owned::U64(count)]);
            assert_eq!(reply, value(Owned::U64(count)), "{language}");
        }
        for count in [HEAP_LEN_BYTES / 0x1000 + 1, 1 << 20, 1 << 32, u64::MAX] {
            let reply = host.call("touch_pages", &[Owned::U64(count)]);
            assert!(
                matches!(reply, Reply::Failed(ErrorCode::FunctionFailed, _)),
                "{language}: {reply:?}"
            );
        }
    });
}

#[test]
fn words_at_addresses_are_read_and_written() {
    on_each(|language, host| {
        let peb = host.places().peb;
        assert_eq!(
            host.call("peb_address", &[]),
            value(Owned::U64(peb)),
            "{language}"
        );
        let magic = u64::from(u32::from_le_bytes(*b"VELL"));
        let reply = host.call("read_address", &[Owned::U64(peb)]);
        assert_eq!(reply, value(Owned::U64(magic)), "{language}");
        let last_word = host.places().heap + HEAP_LEN_BYTES - 4;
        let written = [Owned::U64(last_word), Owned::U64(0x1_DEAD_BEEF)];
        assert_eq!(
            host.call("write_address", &written),
            value(Owned::Unit),
            "{language}"
        );
        let reply = host.call("read_address", &[Owned::U64(last_word)]);
        assert_eq!(reply, value(Owned::U64(0xDEAD_BEEF)), "{language}");
        let reply = host.call("read_address", &[Owned::U64(4)]);
        assert_eq!(reply, Reply::Signal(libc::SIGSEGV), "{language}");
    });
}

#[test]
fn an_address_of_more_than_32_bits_is_refused() {
    on_each(|language, host| {
        let reply = host.call("read_address", &[Owned::U64(1 << 32)]);
        let text = "address of more than 32 bits";
        // C has no other way to refuse in the middle of an expression.
        let expected = [
            Reply::Panicked(text.into()),
            Reply::Failed(ErrorCode::FunctionFailed, text.into()),
        ];
        assert!(expected.contains(&reply), "{language}: {reply:?}");
    });
}

#[test]
fn wrong_calls_get_typed_errors_and_the_kernel_lives_on() {
    on_each(|language, host| {
        let replies = [
            (host.call_index(9999, &[]), ErrorCode::UnknownFunction),
            (host.call("add", &[Owned::I32(1)]), ErrorCode::ArgumentCount),
            (
                host.call("add", &[Owned::I32(1), Owned::U32(1)]),
                ErrorCode::ArgumentType,
            ),
            (host.call_raw(&[0xFF; 64]), ErrorCode::MalformedMessage),
        ];
        for (reply, code) in replies {
            assert!(
                matches!(&reply, Reply::Failed(found, _) if *found == code),
                "{language}: {reply:?}"
            );
        }
        let sum = host.call("add", &[Owned::I32(40), Owned::I32(2)]);
        assert_eq!(sum, value(Owned::I32(42)), "{language}");
    });
}

#[test]
fn a_panic_arrives_with_its_text() {
    on_each(|language, host| {
        let reply = host.call("do_panic", &[text("enough: é")]);
        assert_eq!(reply, Reply::Panicked("enough: é".into()), "{language}");
    });
}

#[test]
fn privileged_instructions_are_the_instructions_they_should_be() {
    // Ring 3 may not read CR0, halt or load an interrupt table: #GP, which Linux reports as SIGSEGV.
    for function in ["get_cr0", "halt", "triple_fault"] {
        on_each(|language, host| {
            let reply = host.call(function, &[]);
            assert_eq!(
                reply,
                Reply::Signal(libc::SIGSEGV),
                "{function} in {language}"
            );
        });
    }
}

/// The Rust kernel, or a note on the terminal that there is none.
fn rust_kernel() -> Option<Host> {
    let elf = i686_rust();
    if elf.is_none() {
        eprintln!("SKIPPED: no toolchain for the i686 kernel in Rust");
    }
    elf.map(Host::start)
}

#[test]
fn floating_point_is_computed_without_its_registers() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    for number in [0.0, -0.0, 1.0, 1e300, f64::MIN_POSITIVE, f64::INFINITY] {
        let reply = host.call("halve", &[Owned::F64(number)]);
        assert_eq!(reply, value(Owned::F64(number / 2.0)), "{number:e}");
    }
}

#[test]
fn the_kernel_loads_descriptor_tables_in_ring_0_only() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    let reply = host.call("load_descriptor_tables", &[]);
    assert_eq!(reply, Reply::Signal(libc::SIGSEGV));
}

#[test]
fn words_of_the_heap_are_zero_until_they_are_written() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    let last = HEAP_LEN_BYTES / 8 - 1;
    let written = 0x0123_4567_89AB_CDEF;
    let calls = [
        ("heap_word", vec![Owned::U64(last)], Owned::U64(0)),
        (
            "set_heap_word",
            vec![Owned::U64(last), Owned::U64(written)],
            Owned::Unit,
        ),
        ("heap_word", vec![Owned::U64(last)], Owned::U64(written)),
        ("heap_len", vec![], Owned::U64(HEAP_LEN_BYTES)),
        ("heap_start", vec![], Owned::U64(host.places().heap)),
        ("alias_page", vec![], Owned::U64(0)),
    ];
    for (function, arguments, expected) in calls {
        assert_eq!(
            host.call(function, &arguments),
            value(expected),
            "{function}"
        );
    }
    for index in [last + 1, u64::MAX / 8, u64::MAX] {
        let reply = host.call("heap_word", &[Owned::U64(index)]);
        assert!(
            matches!(reply, Reply::Failed(ErrorCode::FunctionFailed, _)),
            "{reply:?}"
        );
    }
}

/// Bytes that differ from their neighbours at every distance up to 250.
fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes)
        .map(|index| (index % 251).to_le_bytes()[0])
        .collect()
}

fn small(number: usize) -> Owned {
    Owned::U32(u32::try_from(number).expect("small"))
}

#[test]
fn the_kernel_moves_memory_as_the_standard_library_does() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    let bytes = pattern(96);
    let offsets = [
        (0, 0),
        (0, 1),
        (1, 0),
        (3, 7),
        (7, 3),
        (8, 40),
        (40, 8),
        (5, 36),
    ];
    for len_bytes in (0..20).chain([31, 32, 33, 56]) {
        for (from, to) in offsets {
            let mut expected = bytes.clone();
            expected.copy_within(from..from + len_bytes, to);
            let arguments = [
                Owned::Bytes(bytes.clone()),
                small(from),
                small(to),
                small(len_bytes),
            ];
            let reply = host.call("copy_within", &arguments);
            assert_eq!(
                reply,
                value(Owned::Bytes(expected)),
                "{len_bytes} from {from} to {to}"
            );
        }
    }
}

#[test]
fn the_kernel_fills_memory_as_the_standard_library_does() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    let bytes = pattern(48);
    for len_bytes in (0..10).chain([31, 32, 33]) {
        for from in [0, 1, 7, 15] {
            let mut expected = bytes.clone();
            expected[from..from + len_bytes].fill(0xA7);
            let arguments = [
                Owned::Bytes(bytes.clone()),
                Owned::U32(0xA7),
                small(from),
                small(len_bytes),
            ];
            let reply = host.call("fill_within", &arguments);
            assert_eq!(
                reply,
                value(Owned::Bytes(expected)),
                "{len_bytes} from {from}"
            );
        }
    }
}

#[test]
fn the_kernel_compares_memory_as_the_standard_library_does() {
    let Some(mut host) = rust_kernel() else {
        return;
    };
    let bytes = pattern(20);
    for len_bytes in 0..bytes.len() {
        let left = &bytes[..len_bytes];
        let changed = (0..len_bytes).flat_map(|at| {
            [0xFF, 0].map(|byte| {
                let mut right = left.to_vec();
                right[at] = byte;
                right
            })
        });
        for right in changed.chain([left.to_vec(), bytes.clone()]) {
            let expected = Owned::I32(left.cmp(&right) as i32);
            let arguments = [Owned::Bytes(left.to_vec()), Owned::Bytes(right.clone())];
            assert_eq!(
                host.call("compare", &arguments),
                value(expected),
                "{left:?} {right:?}"
            );
        }
    }
}
