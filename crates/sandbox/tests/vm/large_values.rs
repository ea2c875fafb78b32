//! Values far larger than the buffers.

use vellum_sandbox::{CallOptions, ErrorKind, HostFunctions, Sandbox};

use super::support::{in_each_mode, pattern, refused};

const ARGUMENT_LEN_BYTES: usize = 50 << 20;
const RESULT_LEN_BYTES: u64 = 20 << 20;

#[test]
fn an_argument_of_50_mib_and_a_result_of_20_mib_arrive_whole() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(64 << 20);
        let bytes = pattern(ARGUMENT_LEN_BYTES);
        let expected: u64 = bytes.iter().copied().map(u64::from).sum();
        assert_eq!(
            sandbox
                .call::<_, u64>("sum_bytes", (&bytes[..],))
                .expect("called"),
            expected
        );

        let result: Vec<u8> = sandbox
            .call("make_bytes", (RESULT_LEN_BYTES,))
            .expect("called");
        assert_eq!(result.len() as u64, RESULT_LEN_BYTES);
        assert!(
            result
                .iter()
                .enumerate()
                .all(|(index, byte)| usize::from(*byte) == index % 256)
        );
    });
}

#[test]
fn bytes_of_a_result_are_read_where_they_lie() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let make = sandbox
            .function::<(u64,), Vec<u8>>("make_bytes")
            .expect("exported");
        let options = CallOptions::new();
        // In the message, in guest memory, nothing at all.
        for len_bytes in [100, 1 << 20, 0] {
            let whole: Vec<u8> = make.call(&mut sandbox, (len_bytes,)).expect("called");
            let (written, middle) = make
                .call_reading(&mut sandbox, (len_bytes,), &options, |reply| {
                    assert_eq!(reply.len_bytes(), len_bytes);
                    let mut written = Vec::new();
                    let count = reply
                        .write_to(&mut written)
                        .expect("a vector takes anything");
                    assert_eq!(count, len_bytes);
                    let mut middle = vec![0; whole.len() / 2];
                    let offset = len_bytes / 4;
                    reply.read(offset, &mut middle).expect("in range");
                    for (offset, len) in [(len_bytes, 1), (0, whole.len() + 1), (u64::MAX, 2)] {
                        let error = reply
                            .read(offset, &mut vec![0; len])
                            .expect_err("behind the end");
                        assert_eq!(error.kind(), ErrorKind::GuestMemory, "{offset} {len}");
                    }
                    (written, middle)
                })
                .expect("called");
            assert!(written == whole, "{len_bytes}");
            let quarter = whole.len() / 4;
            assert!(
                middle == whole[quarter..quarter + middle.len()],
                "{len_bytes}"
            );
            assert!(sandbox.is_ready());
        }
    });
}

#[test]
fn an_error_of_the_guest_is_told_before_any_bytes_are_read() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let echo = sandbox
            .function::<(&[u8],), Vec<u8>>("call_host_echo")
            .expect("exported");
        let host = HostFunctions::new()
            .with("host_add", i32::wrapping_add)
            .with("host_echo", |_: Vec<u8>| Err::<Vec<u8>, _>("no echo"))
            .with("host_fail", |_: String| ());
        let snapshot = sandbox.snapshot().expect("taken");
        let mut failing = Sandbox::from_snapshot(&lab.engine, &snapshot, &host).expect("made");
        let result = echo.call_reading(&mut failing, (b"x",), &CallOptions::new(), |_| {
            panic!("there is nothing to read")
        });
        assert_eq!(
            refused::<()>("the echo", result).kind(),
            ErrorKind::GuestError
        );
        assert!(failing.is_ready());
    });
}
