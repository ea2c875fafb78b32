extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::value::{ValueRef, ValueType};

const BIG: Limits = Limits::for_buffer(1 << 20);

/// A message of `kind` with `values`, as its bytes.
fn written(kind: MessageKind, values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut buffer = alloc::vec![0xA5; 4096];
    let mut writer =
        MessageWriter::new(&mut buffer, kind, 7, values.len()).expect("room for slots");
    for value in values {
        writer.push(*value).expect("room for the value");
    }
    let len = writer.finish().expect("all slots are written");
    buffer.truncate(len);
    buffer
}

const EVERY_TYPE: [ValueRef<'static>; 11] = [
    ValueRef::Unit,
    ValueRef::Bool(true),
    ValueRef::I32(-5),
    ValueRef::U32(5),
    ValueRef::I64(i64::MIN),
    ValueRef::U64(u64::MAX),
    ValueRef::F32(1.5),
    ValueRef::F64(-2.5),
    ValueRef::String("grüezi"),
    ValueRef::Bytes(&[0, 255, 7]),
    ValueRef::Bytes(&[]),
];

#[test]
fn every_type_is_read_as_it_was_written() {
    let bytes = written(MessageKind::Call, &EVERY_TYPE);
    let message = Message::parse(&bytes, BIG).expect("sound");
    assert_eq!(
        (message.kind(), message.function(), message.slot_count()),
        (MessageKind::Call, 7, 11)
    );
    assert_eq!(message.len_bytes(), bytes.len());
    assert_eq!(Message::len_of(&bytes[..32], BIG), Ok(bytes.len()));
    let read: Result<Vec<_>, _> = message.arguments().collect();
    assert_eq!(read, Ok(EVERY_TYPE.map(Argument::Value).to_vec()));
    assert_eq!(message.argument(11), Err(MessageError::NoSlot(11)));
    assert_eq!(message.outcome(), Err(MessageError::NotAReply));
}

#[test]
fn bytes_after_the_message_are_ignored() {
    let mut bytes = written(MessageKind::Reply, &[ValueRef::U32(9)]);
    bytes.extend_from_slice(&[0xFF; 100]);
    let message = Message::parse(&bytes, BIG).expect("sound");
    assert_eq!(
        message.outcome(),
        Ok(Outcome::Value(Argument::Value(ValueRef::U32(9))))
    );
}

#[test]
fn external_values_name_their_place_by_direction() {
    let mut buffer = [0; 256];
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::Call, 0, 2).expect("room");
    writer.push(ValueRef::Bool(false)).expect("room");
    assert_eq!(writer.push_host_slot(ValueType::Bytes, 50_000_000), Ok(1));
    writer.finish().expect("complete");
    let message = Message::parse(&buffer, BIG).expect("sound");
    let place = Place::HostSlot { slot: 1 };
    let expected = External {
        value_type: ValueType::Bytes,
        len_bytes: 50_000_000,
        place,
    };
    assert_eq!(message.argument(1), Ok(Argument::External(expected)));

    let mut writer = MessageWriter::new(&mut buffer, MessageKind::Reply, 0, 1).expect("room");
    writer
        .push_guest_memory(ValueType::String, 0x40_0000_0000, 9000)
        .expect("room");
    writer.finish().expect("complete");
    let message = Message::parse(&buffer, BIG).expect("sound");
    let place = Place::GuestMemory {
        gva: 0x40_0000_0000,
    };
    let expected = External {
        value_type: ValueType::String,
        len_bytes: 9000,
        place,
    };
    assert_eq!(
        message.outcome(),
        Ok(Outcome::Value(Argument::External(expected)))
    );

    let small = Limits {
        external_len_bytes: 8999,
        ..BIG
    };
    let message = Message::parse(&buffer, small).expect("the header is sound");
    let expected = MessageError::ExternalLength {
        slot: 0,
        len_bytes: 9000,
        limit_bytes: 8999,
    };
    assert_eq!(message.outcome(), Err(expected));
}

