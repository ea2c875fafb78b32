//! To i686 code the i686 constants are the crate's own.
#![cfg(guest_arch = "i686")]

use vellum_layout::i686;

#[test]
fn the_facade_is_the_i686_module() {
    assert_eq!(vellum_layout::BASE_ADDRESS, i686::BASE_ADDRESS);
    assert_eq!(vellum_layout::MAX_GPA, i686::MAX_GPA);
    assert_eq!(vellum_layout::MAX_GVA_IDENTITY, i686::MAX_GVA_IDENTITY);
    assert_eq!(vellum_layout::MAX_GVA_PAGED, i686::MAX_GVA_PAGED);
    assert_eq!(
        vellum_layout::scratch_base_gpa(0x1000),
        i686::scratch_base_gpa(0x1000)
    );
}
