//! Messages of a call, written and read: `cargo bench -p vellum-abi`.

use divan::{Bencher, black_box};
use vellum_abi::message::{Argument, Limits, Message, MessageKind, MessageWriter};
use vellum_abi::value::ValueRef;

const BUFFER_LEN_BYTES: usize = 4096;

fn main() {
    divan::main();
}

/// Calls as functions take them: nothing, a number, a text and bytes.
const CALLS: [(&str, &[ValueRef<'static>]); 3] = [
    ("none", &[]),
    ("i32", &[ValueRef::I32(7)]),
    (
        "text_and_bytes",
        &[
            ValueRef::String("a text of some length"),
            ValueRef::Bytes(&[7; 64]),
        ],
    ),
];

fn write(buffer: &mut [u8], values: &[ValueRef<'_>]) -> Option<usize> {
    let count = values.len();
    let mut writer = MessageWriter::new(buffer, MessageKind::Call, 3, count).ok()?;
    for value in values {
        writer.push(*value).ok()?;
    }
    writer.finish().ok()
}

fn values(name: &str) -> &'static [ValueRef<'static>] {
    let call = CALLS.iter().find(|(its, _)| *its == name);
    call.map_or(&[], |(_, values)| values)
}

#[divan::bench(args = CALLS.map(|(name, _)| name))]
fn encode(bencher: Bencher, call: &str) {
    let values = values(call);
    let mut buffer = [0; BUFFER_LEN_BYTES];
    bencher.bench_local(|| write(black_box(&mut buffer), black_box(values)));
}

#[divan::bench(args = CALLS.map(|(name, _)| name))]
fn decode(bencher: Bencher, call: &str) {
    let mut buffer = [0; BUFFER_LEN_BYTES];
    write(&mut buffer, values(call)).expect("it fits");
    let limits = Limits::for_buffer(BUFFER_LEN_BYTES);
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&buffer), limits).expect("just written");
        let values = message.arguments().filter_map(Result::ok);
        values
            .filter(|argument| matches!(argument, Argument::Value(_)))
            .count()
    });
}
