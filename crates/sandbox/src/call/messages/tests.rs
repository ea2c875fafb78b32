use vellum_abi::message::{Argument, MAX_SLOTS, MessageKind, Place};
use vellum_abi::value::{ValueRef, ValueType};

use super::{Failure, encode, parse};

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
