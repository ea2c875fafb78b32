use vellum_abi::message::{
    Argument, ErrorCode, Limits, MAX_SLOTS, Message, MessageKind, MessageWriter, Outcome, Place,
};
use vellum_abi::value::{ValueRef, ValueType};
use vellum_backend::{Access, Exit, IoWidth};

use super::super::incoming::check_arguments;
use super::{Failure, Offered, Stop, Value, encode, end_of, idle, parse};
use crate::host::{HostFunctions, Resolved};
use crate::image::GuestImage;

fn encoded(room_bytes: usize, values: &[ValueRef<'_>]) -> Result<Vec<u8>, Failure> {
    let mut buffer = vec![0xAA; room_bytes];
    let len_bytes = encode(&mut buffer, MessageKind::Call, 7, values)?;
    buffer.truncate(len_bytes);
    Ok(buffer)
}

#[test]
fn values_that_fit_are_written_into_the_message() {
    let values = [
        ValueRef::Bool(true),
        ValueRef::I32(-1),
        ValueRef::F64(1.5),
        ValueRef::String("text"),
        ValueRef::Bytes(&[1, 2]),
    ];
    let bytes = encoded(4096, &values).expect("encoded");
    let message = parse(&bytes).expect("a message");
    assert_eq!((message.kind(), message.function()), (MessageKind::Call, 7));
    assert_eq!(message.slot_count(), values.len());
    for (index, value) in values.into_iter().enumerate() {
        assert_eq!(
            message.argument(index).expect("an argument"),
            Argument::Value(value)
        );
    }
}

#[test]
fn a_value_that_does_not_fit_is_announced_and_what_follows_is_still_written() {
    let large = vec![1; 5000];
    let values = [
        ValueRef::Bytes(&large),
        ValueRef::U64(9),
        ValueRef::String("small"),
    ];
    let bytes = encoded(4096, &values).expect("encoded");
    let message = parse(&bytes).expect("a message");
    let Argument::External(external) = message.argument(0).expect("an argument") else {
        panic!("the value is too large for the message");
    };
    assert_eq!(
        (external.value_type, external.len_bytes),
        (ValueType::Bytes, 5000)
    );
    assert_eq!(external.place, Place::HostSlot { slot: 0 });
    assert_eq!(
        message.argument(1).expect("an argument"),
        Argument::Value(values[1])
    );
    assert_eq!(
        message.argument(2).expect("an argument"),
        Argument::Value(values[2])
    );
}

#[test]
fn the_last_byte_of_the_buffer_is_used() {
    let bytes = vec![1; 4096 - 32 - 16];
    assert_eq!(
        encoded(4096, &[ValueRef::Bytes(&bytes)])
            .expect("encoded")
            .len(),
        4096
    );
    let one_more = vec![1; bytes.len() + 1];
    assert_eq!(
        encoded(4096, &[ValueRef::Bytes(&one_more)])
            .expect("encoded")
            .len(),
        48
    );
}

#[test]
fn a_message_that_cannot_be_is_refused() {
    let many = [ValueRef::Unit; MAX_SLOTS + 1];
    assert!(matches!(encoded(4096, &many), Err(Failure::Protocol(_))));
    assert!(matches!(encoded(31, &[]), Err(Failure::Protocol(_))));
    assert!(matches!(
        encoded(47, &[ValueRef::Unit]),
        Err(Failure::Protocol(_))
    ));
}

#[test]
fn what_is_offered_is_the_latest_message_only() {
    let values = [ValueRef::I32(1), ValueRef::Bytes(b"ab")];
    let arguments = Offered::Arguments(&values);
    let cases = [
        (0, Some(values[0])),
        (1, Some(values[1])),
        (2, None),
        (u32::MAX, None),
    ];
    for (slot, expected) in cases {
        assert_eq!(arguments.get(slot), expected);
    }
    let result = Offered::Result(Value::Bytes(b"xyz".to_vec()));
    assert_eq!(result.get(0), Some(ValueRef::Bytes(b"xyz")));
    assert_eq!(result.get(1), None);
    assert_eq!(Offered::Arguments(&[]).get(0), None);
}

#[test]
fn an_idle_exit_has_one_of_two_meanings() {
    assert_eq!(idle(0).expect("known"), Stop::Ready);
    assert_eq!(idle(1).expect("known"), Stop::Reply);
    for data in [2, 3, u32::MAX] {
        assert!(matches!(idle(data), Err(Failure::Protocol(_))), "{data}");
    }
}

#[test]
fn every_exit_that_ends_a_call_has_its_failure() {
    let byte = IoWidth::Byte;
    let memory = |mapped| Exit::MemoryFault {
        gpa: 0x1234_5000,
        access: Access::Write,
        mapped,
    };
    let cases = [
        (
            Exit::IoOut {
                port: 0xE0,
                width: byte,
                data: 0,
            },
            "port 0xe0",
        ),
        (
            Exit::IoIn {
                port: 0x60,
                width: byte,
            },
            "port 0x60",
        ),
        (Exit::IoString { port: 0x3F8 }, "port 0x3f8"),
        (Exit::Halt, "halted"),
        (
            memory(true),
            "Write access to protected guest-physical memory at 0x12345000",
        ),
        (
            memory(false),
            "Write access to absent guest-physical memory at 0x12345000",
        ),
        (
            Exit::MemoryLost { gpa: Some(0x5000) },
            "behind guest-physical memory at 0x5000",
        ),
        (
            Exit::MemoryLost { gpa: None },
            "behind guest-physical memory",
        ),
        (Exit::TripleFault, "triple fault"),
        (
            Exit::InvalidState {
                reason: 0x8000_0021,
            },
            "0x80000021",
        ),
        (Exit::EmulationFailure, "instruction"),
        (Exit::Unhandled { reason: 99 }, "exit 99"),
    ];
    for (exit, says) in cases {
        let failure = end_of(exit);
        assert!(failure.to_string().contains(says), "{exit:?}: {failure}");
        assert!(
            matches!(
                failure,
                Failure::ForbiddenPort { .. } | Failure::Halted | Failure::Crashed(_)
            ),
            "{exit:?}: {failure:?}"
        );
    }
}

fn resolved() -> Resolved {
    let image =
        GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
    let host = HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |_: String| ());
    // In the order of the guest's table, whatever that is.
    host.resolve(image.imports()).expect("resolved")
}

