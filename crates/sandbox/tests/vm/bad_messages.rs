//! Messages, records and requests that a hostile guest writes by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use object::Endianness;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use vellum_abi::function::{EXPORTS_SECTION, FunctionEntry};
use vellum_abi::message::{MAX_ERROR_TEXT_LEN_BYTES, MessageKind, MessageWriter};
use vellum_abi::outbox::{RECORDS_OFFSET, RecordKind};
use vellum_abi::port::Port;
use vellum_abi::value::{ValueRef, ValueType};
use vellum_layout::amd64::user;
use vellum_sandbox::{
    CallOptions, Error, ErrorKind, GuestImage, HostFunctions, Sandbox, Snapshot, Value,
};

use super::support::{HEAP_LEN_BYTES, Lab, counter, in_each_mode, refused};

/// Offsets in a message (`vellum-abi`, module `message`).
const KIND: usize = 0;
const FUNCTION: usize = 4;
const STATUS: usize = 8;
const SLOT_COUNT: usize = 12;
const TOTAL_LEN: usize = 16;
const RESERVED: usize = 20;
const SLOT_TYPE: usize = 32;
const SLOT_FLAGS: usize = 33;
const SLOT_RESERVED: usize = 34;
const SLOT_LEN: usize = 36;
const SLOT_BITS: usize = 40;

pub(crate) const OUTPUT_LEN_BYTES: u32 = 16 << 10;

fn message(kind: MessageKind, function: u32, values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let mut writer = MessageWriter::new(&mut buffer, kind, function, values.len()).expect("fits");
    for value in values {
        writer.push(*value).expect("fits");
    }
    let len_bytes = writer.finish().expect("complete");
    buffer.truncate(len_bytes);
    buffer
}

