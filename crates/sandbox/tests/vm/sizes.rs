//! Sizes that make no guest are refused with an error of their own kind.

use vellum_sandbox::{Error, ErrorKind, SandboxBuilder};

use super::support::{counter, in_each_mode, refused};

type SetSize = fn(SandboxBuilder, u64) -> SandboxBuilder;

const SIZES: [(&str, SetSize); 5] = [
    ("heap", SandboxBuilder::heap_len_bytes),
    ("stack", SandboxBuilder::stack_len_bytes),
    ("scratch", SandboxBuilder::scratch_len_bytes),
    ("input buffer", |builder, len_bytes| {
        builder.buffer_len_bytes(len_bytes, 16 << 10)
    }),
    ("output buffer", |builder, len_bytes| {
        builder.buffer_len_bytes(16 << 10, len_bytes)
    }),
];

/// An error with all that stands behind it.
fn text(error: &Error) -> String {
    format!("{error:?}")
}

#[test]
fn zero_unaligned_and_absurd_sizes_are_refused_each_by_name() {
    in_each_mode(|lab| {
        for (what, set) in SIZES {
            for len_bytes in [0, 1, 4095, 4097, (64 << 20) + 8, u64::MAX, u64::MAX - 1] {
                let error = refused(what, set(lab.builder(), len_bytes).build(&lab.engine));
                assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidConfig,
                    "{what} of {len_bytes:#x}"
                );
                let text = text(&error);
                let length = format!("{len_bytes:#x}");
                let says_length = text.contains(&length) || len_bytes == 0 && text.contains("zero");
                assert!(text.contains(what) && says_length, "{text}");
            }
        }
    });
}

#[test]
fn aligned_sizes_beyond_the_address_space_are_refused() {
    in_each_mode(|lab| {
        for (what, set) in SIZES {
            for len_bytes in [u64::MAX - 4095, 1 << 63, 1 << 52, 1 << 47, 1 << 38] {
                let error = refused(what, set(lab.builder(), len_bytes).build(&lab.engine));
                assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidConfig,
                    "{what} of {len_bytes:#x}: {error:?}"
                );
            }
        }
    });
}

#[test]
fn sizes_that_fit_alone_but_not_together_are_refused() {
    in_each_mode(|lab| {
        let builders = [
            lab.builder()
                .heap_len_bytes(60 << 30)
                .stack_len_bytes(8 << 30),
            lab.builder()
                .heap_len_bytes(40 << 30)
                .scratch_len_bytes(40 << 30),
            lab.builder().buffer_len_bytes(12 << 30, 12 << 30),
        ];
        for (number, builder) in builders.into_iter().enumerate() {
            let what = format!("builder {number}");
            let result = builder.build(&lab.engine);
            // On the guest side the heap takes no guest-physical memory until it is written.
            if number == 1
                && lab.engine.cow_mode() == vellum_sandbox::CowMode::GuestSide
                && result.is_ok()
            {
                continue;
            }
            assert_eq!(
                refused(&what, result).kind(),
                ErrorKind::InvalidConfig,
                "{what}"
            );
        }
    });
}

#[test]
fn a_scratch_below_the_minimum_is_refused_and_the_minimum_named() {
    in_each_mode(|lab| {
        let error = refused(
            "scratch",
            lab.builder().scratch_len_bytes(4096).build(&lab.engine),
        );
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let text = text(&error);
        let minimum = text
            .split("at least 0x")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("a minimum");
        let minimum = u64::from_str_radix(minimum, 16).expect("a number");
        let error = refused(
            "one less",
            lab.builder()
                .scratch_len_bytes(minimum - 4096)
                .build(&lab.engine),
        );
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        // With exactly the minimum there is a sandbox, or the guest says that it needs more.
        match lab.builder().scratch_len_bytes(minimum).build(&lab.engine) {
            Ok(mut sandbox) => assert_eq!(counter(&mut sandbox), 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ScratchExhausted, "{error:?}"),
        }
    });
}

#[test]
fn the_smallest_sizes_make_a_guest() {
    in_each_mode(|lab| {
        let mut sandbox = lab
            .builder()
            .heap_len_bytes(4096)
            .stack_len_bytes(16 << 10)
            .buffer_len_bytes(4096, 4096)
            .build(&lab.engine)
            .expect("built");
        assert_eq!(sandbox.call::<_, i32>("add", (40, 2)).expect("called"), 42);
    });
}

#[test]
fn a_large_heap_costs_nothing_until_it_is_used() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox_with_heap(1 << 30);
        let snapshot = sandbox.snapshot().expect("taken");
        assert!(snapshot.len_bytes() < 1 << 20);
        let _: u64 = sandbox.call("touch_pages", (100_u64,)).expect("called");
        sandbox.restore(&snapshot).expect("restored");
        assert_eq!(counter(&mut sandbox), 0);
    });
}
