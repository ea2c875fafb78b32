use super::*;

/// A register page of our own, which no hypervisor looks at.
fn with_page(test: impl FnOnce(SharedPage, &mut dyn FnMut(usize) -> u64)) {
    #[repr(C, align(4096))]
    struct Memory([u64; 512]);
    let mut memory = Box::new(Memory([0; 512]));
    let base = memory.0.as_mut_ptr();
    // SAFETY: the box is a page, and is used through this pointer alone until the end of the function.
    let page = unsafe { SharedPage::at(base.cast()) }.expect("not null");
    // SAFETY: in bounds, as the tests ask for the words of the page only.
    test(page, &mut |offset| unsafe { base.add(offset / 8).read() });
}

#[test]
fn each_write_marks_its_own_class() {
    let cases: [(fn(SharedPage), u32); 3] = [
        (|page| page.set_rax(1), 0b00001),
        (|page| page.set_rip(1), 0b00010),
        (|page| page.set_general(&[1; GENERAL_COUNT]), 0b10011),
    ];
    for (write, classes) in cases {
        with_page(|page, _| {
            write(page);
            assert_eq!(page.dirty(), classes);
        });
    }
    with_page(|page, _| {
        page.set_rip(1);
        page.set_rax(1);
        assert_eq!(page.dirty(), 0b00011, "marks add up");
    });
}

#[test]
fn registers_lie_where_the_hypervisor_looks_for_them() {
    with_page(|page, word| {
        page.set_general(&std::array::from_fn(|index| 0x100 + index as u64));
        assert_eq!(word(0), 0b10011 << 32, "version, validity, dirty classes");
        assert_eq!(word(0x08), 0x100, "rax");
        assert_eq!(word(0x28), 0x104, "rsp");
        assert_eq!(word(0x80), 0x10F, "r15");
        assert_eq!(word(0x88), 0x110, "rip");
        assert_eq!(word(0x90), 0x111, "rflags");
        page.set_rip(7);
        page.set_rax(8);
        let mut expected: GeneralValues = std::array::from_fn(|index| 0x100 + index as u64);
        (expected[16], expected[0]) = (7, 8);
        assert_eq!(page.general(), expected);
    });
}

#[test]
fn a_page_is_valid_when_the_hypervisor_says_so() {
    with_page(|page, _| {
        assert!(!page.is_valid());
        // SAFETY: in bounds of the page that the test owns.
        unsafe { page.0.as_ptr().cast::<u8>().add(2).write(1) };
        assert!(page.is_valid());
    });
}
