use std::error::Error as _;

use super::*;

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
        let error = OpenError::from(Refusal::of(errno));
        assert!(error.to_string().contains(advice), "{errno}: {error}");
        assert!(error.source().is_none(), "{errno}");
    }
}
