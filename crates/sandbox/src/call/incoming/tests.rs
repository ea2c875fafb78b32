use vellum_abi::message::{ErrorCode, MessageKind, MessageWriter};
use vellum_abi::value::{ValueRef, ValueType};

use super::super::messages::parse;
use super::{Failure, Resolved, check_arguments};
use crate::host::HostFunctions;
use crate::image::GuestImage;

fn resolved() -> Resolved {
    let image =
        GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
    let host = HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |_: String| ());
    // In the order of the guest's table, whatever that is.
    host.resolve(image.imports()).expect("resolved")
}

fn host_call(function: u32, values: &[ValueRef<'_>]) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let mut writer = MessageWriter::new(&mut buffer, MessageKind::HostCall, function, values.len())
        .expect("fits");
    for value in values {
        writer.push(*value).expect("fits");
    }
    let len_bytes = writer.finish().expect("complete");
    buffer.truncate(len_bytes);
    buffer
}

fn index_of(host: &Resolved, params: &[ValueType]) -> u32 {
    (0..16)
        .find(|index| {
            host.signature(*index)
                .is_some_and(|signature| signature.params() == params)
        })
        .expect("one function has these parameters")
}

#[test]
fn a_host_call_with_the_right_arguments_is_let_through() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let bytes = host_call(add, &[ValueRef::I32(1), ValueRef::I32(2)]);
    let message = parse(&bytes).expect("a message");
    assert_eq!(
        check_arguments(&message, &host).expect("well formed"),
        Ok(())
    );
}

#[test]
fn a_host_call_with_wrong_function_or_arguments_is_an_error_for_the_guest() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let one = ValueRef::I32(1);
    let cases: [(u32, &[ValueRef<'_>], ErrorCode); 7] = [
        (3, &[one, one], ErrorCode::UnknownFunction),
        (u32::MAX, &[], ErrorCode::UnknownFunction),
        (add, &[], ErrorCode::ArgumentCount),
        (add, &[one], ErrorCode::ArgumentCount),
        (add, &[one; 3], ErrorCode::ArgumentCount),
        (add, &[one, ValueRef::U32(1)], ErrorCode::ArgumentType),
        (add, &[ValueRef::String("1"), one], ErrorCode::ArgumentType),
    ];
    for (function, values, expected) in cases {
        let bytes = host_call(function, values);
        let message = parse(&bytes).expect("a message");
        let (code, text) = check_arguments(&message, &host)
            .expect("well formed")
            .expect_err("refused");
        assert_eq!(code, expected, "{text}");
    }
}

#[test]
fn a_host_call_with_a_malformed_argument_ends_the_call() {
    let host = resolved();
    let add = index_of(&host, &[ValueType::I32, ValueType::I32]);
    let mut bytes = host_call(add, &[ValueRef::I32(1), ValueRef::I32(2)]);
    bytes[32] = 99; // the type of the first slot
    let message = parse(&bytes).expect("the header is sound");
    assert!(matches!(
        check_arguments(&message, &host),
        Err(Failure::Message(_))
    ));
}
