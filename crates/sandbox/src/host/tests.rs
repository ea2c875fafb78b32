use std::cell::Cell;

use vellum_abi::function::Signature;
use vellum_abi::message::{ErrorCode, MAX_ERROR_TEXT_LEN_BYTES, MessageKind, Slot, write_plain};
use vellum_abi::value::{ValueRef, ValueType};

use super::{HostFunctions, Incoming, Resolved};
use crate::error::Failure;
use crate::image::{Function, GuestImage};
use crate::value::Value;

/// Arguments that are there, and a count of how often one was taken.
struct Arguments {
    values: Vec<Value>,
    taken: Cell<usize>,
}

impl Arguments {
    fn new(values: &[Value]) -> Self {
        Self {
            values: values.to_vec(),
            taken: Cell::new(0),
        }
    }
}

impl Incoming for Arguments {
    fn argument(&self, index: usize) -> Result<Value, Failure> {
        self.taken.set(self.taken.get() + 1);
        self.values
            .get(index)
            .cloned()
            .ok_or(Failure::Protocol("no such argument"))
    }
}

/// What the Rust guest imports: `host_add`, `host_echo`, `host_fail`.
fn imports() -> Vec<Function> {
    let image =
        GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("the guest is valid");
    image.imports().to_vec()
}

fn complete() -> HostFunctions {
    HostFunctions::new()
        .with("host_add", i32::wrapping_add)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |text: String| Err::<(), String>(text))
}

fn index_of(name: &str) -> u32 {
    let index = imports().iter().position(|import| import.name() == name);
    u32::try_from(index.expect("imported")).expect("small")
}

fn call(host: &HostFunctions, name: &str, values: &[Value]) -> super::Answer {
    let resolved = host.resolve(&imports()).expect("resolved");
    resolved
        .call(index_of(name), &Arguments::new(values))
        .expect("answered")
}

#[test]
fn the_signature_is_that_of_the_closure() {
    use ValueType::{Bool, Bytes, F32, F64, I32, I64, String as Text, U32, U64, Unit};
    let host = HostFunctions::new()
        .with("none", || ())
        .with("all", |_: bool, _: i32, _: u32, _: i64, _: u64, _: f32| {
            1.0_f64
        })
        .with("owned", |text: String, _: Vec<u8>| text)
        .with("result", || Ok::<Vec<u8>, std::fmt::Error>(Vec::new()));
    let cases: [(&str, &[ValueType], ValueType); 4] = [
        ("none", &[], Unit),
        ("all", &[Bool, I32, U32, I64, U64, F32], F64),
        ("owned", &[Text, Bytes], Text),
        ("result", &[], Bytes),
    ];
    for (name, params, ret) in cases {
        assert_eq!(
            host.functions[name].signature,
            Signature::new(params, ret).expect("few"),
            "{name}"
        );
    }
    assert_eq!(
        host.names().collect::<Vec<_>>(),
        ["all", "none", "owned", "result"]
    );
}

#[test]
fn functions_are_resolved_in_the_order_of_the_import_table() {
    let resolved = complete().resolve(&imports()).expect("resolved");
    for (index, import) in (0..).zip(imports()) {
        assert_eq!(resolved.signature(index), Some(import.signature()));
    }
    let count = u32::try_from(imports().len()).expect("few");
    assert!(resolved.signature(count).is_none() && resolved.signature(u32::MAX).is_none());
}

#[test]
fn a_set_that_lacks_an_import_or_has_it_with_other_types_is_refused() {
    let failure = HostFunctions::new()
        .resolve(&imports())
        .expect_err("refused");
    assert!(
        matches!(failure, Failure::MissingHostFunction { .. }),
        "{failure}"
    );
    let other = HostFunctions::new()
        .with("host_add", |a: i64, b: i64| a + b)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |_: String| ());
    let failure = other.resolve(&imports()).expect_err("refused");
    let Failure::HostFunctionSignature { name, given, .. } = failure else {
        panic!("{failure}")
    };
    assert_eq!(
        (name.as_str(), given.to_string().as_str()),
        ("host_add", "(i64, i64) -> i64")
    );
}

