use super::*;

#[test]
fn an_errno_says_whether_anything_is_there_and_whether_it_may_be_used() {
    for errno in [libc::ENOENT, libc::ENXIO, libc::ENODEV] {
        assert!(matches!(Refusal::of(errno), Refusal::Absent), "{errno}");
    }
    for errno in [libc::EACCES, libc::EPERM] {
        assert!(matches!(Refusal::of(errno), Refusal::Permission), "{errno}");
    }
    for errno in [libc::EMFILE, libc::ENOMEM, libc::EBUSY] {
        let Refusal::Other(error) = Refusal::of(errno) else {
            panic!("{errno}");
        };
        assert_eq!(error.raw_os_error(), Some(errno));
    }
}
