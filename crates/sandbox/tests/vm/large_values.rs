//! Values far larger than the buffers.

use super::support::{in_each_mode, pattern};

const ARGUMENT_LEN_BYTES: usize = 50 << 20;
const RESULT_LEN_BYTES: u64 = 20 << 20;

#[test]
fn an_argument_of_50_mib_and_a_result_of_20_mib_arrive_whole() {
    in_each_mode(|lab| {
        let mut sandbox = lab
            .builder()
            .heap_len_bytes(64 << 20)
            .build(&lab.engine)
            .expect("built");
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