/// A message with some 32-bit words replaced.
fn with_words(mut message: Vec<u8>, words: &[(usize, u32)]) -> Vec<u8> {
    for (offset, word) in words {
        message[*offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    message
}

/// A message with some bytes replaced.
fn with_bytes(mut message: Vec<u8>, bytes: &[(usize, u8)]) -> Vec<u8> {
    for (offset, byte) in bytes {
        message[*offset] = *byte;
    }
    message
}

/// A message whose one slot refers to memory of the guest.
fn external(
    kind: MessageKind,
    function: u32,
    value_type: ValueType,
    (gva, len_bytes): (u64, usize),
) -> Vec<u8> {
    let mut buffer = vec![0; 64];
    let mut writer = MessageWriter::new(&mut buffer, kind, function, 1).expect("fits");
    writer
        .push_guest_memory(value_type, gva, len_bytes)
        .expect("fits");
    let len_bytes = writer.finish().expect("complete");
    buffer.truncate(len_bytes);
    buffer
}

/// Index of an exported or imported function.
fn index_of(functions: &[vellum_sandbox::Function], name: &str) -> u32 {
    let index = functions
        .iter()
        .position(|function| function.name() == name)
        .expect("the function is there");
    u32::try_from(index).expect("few functions")
}

/// The bytes of an outbox with these records.
pub(crate) fn outbox_of(records: &[(u32, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; RECORDS_OFFSET];
    for (kind, body) in records {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
        bytes.extend(*body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let end = u32::try_from(bytes.len() - RECORDS_OFFSET).expect("short");
    bytes[..4].copy_from_slice(&end.to_le_bytes());
    bytes
}

pub(crate) struct Bench {
    sandbox: Sandbox,
    snapshot: Snapshot,
    /// Index of `raw_reply`, which returns unit.
    function: u32,
}

impl Bench {
    pub(crate) fn new(lab: &Lab) -> Self {
        let mut sandbox = lab.sandbox();
        let snapshot = sandbox.snapshot().expect("taken");
        Self {
            sandbox,
            snapshot,
            function: index_of(lab.image.exports(), "raw_reply"),
        }
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sandbox.call("raw_reply", (bytes,))
    }

    pub(crate) fn output(&mut self, port: Port, bytes: &[u8]) -> Result<(), Error> {
        self.sandbox
            .call("raw_output", (u32::from(port.number()), bytes))
    }

    /// Puts one record with this body into the outbox.
    pub(crate) fn outbox(&mut self, kind: RecordKind, body: &[u8]) -> Result<(), Error> {
        let outbox = outbox_of(&[(kind as u32, body)]);
        self.sandbox.call("raw_outbox", (outbox,))
    }

    /// The call must have broken the protocol; heals the sandbox.
    pub(crate) fn broke(&mut self, what: &str, result: Result<(), Error>) {
        let error = refused(what, result);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error:?}");
        assert!(!self.sandbox.is_ready(), "{what}");
        self.sandbox.restore(&self.snapshot).expect("restored");
        assert_eq!(counter(&mut self.sandbox), 0, "{what}");
    }
}

#[test]
fn a_reply_that_is_correct_is_taken() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let reply = message(MessageKind::Reply, bench.function, &[ValueRef::Unit]);
        bench.reply(&reply).expect("the hand-made reply is correct");
        assert_eq!(
            bench
                .sandbox
                .call::<_, i32>("add", (40, 2))
                .expect("called"),
            42
        );
    });
}

/// Headers that are none, and headers that belong elsewhere.
fn bad_headers(function: u32) -> Vec<(&'static str, Vec<u8>)> {
    let reply = || message(MessageKind::Reply, function, &[ValueRef::Unit]);
    let text = || message(MessageKind::Reply, function, &[ValueRef::String("text")]);
    vec![
        ("no header", Vec::new()),
        ("all ones", vec![0xFF; 128]),
        ("kind 0", with_words(reply(), &[(KIND, 0)])),
        ("a call", with_words(reply(), &[(KIND, 1)])),
        ("a host call", with_words(reply(), &[(KIND, 3)])),
        ("a host reply", with_words(reply(), &[(KIND, 4)])),
        ("an unknown kind", with_words(reply(), &[(KIND, u32::MAX)])),
        (
            "another function",
            with_words(reply(), &[(FUNCTION, function ^ 1)]),
        ),
        (
            "no such function",
            with_words(reply(), &[(FUNCTION, u32::MAX)]),
        ),
        ("an unknown status", with_words(text(), &[(STATUS, 9)])),
        (
            "the largest status",
            with_words(text(), &[(STATUS, u32::MAX)]),
        ),
        ("an error without text", with_words(reply(), &[(STATUS, 5)])),
        ("no slot", with_words(reply(), &[(SLOT_COUNT, 0)])),
        (
            "two slots",
            with_words(reply(), &[(SLOT_COUNT, 2), (TOTAL_LEN, 64)]),
        ),
        (
            "17 slots",
            with_words(reply(), &[(SLOT_COUNT, 17), (TOTAL_LEN, 304)]),
        ),
        (
            "2^32 - 1 slots",
            with_words(reply(), &[(SLOT_COUNT, u32::MAX)]),
        ),
        ("length 0", with_words(reply(), &[(TOTAL_LEN, 0)])),
        (
            "length inside the header",
            with_words(reply(), &[(TOTAL_LEN, 31)]),
        ),
        (
            "length inside the slot",
            with_words(reply(), &[(TOTAL_LEN, 47)]),
        ),
        (
            "length past the buffer",
            with_words(reply(), &[(TOTAL_LEN, OUTPUT_LEN_BYTES + 1)]),
        ),
        (
            "length that wraps",
            with_words(reply(), &[(TOTAL_LEN, u32::MAX)]),
        ),
        (
            "length that wraps less",
            with_words(reply(), &[(TOTAL_LEN, u32::MAX - 3)]),
        ),
        ("first reserved word", with_words(reply(), &[(RESERVED, 1)])),
        (
            "last reserved word",
            with_words(reply(), &[(RESERVED + 8, 1)]),
        ),
    ]
}

/// Slots that hold no value, or one of the wrong type.
fn bad_slots(function: u32) -> Vec<(&'static str, Vec<u8>)> {
    let reply = || message(MessageKind::Reply, function, &[ValueRef::Unit]);
    let of = |value| message(MessageKind::Reply, function, &[value]);
    let text = || of(ValueRef::String("text"));
    let failed = |message| with_words(message, &[(STATUS, 5)]);
    let long = "x".repeat(MAX_ERROR_TEXT_LEN_BYTES + 1);
    vec![
        ("a number for unit", of(ValueRef::I32(1))),
        ("a string for unit", text()),
        ("an unknown type", with_bytes(reply(), &[(SLOT_TYPE, 10)])),
        ("the largest type", with_bytes(reply(), &[(SLOT_TYPE, 255)])),
        ("an unknown flag", with_bytes(reply(), &[(SLOT_FLAGS, 2)])),
        ("an external unit", with_bytes(reply(), &[(SLOT_FLAGS, 1)])),
        (
            "a reserved byte",
            with_bytes(reply(), &[(SLOT_RESERVED, 1)]),
        ),
        ("unit with bits", with_bytes(reply(), &[(SLOT_BITS, 1)])),
        ("unit with a length", with_words(reply(), &[(SLOT_LEN, 1)])),
        (
            "bool of 2",
            with_bytes(of(ValueRef::Bool(true)), &[(SLOT_BITS, 2)]),
        ),
        (
            "string before the payload",
            with_words(text(), &[(SLOT_BITS, 47)]),
        ),
        (
            "string past the message",
            with_words(text(), &[(SLOT_BITS, 49)]),
        ),
        (
            "string whose end wraps",
            with_words(text(), &[(SLOT_BITS, u32::MAX), (SLOT_BITS + 4, u32::MAX)]),
        ),
        (
            "string of 2^32 - 1 bytes",
            with_words(text(), &[(SLOT_LEN, u32::MAX)]),
        ),
        (
            "error text of 2^32 - 1 bytes",
            failed(with_words(text(), &[(SLOT_LEN, u32::MAX)])),
        ),
        (
            "error text that is not UTF-8",
            failed(with_bytes(text(), &[(48, 0xFF)])),
        ),
        ("error text that is a number", failed(of(ValueRef::I32(1)))),
        (
            "error text that is bytes",
            failed(of(ValueRef::Bytes(b"text"))),
        ),
        (
            "error text that is too long",
            failed(of(ValueRef::String(&long))),
        ),
        (
            "error text elsewhere",
            failed(external(
                MessageKind::Reply,
                function,
                ValueType::String,
                (user::IO_BASE.as_u64(), 4),
            )),
        ),
    ]
}

#[test]
fn a_malformed_reply_breaks_the_protocol_and_nothing_else() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let rows = [bad_headers(bench.function), bad_slots(bench.function)].concat();
        for (what, reply) in rows {
            let result = bench.reply(&reply);
            bench.broke(what, result);
        }
    });
}

