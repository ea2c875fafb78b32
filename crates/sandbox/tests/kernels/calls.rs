//! Calls, host calls, and values larger than the buffers.

use vellum_sandbox::{ErrorKind, Value};

use super::support::{Kernel, call, count, counter, refused, with_each_kernel, with_kernels};

#[test]
fn every_kernel_is_called_and_calls_back() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let () = call(&mut sandbox, "null", ());
        assert_eq!(call::<_, i32>(&mut sandbox, "add", (40, 2)), 42);
        assert_eq!(
            call::<_, i32>(&mut sandbox, "call_host_add", (i32::MAX, 1)),
            i32::MIN
        );
        let greeting: String = call(&mut sandbox, "greet", ("Vellum",));
        assert_eq!(greeting, "Hello, Vellum!");
        for round in 1..=5 {
            count(&mut sandbox, 1);
            assert_eq!(counter(&mut sandbox), round);
        }
    });
}

#[test]
fn bytes_larger_than_the_buffers_go_straight_into_the_heap() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let len_bytes = 300_000;
        let bytes = vec![3_u8; len_bytes];
        let sum: u64 = call(&mut sandbox, "sum_bytes", (&bytes[..],));
        assert_eq!(sum, 3 * len_bytes as u64);
    });
}

#[test]
fn large_bytes_come_back_as_they_went() {
    // The C kernel has no function for it.
    let rust = |kernel| kernel != Kernel::IdentityC;
    with_kernels(rust, |lab| {
        let mut sandbox = lab.sandbox();
        let len_bytes = 300_000;
        let bytes: Vec<u8> = (0..=250).cycle().take(len_bytes).collect();
        let back: Vec<u8> = call(
            &mut sandbox,
            "copy_within",
            (&bytes[..], 0_u32, 0_u32, 0_u32),
        );
        assert!(back == bytes);
    });
}

#[test]
fn an_argument_that_the_heap_cannot_hold_is_refused_by_the_guest() {
    with_each_kernel(|lab| {
        let mut sandbox = lab.sandbox();
        let bytes = vec![1_u8; 9 << 20];
        let error = refused(&mut sandbox, "sum_bytes", &[Value::Bytes(bytes)]);
        // An error of the call, and no failure of the guest: its dispatcher could not take the argument.
        assert_eq!(error.kind(), ErrorKind::GuestError, "{error:?}");
        assert_eq!(call::<_, i32>(&mut sandbox, "add", (40, 2)), 42);
    });
}