#[test]
fn the_first_mistake_in_a_set_is_the_one_reported() {
    let set = HostFunctions::new()
        .with("bad name", || ())
        .with("twice", || ())
        .with("twice", || ());
    let failure = set.resolve(&[]).expect_err("refused");
    assert!(
        matches!(&failure, Failure::HostFunctionName { name } if name == "bad name"),
        "{failure}"
    );
    let set = HostFunctions::new()
        .with("twice", || ())
        .with("twice", || 1_i32)
        .with("", || ());
    let failure = set.resolve(&[]).expect_err("refused");
    assert!(
        matches!(&failure, Failure::DuplicateHostFunction { name } if name == "twice"),
        "{failure}"
    );
}

#[test]
fn names_of_1_to_128_printable_characters_are_taken() {
    for name in ["a", "host_add", "~!@#", &"x".repeat(128)] {
        assert!(
            HostFunctions::new().with(name, || ()).resolve(&[]).is_ok(),
            "{name}"
        );
    }
    for name in ["", " ", "a b", "a\n", "é", &"x".repeat(129)] {
        assert!(
            HostFunctions::new().with(name, || ()).resolve(&[]).is_err(),
            "{name:?}"
        );
    }
}

#[test]
fn a_call_takes_each_argument_once_and_returns_the_value() {
    let resolved = complete().resolve(&imports()).expect("resolved");
    let arguments = Arguments::new(&[Value::I32(40), Value::I32(2)]);
    let answer = resolved
        .call(index_of("host_add"), &arguments)
        .expect("answered");
    assert_eq!(answer, Ok(Value::I32(42)));
    assert_eq!(arguments.taken.get(), 2);
    let bytes = Value::Bytes(vec![1, 2, 3]);
    assert_eq!(
        call(&complete(), "host_echo", std::slice::from_ref(&bytes)),
        Ok(bytes)
    );
}

/// The answer of `host_add` to a plain message with these values.
fn call_plain(host: &HostFunctions, values: &[ValueRef<'_>]) -> Option<super::PlainAnswer> {
    let mut message = [0; 128];
    let index = index_of("host_add");
    write_plain(&mut message, MessageKind::HostCall, index, values).expect("plain");
    let resolved = host.resolve(&imports()).expect("resolved");
    let (function, answer) = resolved.call_plain(&message)?;
    assert_eq!(function, index);
    Some(answer)
}

/// A set whose `host_add` is another function.
fn with_add<F: super::HostFunction<(i32, i32)>>(function: F) -> HostFunctions {
    HostFunctions::new()
        .with("host_add", function)
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |_: String| ())
}

#[test]
fn values_of_fixed_size_come_and_go_as_slots() {
    let values = [ValueRef::I32(-40), ValueRef::I32(2)];
    let expected = Slot::of_scalar(ValueRef::I32(-38)).expect("of fixed size");
    assert_eq!(call_plain(&complete(), &values), Some(Ok(expected)));
    let fails = with_add(|a: i32, _: i32| Err::<i32, _>(format!("{a} is too little")));
    let text = "-40 is too little".to_owned();
    let failed = Some(Err(Err((ErrorCode::FunctionFailed, text))));
    assert_eq!(call_plain(&fails, &values), failed);
    let panics = with_add(|_: i32, _: i32| -> i32 { panic!("plain") });
    let panicked = Some(Err(Err((ErrorCode::FunctionPanicked, "plain".to_owned()))));
    assert_eq!(call_plain(&panics, &values), panicked);
}

#[test]
fn plain_arguments_can_have_a_result_of_any_length() {
    let host = HostFunctions::new().with("bar", |len: u32| "-".repeat(len as usize));
    let resolved = Resolved {
        metrics: None,
        functions: vec![host.functions["bar"].clone()],
    };
    let mut message = [0; 128];
    let values = [ValueRef::U32(3)];
    write_plain(&mut message, MessageKind::HostCall, 0, &values).expect("plain");
    let answer = Err(Ok(Value::String("---".into())));
    assert_eq!(resolved.call_plain(&message), Some((0, answer)));
}