/// Ranges that are not the guest's to pass on, each with a length.
pub(crate) fn bad_ranges() -> Vec<(&'static str, (u64, usize))> {
    let heap = user::HEAP_BASE.as_u64();
    let heap_end = heap + HEAP_LEN_BYTES;
    let peb = user::IO_BASE.as_u64();
    vec![
        ("null", (0, 8)),
        ("below the image", (0x1_0000, 8)),
        ("between heap and buffers", (heap_end, 8)),
        ("across the end of the heap", (heap_end - 4, 8)),
        (
            "the heap and a byte",
            (heap, usize::try_from(HEAP_LEN_BYTES).expect("small") + 1),
        ),
        ("4 GiB of heap", (heap, u32::MAX as usize)),
        ("a range that wraps", (u64::MAX - 3, 8)),
        ("a non-canonical address", (1 << 47, 8)),
        ("a range into the hole", ((1 << 47) - 4, 8)),
        (
            "the guard page",
            (
                user::stack_guard(1 << 20)
                    .expect("the default")
                    .start()
                    .as_u64(),
                8,
            ),
        ),
        ("the PEB", (peb, 8)),
        ("bookkeeping", (user::BOOKKEEPING.start().as_u64(), 8)),
        (
            "the monitor's window",
            (user::PHYSICAL_WINDOW.start().as_u64(), 8),
        ),
        ("the monitor", (user::MONITOR_CODE_AREA.start().as_u64(), 8)),
    ]
}

/// The Rust guest with another type of result in its table, as a guest could have that lies about itself: the host then
/// expects bytes of `raw_reply`.
fn image_whose_raw_reply_returns_bytes(lab: &Lab) -> GuestImage {
    const RETURN_TYPE: usize = std::mem::offset_of!(FunctionEntry, ret);
    let mut elf = vellum_test_guests::rust_user().to_vec();
    let (table, _) = ElfFile64::<Endianness>::parse(&elf[..])
        .expect("valid")
        .section_by_name(EXPORTS_SECTION)
        .and_then(|section| section.file_range())
        .expect("the table is in the file");
    let index = index_of(lab.image.exports(), "raw_reply") as usize;
    let at =
        usize::try_from(table).expect("small") + index * FunctionEntry::LEN_BYTES + RETURN_TYPE;
    assert_eq!(elf[at], ValueType::Unit.code());
    elf[at] = ValueType::Bytes.code();
    GuestImage::from_bytes(&elf).expect("still valid")
}