#[test]
fn a_push_that_does_not_fit_leaves_room_for_an_external_one() {
    let mut buffer = [0; 64];
    let long = [1; 17];
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::HostCall, 0, 1).expect("room");
    let expected = WriteError::BufferTooSmall {
        need_bytes: 65,
        have_bytes: 64,
    };
    assert_eq!(writer.push(ValueRef::Bytes(&long)), Err(expected));
    writer
        .push_guest_memory(ValueType::Bytes, 4, 17)
        .expect("a slot is left");
    assert_eq!(writer.finish(), Ok(48));
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut buffer = [0; 64];
    let call = MessageKind::Call;
    let too_many = MessageWriter::new(&mut buffer, call, 0, 17).err();
    assert_eq!(too_many, Some(WriteError::TooManySlots(17)));
    let two = MessageWriter::new(&mut buffer, MessageKind::Reply, 0, 2).err();
    assert_eq!(two, Some(WriteError::SlotsOfReply(2)));
    let small = MessageWriter::new(&mut buffer[..47], call, 0, 1).err();
    assert_eq!(
        small,
        Some(WriteError::BufferTooSmall {
            need_bytes: 48,
            have_bytes: 47
        })
    );

    let mut writer = MessageWriter::new(&mut buffer, call, 0, 1).expect("room");
    assert_eq!(
        writer.push_guest_memory(ValueType::Bytes, 0, 1),
        Err(WriteError::WrongSide)
    );
    let scalar = writer.push_host_slot(ValueType::I32, 4);
    assert_eq!(scalar, Err(WriteError::ExternalScalar(ValueType::I32)));
    let long = writer.push_host_slot(ValueType::Bytes, 1 << 32);
    assert_eq!(long, Err(WriteError::ValueTooLong(1 << 32)));
    writer.push(ValueRef::Unit).expect("room");
    assert_eq!(writer.push(ValueRef::Unit), Err(WriteError::NoSlotLeft(1)));

    let writer = MessageWriter::new(&mut buffer, MessageKind::HostCall, 0, 1).expect("room");
    assert_eq!(
        writer.finish(),
        Err(WriteError::SlotsLeft {
            slots: 1,
            pushed: 0
        })
    );
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::HostCall, 0, 1).expect("room");
    assert_eq!(
        writer.push_host_slot(ValueType::Bytes, 1),
        Err(WriteError::WrongSide)
    );
}

#[test]
fn errors_carry_their_code_and_bounded_text() {
    for code in ErrorCode::ALL {
        let mut buffer = [0; 256];
        let len = write_error(&mut buffer, MessageKind::Reply, 3, code, "no luck").expect("room");
        let message = Message::parse(&buffer[..len], BIG).expect("sound");
        assert_eq!(
            message.outcome(),
            Ok(Outcome::Failed {
                code,
                text: "no luck"
            })
        );
    }
    let long = "é".repeat(600);
    let mut buffer = [0; 4096];
    write_error(
        &mut buffer,
        MessageKind::HostReply,
        3,
        ErrorCode::FunctionFailed,
        &long,
    )
    .expect("room");
    let message = Message::parse(&buffer, BIG).expect("sound");
    let text = &long[..1024];
    assert_eq!(
        message.outcome(),
        Ok(Outcome::Failed {
            code: ErrorCode::FunctionFailed,
            text
        })
    );

    // Three bytes of room: one two-byte character fits.
    let mut buffer = [0; 51];
    write_error(
        &mut buffer,
        MessageKind::Reply,
        3,
        ErrorCode::TooLarge,
        &long,
    )
    .expect("room");
    let message = Message::parse(&buffer, BIG).expect("sound");
    assert_eq!(
        message.outcome(),
        Ok(Outcome::Failed {
            code: ErrorCode::TooLarge,
            text: "é"
        })
    );

    let call = write_error(&mut buffer, MessageKind::Call, 3, ErrorCode::TooLarge, "");
    assert_eq!(call, Err(WriteError::SlotsOfReply(0)));
}

#[test]
fn status_numbers_are_codes_or_refused() {
    assert_eq!(ErrorCode::from_number(0), None);
    for number in 1..100 {
        match ErrorCode::from_number(number) {
            Some(code) => assert_eq!(code.number(), number),
            None => assert!(number > 8, "{number}"),
        }
    }
}

/// A sound reply with one field of its header or slot changed.
fn changed(offset: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = written(MessageKind::Reply, &[ValueRef::String("abc")]);
    bytes[offset..offset + field.len()].copy_from_slice(field);
    bytes
}

