//! What two outcomes of a case must have in common.

use std::fmt::Write;

use crate::cases::Case;
use crate::guest::{Outcome, at};

/// RFLAGS bits that are compared: the status flags and DF.
const COMPARED_FLAGS: u64 = 0xCD5;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Offsets in an `fxsave` area.
const MXCSR: usize = at::FXSAVE + 24;
const ST: usize = at::FXSAVE + 32;
const XMM: usize = at::FXSAVE + 160;

/// Whether both vectors hold NaNs in the same lanes, and are else the same. Which NaN of several a dot product keeps is nowhere said.
fn is_same_but_for_nans(native: u64, emulated: u64) -> bool {
    [0, 32].iter().all(|shift| {
        let (native, emulated) = ((native >> shift) as u32, (emulated >> shift) as u32);
        let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
        native == emulated || is_nan(native) && is_nan(emulated)
    })
}

/// In what the outcomes differ.
pub(crate) fn difference(case: &Case, native: &Outcome, emulated: &Outcome) -> Option<String> {
    let mut text = String::new();
    let dot_product = case.mnemonics().iter().any(|name| name == "dpps");
    let mut note =
        |what: &str, native: &dyn std::fmt::LowerHex, emulated: &dyn std::fmt::LowerHex| {
            let _ = writeln!(
                text,
                "  {what}: processor {native:#x}, emulator {emulated:#x}"
            );
        };
    let mut word = |what: &str, offset: usize, mask: u64| {
        let (native, emulated) = (native.word(offset) & mask, emulated.word(offset) & mask);
        let excused = dot_product && is_same_but_for_nans(native, emulated);
        if native != emulated && !excused {
            note(what, &native, &emulated);
        }
    };
    for (index, name) in NAMES.iter().enumerate() {
        word(name, at::GPRS + index * 8, u64::MAX);
    }
    let faulted = native.vector().is_some();
    word("vector", at::VECTOR, u64::MAX);
    word("error", at::ERROR, u64::MAX);
    word("rip", at::RIP, u64::MAX);
    let flags = if faulted {
        0
    } else {
        COMPARED_FLAGS & !case.undefined_flags
    };
    word("flags", at::FLAGS, flags);
    word("mxcsr", MXCSR, 0xFFFF);
    word("x87 control, status, tags", at::FXSAVE, 0x00FF_FFFF_FFFF);
    for index in 0..8 {
        word(&format!("st{index} low"), ST + index * 16, u64::MAX);
        word(&format!("st{index} high"), ST + index * 16 + 8, 0xFFFF);
    }
    for index in 0..16 {
        word(&format!("xmm{index} low"), XMM + index * 16, u64::MAX);
        word(&format!("xmm{index} high"), XMM + index * 16 + 8, u64::MAX);
    }
    for offset in (0..at::DATA_LEN).step_by(8) {
        word(&format!("data + {offset:#x}"), at::DATA + offset, u64::MAX);
    }
    (!text.is_empty()).then_some(text)
}