#[test]
fn a_result_elsewhere_is_taken_from_the_guests_own_memory_only() {
    in_each_mode(|lab| {
        let lab = Lab {
            image: image_whose_raw_reply_returns_bytes(lab),
            engine: lab.engine.clone(),
        };
        let mut bench = Bench::new(&lab);
        let answer = |bench: &mut Bench, range| {
            let reply = external(MessageKind::Reply, bench.function, ValueType::Bytes, range);
            bench.sandbox.call::<_, Vec<u8>>("raw_reply", (&reply[..],))
        };
        for (what, range) in bad_ranges() {
            let result = answer(&mut bench, range).map(drop);
            bench.broke(what, result);
        }
        // Heap that was never touched is zeroes, in both modes.
        let middle = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES / 2;
        let bytes =
            answer(&mut bench, (middle + 100, 10_000)).expect("the guest may read its heap");
        assert!(bytes == vec![0; 10_000]);
    });
}

#[test]
fn an_argument_of_a_host_call_is_taken_from_the_guests_own_memory_only() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let echo = index_of(lab.image.imports(), "host_echo");
        let fail = index_of(lab.image.imports(), "host_fail");
        for (what, range) in bad_ranges() {
            let call = external(MessageKind::HostCall, echo, ValueType::Bytes, range);
            let result = bench.output(Port::HostCall, &call);
            bench.broke(what, result);
            let call = external(MessageKind::HostCall, fail, ValueType::String, range);
            let result = bench.output(Port::HostCall, &call);
            bench.broke(what, result);
        }
        // Heap that was never touched is zeroes, in both modes.
        let middle = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES / 2;
        let call = external(
            MessageKind::HostCall,
            echo,
            ValueType::Bytes,
            (middle, 4096),
        );
        bench
            .output(Port::HostCall, &call)
            .expect("the guest may read its heap");
    });
}

#[test]
fn a_malformed_host_call_breaks_the_protocol_and_nothing_else() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let add = index_of(lab.image.imports(), "host_add");
        let call = || {
            message(
                MessageKind::HostCall,
                add,
                &[ValueRef::I32(1), ValueRef::I32(2)],
            )
        };
        let rows = [
            ("no message", Vec::new()),
            (
                "a reply",
                message(MessageKind::Reply, add, &[ValueRef::Unit]),
            ),
            ("a call", with_words(call(), &[(KIND, 1)])),
            ("a status", with_words(call(), &[(STATUS, 1)])),
            ("17 slots", with_words(call(), &[(SLOT_COUNT, 17)])),
            (
                "2^32 - 1 slots",
                with_words(call(), &[(SLOT_COUNT, u32::MAX)]),
            ),
            (
                "length past the buffer",
                with_words(call(), &[(TOTAL_LEN, OUTPUT_LEN_BYTES + 1)]),
            ),
            ("an unknown type", with_bytes(call(), &[(SLOT_TYPE, 99)])),
            (
                "a number beyond its type",
                with_words(call(), &[(SLOT_BITS + 4, 1)]),
            ),
        ];
        for (what, call) in rows {
            let result = bench.output(Port::HostCall, &call);
            bench.broke(what, result);
        }
    });
}

#[test]
fn a_host_call_with_the_wrong_function_or_arguments_is_answered_and_not_made() {
    in_each_mode(|lab| {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = || {
            let calls = calls.clone();
            move || calls.fetch_add(1, Ordering::Relaxed)
        };
        let (first, second, third) = (counted(), counted(), counted());
        let host = HostFunctions::new()
            .with("host_add", move |_: i32, _: i32| i32::from(first() > 0))
            .with("host_echo", move |_: Vec<u8>| vec![u8::from(second() > 0)])
            .with("host_fail", move |_: String| assert_ne!(third(), u32::MAX));
        let mut sandbox = lab
            .builder()
            .host_functions(&host)
            .build(&lab.engine)
            .expect("built");
        let add = index_of(lab.image.imports(), "host_add");
        let one = ValueRef::I32(1);
        let rows: [(&str, u32, &[ValueRef<'_>]); 7] = [
            ("an import that does not exist", 3, &[one, one]),
            ("the largest import", u32::MAX, &[one, one]),
            ("no argument", add, &[]),
            ("one argument", add, &[one]),
            ("three arguments", add, &[one; 3]),
            ("sixteen arguments", add, &[one; 16]),
            ("another type", add, &[one, ValueRef::U32(1)]),
        ];
        for (what, function, values) in rows {
            let call = message(MessageKind::HostCall, function, values);
            let args = [
                Value::U32(Port::HostCall.number().into()),
                Value::Bytes(call),
            ];
            let result = sandbox.call_dynamic("raw_output", &args, &CallOptions::new());
            assert_eq!(
                result.unwrap_or_else(|error| panic!("{what}: {error:?}")),
                Value::Unit,
                "{what}"
            );
            assert!(sandbox.is_ready(), "{what}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 0, "no host function ran");
    });
}