#[test]
fn what_is_not_plain_is_left_to_the_parser_and_nothing_is_called() {
    let host = with_add(|_: i32, _: i32| -> i32 { unreachable!("these are not its arguments") });
    let one = ValueRef::I32(1);
    let cases: [&[ValueRef<'_>]; 4] = [&[], &[one], &[one, ValueRef::U32(1)], &[one; 3]];
    for values in cases {
        assert_eq!(call_plain(&host, values), None, "{values:?}");
    }
    let resolved = complete().resolve(&imports()).expect("resolved");
    for index in [index_of("host_echo"), 99, u32::MAX] {
        let mut message = [0; 128];
        write_plain(&mut message, MessageKind::HostCall, index, &[one]).expect("plain");
        assert!(resolved.call_plain(&message).is_none(), "{index}");
    }
}

#[test]
fn a_result_of_another_type_than_declared_is_an_error() {
    /// Says that it is a number.
    struct Text;
    impl super::HostResult for Text {
        const TYPE: ValueType = ValueType::I32;

        fn into_value(self) -> Result<Value, String> {
            Ok(Value::String("seven".into()))
        }
    }
    let answer = call_plain(&with_add(|_: i32, _: i32| Text), &[ValueRef::I32(1); 2]);
    let Some(Err(Err((code, text)))) = answer else {
        panic!("it has no number")
    };
    assert_eq!(code, ErrorCode::FunctionFailed);
    assert!(text.contains("i32"), "{text}");
}

#[test]
fn an_error_of_the_function_is_an_answer_with_its_text() {
    let text = Value::String("disk full".into());
    let expected = Err((ErrorCode::FunctionFailed, "disk full".to_owned()));
    assert_eq!(call(&complete(), "host_fail", &[text]), expected);
}

#[test]
fn a_panic_is_an_answer_with_its_text() {
    type Panics = fn(String);
    let panics: [(Panics, &str); 3] = [
        (|_| panic!("plain"), "plain"),
        (|text| panic!("formatted {text}"), "formatted x"),
        (|_| std::panic::panic_any(5), "host function panicked"),
    ];
    for (panics, text) in panics {
        let host = HostFunctions::new()
            .with("host_add", i32::wrapping_add)
            .with("host_echo", |bytes: Vec<u8>| bytes)
            .with("host_fail", panics);
        let answer = call(&host, "host_fail", &[Value::String("x".into())]);
        assert_eq!(answer, Err((ErrorCode::FunctionPanicked, text.to_owned())));
    }
}

#[test]
fn texts_of_errors_are_cut_between_characters() {
    for (character, expected) in [
        ("a", MAX_ERROR_TEXT_LEN_BYTES),
        ("€", MAX_ERROR_TEXT_LEN_BYTES / 3 * 3),
    ] {
        let text = Value::String(character.repeat(MAX_ERROR_TEXT_LEN_BYTES));
        let Err((_, text)) = call(&complete(), "host_fail", &[text]) else {
            panic!("it fails")
        };
        // A text of one-byte characters is just as long as it may be.
        assert_eq!(text.len(), expected);
    }
}

#[test]
fn an_unknown_index_is_an_answer() {
    let resolved = Resolved {
        metrics: None,
        functions: Vec::new(),
    };
    for index in [0, 7, u32::MAX] {
        let answer = resolved
            .call(index, &Arguments::new(&[]))
            .expect("answered");
        assert!(matches!(answer, Err((ErrorCode::UnknownFunction, _))));
    }
}

#[test]
fn an_argument_that_cannot_be_had_ends_the_call_before_the_function_runs() {
    let host = HostFunctions::new()
        .with("host_add", |_: i32, _: i32| -> i32 {
            unreachable!("it lacks an argument")
        })
        .with("host_echo", |bytes: Vec<u8>| bytes)
        .with("host_fail", |_: String| ());
    let resolved = host.resolve(&imports()).expect("resolved");
    for values in [
        vec![],
        vec![Value::I32(1)],
        vec![Value::I32(1), Value::U32(1)],
    ] {
        let result = resolved.call(index_of("host_add"), &Arguments::new(&values));
        assert!(matches!(result, Err(Failure::Protocol(_))), "{values:?}");
    }
}
