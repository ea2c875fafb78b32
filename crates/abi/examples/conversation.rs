//! Both sides of a call in one process: what each writes, and what the other reads.
//!
//! `cargo run -p vellum-abi --example conversation`

use std::error::Error;

use vellum_abi::fill::FillRequest;
use vellum_abi::message::{
    Argument, ErrorCode, Limits, Message, MessageKind, MessageWriter, Outcome, write_error,
};
use vellum_abi::port::{IDLE_REPLY, Port};
use vellum_abi::value::{ValueRef, ValueType};
use zerocopy::IntoBytes;

/// Size of each buffer; small, so that the second argument below does not fit.
const BUFFER_LEN_BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut input, mut output) = ([0; BUFFER_LEN_BYTES], [0; BUFFER_LEN_BYTES]);
    let limits = Limits::for_buffer(BUFFER_LEN_BYTES);

    // The host calls function 3 with a text, which fits, and with 50 MB, which do not.
    let mut call = MessageWriter::new(&mut input, MessageKind::Call, 3, 2)?;
    call.push(ValueRef::String("checksum of"))?;
    let slot = call.push_host_slot(ValueType::Bytes, 50_000_000)?;
    let len_bytes = call.finish()?;
    println!(
        "host:  call of function 3, {len_bytes} bytes in the input buffer, slot {slot} external"
    );

    // The guest reads the call.
    let call = Message::parse(&input, limits)?;
    for argument in call.arguments() {
        match argument? {
            Argument::Value(value) => println!("guest: argument {value:?}"),
            Argument::External(external) => {
                println!(
                    "guest: {} {} elsewhere",
                    external.len_bytes, external.value_type
                );
                // It asks for the bytes, naming an address of its own.
                let request = FillRequest::new(slot, 0x40_0000_1000, external.len_bytes.into());
                output[..FillRequest::LEN_BYTES].copy_from_slice(request.as_bytes());
                println!(
                    "guest: out {:#x}: fill {:#x}",
                    Port::Fill.number(),
                    request.gva
                );
            }
        }
    }

    // The guest replies, once with a value and once with an error.
    let mut reply = MessageWriter::new(&mut output, MessageKind::Reply, 3, 1)?;
    reply.push(ValueRef::U64(0x1234_5678))?;
    reply.finish()?;
    println!(
        "guest: out {:#x}, eax = {IDLE_REPLY}: a reply",
        Port::Idle.number()
    );
    show(&output, limits)?;
    write_error(
        &mut output,
        MessageKind::Reply,
        3,
        ErrorCode::FunctionFailed,
        "bad checksum",
    )?;
    show(&output, limits)?;

    // Whatever else is in the buffer is refused.
    output[0] = 9;
    match Message::parse(&output, limits) {
        Ok(_) => println!("host:  accepted"),
        Err(error) => println!("host:  refused: {error}"),
    }
    Ok(())
}

/// The host reads a reply from its copy of the output buffer.
fn show(copy: &[u8], limits: Limits) -> Result<(), Box<dyn Error>> {
    match Message::parse(copy, limits)?.outcome()? {
        Outcome::Value(value) => println!("host:  returned {value:?}"),
        Outcome::Failed { code, text } => println!("host:  {code}: {text}"),
    }
    Ok(())
}
