//! Whatever bytes come, every parser returns, and what it accepts obeys its rules.

use proptest::prelude::*;
use vellum_abi::fill::FillRequest;
use vellum_abi::function::{FunctionEntry, check_name};
use vellum_abi::log::{LogRecord, PanicRecord};
use vellum_abi::message::MAX_SLOTS;
use vellum_abi::metric::{MetricRecord, MetricValue};
use vellum_abi::note::{GuestNote, Note, NoteError};
use vellum_abi::outbox::{OutboxHeader, Record, RecordKind, RecordWriter, Records};
use vellum_abi::peb::Peb;
use zerocopy::{FromBytes, IntoBytes};

/// `bytes` with small numbers in the first words, which are lengths and counts in most structures here.
fn with_small_words(mut bytes: Vec<u8>, words: [u32; 4]) -> Vec<u8> {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let words = prop::array::uniform4(0_u32..40);
    prop_oneof![
        bytes.clone(),
        (bytes, words).prop_map(|(bytes, words)| with_small_words(bytes, words)),
    ]
}

proptest! {
    #[test]
    fn records_lie_inside_their_bytes(bytes in any_bytes()) {
        if let Ok(record) = LogRecord::parse(&bytes) {
            prop_assert!(16 + record.target.len() + record.message.len() <= bytes.len());
        }
        if let Ok(record) = PanicRecord::parse(&bytes) {
            prop_assert!(16 + record.file.len() + record.message.len() <= bytes.len());
            let claimed = PanicRecord::len_bytes(&bytes).expect("there is a header");
            prop_assert_eq!(claimed, (16 + record.file.len() + record.message.len()) as u64);
        }
        prop_assert_eq!(FillRequest::parse(&bytes).is_ok(), bytes.len() >= 24 && bytes[4..8] == [0; 4]);
    }

    #[test]
    fn an_outbox_of_any_bytes_ends(bytes in any_bytes()) {
        let records: Vec<_> = Records::new(&bytes).collect();
        // Every record takes at least its header.
        prop_assert!(records.len() <= bytes.len() / 8 + 1);
        prop_assert!(records.iter().rev().skip(1).all(Result::is_ok));
        let header = OutboxHeader::read_from_prefix(&bytes).map(|(header, _)| header).unwrap_or_default();
        if let Ok(unread) = header.unread(8, 192) {
            prop_assert!(unread.start == 8 && unread.end >= 8 && unread.end <= 192 && unread.end % 8 == 0);
        }
    }

    #[test]
    fn what_is_written_to_an_outbox_is_read_from_it(
        metrics in prop::collection::vec(("[!-~]{1,128}", any::<u64>()), 0..20)
    ) {
        let mut room = [0xA5; 2048];
        let mut end = 0;
        let mut written = Vec::new();
        for (name, value) in &metrics {
            let metric = MetricRecord { name, value: MetricValue::Counter(*value) };
            let Some(mut writer) = RecordWriter::new(&mut room[end..]) else { break };
            let Some(len_bytes) = metric.write(writer.body()).expect("a sound name") else { break };
            end += writer.finish(RecordKind::Metric, len_bytes);
            written.push(metric);
        }
        let read: Vec<_> = Records::new(&room[..end])
            .map(|record| match record {
                Ok(Record::Metric(metric)) => metric,
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn signatures_have_no_more_parameters_than_slots(bytes in prop::collection::vec(any::<u8>(), 40)) {
        let mut bytes = bytes;
        // Make most entries plausible: few parameters, known types.
        bytes[12] %= 18;
        bytes[14..16].fill(0);
        bytes[13..32].iter_mut().for_each(|byte| *byte %= 11);
        let count = usize::from(bytes[12]);
        if let Some(rest) = bytes.get_mut(16 + count..32) {
            rest.fill(0);
        }
        let entry = FunctionEntry::parse_table(&bytes).expect("one entry").next().expect("one entry");
        match entry.signature() {
            Ok(signature) => prop_assert!(signature.params().len() == count && count <= MAX_SLOTS),
            Err(error) => prop_assert!(count > MAX_SLOTS || bytes[13..32].contains(&10), "{error}"),
        }
    }

    #[test]
    fn names_that_pass_are_printable(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
        let is_printable = bytes.iter().all(u8::is_ascii_graphic);
        prop_assert_eq!(check_name(&bytes).is_ok(), is_printable && (1..=128).contains(&bytes.len()));
    }

    #[test]
    fn a_note_is_found_among_any_others(before in any_bytes(), after in any_bytes()) {
        let note = Note::AMD64_USER;
        let mut segment = foreign_note(&before);
        segment.extend_from_slice(note.as_bytes());
        segment.extend(foreign_note(&after));
        prop_assert_eq!(GuestNote::parse(&segment), GuestNote::parse(note.as_bytes()));
        // And raw bytes are no note.
        prop_assert!(GuestNote::parse(&before).is_err());
    }

    #[test]
    fn a_checked_peb_has_sound_ranges(bytes in prop::collection::vec(any::<u8>(), Peb::LEN_BYTES)) {
        let random = Peb::read_from_bytes(&bytes).expect("a PEB's length");
        let sound = Peb::empty();
        // Aligned, and short enough that about half of them do not wrap.
        let peb = Peb {
            input_ptr: random.input_ptr & !15,
            input_len_bytes: random.input_len_bytes >> 2,
            output_ptr: random.output_ptr & !15,
            output_len_bytes: random.output_len_bytes >> 2,
            heap_ptr: random.heap_ptr & !15,
            heap_len_bytes: random.heap_len_bytes >> 2,
            init_data_len_bytes: random.init_data_len_bytes >> 2,
            init_data_ptr: random.init_data_ptr,
            outbox_ptr: random.outbox_ptr & !15,
            outbox_len_bytes: random.outbox_len_bytes >> 2,
            ..sound
        };
        let ranges = [
            (peb.input_ptr, peb.input_len_bytes),
            (peb.output_ptr, peb.output_len_bytes),
            (peb.heap_ptr, peb.heap_len_bytes),
            (peb.init_data_ptr, peb.init_data_len_bytes),
            (peb.outbox_ptr, peb.outbox_len_bytes),
        ];
        let is_sound = ranges.iter().all(|(start, len_bytes)| start.checked_add(*len_bytes).is_some());
        prop_assert_eq!(peb.check().is_ok(), is_sound);
        if random.magic != sound.magic {
            prop_assert!(random.check().is_err());
        }
    }
}

/// A note of another owner with this descriptor.
fn foreign_note(descriptor: &[u8]) -> Vec<u8> {
    let len_bytes = u32::try_from(descriptor.len()).expect("short");
    let mut note = Vec::from([4, len_bytes, 3].map(u32::to_le_bytes).as_flattened());
    note.extend_from_slice(b"GNU\0");
    note.extend_from_slice(descriptor);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

#[test]
fn every_byte_of_a_note_set_to_every_value_is_read_without_panic() {
    let sound = Note::AMD64_USER;
    let mut accepted = 0;
    for at in 0..sound.as_bytes().len() {
        for value in 0..=u8::MAX {
            let mut bytes = sound.as_bytes().to_vec();
            bytes[at] = value;
            accepted += usize::from(GuestNote::parse(&bytes).is_ok());
        }
    }
    // Each byte's own value; also the eighth of the owner, which is padding, and three more kinds of guest.
    assert_eq!(accepted, 28 + 255 + 3);
    assert_eq!(GuestNote::parse(&[]), Err(NoteError::Missing));
}
