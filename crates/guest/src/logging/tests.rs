use alloc::string::String;

use vellum_abi::log::LogRecord;

use super::*;

fn record<'a>(target: &'a str, arguments: core::fmt::Arguments<'a>) -> Record<'a> {
    Record::builder()
        .level(log::Level::Warn)
        .target(target)
        .args(arguments)
        .build()
}

#[test]
fn a_record_names_level_target_and_message() {
    let mut output = [0xA5; 128];
    let body = write_record(
        &mut output,
        &record("app::part", format_args!("{} of {}", 1, 2)),
    );
    assert_eq!(body, Body::Whole(16 + 9 + 6));
    let expected = LogRecord {
        level: Level::Warn,
        target: "app::part",
        message: "1 of 2",
    };
    assert_eq!(LogRecord::parse(&output), Ok(expected));
}

#[test]
fn a_message_longer_than_the_buffer_is_cut() {
    let mut output = [0; 22];
    let body = write_record(&mut output, &record("app", format_args!("abcdef")));
    assert_eq!(body, Body::Cut(22));
    let expected = LogRecord {
        level: Level::Warn,
        target: "app",
        message: "abc",
    };
    assert_eq!(LogRecord::parse(&output), Ok(expected));
}

#[test]
fn every_level_has_the_number_of_the_abi() {
    let levels = [
        (log::Level::Error, Level::Error),
        (log::Level::Warn, Level::Warn),
        (log::Level::Info, Level::Info),
        (log::Level::Debug, Level::Debug),
        (log::Level::Trace, Level::Trace),
    ];
    for (ours, theirs) in levels {
        assert_eq!(Level::from_number(level_number(ours)), Some(theirs));
    }
}

#[test]
fn a_value_whose_display_fails_leaves_what_it_wrote() {
    struct Failing;

    impl core::fmt::Display for Failing {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.write_str("half")?;
            Err(core::fmt::Error)
        }
    }

    let mut output = [0; 64];
    write_record(&mut output, &record("app", format_args!("{Failing}")));
    let message = LogRecord::parse(&output).map(|record| String::from(record.message));
    assert_eq!(message.as_deref(), Ok("half"));
}

#[test]
fn room_for_less_than_a_header_is_too_little() {
    let body = write_record(&mut [0; 15], &record("app", format_args!("abcdef")));
    assert_eq!(body, Body::TooLong);
}
