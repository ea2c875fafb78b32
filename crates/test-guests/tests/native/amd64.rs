//! The amd64 user guests.

use vellum_abi::function::FunctionEntry;
use vellum_abi::message::ErrorCode;
use vellum_abi::note::GuestNote;
use vellum_abi::port::ABORT_NESTED_PANIC;
use vellum_layout::GuestKind;
use vellum_test_guests::{c_user, rust_user};

use crate::host::{Host, Owned, PANIC_LEN, Reply};
use crate::machine::{BUFFER_LEN_BYTES, HEAP_LEN_BYTES, tables};

fn text(text: &str) -> Owned {
    Owned::String(text.into())
}

fn failed(code: ErrorCode, text: &str) -> Reply {
    Reply::Failed(code, text.into())
}

/// A C guest, or a note on the terminal that there is none.
fn c_guest() -> Option<Host> {
    let elf = c_user();
    if elf.is_none() {
        eprintln!("SKIPPED: no C compiler when this crate was built");
    }
    elf.map(Host::start)
}

#[test]
fn both_files_carry_the_note_and_sound_tables() {
    for (name, elf) in [("rust", Some(rust_user())), ("c", c_user())] {
        let Some(elf) = elf else { continue };
        let tables = tables(elf);
        let kind = GuestKind::Amd64User;
        assert_eq!(
            GuestNote::parse(&tables.notes),
            Ok(GuestNote { kind }),
            "{name}"
        );
        for section in [&tables.functions, &tables.imports] {
            let entries = FunctionEntry::parse_table(section).expect("whole entries");
            assert!(entries.len() > 0, "{name}");
            for entry in entries {
                entry.signature().expect("a sound entry");
            }
        }
    }
}

#[test]
fn every_value_comes_back_from_its_echo() {
    let mut host = Host::start(rust_user());
    let cases = [
        ("echo_bool", Owned::Bool(true)),
        ("echo_i32", Owned::I32(i32::MIN)),
        ("echo_u32", Owned::U32(u32::MAX)),
        ("echo_i64", Owned::I64(-1)),
        ("echo_u64", Owned::U64(u64::MAX)),
        ("echo_f32", Owned::F32(-0.25)),
        ("echo_f64", Owned::F64(1e300)),
        ("echo_string", text("Grüße")),
        ("echo_bytes", Owned::Bytes(vec![0, 1, 255])),
        ("echo_bytes", Owned::Bytes(Vec::new())),
    ];
    for (function, value) in cases {
        assert_eq!(
            host.call(function, std::slice::from_ref(&value)),
            Reply::Value(value),
            "{function}"
        );
    }
    assert_eq!(host.call("null", &[]), Reply::Value(Owned::Unit));
}

#[test]
fn values_larger_than_the_buffer_go_both_ways() {
    let mut host = Host::start(rust_user());
    let buffer_len_bytes = usize::try_from(BUFFER_LEN_BYTES).expect("small");
    for len_bytes in [
        buffer_len_bytes - 48,
        buffer_len_bytes - 47,
        buffer_len_bytes,
        5_000_000,
    ] {
        let bytes: Vec<u8> = (0..len_bytes)
            .map(|index| (index % 251).to_le_bytes()[0])
            .collect();
        let reply = host.call("echo_bytes", &[Owned::Bytes(bytes.clone())]);
        assert_eq!(
            reply,
            Reply::Value(Owned::Bytes(bytes.clone())),
            "{len_bytes}"
        );
        let sum: u64 = bytes.iter().copied().map(u64::from).sum();
        assert_eq!(
            host.call("sum_bytes", &[Owned::Bytes(bytes.clone())]),
            Reply::Value(Owned::U64(sum))
        );
        let reply = host.call("call_host_echo", &[Owned::Bytes(bytes.clone())]);
        assert_eq!(reply, Reply::Value(Owned::Bytes(bytes)), "{len_bytes}");
    }
    let long = "ü".repeat(100_000);
    assert_eq!(
        host.call("echo_string", &[text(&long)]),
        Reply::Value(text(&long))
    );
    // Many large values one after the other fit only if each is freed.
    for _ in 0..40 {
        let reply = host.call("make_bytes", &[Owned::U64(5_000_000)]);
        assert!(matches!(reply, Reply::Value(Owned::Bytes(bytes)) if bytes.len() == 5_000_000));
    }
}

#[test]
fn a_value_larger_than_the_heap_is_refused() {
    let mut host = Host::start(rust_user());
    let bytes = vec![0; usize::try_from(HEAP_LEN_BYTES).expect("small") + 1];
    let expected = failed(
        ErrorCode::TooLarge,
        "no room in the guest's heap for a value of 67108865 bytes",
    );
    assert_eq!(host.call("sum_bytes", &[Owned::Bytes(bytes)]), expected);
    assert_eq!(
        host.call("add", &[Owned::I32(1), Owned::I32(2)]),
        Reply::Value(Owned::I32(3))
    );
}

