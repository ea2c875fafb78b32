use std::error::Error as _;

use super::*;
use crate::state::Xcr0;

#[test]
fn a_refused_open_says_what_to_do() {
    let cases = [
        (libc::ENOENT, "module mshv_root loaded"),
        (libc::ENXIO, "root partition"),
        (libc::ENODEV, "root partition"),
        (libc::EACCES, "sudo chmod 666 /dev/mshv"),
        (libc::EPERM, "sudo chmod 666 /dev/mshv"),
    ];
    for (errno, advice) in cases {
        let error = OpenError::from_errno(errno);
        assert!(error.to_string().contains(advice), "{errno}: {error}");
        assert!(error.source().is_none(), "{errno}");
    }
}

#[test]
fn any_other_refusal_keeps_its_cause() {
    for errno in [libc::EMFILE, libc::ENOMEM, libc::EBUSY] {
        let error = OpenError::from_errno(errno);
        let OpenError::Io(source) = &error else {
            panic!("{errno}: {error:?}");
        };
        assert_eq!(source.raw_os_error(), Some(errno));
    }
}

#[test]
fn overrides_are_worked_out_once_for_all_vms_that_share_a_model() {
    let model = |profile| {
        Arc::new(CpuModel {
            profile,
            leaves: Vec::new(),
            xcr0: Xcr0::RESET,
            cr4_features: 0,
        })
    };
    let (first, second) = (model(CpuProfile::V1), model(CpuProfile::V2));
    let cache = Overrides::default();
    let of_first = cache.of(&first, &[]);
    assert!(Arc::ptr_eq(&of_first, &cache.of(&first, &[])));
    assert!(!Arc::ptr_eq(&of_first, &cache.of(&second, &[])));
}
