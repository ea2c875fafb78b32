use super::*;
use crate::cpuid::CpuProfile;
use crate::state::Xcr0;

fn leaf(leaf: u32, subleaf: Option<u32>, word: u32) -> CpuidLeaf {
    CpuidLeaf {
        leaf,
        subleaf,
        eax: word,
        ebx: word,
        ecx: word,
        edx: word,
    }
}

fn model(leaves: Vec<CpuidLeaf>) -> CpuModel {
    CpuModel {
        profile: CpuProfile::V1,
        leaves,
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    }
}

#[test]
fn what_a_model_lacks_is_shown_as_zeroes() {
    let offered = [
        leaf(0, None, 0x1F),
        leaf(1, None, 5),
        leaf(6, None, 9),
        leaf(7, Some(0), 1),
        leaf(0xD, Some(1), 3),
        leaf(0x15, None, 0),
    ];
    let shown = vec![leaf(0, None, 0xD), leaf(1, None, 4), leaf(7, Some(0), 1)];
    assert_eq!(
        overrides(&model(shown.clone()), &offered),
        [shown, vec![leaf(6, None, 0), leaf(0xD, Some(1), 0)],].concat()
    );
}

#[test]
fn every_bit_is_fixed_but_those_that_follow_the_guests_registers() {
    let masks = |leaf: CpuidLeaf| {
        let result = result_of(&leaf).result;
        [
            result.eax_mask,
            result.ebx_mask,
            result.ecx_mask,
            result.edx_mask,
        ]
    };
    let all = u32::MAX;
    assert_eq!(masks(leaf(7, Some(0), 0)), [all; 4]);
    assert_eq!(masks(leaf(1, None, 0)), [all, all, !(1 << 27), all]);
    assert_eq!(masks(leaf(0xD, Some(0), 0)), [all, 0, all, all]);
    assert_eq!(masks(leaf(0xD, Some(2), 0)), [all; 4]);
}

#[test]
fn a_leaf_with_subleaves_is_registered_for_its_own() {
    let input = result_of(&leaf(0xD, Some(2), 7)).input;
    let (eax, ecx) = (input.eax, input.ecx);
    assert_eq!((eax, ecx, input.subleaf_specific), (0xD, 2, 1));
    let input = result_of(&leaf(1, None, 7)).input;
    assert_eq!((input.subleaf_specific, input.always_override), (0, 1));
}

#[test]
fn an_unknown_component_has_no_length() {
    let offered = [leaf(0xD, Some(2), 256)];
    assert_eq!(xstate_component(&offered, 2).eax, 256);
    assert_eq!(xstate_component(&offered, 3).eax, 0);
}
