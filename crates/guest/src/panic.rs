//! Reporting a panic to the host.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use vellum_abi::log::{HEADER_LEN_BYTES, PanicHeader};
use vellum_abi::port::{ABORT_NESTED_PANIC, ABORT_PANIC_BEFORE_START, Port};
use zerocopy::IntoBytes;

use crate::gate::{Gate, PortGate};
use crate::link::Link;
use crate::logging::len32;
use crate::runtime;
use crate::text::TextBuffer;

/// Whether a panic is being reported. A panic in the formatting of a panic message must not start over.
static PANICKING: AtomicBool = AtomicBool::new(false);

/// Tells the host where and why the guest panicked. Called by the panic handler of `entry!`.
pub fn report(info: &PanicInfo<'_>) -> ! {
    if PANICKING.swap(true, Ordering::Relaxed) {
        give_up(ABORT_NESTED_PANIC);
    }
    match runtime::link() {
        Some(link) => send(link, info),
        None => give_up(ABORT_PANIC_BEFORE_START),
    }
    // The host does not resume a guest that panicked.
    give_up(ABORT_NESTED_PANIC)
}

/// Tells the host that an exception ends the guest. The record names "exception" as the file and the vector as the line.
pub(crate) fn report_exception(vector: u32, message: core::fmt::Arguments<'_>) -> ! {
    let Some(link) = runtime::link() else {
        give_up(ABORT_PANIC_BEFORE_START);
    };
    if PANICKING.swap(true, Ordering::Relaxed) {
        give_up(ABORT_NESTED_PANIC);
    }
    link.with_output(|output| write_record(output, "exception", [vector, 0], message));
    link.exit(Port::Panic, 0);
    give_up(ABORT_NESTED_PANIC)
}

/// Leaves through the abort port, for good.
pub(crate) fn give_up(code: u32) -> ! {
    loop {
        PortGate.exit(Port::Abort, code);
    }
}

fn send(link: &Link<'_>, details: &PanicInfo<'_>) {
    let at = details.location();
    let file = at.map_or("", |at| at.file());
    let position = at.map_or([0, 0], |at| [at.line(), at.column()]);
    link.with_output(|output| {
        write_record(
            output,
            file,
            position,
            format_args!("{}", details.message()),
        );
    });
    link.exit(Port::Panic, 0);
}

fn write_record(
    output: &mut [u8],
    file: &str,
    [line, column]: [u32; 2],
    message: core::fmt::Arguments<'_>,
) {
    let (header_bytes, text_bytes) = output.split_at_mut(HEADER_LEN_BYTES);
    let mut text = TextBuffer::new(text_bytes);
    let file_len_bytes = text.push(file);
    // A TextBuffer cuts instead of failing; an error can only be that of a value's own Display.
    let _ = text.write_fmt(message);
    let header = PanicHeader {
        line,
        column,
        file_len_bytes: len32(file_len_bytes),
        message_len_bytes: len32(text.len_bytes() - file_len_bytes),
    };
    header_bytes.copy_from_slice(header.as_bytes());
}

#[cfg(test)]
mod tests {
    use vellum_abi::log::PanicRecord;

    use super::*;

    #[test]
    fn a_panic_record_names_place_and_message() {
        let mut output = [0xA5; 128];
        write_record(
            &mut output,
            "src/main.rs",
            [12, 5],
            format_args!("{} is odd", 3),
        );
        let expected = PanicRecord {
            file: "src/main.rs",
            line: 12,
            column: 5,
            message: "3 is odd",
        };
        assert_eq!(PanicRecord::parse(&output), Ok(expected));
    }

    #[test]
    fn a_message_longer_than_the_buffer_is_cut() {
        let mut output = [0; 24];
        write_record(&mut output, "a.rs", [1, 2], format_args!("{:é<9}", ""));
        let expected = PanicRecord {
            file: "a.rs",
            line: 1,
            column: 2,
            message: "éé",
        };
        assert_eq!(PanicRecord::parse(&output), Ok(expected));
    }
}