#[test]
fn each_header_defect_has_its_error() {
    let length = |total_len_bytes| MessageError::Length {
        total_len_bytes,
        min_bytes: 48,
        max_bytes: 51,
    };
    let cases: [(usize, u32, MessageError); 11] = [
        (0, 0, MessageError::UnknownKind(0)),
        (0, 6, MessageError::UnknownKind(6)),
        (8, 9, MessageError::UnknownStatus(9)),
        (8, u32::MAX, MessageError::UnknownStatus(u32::MAX)),
        (12, 0, MessageError::SlotsOfReply(0)),
        (12, 17, MessageError::TooManySlots(17)),
        (12, u32::MAX, MessageError::TooManySlots(u32::MAX)),
        (16, 47, length(47)),
        (16, 52, length(52)),
        (16, u32::MAX, length(u32::MAX)),
        (28, 1, MessageError::ReservedNotZero),
    ];
    for (offset, value, expected) in cases {
        let bytes = changed(offset, &value.to_le_bytes());
        assert_eq!(Message::parse(&bytes, BIG).err(), Some(expected));
    }
    let short = Message::parse(&[0; 31], BIG).err();
    assert_eq!(short, Some(MessageError::TooShort { have_bytes: 31 }));
    let mut call = written(MessageKind::Call, &[]);
    call[8] = 1;
    assert_eq!(
        Message::parse(&call, BIG).err(),
        Some(MessageError::StatusOfCall(1))
    );
    let limit = Limits {
        message_len_bytes: 50,
        ..BIG
    };
    let sound = written(MessageKind::Reply, &[ValueRef::String("abc")]);
    let expected = MessageError::Length {
        total_len_bytes: 51,
        min_bytes: 48,
        max_bytes: 50,
    };
    assert_eq!(Message::parse(&sound, limit).err(), Some(expected));
    let expected = MessageError::Length {
        total_len_bytes: 51,
        min_bytes: 32,
        max_bytes: 50,
    };
    assert_eq!(Message::len_of(&sound, limit), Err(expected));
    assert_eq!(
        Message::len_of(&sound[..9], limit),
        Err(MessageError::TooShort { have_bytes: 9 })
    );
}

#[test]
fn each_slot_defect_has_its_error() {
    let payload = |offset, len_bytes| MessageError::Payload {
        slot: 0,
        offset,
        len_bytes,
    };
    let cases: [(usize, &[u8], MessageError); 10] = [
        (32, &[10], MessageError::UnknownType { slot: 0, code: 10 }),
        (
            33,
            &[2],
            MessageError::SlotFlags {
                slot: 0,
                flags: 2,
                reserved: 0,
            },
        ),
        (
            34,
            &[1],
            MessageError::SlotFlags {
                slot: 0,
                flags: 0,
                reserved: 1,
            },
        ),
        (
            32,
            &[5],
            MessageError::Scalar {
                slot: 0,
                value_type: ValueType::U64,
                bits: 48,
                len_bytes: 3,
            },
        ),
        (
            32,
            &[1, 1, 0, 0, 0, 0, 0, 0, 1],
            MessageError::Scalar {
                slot: 0,
                value_type: ValueType::Bool,
                bits: 1,
                len_bytes: 0,
            },
        ),
        (36, &[4], payload(48, 4)),
        (36, &[255; 4], payload(48, u32::MAX)),
        (40, &[47], payload(47, 3)),
        (40, &[255; 8], payload(u64::MAX, 3)),
        (49, &[0xFF], MessageError::NotUtf8(0)),
    ];
    for (offset, field, expected) in cases {
        let bytes = changed(offset, field);
        let message = Message::parse(&bytes, BIG).expect("the header is sound");
        assert_eq!(message.argument(0), Err(expected), "{field:?} at {offset}");
    }
}

#[test]
fn an_external_value_of_the_host_names_its_own_slot() {
    let mut buffer = [0; 64];
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::Call, 0, 1).expect("room");
    writer.push_host_slot(ValueType::Bytes, 5).expect("room");
    writer.finish().expect("complete");
    for named in [1, 1 << 32, u64::MAX] {
        buffer[40..48].copy_from_slice(&named.to_le_bytes());
        let message = Message::parse(&buffer, BIG).expect("the header is sound");
        assert_eq!(
            message.argument(0),
            Err(MessageError::ExternalSlot { slot: 0, named })
        );
    }
}

#[test]
fn an_error_text_is_short_inline_text() {
    let long = "x".repeat(MAX_ERROR_TEXT_LEN_BYTES + 1);
    let not_texts = [
        ValueRef::U32(1),
        ValueRef::Bytes(b"text"),
        ValueRef::String(&long),
    ];
    for value in not_texts {
        let mut bytes = written(MessageKind::HostReply, &[value]);
        bytes[8] = 5;
        let message = Message::parse(&bytes, BIG).expect("the header is sound");
        assert_eq!(message.outcome(), Err(MessageError::ErrorText));
    }
}