#[test]
fn state_and_text_and_host_calls_work() {
    let mut host = Host::start(rust_user());
    assert_eq!(
        host.call("greet", &[text("Vellum")]),
        Reply::Value(text("Hello, Vellum!"))
    );
    assert_eq!(
        host.call("counter_add", &[Owned::U64(5)]),
        Reply::Value(Owned::U64(5))
    );
    assert_eq!(
        host.call("counter_add", &[Owned::U64(2)]),
        Reply::Value(Owned::U64(7))
    );
    assert_eq!(host.call("counter_get", &[]), Reply::Value(Owned::U64(7)));
    assert_eq!(
        host.call("call_host_add", &[Owned::I32(40), Owned::I32(2)]),
        Reply::Value(Owned::I32(42))
    );
    assert_eq!(
        host.call("call_host_add_loop", &[Owned::U32(100)]),
        Reply::Value(Owned::I32(100))
    );
    assert_eq!(
        host.call("host_error_text", &[]),
        Reply::Value(text("failing: the guest asked for it"))
    );
    let expected = failed(
        ErrorCode::FunctionFailed,
        "host call: function failed: failing: x",
    );
    assert_eq!(host.call("pass_host_error", &[text("x")]), expected);
    assert_eq!(host.call("seed", &[]), Reply::Value(Owned::U64(0x5EED)));
    assert_eq!(
        host.call("init_data", &[]),
        Reply::Value(Owned::Bytes(Vec::new()))
    );
}

#[test]
fn the_arena_remembers_what_was_touched() {
    let mut host = Host::start(rust_user());
    assert_eq!(
        host.call("reserve", &[Owned::U64(1 << 20)]),
        Reply::Value(Owned::U64(1 << 20))
    );
    assert_eq!(
        host.call("read_arena", &[Owned::U64(4096 * 255)]),
        Reply::Value(Owned::U64(256))
    );
    assert_eq!(
        host.call("touch_pages", &[Owned::U64(16)]),
        Reply::Value(Owned::U64(16))
    );
    assert_eq!(
        host.call("read_arena", &[Owned::U64(4096 * 15)]),
        Reply::Value(Owned::U64(0x5EED + 15))
    );
    assert_eq!(
        host.call("read_arena", &[Owned::U64(4096 * 16)]),
        Reply::Value(Owned::U64(17))
    );
    assert_eq!(
        host.call("touch_pages", &[Owned::U64(1024)]),
        Reply::Value(Owned::U64(1024))
    );
    let outside = failed(ErrorCode::FunctionFailed, "offset outside the arena");
    assert_eq!(host.call("read_arena", &[Owned::U64(u64::MAX)]), outside);
}

#[test]
fn wrong_calls_get_typed_errors_and_the_guest_lives_on() {
    let mut host = Host::start(rust_user());
    let unknown = host.call_index(9999, &[]);
    assert!(
        matches!(unknown, Reply::Failed(ErrorCode::UnknownFunction, _)),
        "{unknown:?}"
    );
    let count = failed(
        ErrorCode::ArgumentCount,
        "function has 2 parameters, call has 1",
    );
    assert_eq!(host.call("add", &[Owned::I32(1)]), count);
    let kind = failed(
        ErrorCode::ArgumentType,
        "expected a value of type i32, got u32",
    );
    assert_eq!(host.call("add", &[Owned::I32(1), Owned::U32(1)]), kind);
    let external = failed(
        ErrorCode::ArgumentType,
        "expected a value of type string, got bytes",
    );
    assert_eq!(
        host.call("greet", &[Owned::Bytes(vec![0; 100_000])]),
        external
    );
    assert_eq!(
        host.call("fail", &[text("no")]),
        failed(ErrorCode::FunctionFailed, "no")
    );
    let garbage = host.call_raw(&[0xFF; 64]);
    assert!(
        matches!(garbage, Reply::Failed(ErrorCode::MalformedMessage, _)),
        "{garbage:?}"
    );
    assert_eq!(
        host.call("add", &[Owned::I32(1), Owned::I32(2)]),
        Reply::Value(Owned::I32(3))
    );
}

#[test]
fn log_records_arrive_up_to_the_level() {
    let mut host = Host::start(rust_user());
    host.call("log_lines", &[Owned::U32(3)]);
    host.call("log_levels", &[]);
    let expected = [
        "3 line 0",
        "3 line 1",
        "3 line 2",
        "1 an error",
        "2 a warning",
        "3 an info",
    ];
    assert_eq!(host.logs, expected);
}

