extern crate alloc;
use alloc::vec::Vec;

use super::*;
use crate::log::{Level, LogHeader};
use crate::message::MessageWriter;
use crate::metric::MetricValue;
use crate::value::ValueRef;

/// Writes a log record without texts, a metric and a one-way call, and returns how long they are.
fn three_records(room: &mut [u8]) -> usize {
    let mut end = 0;
    let mut writer = RecordWriter::new(&mut room[end..]).expect("room");
    let header = LogHeader {
        level: Level::Warn as u32,
        target_len_bytes: 1,
        message_len_bytes: 2,
        reserved: 0,
    };
    writer.body()[..16].copy_from_slice(header.as_bytes());
    writer.body()[16..19].copy_from_slice(b"abc");
    end += writer.finish(RecordKind::Log, 19);
    let mut writer = RecordWriter::new(&mut room[end..]).expect("room");
    let metric = MetricRecord {
        name: "m",
        value: MetricValue::Counter(3),
    };
    let len_bytes = metric.write(writer.body()).expect("sound").expect("room");
    end += writer.finish(RecordKind::Metric, len_bytes);
    let mut writer = RecordWriter::new(&mut room[end..]).expect("room");
    let mut message = MessageWriter::new(writer.body(), MessageKind::OneWay, 7, 1).expect("room");
    message.push(ValueRef::I32(-1)).expect("room");
    let len_bytes = message.finish().expect("complete");
    end + writer.finish(RecordKind::OneWay, len_bytes)
}

#[test]
fn records_of_all_kinds_come_back_in_order() {
    let mut room = [0xA5; 256];
    let end = three_records(&mut room);
    assert_eq!(end, (8 + 24) + (8 + 24) + (8 + 48));
    let records: Vec<_> = Records::new(&room[..end])
        .map(|it| it.expect("sound"))
        .collect();
    let [
        Record::Log(log),
        Record::Metric(metric),
        Record::OneWay(message),
    ] = records.as_slice()
    else {
        panic!("{records:?}")
    };
    assert_eq!(
        (log.level, log.target, log.message),
        (Level::Warn, "a", "bc")
    );
    assert_eq!((metric.name, metric.value), ("m", MetricValue::Counter(3)));
    assert_eq!((message.function(), message.slot_count()), (7, 1));
}

#[test]
fn a_record_that_cannot_be_ends_the_iteration() {
    type Case = (fn(&mut [u8]), fn(&OutboxError) -> bool);
    let cases: [Case; 6] = [
        (
            |bytes| bytes[0] = 9,
            |error| matches!(error, OutboxError::UnknownKind { at: 0, kind: 9 }),
        ),
        (
            |bytes| bytes[4..8].fill(0xFF),
            |error| matches!(error, OutboxError::Length { at: 0 }),
        ),
        (
            |bytes| bytes[8] = 6,
            |error| matches!(error, OutboxError::Log { at: 0, .. }),
        ),
        (
            |bytes| bytes[40] = 6,
            |error| matches!(error, OutboxError::Metric { at: 32, .. }),
        ),
        (
            |bytes| bytes[72] = 6,
            |error| matches!(error, OutboxError::OneWay { at: 64, .. }),
        ),
        (
            |bytes| bytes[72] = 3,
            |error| matches!(error, OutboxError::NotOneWay { at: 64 }),
        ),
    ];
    for (spoil, expected) in cases {
        let mut room = [0; 256];
        let end = three_records(&mut room);
        spoil(&mut room);
        let found: Vec<_> = Records::new(&room[..end]).collect();
        let error = found.last().expect("records").as_ref().expect_err("spoilt");
        assert!(expected(error), "{error:?}");
        assert!(found.iter().filter(|it| it.is_err()).count() == 1);
    }
}

#[test]
fn a_torn_last_record_is_refused() {
    let mut room = [0; 256];
    let end = three_records(&mut room);
    for cut in 1..56 {
        let last = Records::new(&room[..end - cut]).last().expect("records");
        assert!(
            matches!(last, Err(OutboxError::Length { at: 64 })),
            "{cut}: {last:?}"
        );
    }
}

#[test]
fn the_end_is_checked_before_anything_is_copied() {
    let header = |end_bytes| OutboxHeader {
        end_bytes,
        dropped: 0,
    };
    for end in [0, 8, 64, 3968] {
        assert_eq!(header(end).unread(0, 3968), Ok(0..end));
    }
    assert_eq!(header(64).unread(24, 3968), Ok(24..64));
    for (end, read) in [(3976, 0), (u32::MAX, 0), (12, 0), (8, 16)] {
        assert_eq!(
            header(end).unread(read, 3968),
            Err(OutboxError::End {
                end_bytes: end,
                read_bytes: read,
                room_bytes: 3968
            })
        );
    }
}

#[test]
fn a_record_needs_room_for_a_header_and_more() {
    for (room_bytes, fits) in [(0, false), (8, false), (15, false), (16, true), (23, true)] {
        let mut room = [0; 32];
        let writer = RecordWriter::new(&mut room[..room_bytes]);
        assert_eq!(writer.is_some(), fits, "{room_bytes}");
    }
}
