use vellum_backend::state::{Gprs, VcpuState, XSAVE_LEN_BYTES, Xcr0, XsaveArea};
use vellum_layout::{Gva, GvaRange, PAGE_SIZE};

use super::ResumePage;

const AT: u64 = 0x70_0000_2000;

fn state() -> VcpuState {
    let mut xsave = [0; XSAVE_LEN_BYTES];
    for (byte, value) in xsave.iter_mut().zip((0..=250_u8).cycle()) {
        *byte = value;
    }
    // The list of present components is checked, not copied: x87 and SSE.
    xsave[512..520].copy_from_slice(&3_u64.to_le_bytes());
    VcpuState {
        general: Gprs {
            rax: 0x1111_2222_3333_4444,
            rbx: 5,
            rdx: 0x5555_6666_7777_8888,
            rsp: 0x77_FFFF_F000,
            rip: 0x20_1234,
            rflags: 0x3202,
            ..Gprs::default()
        },
        xsave: XsaveArea::from_bytes(xsave),
        ..VcpuState::default()
    }
}

fn page() -> ResumePage {
    let at = GvaRange::new(Gva::new(AT).expect("canonical"), PAGE_SIZE).expect("a range");
    ResumePage::new(&state(), at)
}

/// An instruction with an operand relative to the next: its length, and the operand's offset in the page.
fn operand(bytes: &[u8], at: usize, opcode: &[u8]) -> (usize, usize) {
    assert_eq!(&bytes[at..at + opcode.len()], opcode, "at {at:#x}");
    let after = at + opcode.len() + 4;
    let displacement = bytes[at + opcode.len()..after]
        .try_into()
        .expect("four bytes");
    let target = after.checked_add_signed(i32::from_le_bytes(displacement) as isize);
    (after, target.expect("inside the page"))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[test]
fn the_instructions_load_the_area_and_two_registers_and_jump() {
    let page = page();
    let (bytes, general) = (page.bytes(), state().general);
    let start = usize::try_from(page.entry().rip - AT).expect("inside the page");
    // xrstor64 m (REX.W 0F AE /5), mov rax, m and mov rdx, m (REX.W 8B /r), jmp m (FF /4), each relative to RIP.
    let (at, area) = operand(bytes, start, &[0x48, 0x0F, 0xAE, 0x2D]);
    let (at, rax) = operand(bytes, at, &[0x48, 0x8B, 0x05]);
    let (at, rdx) = operand(bytes, at, &[0x48, 0x8B, 0x15]);
    let (_, rip) = operand(bytes, at, &[0xFF, 0x25]);
    // XRSTOR wants its area aligned to 64 bytes (Intel SDM volume 1, section 13.8).
    assert!(area.is_multiple_of(64));
    let saved = state();
    assert_eq!(&bytes[area..area + 2688], &saved.xsave.as_bytes()[..2688]);
    assert_eq!(word(bytes, rax), general.rax);
    assert_eq!(word(bytes, rdx), general.rdx);
    assert_eq!(word(bytes, rip), general.rip);
}

#[test]
fn the_page_is_entered_with_every_component_asked_for_and_all_other_registers_in_place() {
    let general = state().general;
    let expected = Gprs {
        rip: page().entry().rip,
        // EDX:EAX is the mask: x87, SSE, AVX, and the three of AVX-512.
        rax: 0xE7,
        rdx: 0,
        ..general
    };
    assert_eq!(*page().entry(), expected);
}

#[test]
fn the_page_is_one_page_and_holds_nothing_else() {
    let page = page();
    assert_eq!(page.bytes().len() as u64, PAGE_SIZE);
    let code = usize::try_from(page.entry().rip - AT).expect("inside the page");
    assert!(page.bytes()[2688..code].iter().all(|byte| *byte == 0));
    assert!(page.bytes()[code + 0x98..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_area_names_only_components_that_the_guest_has() {
    let with = |xstate_bv: u64, xcr0| {
        let mut bytes = *XsaveArea::reset().as_bytes();
        bytes[512..520].copy_from_slice(&xstate_bv.to_le_bytes());
        let state = VcpuState {
            xsave: XsaveArea::from_bytes(bytes),
            xcr0,
            ..VcpuState::default()
        };
        let at = GvaRange::literal(Gva::literal(0x1000), PAGE_SIZE);
        let page = ResumePage::new(&state, at);
        u64::from_le_bytes(page.bytes()[512..520].try_into().expect("8 bytes"))
    };
    // Protection keys (bit 9) are never among them; AVX-512 is where no XCR0 confines ring 3.
    assert_eq!(with(0x2FF, Xcr0(7)), 7);
    assert_eq!(with(0x203, Xcr0(7)), 3);
    assert_eq!(with(0x2E7, Xcr0::RESET), 0xE7);
}
