//! The short ways beside the writer and the parser of all messages, which are the oracle.

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::message::{Argument, Limits, Message, MessageWriter};

const FUNCTION: u32 = 7;

/// What the writer of all messages makes of the values.
fn oracle(kind: MessageKind, values: &[ValueRef<'_>]) -> Option<Vec<u8>> {
    let mut buffer = vec![0xA5; 4096];
    let mut writer = MessageWriter::new(&mut buffer, kind, FUNCTION, values.len()).ok()?;
    for value in values {
        writer.push(*value).ok()?;
    }
    let len_bytes = writer.finish().ok()?;
    buffer.truncate(len_bytes);
    Some(buffer)
}

fn any_scalar() -> impl Strategy<Value = ValueRef<'static>> {
    (0_u8..8, any::<u64>()).prop_map(|(code, bits)| {
        let ty = ValueType::try_from(code).expect("a type of fixed size");
        let low = u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits");
        let narrowed = match ty {
            ValueType::Unit => 0,
            ValueType::Bool => bits & 1,
            ValueType::I32 => i64::from(low.cast_signed()).cast_unsigned(),
            ValueType::U32 | ValueType::F32 => low.into(),
            _ => bits,
        };
        ValueRef::from_scalar_bits(ty, narrowed).expect("bits of the type")
    })
}

fn any_kind() -> impl Strategy<Value = MessageKind> {
    (1_u32..=5).prop_map(|number| MessageKind::from_number(number).expect("a kind"))
}

proptest! {
    #[test]
    fn a_plain_message_is_written_as_the_writer_writes_it(
        kind in any_kind(),
        values in prop::collection::vec(any_scalar(), 0..=MAX_SLOTS + 1),
    ) {
        let mut buffer = vec![0xA5; 4096];
        let written = write_plain(&mut buffer, kind, FUNCTION, &values).map(|len| buffer[..len].to_vec());
        prop_assert_eq!(written, oracle(kind, &values));
    }

    /// NaNs differ from themselves as values, so their bits are compared.
    #[test]
    fn a_plain_message_is_read_as_the_parser_reads_it(values in prop::collection::vec(any_scalar(), 0..=MAX_SLOTS)) {
        let bytes = oracle(MessageKind::HostCall, &values).expect("a sound message");
        let slots = plain_slots(&bytes, MessageKind::HostCall, FUNCTION, values.len()).expect("a plain header");
        for (index, value) in values.iter().enumerate() {
            prop_assert_eq!(plain_bits(slots, index, value.value_type()), value.scalar_bits());
        }
        prop_assert_eq!(plain_bits(slots, values.len(), ValueType::U64), None);
    }

    /// One field of header or slots spoilt: whatever is still taken for plain, the parser takes for the same value.
    #[test]
    fn what_is_recognised_is_what_the_parser_recognises(
        value in any_scalar(),
        at in 0_usize..MessageHeader::LEN_BYTES + Slot::LEN_BYTES,
        byte in any::<u8>(),
    ) {
        let mut bytes = oracle(MessageKind::Reply, &[value]).expect("a sound message");
        bytes[at] = byte;
        let bits = plain_slots(&bytes, MessageKind::Reply, FUNCTION, 1)
            .and_then(|slots| plain_bits(slots, 0, value.value_type()))
            .and_then(|bits| ValueRef::from_scalar_bits(value.value_type(), bits))
            .and_then(|value| value.scalar_bits());
        let parsed = Message::parse(&bytes, Limits::for_buffer(bytes.len()))
            .ok()
            .filter(|message| message.kind() == MessageKind::Reply && message.function() == FUNCTION)
            .filter(|message| message.error().is_none())
            .and_then(|message| message.argument(0).ok())
            .and_then(|argument| match argument {
                Argument::Value(read) if read.value_type() == value.value_type() => read.scalar_bits(),
                _ => None,
            });
        prop_assert_eq!(bits, parsed);
    }
}

#[test]
fn a_plain_reply_is_written_as_the_writer_writes_it() {
    let value = ValueRef::I32(-3);
    let slot = Slot::of_scalar(value).expect("of fixed size");
    let expected = oracle(MessageKind::Reply, &[value]).expect("a sound message");
    let mut buffer = vec![0xA5; 64];
    assert!(write_plain_reply(&mut buffer, FUNCTION, slot));
    assert_eq!(buffer[..expected.len()], expected);
    assert!(!write_plain_reply(&mut buffer[..47], FUNCTION, slot));
}

#[test]
fn text_and_bytes_are_not_plain() {
    for value in [ValueRef::String(""), ValueRef::Bytes(&[1])] {
        let mut buffer = vec![0; 4096];
        assert_eq!(
            write_plain(&mut buffer, MessageKind::Call, 0, &[value]),
            None
        );
    }
}

#[test]
fn a_buffer_that_is_too_small_is_refused_by_both_sides() {
    let values = [ValueRef::U32(1); 2];
    let whole = oracle(MessageKind::Call, &values).expect("a sound message");
    for len in 0..whole.len() {
        let mut buffer = vec![0; len];
        assert_eq!(
            write_plain(&mut buffer, MessageKind::Call, FUNCTION, &values),
            None
        );
        assert_eq!(
            plain_slots(&whole[..len], MessageKind::Call, FUNCTION, 2),
            None
        );
    }
}
