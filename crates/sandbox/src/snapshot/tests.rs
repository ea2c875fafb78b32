use super::*;

/// A processor with vector state and one kind of supervisor protection.
fn processor() -> CpuModel {
    CpuModel {
        profile: CpuProfile::V2,
        leaves: Vec::new(),
        xcr0: Xcr0(Xcr0::X87 | Xcr0::SSE),
        cr4_features: cr4::SMEP,
    }
}

/// What a guest has that uses all of it, on another processor.
fn check(model: &CpuModel) -> Result<(), OtherProcessor> {
    let CpuModel {
        profile,
        xcr0,
        cr4_features,
        ..
    } = processor();
    OtherProcessor::check(profile, xcr0, cr4_features, model)
}

#[test]
fn a_processor_with_what_is_switched_on_or_more_will_do() {
    let mut model = processor();
    assert_eq!(check(&model), Ok(()));
    model.cr4_features |= cr4::SMAP;
    model.xcr0.0 |= Xcr0::AVX;
    assert_eq!(check(&model), Ok(()));
}

#[test]
fn what_differs_is_named() {
    let other_profile = CpuModel {
        profile: CpuProfile::V3,
        ..processor()
    };
    let fewer_registers = CpuModel {
        xcr0: Xcr0(Xcr0::X87),
        ..processor()
    };
    let less_protection = CpuModel {
        cr4_features: cr4::SMAP,
        ..processor()
    };
    for (model, names) in [
        (other_profile, &["x86-64-v2", "x86-64-v3"][..]),
        (fewer_registers, &["XCR0 0x2"]),
        (less_protection, &["CR4 0x100000"]),
    ] {
        let error = check(&model).expect_err("refused");
        let text = error.to_string();
        assert!(names.iter().all(|name| text.contains(name)), "{text}");
    }
}
