use std::error::Error as _;

use mshv_bindings::{HV_STATUS_INSUFFICIENT_MEMORY, HV_STATUS_INVALID_REGISTER_VALUE};

use super::*;

fn errno(errno: i32) -> MshvError {
    MshvError::from(errno)
}

fn status(status: u32) -> MshvError {
    let status_raw = u16::try_from(status).expect("16 bits");
    MshvError::Hypercall {
        code: 0x51,
        status_raw,
        status: HvError::try_from(status_raw).ok(),
    }
}

#[test]
fn what_is_only_delayed_is_tried_again() {
    for delay in [libc::EINTR, libc::EAGAIN] {
        let mut left = 3;
        let result = retry("testing", || {
            left -= 1;
            if left > 0 { Err(errno(delay)) } else { Ok(7) }
        });
        assert_eq!(result.expect("succeeds in the end"), 7);
    }
}

#[test]
fn a_call_that_is_delayed_for_ever_fails() {
    let mut calls = 0;
    let result: Result<(), _> = retry("testing", || {
        calls += 1;
        Err(errno(libc::EAGAIN))
    });
    assert!(
        matches!(result, Err(VmError::Hypervisor { .. })),
        "{result:?}"
    );
    assert_eq!(calls, MAX_ATTEMPTS);
}

#[test]
fn any_other_error_is_final_and_keeps_its_cause() {
    for number in [libc::ENOMEM, libc::EINVAL, libc::EEXIST, libc::EFAULT] {
        let mut calls = 0;
        let result: Result<(), _> = retry("testing", || {
            calls += 1;
            Err(errno(number))
        });
        let Err(VmError::Hypervisor { operation, source }) = result else {
            panic!("{number}: {result:?}");
        };
        assert_eq!((operation, calls), ("testing", 1));
        assert_eq!(source.raw_os_error(), Some(number));
    }
}

#[test]
fn the_status_of_a_hypercall_is_told_instead_of_its_errno() {
    let cases = [
        (
            HV_STATUS_INVALID_REGISTER_VALUE,
            io::ErrorKind::InvalidInput,
        ),
        (HV_STATUS_INSUFFICIENT_MEMORY, io::ErrorKind::OutOfMemory),
        (0xFFFF, io::ErrorKind::Other),
    ];
    for (raw, kind) in cases {
        let error = failed("testing", status(raw));
        let source = error.source().expect("has a cause");
        assert!(
            source.to_string().contains(&format!("{raw:#x}")),
            "{source}"
        );
        let VmError::Hypervisor { source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), kind, "{raw:#x}");
    }
}

#[test]
fn a_value_fills_all_of_its_union() {
    for value in [0, 1, u128::MAX, 1 << 64, 0x1234_5678_9ABC_DEF0 << 40] {
        assert_eq!(from_union(to_union(value)), value);
    }
}
