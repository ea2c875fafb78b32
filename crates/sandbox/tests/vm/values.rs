//! Values of every type cross the boundary in both directions unchanged.

use vellum_sandbox::{CallOptions, Sandbox, Value, ValueType};

use super::support::{NO_C_COMPILER, in_each_mode, pattern};

/// Values whose encodings are the extremes of their types.
fn extremes() -> Vec<Value> {
    let mut values = vec![Value::Bool(false), Value::Bool(true)];
    values.extend([0, 1, -1, i32::MIN, i32::MAX].map(Value::I32));
    values.extend([0, 1, 1 << 31, u32::MAX].map(Value::U32));
    values.extend([0, 1, -1, i64::MIN, i64::MAX, i64::from(i32::MIN) - 1].map(Value::I64));
    values.extend([0, 1, 1 << 63, u64::MAX, u64::from(u32::MAX) + 1].map(Value::U64));
    values.extend(
        [
            0.0,
            -0.0,
            1.5,
            f32::MIN,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-45,
        ]
        .map(Value::F32),
    );
    values.extend(
        [
            0.0,
            -0.0,
            1.5,
            f64::MIN,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::INFINITY,
            f64::NEG_INFINITY,
            5e-324,
        ]
        .map(Value::F64),
    );
    values.extend(
        ["", "a", "\0", "two\nlines", "äöü €", "🦀", "\u{10FFFF}"]
            .map(|text| Value::String(text.into())),
    );
    values
        .extend([&[][..], &[0], &[0xFF; 7], &[0, 1, 2, 3]].map(|bytes| Value::Bytes(bytes.into())));
    values
}

/// The function that returns its argument of this type.
fn echo(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::Unit => panic!("unit is no argument"),
        ValueType::Bool => "echo_bool",
        ValueType::I32 => "echo_i32",
        ValueType::U32 => "echo_u32",
        ValueType::I64 => "echo_i64",
        ValueType::U64 => "echo_u64",
        ValueType::F32 => "echo_f32",
        ValueType::F64 => "echo_f64",
        ValueType::String => "echo_string",
        ValueType::Bytes => "echo_bytes",
    }
}

fn echoed(sandbox: &mut Sandbox, value: &Value) -> Value {
    let name = echo(value.value_type());
    sandbox
        .call_dynamic(name, std::slice::from_ref(value), &CallOptions::new())
        .expect("an echo cannot fail")
}

#[test]
fn extreme_values_of_every_type_come_back_as_they_went() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for value in extremes() {
            // Compared by their text, which tells -0.0 from 0.0.
            assert_eq!(
                format!("{:?}", echoed(&mut sandbox, &value)),
                format!("{value:?}")
            );
        }
    });
}

#[test]
fn the_payload_of_a_nan_is_kept() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for bits in [
            0x7FF8_0000_0000_0000,
            0xFFF8_0000_0000_0000,
            0x7FF8_0000_DEAD_BEEF_u64,
        ] {
            let echo: f64 = sandbox
                .call("echo_f64", (f64::from_bits(bits),))
                .expect("echoed");
            assert_eq!(echo.to_bits(), bits);
        }
        for bits in [0x7FC0_0000, 0xFFC0_0000, 0x7FC0_BEEF_u32] {
            let echo: f32 = sandbox
                .call("echo_f32", (f32::from_bits(bits),))
                .expect("echoed");
            assert_eq!(echo.to_bits(), bits);
        }
    });
}

/// Lengths around a header, a slot, a page, the buffers (16 KiB) and the length at which a value no longer fits a message.
fn lengths() -> impl Iterator<Item = usize> {
    let edges = [
        0,
        16,
        32,
        48,
        4096,
        8192,
        16384 - 48,
        16384 - 32,
        16384,
        32768,
        65536,
        1 << 20,
    ];
    edges
        .into_iter()
        .flat_map(|edge: usize| edge.saturating_sub(1)..=edge + 1)
}

#[test]
fn bytes_of_any_length_come_back_as_they_went() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(16 << 20);
        for len_bytes in lengths() {
            let bytes = pattern(len_bytes);
            let echo: Vec<u8> = sandbox.call("echo_bytes", (&bytes[..],)).expect("echoed");
            assert!(echo == bytes, "bytes of length {len_bytes}");
        }
    });
}

#[test]
fn strings_of_any_length_come_back_as_they_went() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(16 << 20);
        for len in lengths() {
            // Characters of one to four bytes, so that every length of encoding meets every edge.
            let text: String = "aß€🦀".chars().cycle().take(len / 2).collect();
            let echo: String = sandbox
                .call("echo_string", (text.as_str(),))
                .expect("echoed");
            assert!(echo == text, "string of {len} characters");
        }
    });
}

#[test]
fn a_typed_handle_works_again_and_again_and_with_other_sandboxes_of_the_image() {
    in_each_mode(|lab| {
        let (mut first, mut second) = (lab.sandbox(), lab.sandbox());
        let add = first.function::<(i32, i32), i32>("add").expect("found");
        for number in 0..200 {
            assert_eq!(
                add.call(&mut first, (number, 2)).expect("called"),
                number + 2
            );
            assert_eq!(
                add.clone().call(&mut second, (number, -2)).expect("called"),
                number - 2
            );
        }
    });
}

#[test]
fn a_call_by_name_a_handle_and_a_dynamic_call_give_the_same() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let name = "reader";
        let by_name: String = sandbox.call("greet", (name,)).expect("called");
        let handle = sandbox.function::<(&str,), String>("greet").expect("found");
        let by_handle = handle.call(&mut sandbox, (name,)).expect("called");
        let dynamic = sandbox
            .call_dynamic("greet", &[Value::String(name.into())], &CallOptions::new())
            .expect("called");
        assert_eq!(by_name, "Hello, reader!");
        assert_eq!(by_handle, by_name);
        assert_eq!(dynamic, Value::String(by_name));
    });
}

#[test]
fn a_function_without_a_value_returns_unit() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let () = sandbox.call("null", ()).expect("called");
        assert_eq!(
            sandbox
                .call_dynamic("null", &[], &CallOptions::new())
                .expect("called"),
            Value::Unit
        );
    });
}

#[test]
fn state_lives_from_call_to_call() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        for amount in 1..=10_u64 {
            let sum: u64 = sandbox.call("counter_add", (amount,)).expect("called");
            assert_eq!(sum, (1..=amount).sum::<u64>());
        }
    });
}

#[test]
fn a_guest_in_c_takes_and_returns_values_too() {
    in_each_mode(|lab| {
        let Some(elf) = vellum_test_guests::c_user() else {
            return Err(NO_C_COMPILER);
        };
        let image = vellum_sandbox::GuestImage::from_bytes(elf).expect("valid");
        let mut sandbox = Sandbox::builder(&image)
            .heap_len_bytes(1 << 20)
            .host_function("host_add", i32::wrapping_add)
            .build(&lab.engine)
            .expect("built");
        assert_eq!(
            sandbox
                .call::<_, i32>("c_add", (i32::MAX, 1))
                .expect("called"),
            i32::MIN
        );
        assert_eq!(
            sandbox
                .call::<_, String>("c_greet", ("host",))
                .expect("called"),
            "Hello, host from C!"
        );
        assert_eq!(
            sandbox
                .call::<_, u64>("c_sum_bytes", (&[1_u8, 2, 3][..],))
                .expect("called"),
            6
        );
        assert_eq!(
            sandbox
                .call::<_, i32>("c_call_host_add", (40, 2))
                .expect("called"),
            42
        );
        Ok(())
    });
}