fn host_call(function: u32, values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::HostCall, function, values.len())
        .expect("fits");
    for value in values {
        writer.push(*value).expect("fits");
    }
    let len_bytes = writer.finish().expect("complete");
    buffer.truncate(len_bytes);
    buffer
}

fn index_of(host: &Resolved, params: &[ValueType]) -> u32 {
    (0..16)
        .find(|index| {
            host.signature(*index)
                .is_some_and(|signature| signature.params() == params)
        })
        .expect("one function has these parameters")
}

#[test]
fn a_host_call_with_the_right_arguments_is_let_through() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let bytes = host_call(add, &[ValueRef::I32(1), ValueRef::I32(2)]);
    let message = parse(&bytes).expect("a message");
    assert_eq!(
        check_arguments(&message, &host).expect("well formed"),
        Ok(())
    );
}

#[test]
fn a_host_call_with_wrong_function_or_arguments_is_an_error_for_the_guest() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let one = ValueRef::I32(1);
    let cases: [(u32, &[ValueRef<'_>], ErrorCode); 7] = [
        (3, &[one, one], ErrorCode::UnknownFunction),
        (u32::MAX, &[], ErrorCode::UnknownFunction),
        (add, &[], ErrorCode::ArgumentCount),
        (add, &[one], ErrorCode::ArgumentCount),
        (add, &[one; 3], ErrorCode::ArgumentCount),
        (add, &[one, ValueRef::U32(1)], ErrorCode::ArgumentType),
        (add, &[ValueRef::String("1"), one], ErrorCode::ArgumentType),
    ];
    for (function, values, expected) in cases {
        let bytes = host_call(function, values);
        let message = parse(&bytes).expect("a message");
        let (code, text) = check_arguments(&message, &host)
            .expect("well formed")
            .expect_err("refused");
        assert_eq!(code, expected, "{text}");
    }
}

#[test]
fn a_host_call_with_a_malformed_argument_ends_the_call() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let mut bytes = host_call(add, &[ValueRef::I32(1), ValueRef::I32(2)]);
    bytes[32] = 99; // the type of the first slot
    let message = parse(&bytes).expect("the header is sound");
    assert!(matches!(
        check_arguments(&message, &host),
        Err(Failure::Message(_))
    ));
}

#[test]
fn an_error_reply_that_the_host_writes_can_be_read_by_the_guest() {
    let mut buffer = [0; 4096];
    let text = "x".repeat(10_000);
    let len_bytes = super::write_error(
        &mut buffer,
        MessageKind::HostReply,
        2,
        ErrorCode::FunctionFailed,
        &text,
    );
    let bytes = &buffer[..len_bytes.expect("written")];
    let message = Message::parse(bytes, Limits::for_buffer(4096)).expect("a message");
    let Outcome::Failed { code, text } = message.outcome().expect("an outcome") else {
        panic!("it failed")
    };
    assert_eq!((code, text.len()), (ErrorCode::FunctionFailed, 1024));
}
