use vellum_abi::message::{ErrorCode, Limits, Message, MessageKind, Outcome};
use vellum_abi::value::ValueRef;

use super::{Offered, Value, write_error};

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
fn an_error_reply_that_the_host_writes_can_be_read_by_the_guest() {
    let mut buffer = [0; 4096];
    let text = "x".repeat(10_000);
    let len_bytes = write_error(
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
