use super::*;

fn log_bytes(header: LogHeader, tail: &[u8]) -> ([u8; 64], usize) {
    let mut bytes = [0; 64];
    bytes[..16].copy_from_slice(header.as_bytes());
    bytes[16..16 + tail.len()].copy_from_slice(tail);
    (bytes, 16 + tail.len())
}

const SOUND: LogHeader = LogHeader {
    level: 3,
    target_len_bytes: 3,
    message_len_bytes: 5,
    reserved: 0,
};

#[test]
fn a_log_record_is_read_back() {
    let (bytes, len) = log_bytes(SOUND, b"apphello");
    let expected = LogRecord {
        level: Level::Info,
        target: "app",
        message: "hello",
    };
    assert_eq!(LogRecord::parse(&bytes[..len]), Ok(expected));
}

#[test]
fn a_panic_record_is_read_back() {
    let header = PanicHeader {
        line: 7,
        column: 9,
        file_len_bytes: 4,
        message_len_bytes: 2,
    };
    let mut bytes = [0; 22];
    bytes[..16].copy_from_slice(header.as_bytes());
    bytes[16..].copy_from_slice(b"a.rsno");
    let expected = PanicRecord {
        file: "a.rs",
        line: 7,
        column: 9,
        message: "no",
    };
    assert_eq!(PanicRecord::parse(&bytes), Ok(expected));
    assert_eq!(PanicRecord::len_bytes(&bytes), Ok(22));
}

#[test]
fn each_defect_has_its_error() {
    let cases = [
        (
            LogHeader { level: 0, ..SOUND },
            RecordError::UnknownLevel(0),
        ),
        (
            LogHeader { level: 6, ..SOUND },
            RecordError::UnknownLevel(6),
        ),
        (
            LogHeader {
                reserved: 1,
                ..SOUND
            },
            RecordError::ReservedNotZero(1),
        ),
        (
            LogHeader {
                message_len_bytes: u32::MAX,
                ..SOUND
            },
            RecordError::TooShort {
                need_bytes: 16 + 3 + u64::from(u32::MAX),
                have_bytes: 24,
            },
        ),
        (
            LogHeader {
                target_len_bytes: 9,
                ..SOUND
            },
            RecordError::TooShort {
                need_bytes: 30,
                have_bytes: 24,
            },
        ),
    ];
    for (header, expected) in cases {
        let (bytes, len) = log_bytes(header, b"apphello");
        assert_eq!(LogRecord::parse(&bytes[..len]), Err(expected));
    }
    let texts: [(&[u8; 8], &str); 5] = [
        (b"app\xFF\xFFllo", "message"),
        (b"apphell\xC3", "message"),
        (b"a\xFFphello", "target"),
        (b"\xFFpphell\xFF", "target"),
        // A character that begins in one text and ends in the other.
        (b"ap\xC3\xA9ello", "target"),
    ];
    for (texts, which) in texts {
        let (bytes, len) = log_bytes(SOUND, texts);
        let expected = Err(RecordError::NotUtf8(which));
        assert_eq!(LogRecord::parse(&bytes[..len]), expected);
    }
    let (bytes, _) = log_bytes(SOUND, b"");
    assert_eq!(
        PanicRecord::parse(&bytes[..15]),
        Err(RecordError::TooShort {
            need_bytes: 16,
            have_bytes: 15
        })
    );
}
