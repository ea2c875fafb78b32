//! Calls through the macros' tables and thunks, with a host that is part of the test.

#![expect(
    unsafe_code,
    reason = "reads the linker's tables and lends buffers to the guest library"
)]

mod marshalling {
    pub(crate) mod fake_host;
}

use marshalling::fake_host::{BUFFER_LEN_BYTES, FakeHost, guest_bytes, message};
use vellum_abi::function::FunctionEntry;
use vellum_abi::message::{Argument, ErrorCode, MessageKind, Outcome, write_error};
use vellum_abi::port::Port;
use vellum_abi::value::ValueRef;
use vellum_guest::rt::{Export, Session, call_host_on, tell_host_on};
use vellum_guest::{GuestError, HostError, guest_function};

#[guest_function]
fn nothing() {}

#[guest_function(name = "renamed")]
fn add(a: i32, b: i32) -> i32 {
    a.wrapping_add(b)
}

#[guest_function]
#[expect(
    clippy::too_many_arguments,
    clippy::many_single_char_names,
    reason = "as many as there are types"
)]
fn describe(
    a: bool,
    b: i32,
    c: u32,
    d: i64,
    e: u64,
    f: f32,
    g: f64,
    h: &str,
    i: &[u8],
    (): (),
) -> String {
    format!("{a} {b} {c} {d} {e} {f} {g} {h} {i:?}")
}

#[guest_function]
fn echo_string(text: String) -> String {
    text
}

#[guest_function]
fn echo_bytes(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[guest_function]
fn half(value: u64) -> Result<u64, GuestError> {
    if value.is_multiple_of(2) {
        Ok(value / 2)
    } else {
        Err(GuestError::new(format!("{value} is odd")))
    }
}

#[guest_function]
fn parse(text: &str) -> Result<u32, core::num::ParseIntError> {
    text.parse()
}

unsafe extern "C" {
    #[link_name = "__start_vellum_functions"]
    static FIRST: u8;
    #[link_name = "__stop_vellum_functions"]
    static END: u8;
}

/// The table that the linker made of the functions above.
fn table() -> &'static [Export] {
    let (first, end) = (&raw const FIRST, &raw const END);
    let count = (end.addr() - first.addr()) / size_of::<Export>();
    // SAFETY: the linker puts the entries, and nothing else, between its two symbols.
    unsafe { std::slice::from_raw_parts(first.cast(), count) }
}

/// Index of the function with this name, found as a host finds it: in the raw bytes.
fn index(name: &str) -> u32 {
    // SAFETY: the entries are initialised memory; padding they have none.
    let raw =
        unsafe { std::slice::from_raw_parts(table().as_ptr().cast::<u8>(), size_of_val(table())) };
    let mut entries = FunctionEntry::parse_table(raw).expect("whole entries");
    let found = entries.position(|entry| {
        let address = usize::try_from(entry.name_ptr).expect("64 bits");
        // SAFETY: an entry's name is a static string.
        let bytes = unsafe {
            std::slice::from_raw_parts(
                std::ptr::with_exposed_provenance::<u8>(address),
                entry.name_len_bytes as usize,
            )
        };
        bytes == name.as_bytes()
    });
    u32::try_from(found.unwrap_or_else(|| panic!("no {name} in the table"))).expect("small")
}

/// Calls a function and gives its outcome to `check`.
fn call(name: &str, values: &[ValueRef<'_>], check: impl FnOnce(Outcome<'_>)) {
    let host = FakeHost::new();
    let mut session = Session::new(host.link(), table());
    let function = index(name);
    host.send(message(MessageKind::Call, function, values));
    session.answer();
    host.reply(|answered, outcome| {
        assert_eq!(answered, function);
        check(outcome);
    });
}

fn fails_with(expected_code: ErrorCode, expected_text: &str) -> impl FnOnce(Outcome<'_>) {
    move |outcome| {
        assert_eq!(
            outcome,
            Outcome::Failed {
                code: expected_code,
                text: expected_text
            }
        );
    }
}

fn returns(expected: ValueRef<'_>) -> impl FnOnce(Outcome<'_>) {
    move |outcome| assert_eq!(outcome, Outcome::Value(Argument::Value(expected)))
}

#[test]
fn every_type_reaches_its_function() {
    let values = [
        ValueRef::Bool(true),
        ValueRef::I32(-1),
        ValueRef::U32(2),
        ValueRef::I64(-3),
        ValueRef::U64(4),
        ValueRef::F32(0.5),
        ValueRef::F64(-0.25),
        ValueRef::String("text"),
        ValueRef::Bytes(&[7, 8]),
        ValueRef::Unit,
    ];
    call(
        "describe",
        &values,
        returns(ValueRef::String("true -1 2 -3 4 0.5 -0.25 text [7, 8]")),
    );
    call("nothing", &[], returns(ValueRef::Unit));
    call(
        "renamed",
        &[ValueRef::I32(i32::MAX), ValueRef::I32(1)],
        returns(ValueRef::I32(i32::MIN)),
    );
}

