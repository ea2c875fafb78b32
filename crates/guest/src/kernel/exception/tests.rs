use alloc::format;
use alloc::string::ToString;

use super::*;

fn report(vector: u32, code: u64, refusal: Refusal) -> Report {
    Report {
        vector,
        code,
        instruction: 0x40_1234,
        address: 0xDEAD_0000,
        refusal,
    }
}

#[test]
fn reports_say_what_happened_where() {
    let cases = [
        (
            report(6, 0, Refusal::NotServed),
            "invalid opcode (#UD): error code 0x0, instruction 0x401234",
        ),
        (
            report(13, 0x18, Refusal::NotServed),
            "general protection fault (#GP): error code 0x18, instruction 0x401234",
        ),
        (
            report(27, 0, Refusal::NotServed),
            "reserved exception 27: error code 0x0, instruction 0x401234",
        ),
        (
            report(PAGE_FAULT, 0b11, Refusal::NotServed),
            "page fault (#PF) at 0xdead0000: write to a page that is not writable; error code 0x3, instruction 0x401234",
        ),
        (
            report(PAGE_FAULT, 0b10, Refusal::OutOfFrames),
            "page fault (#PF) at 0xdead0000: write to a page that is not mapped (out of frames: give the guest more \
             scratch); error code 0x2, instruction 0x401234",
        ),
        (
            report(DOUBLE_FAULT, 0, Refusal::NotServed),
            "double fault (#DF): the exception before could not be delivered, as after a stack overflow; last page \
             fault at 0xdead0000, instruction 0x401234",
        ),
    ];
    for (report, expected) in cases {
        assert_eq!(report.to_string(), expected);
    }
}

#[test]
fn every_combination_of_page_fault_bits_has_a_text_of_its_cause() {
    let cases = [
        (0b0_0000, "read of a page that is not mapped"),
        (0b0_0001, "read of a page that does not allow it"),
        (0b0_0110, "write to a page that is not mapped"),
        (0b0_0111, "write to a page that is not writable"),
        (0b1_0000, "execution of a page that is not mapped"),
        (0b1_0101, "execution of a page that is not executable"),
        (0b0_1001, "access through an entry with reserved bits"),
        (0b1_1011, "access through an entry with reserved bits"),
    ];
    for (code, expected) in cases {
        let text = format!("{}", report(PAGE_FAULT, code, Refusal::NotServed));
        assert!(text.contains(expected), "{code:#b}: {text}");
    }
}