#[test]
fn formatting_a_log_record_cannot_use_the_buffer_it_is_written_to() {
    let mut host = Host::start(rust_user());
    host.call("log_reentrant", &[]);
    let text =
        "3 value: host call: call not possible now: called while a log record is being formatted";
    assert_eq!(host.logs, [text]);
    // Afterwards both work again.
    host.call("log_lines", &[Owned::U32(1)]);
    assert_eq!(host.logs.len(), 2);
    assert_eq!(
        host.call("call_host_add_loop", &[Owned::U32(1)]),
        Reply::Value(Owned::I32(1))
    );
}

#[test]
fn the_function_given_to_entry_runs_before_the_first_call() {
    let mut host = Host::start(rust_user());
    assert_eq!(
        host.call("is_initialised", &[]),
        Reply::Value(Owned::Bool(true))
    );
}

#[test]
fn misbehaviour_ends_in_its_own_way() {
    let panic = |message: &str| Reply::Panicked(message.into());
    let overflow = [Owned::I32(i32::MIN), Owned::I32(-1)];
    let cases: Vec<(&str, Vec<Owned>, Reply)> = vec![
        ("do_panic", vec![text("on purpose")], panic("on purpose")),
        (
            "do_panic",
            vec![text(&"x".repeat(20_000))],
            panic(&"x".repeat(PANIC_LEN)),
        ),
        ("panic_in_panic", vec![], Reply::Aborted(ABORT_NESTED_PANIC)),
        ("do_abort", vec![Owned::U32(77)], Reply::Aborted(77)),
        ("invalid_opcode", vec![], Reply::Signal(libc::SIGILL)),
        ("int3", vec![], Reply::Signal(libc::SIGTRAP)),
        (
            "divide",
            vec![Owned::I32(7), Owned::I32(-2)],
            Reply::Value(Owned::I32(-3)),
        ),
        (
            "divide",
            vec![Owned::I32(7), Owned::I32(0)],
            Reply::Signal(libc::SIGFPE),
        ),
        ("divide", overflow.to_vec(), Reply::Signal(libc::SIGFPE)),
        (
            "recurse",
            vec![Owned::U64(1000)],
            Reply::Value(Owned::U64(1000)),
        ),
        ("overflow_stack", vec![], Reply::Signal(libc::SIGSEGV)),
        ("read_null", vec![], Reply::Signal(libc::SIGSEGV)),
        ("write_null", vec![], Reply::Signal(libc::SIGSEGV)),
        ("read_supervisor", vec![], Reply::Signal(libc::SIGSEGV)),
        (
            "write_address",
            vec![Owned::U64(8), Owned::U64(1)],
            Reply::Signal(libc::SIGSEGV),
        ),
        ("halt", vec![], Reply::Signal(libc::SIGSEGV)),
        (
            "out_port",
            vec![Owned::U32(0x80), Owned::U32(1)],
            Reply::Signal(libc::SIGSEGV),
        ),
        (
            "in_port",
            vec![Owned::U32(0x60)],
            Reply::Signal(libc::SIGSEGV),
        ),
        (
            "allocate",
            vec![Owned::U64(1 << 20)],
            Reply::Value(Owned::U64(1 << 20)),
        ),
        (
            "allocate",
            vec![Owned::U64(1 << 30)],
            panic("memory allocation of 1073741824 bytes failed"),
        ),
        (
            "allocate",
            vec![Owned::U64(u64::MAX)],
            panic("allocation of 18446744073709551615 bytes failed"),
        ),
        (
            "allocate",
            vec![Owned::U64(1 << 62)],
            panic("memory allocation of 4611686018427387904 bytes failed"),
        ),
        (
            "reserve",
            vec![Owned::U64(1 << 40)],
            panic("memory allocation of 1099511627776 bytes failed"),
        ),
        (
            "exhaust_heap",
            vec![],
            panic("memory allocation of 65536 bytes failed"),
        ),
    ];
    for (function, arguments, expected) in cases {
        let mut host = Host::start(rust_user());
        assert_eq!(host.call(function, &arguments), expected, "{function}");
    }
}

#[test]
fn registers_keep_what_a_call_left_in_them() {
    let mut host = Host::start(rust_user());
    host.call("set_xmm", &[Owned::U64(0x1234)]);
    assert_eq!(host.call("get_xmm", &[]), Reply::Value(Owned::U64(0x1234)));
    assert_eq!(
        host.call("get_flags_df", &[]),
        Reply::Value(Owned::Bool(false))
    );
    host.call("set_flags_df", &[]);
    assert_eq!(
        host.call("get_flags_df", &[]),
        Reply::Value(Owned::Bool(true))
    );
}

