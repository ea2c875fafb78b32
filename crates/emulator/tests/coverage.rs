//! What the emulated processor announces, it does: every encoding of every announced feature has a handler or stands in a list here.

use std::collections::BTreeSet;

use iced_x86::{CpuidFeature as F, Decoder, DecoderOptions, Instruction, Mnemonic};
use vellum_backend::Hypervisor;
use vellum_backend::cpuid::CpuProfile;
use vellum_emulator::Emulator;

/// Features that no bit announces, because every processor of the profile has them.
const ALWAYS: [F; 15] = [
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL286_ONLY,
    F::INTEL386,
    F::INTEL386_ONLY,
    F::INTEL486,
    F::X64,
    F::FPU287,
    F::FPU287XL_ONLY,
    F::FPU387,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::CPUID,
];

/// Features that a bit of leaf 1 announces: of ECX, then of EDX.
const IN_ECX: [(u32, F); 7] = [
    (0, F::SSE3),
    (1, F::PCLMULQDQ),
    (9, F::SSSE3),
    (13, F::CMPXCHG16B),
    (19, F::SSE4_1),
    (20, F::SSE4_2),
    (23, F::POPCNT),
];
const IN_EDX: [(u32, F); 11] = [
    (0, F::FPU),
    (4, F::TSC),
    (5, F::MSR),
    (8, F::CX8),
    (11, F::SEP),
    (15, F::CMOV),
    (19, F::CLFSH),
    (23, F::MMX),
    (24, F::FXSR),
    (25, F::SSE),
    (26, F::SSE2),
];

/// Left out on purpose: #UD to the guest, a named record to the host. `docs/emulator.md` says so.
const LEFT_OUT: [Mnemonic; 9] = [
    // Transcendental functions, whose bits differ from processor to processor.
    Mnemonic::F2xm1,
    Mnemonic::Fcos,
    Mnemonic::Fpatan,
    Mnemonic::Fptan,
    Mnemonic::Fsin,
    Mnemonic::Fsincos,
    Mnemonic::Fyl2x,
    Mnemonic::Fyl2xp1,
    // In no manual.
    Mnemonic::Fstpnce,
];

/// The features that the processor announces.
fn announced() -> Vec<F> {
    let model = Emulator::new().cpu_model(CpuProfile::V2).expect("a model");
    let leaf = model.leaves.iter().find(|it| it.leaf == 1).expect("leaf 1");
    let of_word = |word: u32, bits: &[(u32, F)]| -> Vec<F> {
        let set = bits.iter().filter(|(bit, _)| word >> bit & 1 != 0);
        set.map(|(_, feature)| *feature).collect()
    };
    let mut features = ALWAYS.to_vec();
    features.extend(of_word(leaf.ecx, &IN_ECX));
    features.extend(of_word(leaf.edx, &IN_EDX));
    features
}

/// Every instruction of up to three opcode bytes with every second byte, in the three sizes of code.
fn each_instruction(mut f: impl FnMut(&Instruction)) {
    const PREFIXES: [&[u8]; 7] = [
        &[],
        &[0x66],
        &[0xF2],
        &[0xF3],
        &[0x48],
        &[0x66, 0x48],
        &[0xF3, 0x48],
    ];
    const MAPS: [&[u8]; 4] = [&[], &[0x0F], &[0x0F, 0x38], &[0x0F, 0x3A]];
    for bits in [16, 32, 64] {
        for (prefix, map) in PREFIXES
            .iter()
            .flat_map(|prefix| MAPS.map(|map| (prefix, map)))
        {
            for (opcode, second) in
                (0..=255).flat_map(|it| (0..=255).map(move |second| (it, second)))
            {
                let mut bytes = [prefix, map, &[opcode, second]].concat();
                bytes.resize(15, 0);
                f(&Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode());
            }
        }
    }
}

#[test]
fn every_announced_instruction_is_emulated_or_left_out_on_purpose() {
    let announced = announced();
    let (mut lacking, mut seen) = (BTreeSet::new(), BTreeSet::new());
    each_instruction(|instruction| {
        let features = instruction.cpuid_features();
        if instruction.is_invalid() || !features.iter().all(|it| announced.contains(it)) {
            return;
        }
        seen.insert(instruction.mnemonic());
        let left_out = LEFT_OUT.contains(&instruction.mnemonic());
        if vellum_emulator::is_emulated(instruction) == left_out {
            lacking.insert(format!("{:?}", instruction.code()));
        }
    });
    assert!(seen.len() > 500, "only {} mnemonics", seen.len());
    assert!(lacking.is_empty(), "{lacking:?}");
}
