//! Fill requests, log records and panic records that a hostile guest writes by hand.

use vellum_abi::fill::FillRequest;
use vellum_abi::outbox::RecordKind;
use vellum_abi::port::Port;
use vellum_layout::amd64::user;
use vellum_sandbox::ErrorKind;
use zerocopy::IntoBytes;

use super::bad_messages::{Bench, OUTPUT_LEN_BYTES, bad_ranges};
use super::support::{HEAP_LEN_BYTES, in_each_mode, refused};

#[test]
fn a_fill_request_reaches_the_guests_own_writable_memory_only() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let len_bytes = FillRequest::LEN_BYTES as u64;
        // The request is itself argument 1 of the call, and so what the host offers.
        let rows = bad_ranges().into_iter().map(|(what, (gva, _))| (what, gva));
        let more = [
            (
                "the first page of the image",
                user::ELF_AREA.start().as_u64() + 0x1F_0000,
            ),
            ("the input buffer", user::IO_BASE.as_u64() + 0x2000),
        ];
        for (what, gva) in rows.filter(|(what, _)| !what.contains("heap")).chain(more) {
            let request = FillRequest::new(1, gva, len_bytes);
            let result = bench.output(Port::Fill, request.as_bytes());
            bench.broke(what, result);
        }
        let end = user::HEAP_BASE.as_u64() + HEAP_LEN_BYTES;
        for gva in [end - 8, end, u64::MAX - 7] {
            let result = bench.output(Port::Fill, FillRequest::new(1, gva, len_bytes).as_bytes());
            bench.broke("a range that ends outside", result);
        }
    });
}

#[test]
fn a_fill_request_for_what_was_not_offered_is_refused() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let (heap, len_bytes) = (user::HEAP_BASE.as_u64(), FillRequest::LEN_BYTES as u64);
        let good = FillRequest::new(1, heap, len_bytes);
        let rows = [
            ("the slot of a number", FillRequest::new(0, heap, len_bytes)),
            (
                "a slot that does not exist",
                FillRequest::new(2, heap, len_bytes),
            ),
            (
                "the largest slot",
                FillRequest::new(u32::MAX, heap, len_bytes),
            ),
            ("a byte less", FillRequest::new(1, heap, len_bytes - 1)),
            ("a byte more", FillRequest::new(1, heap, len_bytes + 1)),
            ("nothing", FillRequest::new(1, heap, 0)),
            ("everything", FillRequest::new(1, heap, u64::MAX)),
            (
                "a reserved word",
                FillRequest {
                    reserved: 1,
                    ..good
                },
            ),
        ];
        for (what, request) in rows {
            let result = bench.output(Port::Fill, request.as_bytes());
            bench.broke(what, result);
        }
    });
}

/// A log or panic record: four words and what follows.
fn record(words: [u32; 4], texts: &[u8]) -> Vec<u8> {
    let header = words.into_iter().flat_map(u32::to_le_bytes);
    header.chain(texts.iter().copied()).collect()
}

#[test]
fn malformed_log_and_panic_records_break_the_protocol_and_nothing_else() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let logs = [
            ("level 0", record([0, 1, 1, 0], b"ab")),
            ("an unknown level", record([6, 1, 1, 0], b"ab")),
            ("a reserved word", record([1, 1, 1, 1], b"ab")),
            (
                "a target past the buffer",
                record([1, OUTPUT_LEN_BYTES, 1, 0], b"ab"),
            ),
            (
                "a message past the buffer",
                record([1, 1, OUTPUT_LEN_BYTES - 16, 0], b"ab"),
            ),
            (
                "lengths whose sum wraps",
                record([1, u32::MAX, u32::MAX, 0], b"ab"),
            ),
            (
                "a target that is not UTF-8",
                record([1, 1, 1, 0], &[0xFF, b'b']),
            ),
            (
                "a message that is not UTF-8",
                record([1, 1, 1, 0], &[b'a', 0xFF]),
            ),
        ];
        for (what, record) in logs {
            let result = bench.outbox(RecordKind::Log, &record);
            bench.broke(what, result);
        }
        let panics = [
            (
                "a file past the buffer",
                record([1, 1, OUTPUT_LEN_BYTES, 0], b"ab"),
            ),
            (
                "a message past the buffer",
                record([1, 1, 0, OUTPUT_LEN_BYTES - 15], b"ab"),
            ),
            (
                "lengths whose sum wraps",
                record([1, 1, u32::MAX, u32::MAX], b"ab"),
            ),
            (
                "a file that is not UTF-8",
                record([1, 1, 1, 1], &[0xFF, b'b']),
            ),
        ];
        for (what, record) in panics {
            let result = bench.output(Port::Panic, &record);
            bench.broke(what, result);
        }
    });
}

#[test]
fn a_forged_panic_is_a_panic_without_terminal_escapes() {
    in_each_mode(|lab| {
        let mut bench = Bench::new(lab);
        let text = "\u{1b}[2Jfile\nmessage";
        let forged = record([7, 9, 8, 8], text.as_bytes());
        let error = refused("panic", bench.output(Port::Panic, &forged));
        assert_eq!(error.kind(), ErrorKind::GuestPanic);
        assert!(!error.to_string().contains(['\u{1b}', '\n']), "{error:?}");
    });
}
