extern crate alloc;

use alloc::format;
use alloc::vec::Vec;

use super::*;

const SOUND: FunctionEntry = FunctionEntry {
    name_ptr: 0x20_0000,
    name_len_bytes: 3,
    param_count: 2,
    ret: 2,
    flags: 0,
    params: [2, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    entry: 0x20_1000,
};

#[test]
fn a_table_is_read_entry_by_entry() {
    let second = FunctionEntry {
        name_ptr: 9,
        ..SOUND
    };
    let mut section = Vec::from(SOUND.as_bytes());
    section.extend_from_slice(second.as_bytes());
    let entries: Vec<_> = FunctionEntry::parse_table(&section)
        .expect("80 bytes")
        .collect();
    assert_eq!(entries, [SOUND, second]);
    let torn = FunctionEntry::parse_table(&section[..79]).err();
    assert_eq!(torn, Some(FunctionError::TableLength { len_bytes: 79 }));
    assert_eq!(
        FunctionEntry::parse_table(&[]).expect("no entries").len(),
        0
    );
}

#[test]
fn a_signature_reads_like_rust() {
    let signature = SOUND.signature().expect("sound");
    assert_eq!(format!("{signature}"), "(i32, string) -> i32");
    assert_eq!(
        Some(signature),
        Signature::new(&[ValueType::I32, ValueType::String], ValueType::I32)
    );
    assert_ne!(
        Some(signature),
        Signature::new(&[ValueType::I32], ValueType::I32)
    );
    assert_eq!(
        Signature::new(&[ValueType::Unit; MAX_SLOTS + 1], ValueType::Unit),
        None
    );
}

#[test]
fn each_defect_has_its_error() {
    let mut seventh = SOUND.params;
    seventh[7] = 1;
    let mut unknown = SOUND.params;
    unknown[1] = 10;
    let cases = [
        (
            FunctionEntry {
                param_count: 17,
                ..SOUND
            },
            FunctionError::TooManyParameters(17),
        ),
        (
            FunctionEntry { ret: 255, ..SOUND },
            FunctionError::ReturnType(255),
        ),
        (
            FunctionEntry { flags: 2, ..SOUND },
            FunctionError::ReservedNotZero,
        ),
        (
            FunctionEntry {
                params: seventh,
                ..SOUND
            },
            FunctionError::ReservedNotZero,
        ),
        (
            FunctionEntry {
                params: unknown,
                ..SOUND
            },
            FunctionError::ParameterType { index: 1, code: 10 },
        ),
        (
            FunctionEntry {
                flags: FLAG_ONE_WAY,
                ret: ValueType::I32.code(),
                ..SOUND
            },
            FunctionError::OneWayResult(ValueType::I32),
        ),
    ];
    for (entry, expected) in cases {
        assert_eq!(entry.signature(), Err(expected));
    }
}

#[test]
fn names_are_short_printable_ascii() {
    assert_eq!(check_name(b"echo_i32"), Ok("echo_i32"));
    assert_eq!(
        check_name(&[b'x'; MAX_NAME_LEN_BYTES]).map(str::len),
        Ok(MAX_NAME_LEN_BYTES)
    );
    assert_eq!(
        check_name(b""),
        Err(FunctionError::NameLength { len_bytes: 0 })
    );
    let long = [b'x'; MAX_NAME_LEN_BYTES + 1];
    assert_eq!(
        check_name(&long),
        Err(FunctionError::NameLength { len_bytes: 129 })
    );
    for byte in [0, b' ', b'\n', 0x1B, 0x7F, 0xC3] {
        assert_eq!(
            check_name(&[b'a', byte]),
            Err(FunctionError::NameByte { at: 1, byte })
        );
    }
}

#[test]
fn a_one_way_function_is_another_one_than_its_answered_twin() {
    let entry = FunctionEntry {
        flags: FLAG_ONE_WAY,
        ret: ValueType::Unit.code(),
        ..SOUND
    };
    let signature = entry.signature().expect("sound");
    let twin = Signature::new(signature.params(), ValueType::Unit).expect("few parameters");
    assert!(signature.is_one_way() && !twin.is_one_way());
    assert_ne!(signature, twin);
    assert_eq!(Signature::one_way(signature.params()), Some(signature));
    assert!(format!("{signature}").ends_with(") one-way"));
}
