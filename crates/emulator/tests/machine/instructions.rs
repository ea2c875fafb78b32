//! Instructions that the comparison with a processor does not reach: those of 32-bit code, and those whose bits processors choose.

use vellum_backend::{Exit, VcpuState, Vm};

use crate::{CODE, Guest, flat, user};

/// Where the code of a case finds its operands.
const DATA: u64 = 0x6000;

/// Runs 32-bit code up to an `out`, from a value of EAX and flags: EAX and RFLAGS at the end.
fn run_flat(code: &[u8], rax: u64, flags: u64) -> (u64, u64) {
    let mut guest = flat(&[code, &[0xE7, 0xE0]].concat());
    let mut state = VcpuState::save(&mut guest.vm).expect("saved");
    state.general.rax = rax;
    state.general.rflags = flags | 2;
    state.restore(&mut guest.vm).expect("restored");
    finish(&mut guest)
}

fn dword(guest: &Guest, at: u64) -> u32 {
    let mut raw = [0; 4];
    guest.memory.read(at, &mut raw).expect("in bounds");
    u32::from_le_bytes(raw)
}

fn finish(guest: &mut Guest) -> (u64, u64) {
    let exit = guest.vm.run().expect("ran");
    assert!(matches!(exit, Exit::IoOut { port: 0xE0, .. }), "{exit:?}");
    let state = VcpuState::save(&mut guest.vm).expect("saved");
    (state.general.rax, state.general.rflags)
}

const CF: u64 = 1;
const AF: u64 = 0x10;

#[test]
fn decimal_adjustments_are_those_of_the_manual() {
    // Code, EAX and flags before, EAX and the flags CF and AF behind (Intel SDM volume 2, examples and operation sections).
    let cases: [(&[u8], u64, u64, u64, u64); 14] = [
        // add al, bl of the manual's example: 0x79 + 0x35 = 0xAE.
        (&[0x27], 0xAE, 0, 0x14, CF | AF),
        (&[0x27], 0x2E, 0, 0x34, AF),
        (&[0x27], 0x12, CF, 0x72, CF),
        (&[0x27], 0x99, 0, 0x99, 0),
        // das behind 0x35 - 0x47 = 0xEE with borrows.
        (&[0x2F], 0xEE, CF | AF, 0x88, CF | AF),
        (&[0x2F], 0x03, AF, 0xFD, CF | AF),
        (&[0x2F], 0x14, 0, 0x14, 0),
        (&[0x37], 0x020B, 0, 0x0301, CF | AF),
        (&[0x37], 0x0205, 0, 0x0205, 0),
        (&[0x3F], 0x020B, 0, 0x0105, CF | AF),
        (&[0xD4, 0x0A], 0x0063, 0, 0x0909, 0),
        (&[0xD5, 0x0A], 0x0907, 0, 0x0061, 0),
        (&[0xD6], 0x1200, CF, 0x12FF, CF),
        (&[0xD6], 0x12FF, 0, 0x1200, 0),
    ];
    for (code, rax, flags, expected, expected_flags) in cases {
        let (result, result_flags) = run_flat(code, rax, flags);
        assert_eq!(result, expected, "{code:x?} of {rax:#x}");
        let defined = if code[0] & 0xF0 == 0xD0 {
            CF & flags
        } else {
            CF | AF
        };
        assert_eq!(
            result_flags & defined,
            expected_flags & defined,
            "{code:x?} of {rax:#x}"
        );
    }
}

#[test]
fn an_index_out_of_bounds_is_an_exception() {
    // bound eax, [0x6000]
    let code = [0x62, 0x05, 0x00, 0x60, 0, 0];
    for (index, inside) in [
        (5_u64, true),
        (10, true),
        (4, false),
        (11, false),
        (0xFFFF_FFFF, false),
    ] {
        let mut guest = flat(&[&code[..], &[0xE7, 0xE0]].concat());
        guest
            .memory
            .write_u64(DATA, 5 | 10 << 32)
            .expect("in bounds");
        let mut state = VcpuState::save(&mut guest.vm).expect("saved");
        state.general.rax = index;
        state.restore(&mut guest.vm).expect("restored");
        let exit = guest.vm.run().expect("ran");
        // Nothing handles the exception.
        assert_eq!(
            matches!(exit, Exit::IoOut { .. }),
            inside,
            "{index:#x}: {exit:?}"
        );
    }
}

