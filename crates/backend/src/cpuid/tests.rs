//! Profiles on a made-up processor that offers everything, and on ones that lack something.

use super::*;
use crate::state::cr4;

/// State components: x87, SSE, AVX, MPX, AVX-512, PKRU, CET and AMX.
const EVERY_COMPONENT: u32 = 0x6_1AFF;
const AVX_XCR0: Xcr0 = Xcr0(7);

const fn leaf(leaf: u32, subleaf: Option<u32>, registers: [u32; 4]) -> CpuidLeaf {
    let [eax, ebx, ecx, edx] = registers;
    CpuidLeaf {
        leaf,
        subleaf,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// A processor with every feature bit set that CPUID has.
fn rich() -> Vec<CpuidLeaf> {
    const ALL: u32 = u32::MAX;
    let genu_ine_i_ntel = [0x756E_6547, 0x6C65_746E, 0x4965_6E69];
    let [ebx, ecx, edx] = genu_ine_i_ntel;
    vec![
        leaf(0, None, [0x20, ebx, ecx, edx]),
        leaf(1, None, [0x0008_06F8, 0x1234_5678, ALL, ALL]),
        leaf(2, None, [1, 2, 3, 4]),
        leaf(4, Some(0), [1, 2, 3, 4]),
        leaf(6, None, [ALL; 4]),
        leaf(7, Some(0), [2, ALL, ALL, ALL]),
        leaf(7, Some(1), [ALL; 4]),
        leaf(0xA, None, [ALL; 4]),
        leaf(0xB, Some(0), [ALL; 4]),
        leaf(0xD, Some(0), [EVERY_COMPONENT, 0x2B00, 0x2B00, 0]),
        leaf(0xD, Some(1), [0x1F, 0x2B00, 0x1800, 0]),
        leaf(0xD, Some(2), [256, 576, 0, 0]),
        leaf(0xD, Some(5), [64, 1088, 0, 0]),
        leaf(0xD, Some(6), [512, 1152, 0, 0]),
        leaf(0xD, Some(7), [1024, 1664, 0, 0]),
        leaf(0xD, Some(9), [8, 2688, 0, 0]),
        leaf(0xD, Some(17), [64, 2752, 0, 2]),
        leaf(0xD, Some(18), [8192, 2816, 0, 6]),
        leaf(0x1D, Some(1), [ALL; 4]),
        leaf(0x4000_0000, None, [0x4000_0001, ALL, ALL, ALL]),
        leaf(0x4000_0001, None, [ALL; 4]),
        leaf(0x8000_0000, None, [0x8000_0021, ebx, ecx, edx]),
        leaf(0x8000_0001, None, [ALL; 4]),
        leaf(0x8000_0002, None, [1, 2, 3, 4]),
        leaf(0x8000_0008, None, [0x3934, ALL, ALL, ALL]),
        leaf(0x8000_000A, None, [ALL; 4]),
        leaf(0x8000_0021, None, [ALL; 4]),
    ]
}

/// [`rich`] without some bits of one register.
fn without(number: u32, register: fn(&mut CpuidLeaf) -> &mut u32, bits: u32) -> Vec<CpuidLeaf> {
    let mut leaves = rich();
    let changed = leaves
        .iter_mut()
        .find(|l| l.leaf == number && l.subleaf.unwrap_or(0) == 0)
        .expect("the rich processor has the leaf");
    *register(changed) &= !bits;
    leaves
}

fn shown(model: &CpuModel, number: u32, subleaf: Option<u32>) -> Option<CpuidLeaf> {
    let mut found = model
        .leaves
        .iter()
        .filter(|l| l.leaf == number && l.subleaf == subleaf);
    let first = found.next().copied();
    assert_eq!(found.next(), None, "leaf {number:#x} is there once");
    first
}

fn expect_leaf(model: &CpuModel, number: u32, subleaf: Option<u32>) -> CpuidLeaf {
    shown(model, number, subleaf).unwrap_or_else(|| panic!("leaf {number:#x} is shown"))
}

fn rich_model(profile: CpuProfile) -> CpuModel {
    model(profile, &rich()).expect("the rich processor has every profile")
}

const EVERY_PROFILE: [CpuProfile; 5] = [
    CpuProfile::V1,
    CpuProfile::V2,
    CpuProfile::V3,
    CpuProfile::Best,
    CpuProfile::Host,
];

#[test]
fn a_level_shows_exactly_its_features() {
    type Case<'a> = (CpuProfile, &'a [u32], &'a [u32], &'a [u32]);
    // Leaf 1 ECX, leaf 7 EBX and leaf 8000_0001 ECX, each bit spelled out from the manual.
    let v2 = [0, 1, 9, 13, 19, 20, 23, 25, 31];
    let v3 = [0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 31];
    let cases: [Case<'_>; 3] = [
        (CpuProfile::V1, &[31], &[7, 9, 20], &[0]),
        (CpuProfile::V2, &v2, &[7, 9, 20], &[0]),
        (CpuProfile::V3, &v3, &[3, 5, 7, 8, 9, 20], &[0, 5]),
    ];
    let bits = |numbers: &[u32]| numbers.iter().fold(0, |word, bit| word | 1 << bit);
    for (profile, leaf1_ecx, leaf7_ebx, extended1_ecx) in cases {
        let model = rich_model(profile);
        assert_eq!(model.profile, profile);
        assert_eq!(
            expect_leaf(&model, 1, None).ecx,
            bits(leaf1_ecx),
            "{profile:?}"
        );
        assert_eq!(
            expect_leaf(&model, 7, Some(0)).ebx,
            bits(leaf7_ebx),
            "{profile:?}"
        );
        let extended1 = expect_leaf(&model, 0x8000_0001, None);
        assert_eq!(extended1.ecx, bits(extended1_ecx), "{profile:?}");
        assert_eq!(extended1.edx, bits(&[11, 20, 26, 29]), "{profile:?}");
        let baseline = [0, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26];
        assert_eq!(
            expect_leaf(&model, 1, None).edx,
            bits(&baseline),
            "{profile:?}"
        );
    }
}

#[test]
fn a_level_never_shows_what_the_processor_lacks() {
    let supported = without(7, |l| &mut l.ebx, SMAP | 1 << 9);
    let model = model(CpuProfile::V3, &supported).expect("neither is demanded");
    assert_eq!(expect_leaf(&model, 7, Some(0)).ebx & (SMAP | 1 << 9), 0);
    assert_eq!(model.cr4_features, cr4::SMEP);
}

#[test]
fn supervisor_protection_follows_the_processor() {
    let cases = [
        (0, cr4::SMEP | cr4::SMAP),
        (SMEP, cr4::SMAP),
        (SMAP, cr4::SMEP),
        (SMEP | SMAP, 0),
    ];
    for (missing, cr4_features) in cases {
        let supported = without(7, |l| &mut l.ebx, missing);
        for profile in EVERY_PROFILE {
            let model = model(profile, &supported).expect("neither is demanded");
            assert_eq!(model.cr4_features, cr4_features, "{profile:?}");
        }
    }
}

#[test]
fn xcr0_is_the_widest_that_the_profile_offers() {
    let sse = Xcr0(Xcr0::X87 | Xcr0::SSE);
    let no_avx = without(1, |l| &mut l.ecx, AVX);
    let no_xsave = without(1, |l| &mut l.ecx, XSAVE);
    let cases = [
        (CpuProfile::V1, rich(), Xcr0::RESET),
        (CpuProfile::V2, rich(), Xcr0::RESET),
        (CpuProfile::V3, rich(), AVX_XCR0),
        (CpuProfile::Host, rich(), AVX_XCR0),
        (CpuProfile::Host, no_avx, sse),
        (CpuProfile::Host, no_xsave, Xcr0::RESET),
    ];
    for (profile, supported, xcr0) in cases {
        assert_eq!(
            model(profile, &supported).map(|m| m.xcr0),
            Ok(xcr0),
            "{profile:?}"
        );
    }
}

#[test]
fn each_demanded_feature_that_is_missing_is_named() {
    type Register = fn(&mut CpuidLeaf) -> &mut u32;
    let (leaf1, leaf7): (Register, Register) = (|l| &mut l.ecx, |l| &mut l.ebx);
    let v2: [(u32, Register, u32, &str); 7] = [
        (1, leaf1, 0, "sse3"),
        (1, leaf1, 9, "ssse3"),
        (1, leaf1, 13, "cmpxchg16b"),
        (1, leaf1, 19, "sse4.1"),
        (1, leaf1, 20, "sse4.2"),
        (1, leaf1, 23, "popcnt"),
        (0x8000_0001, leaf1, 0, "lahf"),
    ];
    let v3: [(u32, Register, u32, &str); 9] = [
        (1, leaf1, 12, "fma"),
        (1, leaf1, 22, "movbe"),
        (1, leaf1, 26, "xsave"),
        (1, leaf1, 28, "avx"),
        (1, leaf1, 29, "f16c"),
        (7, leaf7, 3, "bmi1"),
        (7, leaf7, 5, "avx2"),
        (7, leaf7, 8, "bmi2"),
        (0x8000_0001, leaf1, 5, "lzcnt"),
    ];
    for (number, register, bit, name) in v2 {
        let supported = without(number, register, 1 << bit);
        for profile in [CpuProfile::V2, CpuProfile::V3] {
            assert_eq!(model(profile, &supported), Err(MissingFeature(name)));
        }
        assert!(model(CpuProfile::V1, &supported).is_ok(), "{name}");
    }
    for (number, register, bit, name) in v3 {
        let supported = without(number, register, 1 << bit);
        assert_eq!(model(CpuProfile::V3, &supported), Err(MissingFeature(name)));
        assert!(model(CpuProfile::V2, &supported).is_ok(), "{name}");
    }
}

#[test]
fn the_best_profile_is_the_highest_level_that_fits() {
    let cases = [
        (rich(), CpuProfile::V3),
        (without(7, |l| &mut l.ebx, 1 << 5), CpuProfile::V2),
        (without(1, |l| &mut l.ecx, 1 << 20), CpuProfile::V1),
        (Vec::new(), CpuProfile::V1),
    ];
    for (supported, profile) in cases {
        let best = model(CpuProfile::Best, &supported).expect("v1 always fits");
        assert_eq!(best.profile, profile);
        assert_eq!(Ok(best), model(profile, &supported));
    }
}

#[test]
fn tile_registers_and_protection_keys_are_never_shown() {
    for profile in EVERY_PROFILE {
        let model = rich_model(profile);
        let leaf7 = expect_leaf(&model, 7, Some(0));
        // PKU and OSPKE are in ECX, AMX in EDX; EAX counts the subleaves.
        assert_eq!((leaf7.eax, leaf7.ecx, leaf7.edx), (0, 0, 0), "{profile:?}");
        assert_eq!(shown(&model, 7, Some(1)), None, "{profile:?}");
        for component in [9, 17, 18] {
            assert_eq!(shown(&model, 0xD, Some(component)), None, "{profile:?}");
            assert_eq!(
                expect_leaf(&model, 0xD, Some(0)).eax & 1 << component,
                0,
                "{profile:?}"
            );
        }
        assert_eq!(shown(&model, 0x1D, Some(1)), None, "{profile:?}");
    }
}

#[test]
fn no_profile_shows_state_that_is_not_saved() {
    // MONITOR VMX SMX PDCM PCID x2APIC TSC-deadline OSXSAVE; FSGSBASE TSC_ADJUST SGX HLE RTM MPX, AVX-512, processor trace;
    // SVM and its kin.
    let hidden1 = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24 | 1 << 27;
    let hidden7 = 1 | 1 << 1 | 1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 16 | 1 << 25 | 1 << 31;
    let hidden_extended = 1 << 2 | 1 << 12 | 1 << 15;
    for profile in EVERY_PROFILE {
        let model = rich_model(profile);
        assert_eq!(expect_leaf(&model, 1, None).ecx & hidden1, 0, "{profile:?}");
        assert_eq!(
            expect_leaf(&model, 7, Some(0)).ebx & hidden7,
            0,
            "{profile:?}"
        );
        let extended1 = expect_leaf(&model, 0x8000_0001, None);
        assert_eq!(extended1.ecx & hidden_extended, 0, "{profile:?}");
        assert_eq!(extended1.edx & 1 << 27, 0, "RDTSCP would read IA32_TSC_AUX");
        assert_eq!(shown(&model, 0xD, Some(1)), None, "{profile:?}");
    }
}

#[test]
fn with_xsave_the_saved_components_are_those_of_xcr0() {
    for profile in [CpuProfile::V3, CpuProfile::Host] {
        let model = rich_model(profile);
        let xsave = expect_leaf(&model, 0xD, Some(0));
        assert_eq!((xsave.eax, xsave.edx), (0b111, 0), "{profile:?}");
        // Legacy area, header, and 256 bytes of AVX.
        assert_eq!((xsave.ebx, xsave.ecx), (832, 832), "{profile:?}");
        assert!(shown(&model, 0xD, Some(2)).is_some(), "{profile:?}");
        assert_eq!(shown(&model, 0xD, Some(5)), None, "{profile:?}");
    }
}

#[test]
fn without_xsave_every_component_that_fits_is_saved() {
    for profile in [CpuProfile::V1, CpuProfile::V2] {
        let model = rich_model(profile);
        assert_eq!(model.xcr0, Xcr0::RESET);
        let xsave = expect_leaf(&model, 0xD, Some(0));
        assert_eq!((xsave.eax, xsave.edx), (0xE7, 0), "{profile:?}");
        assert_eq!((xsave.ebx, xsave.ecx), (2688, 2688), "{profile:?}");
        for component in [2, 5, 6, 7] {
            assert!(shown(&model, 0xD, Some(component)).is_some(), "{profile:?}");
        }
    }
}

#[test]
fn a_component_that_is_not_offered_is_not_saved() {
    let supported = without(0xD, |l| &mut l.eax, 0xE4);
    let model = model(CpuProfile::V1, &supported).expect("v1 always fits");
    let xsave = expect_leaf(&model, 0xD, Some(0));
    assert_eq!((xsave.eax, xsave.ecx), (0b11, 576));
    assert_eq!(shown(&model, 0xD, Some(2)), None);
}

#[test]
fn what_differs_between_machines_is_fixed() {
    let mut other = rich();
    for l in &mut other {
        match l.leaf {
            0 => l.eax = 0x16,
            1 => l.ebx = 0xFF00_4321,
            0x8000_0000 => l.eax = 0x8000_0008,
            0x8000_0008 => (l.eax, l.ebx) = (0x302E, 7),
            0x4000_0000 | 0x4000_0001 | 4 | 2 => l.eax = 0x1111_1111,
            _ => {}
        }
    }
    for profile in [CpuProfile::V1, CpuProfile::V2, CpuProfile::V3] {
        assert_eq!(
            model(profile, &other),
            Ok(rich_model(profile)),
            "{profile:?}"
        );
    }
    let widths = expect_leaf(&rich_model(CpuProfile::Host), 0x8000_0008, None);
    assert_eq!(widths, leaf(0x8000_0008, None, [0x3027, 0, 0, 0]));
}

#[test]
fn no_leaf_lies_beyond_the_highest_that_is_named() {
    for profile in EVERY_PROFILE {
        let model = rich_model(profile);
        assert_eq!(expect_leaf(&model, 0, None).eax, 0xD, "{profile:?}");
        assert_eq!(
            expect_leaf(&model, 0x8000_0000, None).eax,
            0x8000_0008,
            "{profile:?}"
        );
        for l in &model.leaves {
            let highest = if l.leaf < 0x8000_0000 {
                0xD
            } else {
                0x8000_0008
            };
            assert!(l.leaf <= highest, "leaf {:#x}", l.leaf);
        }
    }
}

#[test]
fn every_profile_admits_that_there_is_a_hypervisor() {
    let supported = without(1, |l| &mut l.ecx, HYPERVISOR);
    for profile in EVERY_PROFILE {
        let model = model(profile, &supported).expect("it is not demanded");
        assert_ne!(
            expect_leaf(&model, 1, None).ecx & HYPERVISOR,
            0,
            "{profile:?}"
        );
    }
}

#[test]
fn only_the_host_profile_shows_caches_and_the_brand() {
    for (profile, is_shown) in EVERY_PROFILE.map(|p| (p, p == CpuProfile::Host)) {
        let model = rich_model(profile);
        for (number, subleaf) in [(2, None), (4, Some(0)), (0x8000_0002, None)] {
            assert_eq!(
                shown(&model, number, subleaf).is_some(),
                is_shown,
                "{profile:?} {number:#x}"
            );
        }
    }
}

#[test]
fn names_are_those_of_the_psabi() {
    let names = EVERY_PROFILE.map(CpuProfile::name);
    assert_eq!(
        names,
        ["x86-64-v1", "x86-64-v2", "x86-64-v3", "best", "host"]
    );
}