#[test]
fn a_result_is_a_value_or_a_failure() {
    call("half", &[ValueRef::U64(8)], returns(ValueRef::U64(4)));
    call(
        "half",
        &[ValueRef::U64(9)],
        fails_with(ErrorCode::FunctionFailed, "9 is odd"),
    );
    call(
        "parse",
        &[ValueRef::String("12")],
        returns(ValueRef::U32(12)),
    );
    let text = "invalid digit found in string";
    call(
        "parse",
        &[ValueRef::String("x")],
        fails_with(ErrorCode::FunctionFailed, text),
    );
}

#[test]
fn wrong_arguments_are_refused_before_the_function_runs() {
    let wrong =
        |values: &[ValueRef<'_>], code, text: &str| call("renamed", values, fails_with(code, text));
    wrong(
        &[],
        ErrorCode::ArgumentCount,
        "function has 2 parameters, call has 0",
    );
    let three = [ValueRef::I32(1); 3];
    wrong(
        &three,
        ErrorCode::ArgumentCount,
        "function has 2 parameters, call has 3",
    );
    let second = [ValueRef::I32(1), ValueRef::I64(1)];
    wrong(
        &second,
        ErrorCode::ArgumentType,
        "expected a value of type i32, got i64",
    );
    let text = "expected a value of type string, got bytes";
    call(
        "echo_string",
        &[ValueRef::Bytes(b"a")],
        fails_with(ErrorCode::ArgumentType, text),
    );
}

#[test]
fn unknown_functions_and_broken_messages_are_refused() {
    let host = FakeHost::new();
    let mut session = Session::new(host.link(), table());
    for (bytes, code) in [
        (
            message(MessageKind::Call, 9999, &[]).0,
            ErrorCode::UnknownFunction,
        ),
        (
            message(MessageKind::Call, u32::MAX, &[]).0,
            ErrorCode::UnknownFunction,
        ),
        (
            message(MessageKind::HostReply, 0, &[ValueRef::Unit]).0,
            ErrorCode::MalformedMessage,
        ),
        (vec![0xFF; BUFFER_LEN_BYTES], ErrorCode::MalformedMessage),
        (vec![0; BUFFER_LEN_BYTES], ErrorCode::MalformedMessage),
    ] {
        host.send((bytes, Vec::new()));
        session.answer();
        host.reply(|_, outcome| {
            assert!(
                matches!(outcome, Outcome::Failed { code: found, .. } if found == code),
                "{outcome:?}"
            );
        });
    }
}

#[test]
fn a_slot_with_nonsense_is_refused() {
    let host = FakeHost::new();
    let mut session = Session::new(host.link(), table());
    let (mut bytes, _) = message(
        MessageKind::Call,
        index("echo_string"),
        &[ValueRef::String("abc")],
    );
    bytes[48] = 0xFF;
    host.send((bytes, Vec::new()));
    session.answer();
    let text = "string in slot 0 is not utf-8";
    host.reply(|_, outcome| fails_with(ErrorCode::MalformedMessage, text)(outcome));
}

#[test]
fn values_around_the_buffer_size_go_both_ways() {
    let host = FakeHost::new();
    let mut session = Session::new(host.link(), table());
    let inline_len = BUFFER_LEN_BYTES - 48;
    for len_bytes in [0, 1, inline_len - 1, inline_len, inline_len + 1, 100_000] {
        let bytes: Vec<u8> = (0..len_bytes)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        host.send(message(
            MessageKind::Call,
            index("echo_bytes"),
            &[ValueRef::Bytes(&bytes)],
        ));
        session.answer();
        host.reply(|_, outcome| {
            let Outcome::Value(argument) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(
                matches!(argument, Argument::External(_)),
                len_bytes > inline_len
            );
            assert!(guest_bytes(argument) == bytes, "{len_bytes}");
        });
    }
    // Two of the six values were external, each fetched once.
    assert_eq!(*host.exits.borrow(), [Port::Fill, Port::Fill]);
}

#[test]
fn external_text_is_checked_when_it_has_arrived() {
    let host = FakeHost::new();
    let mut session = Session::new(host.link(), table());
    let long = "ß".repeat(5000);
    let (bytes, mut external) = message(
        MessageKind::Call,
        index("echo_string"),
        &[ValueRef::String(&long)],
    );
    host.send((bytes.clone(), external.clone()));
    session.answer();
    host.reply(|_, outcome| {
        let Outcome::Value(argument) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(guest_bytes(argument), long.as_bytes());
    });
    external[1] = b'a';
    host.send((bytes, external));
    session.answer();
    let text = "string argument is not utf-8";
    host.reply(|_, outcome| fails_with(ErrorCode::MalformedMessage, text)(outcome));
}

#[test]
fn a_host_call_carries_its_arguments_and_brings_the_value() {
    let host = FakeHost::new();
    let link = host.link();
    let long = vec![9; 10_000];
    host.will_answer(message(MessageKind::HostReply, 3, &[ValueRef::I32(42)]));
    let arguments = [
        ValueRef::String("ab"),
        ValueRef::Bytes(&long),
        ValueRef::I32(1),
    ];
    assert_eq!(call_host_on::<i32>(&link, 3, &arguments), Ok(42));
    assert_eq!(
        host.host_calls.borrow()[0],
        [b"ab".as_slice(), &long].concat()
    );

    host.will_answer(message(
        MessageKind::HostReply,
        3,
        &[ValueRef::Bytes(&long)],
    ));
    assert_eq!(
        call_host_on::<Vec<u8>>(&link, 3, &[]).as_deref(),
        Ok(long.as_slice())
    );
    assert_eq!(
        *host.exits.borrow(),
        [Port::HostCall, Port::HostCall, Port::Fill]
    );
}

#[test]
fn a_host_call_that_fails_has_the_hosts_words() {
    let host = FakeHost::new();
    let mut bytes = vec![0; 256];
    write_error(
        &mut bytes,
        MessageKind::HostReply,
        0,
        ErrorCode::FunctionFailed,
        "no such key",
    )
    .expect("room");
    host.will_answer((bytes, Vec::new()));
    let error = call_host_on::<i32>(&host.link(), 0, &[]).expect_err("the host refused");
    assert_eq!(
        (error.code(), error.text()),
        (ErrorCode::FunctionFailed, "no such key")
    );
    assert_eq!(error.to_string(), "host call: function failed: no such key");
    assert_eq!(
        GuestError::from(error).to_string(),
        "host call: function failed: no such key"
    );
}

#[test]
fn a_reply_of_another_kind_type_or_function_is_an_error() {
    let host = FakeHost::new();
    let code = |result: Result<i32, HostError>| result.map_err(|error| error.code());
    let wrong = [
        (
            message(MessageKind::Call, 0, &[]),
            ErrorCode::MalformedMessage,
        ),
        (
            message(MessageKind::HostReply, 1, &[ValueRef::I32(1)]),
            ErrorCode::MalformedMessage,
        ),
        (
            message(MessageKind::HostReply, 0, &[ValueRef::U32(1)]),
            ErrorCode::ArgumentType,
        ),
        ((vec![0; 64], Vec::new()), ErrorCode::MalformedMessage),
    ];
    for (answer, expected) in wrong {
        host.will_answer(answer);
        assert_eq!(code(call_host_on(&host.link(), 0, &[])), Err(expected));
    }
    // More arguments than slots never leave the guest.
    let many = [ValueRef::Unit; 17];
    assert_eq!(
        code(call_host_on(&host.link(), 0, &many)),
        Err(ErrorCode::TooLarge)
    );
    assert_eq!(host.exits.borrow().len(), 4);
}

#[test]
fn a_one_way_call_waits_in_the_outbox_until_there_is_no_room() {
    let host = FakeHost::new();
    let link = host.link();
    // 32 bytes of message header, 16 of slot, 8 of record header: 40 such calls, and 128 bytes before them, fill 4096 bytes.
    let text = "x".repeat(40);
    for index in 0..42 {
        tell_host_on(&link, index, &[ValueRef::String(&text)]).expect("told");
        let exits = host.exits.borrow().len();
        assert_eq!(exits, usize::from(index >= 41), "after call {index}");
    }
    host.drain();
    let told = host.told.borrow();
    let expected = (0..42).map(|index| (index, text.clone().into_bytes()));
    assert!(told.iter().cloned().eq(expected), "{told:?}");
}

#[test]
fn a_one_way_call_larger_than_the_outbox_is_refused() {
    let host = FakeHost::new();
    let bytes = vec![7; BUFFER_LEN_BYTES];
    let error = tell_host_on(&host.link(), 1, &[ValueRef::Bytes(&bytes)]).expect_err("too large");
    assert_eq!(error.code(), ErrorCode::TooLarge);
    host.drain();
    assert!(host.told.borrow().is_empty());
}