#[test]
fn a_selector_gets_the_weaker_privilege() {
    /// ZF.
    const ZF: u64 = 0x40;
    // mov ecx, 3; arpl ax, cx
    let code = [0xB9, 3, 0, 0, 0, 0x63, 0xC8];
    let (selector, flags) = run_flat(&code, 0x10, 0);
    assert_eq!((selector, flags & ZF), (0x13, ZF));
    let (selector, flags) = run_flat(&code, 0x13, ZF);
    assert_eq!((selector, flags & ZF), (0x13, 0));
}

#[test]
fn an_x87_environment_is_stored_as_protected_mode_has_it() {
    // fninit; fld1; fldz; fnstenv [0x6000]; fninit; fldenv [0x6000]; fnstsw ax
    let code = [
        0xDB, 0xE3, 0xD9, 0xE8, 0xD9, 0xEE, 0xD9, 0x35, 0x00, 0x60, 0, 0, 0xDB, 0xE3, 0xD9, 0x25,
        0x00, 0x60, 0, 0, 0xDF, 0xE0, 0xE7, 0xE0,
    ];
    let mut guest = flat(&code);
    let (rax, _) = finish(&mut guest);
    assert_eq!(rax & 0xFFFF, 6 << 11);
    let word = |index: u64| u64::from(dword(&guest, DATA + index * 4));
    // The registers are 6, a zero, and 7, a one; the last instruction is the fldz.
    let expected = [
        0xFFFF_037F,
        0xFFFF_3000,
        0xFFFF_1FFF,
        CODE + 4,
        0,
        0,
        0xFFFF_0000,
    ];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(word), expected);
}

#[test]
fn all_of_x87_is_saved_and_restored() {
    // fninit; fld1; fldpi; fnsave [0x6000]; frstor [0x6000]; faddp; fstp qword [0x6100]
    let code = [
        0xDB, 0xE3, 0xD9, 0xE8, 0xD9, 0xEB, 0xDD, 0x35, 0x00, 0x60, 0, 0, 0xDD, 0x25, 0x00, 0x60,
        0, 0, 0xDE, 0xC1, 0xDD, 0x1D, 0x00, 0x61, 0, 0, 0xE7, 0xE0,
    ];
    let mut guest = flat(&code);
    finish(&mut guest);
    let sum = guest.memory.read_u64(DATA + 0x100).expect("in bounds");
    assert_eq!(sum, (1.0 + std::f64::consts::PI).to_bits());
}

/// Four floats in memory, of which `code` makes what it leaves behind them.
fn of_singles(code: &[u8], values: [f32; 4]) -> [f32; 4] {
    // movups xmm0, [0x6000]; code; movups [0x6010], xmm0; out 0xe0, eax (32-bit addresses by a base of 0)
    let load = [0x0F, 0x10, 0x04, 0x25, 0x00, 0x60, 0, 0];
    let store = [0x0F, 0x11, 0x04, 0x25, 0x10, 0x60, 0, 0, 0xF4];
    let mut guest = user(&[&load[..], code, &store].concat());
    for (at, value) in (DATA..).step_by(4).zip(values) {
        guest
            .memory
            .write(at, &value.to_bits().to_le_bytes())
            .expect("in bounds");
    }
    // Ring 3 may not halt, and nothing handles that.
    assert_eq!(guest.vm.run().expect("ran"), Exit::TripleFault);
    [0, 1, 2, 3].map(|index| f32::from_bits(dword(&guest, DATA + 16 + index * 4)))
}

#[test]
fn approximations_are_as_near_as_the_manual_says() {
    /// Of the result (Intel SDM volume 2, `RCPPS`).
    const MAX_ERROR: f64 = 1.5 / 4096.0;
    let rcpps: (&[u8], fn(f64) -> f64) = (&[0x0F, 0x53, 0xC0], |it| 1.0 / it);
    let rsqrtps: (&[u8], fn(f64) -> f64) = (&[0x0F, 0x52, 0xC0], |it| 1.0 / it.sqrt());
    for (code, exact) in [rcpps, rsqrtps] {
        let values = [1.0, 3.0, 12_345.678, 7.5e-20];
        for (value, result) in values.into_iter().zip(of_singles(code, values)) {
            let expected = exact(f64::from(value));
            let error = (f64::from(result) - expected).abs() / expected;
            assert!(
                error <= MAX_ERROR,
                "{value}: {result} instead of {expected}"
            );
        }
        let limits = of_singles(code, [0.0, f32::INFINITY, 1e-40, f32::NAN]);
        assert_eq!(limits[..3], [f32::INFINITY, 0.0, f32::INFINITY]);
        assert!(limits[3].is_nan());
    }
    let negative = of_singles(rsqrtps.0, [-0.0, -1.0, 1.0, 4.0]);
    assert_eq!(
        (negative[0], negative[1].is_nan()),
        (f32::NEG_INFINITY, true)
    );
}