/// Reads all there is to read. Whatever the bytes are, this must return.
fn read_all(bytes: &[u8]) -> usize {
    let Ok(message) = Message::parse(
        bytes,
        Limits {
            external_len_bytes: 1000,
            ..BIG
        },
    ) else {
        return 0;
    };
    let outcome = usize::from(message.outcome().is_ok());
    outcome + message.arguments().flatten().count()
}

#[test]
fn every_byte_set_to_every_value_is_read_without_panic() {
    let sound = written(MessageKind::Call, &EVERY_TYPE);
    let full = read_all(&sound);
    assert_eq!(full, EVERY_TYPE.len());
    let (mut bytes, mut still_sound) = (sound.clone(), 0);
    for at in 0..sound.len() {
        for value in 0..=u8::MAX {
            bytes[at] = value;
            still_sound += usize::from(read_all(&bytes) >= full);
        }
        bytes[at] = sound[at];
    }
    // Every offset has its own value among the 256, and many fields refuse the other 255.
    assert!(
        still_sound >= sound.len() && still_sound < sound.len() * 200,
        "{still_sound}"
    );
}

#[test]
fn every_pair_of_header_bits_flipped_is_read_without_panic() {
    let sound = written(MessageKind::Reply, &[ValueRef::Bytes(&[1, 2, 3])]);
    let bits = 48 * 8;
    for first in 0..bits {
        for second in first..bits {
            let mut bytes = sound.clone();
            bytes[first / 8] ^= 1 << (first % 8);
            bytes[second / 8] ^= 1 << (second % 8);
            assert!(read_all(&bytes) <= 2);
        }
    }
}

#[test]
fn every_prefix_of_a_message_is_refused() {
    let sound = written(MessageKind::Call, &EVERY_TYPE);
    for len in 0..sound.len() {
        assert!(Message::parse(&sound[..len], BIG).is_err(), "{len}");
    }
}

#[derive(Clone, Debug)]
enum Owned {
    Scalar(ValueRef<'static>),
    String(String),
    Bytes(Vec<u8>),
}

impl Owned {
    fn borrow(&self) -> ValueRef<'_> {
        match self {
            Self::Scalar(value) => *value,
            Self::String(text) => ValueRef::String(text),
            Self::Bytes(bytes) => ValueRef::Bytes(bytes),
        }
    }
}

fn any_value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        Just(Owned::Scalar(ValueRef::Unit)),
        any::<bool>().prop_map(|value| Owned::Scalar(ValueRef::Bool(value))),
        any::<i32>().prop_map(|value| Owned::Scalar(ValueRef::I32(value))),
        any::<u32>().prop_map(|value| Owned::Scalar(ValueRef::U32(value))),
        any::<i64>().prop_map(|value| Owned::Scalar(ValueRef::I64(value))),
        any::<u64>().prop_map(|value| Owned::Scalar(ValueRef::U64(value))),
        any::<f32>().prop_map(|value| Owned::Scalar(ValueRef::F32(value))),
        any::<f64>().prop_map(|value| Owned::Scalar(ValueRef::F64(value))),
        ".{0,40}".prop_map(Owned::String),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Owned::Bytes),
    ]
}

proptest! {
    #[test]
    fn any_values_are_read_as_they_were_written(values in prop::collection::vec(any_value(), 0..=MAX_SLOTS)) {
        let values: Vec<_> = values.iter().map(Owned::borrow).collect();
        let bytes = written(MessageKind::HostCall, &values);
        let message = Message::parse(&bytes, BIG).expect("sound");
        let read: Result<Vec<_>, _> = message.arguments().collect();
        let expected: Vec<_> = values.into_iter().map(Argument::Value).collect();
        prop_assert_eq!(read, Ok(expected));
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0_u32..6,
        slots in 0_u32..18,
        len in 0_u32..220,
    ) {
        let mut bytes = bytes;
        for (offset, field) in [(0, kind), (8, 0), (12, slots), (16, len), (20, 0), (24, 0), (28, 0)] {
            if let Some(place) = bytes.get_mut(offset..offset + 4) {
                place.copy_from_slice(&field.to_le_bytes());
            }
        }
        prop_assert!(read_all(&bytes) <= MAX_SLOTS + 1);
    }
}