#[test]
fn a_raw_reply_stands_in_for_the_real_one_and_the_guest_lives_on() {
    let mut host = Host::start(rust_user());
    let reply = host.call("raw_reply", &[Owned::Bytes(vec![7; 40])]);
    assert!(matches!(reply, Reply::Malformed(_)), "{reply:?}");
    assert_eq!(
        host.call("add", &[Owned::I32(1), Owned::I32(2)]),
        Reply::Value(Owned::I32(3))
    );
}

#[test]
fn the_c_guest_answers() {
    let Some(mut host) = c_guest() else { return };
    assert_eq!(
        host.call("c_add", &[Owned::I32(2), Owned::I32(-5)]),
        Reply::Value(Owned::I32(-3))
    );
    assert_eq!(
        host.call("c_greet", &[text("Vellum")]),
        Reply::Value(text("Hello, Vellum from C!"))
    );
    let bytes = Owned::Bytes(vec![3; 1_000_000]);
    assert_eq!(
        host.call("c_sum_bytes", &[bytes]),
        Reply::Value(Owned::U64(3_000_000))
    );
    let reply = host.call("c_call_host_add", &[Owned::I32(40), Owned::I32(2)]);
    assert_eq!(reply, Reply::Value(Owned::I32(42)));
    host.call("c_log", &[]);
    assert_eq!(host.logs, ["3 a line from C"]);
    // A text larger than the output buffer comes back by address.
    let long = "ö".repeat(20_000);
    let expected = format!("Hello, {long} from C!");
    assert_eq!(
        host.call("c_greet", &[text(&long)]),
        Reply::Value(Owned::String(expected))
    );
}

#[test]
fn the_c_guest_refuses_wrong_calls_and_lives_on() {
    let Some(mut host) = c_guest() else { return };
    let code = |reply: Reply| match reply {
        Reply::Failed(code, _) => Some(code),
        _ => None,
    };
    assert_eq!(
        code(host.call_index(9999, &[])),
        Some(ErrorCode::UnknownFunction)
    );
    assert_eq!(
        code(host.call("c_add", &[])),
        Some(ErrorCode::ArgumentCount)
    );
    assert_eq!(
        code(host.call("c_add", &[Owned::I32(1), Owned::U32(1)])),
        Some(ErrorCode::ArgumentType)
    );
    assert_eq!(
        code(host.call_raw(&[0xFF; 64])),
        Some(ErrorCode::MalformedMessage)
    );
    assert_eq!(
        host.call("c_fail", &[text("no")]),
        failed(ErrorCode::FunctionFailed, "no")
    );
    assert_eq!(
        host.call("c_add", &[Owned::I32(1), Owned::I32(2)]),
        Reply::Value(Owned::I32(3))
    );
    let message = "the C guest was asked to panic";
    assert_eq!(host.call("c_panic", &[]), Reply::Panicked(message.into()));
    let Some(mut host) = c_guest() else { return };
    let message = "allocation of 1099511627776 bytes failed";
    assert_eq!(
        host.call("c_allocate", &[Owned::U64(1 << 40)]),
        Reply::Panicked(message.into())
    );
}

#[test]
fn a_guest_can_build_and_read_page_tables() {
    let mut host = Host::start(rust_user());
    let reply = host.call("translate_in_own_tables", &[Owned::U64(0x4000_1234)]);
    assert_eq!(reply, Reply::Value(Owned::U64(0x20_1234)));
    let outside = host.call("translate_in_own_tables", &[Owned::U64(0x5000_0000)]);
    assert!(
        matches!(outside, Reply::Failed(ErrorCode::FunctionFailed, _)),
        "{outside:?}"
    );
}

/// Not a measurement: the toolchain is pinned, so the counts change only when the code does. A call must stay a small
/// part of the exit that carries it, which costs the machine about 3000 instructions.
#[test]
fn a_call_costs_few_instructions_in_the_guest() {
    let mut host = Host::start(rust_user());
    // The first allocation claims the heap.
    host.call("greet", &[text("warm")]);
    let cases: [(&str, Vec<Owned>, u64); 5] = [
        ("null", vec![], 200),
        ("echo_i32", vec![Owned::I32(7)], 250),
        ("add", vec![Owned::I32(7), Owned::I32(8)], 300),
        ("call_host_add", vec![Owned::I32(7), Owned::I32(8)], 550),
        (
            "echo_string",
            vec![text("some text of moderate length")],
            1000,
        ),
    ];
    for (function, arguments, limit) in cases {
        let count = host.count(function, &arguments);
        assert!(
            count <= limit,
            "{function} took {count} instructions, at most {limit} are expected"
        );
    }
}
