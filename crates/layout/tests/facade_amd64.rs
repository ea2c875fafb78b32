//! To amd64 code the amd64 constants are the crate's own.
#![cfg(guest_arch = "amd64")]

use vellum_layout::amd64;

#[test]
fn the_facade_is_the_amd64_module() {
    assert_eq!(vellum_layout::BASE_ADDRESS, amd64::BASE_ADDRESS);
    assert_eq!(vellum_layout::MAX_GPA, amd64::MAX_GPA);
    assert_eq!(vellum_layout::MAX_GVA, amd64::MAX_GVA);
    assert_eq!(
        vellum_layout::scratch_base_gpa(0x1000),
        amd64::scratch_base_gpa(0x1000)
    );
    assert_eq!(
        vellum_layout::scratch_base_gva(0x1000),
        amd64::scratch_base_gva(0x1000)
    );
}
