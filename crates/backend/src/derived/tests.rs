use std::cell::Cell;

use super::*;
use crate::cpuid::CpuProfile;
use crate::state::Xcr0;

fn model(profile: CpuProfile) -> Arc<CpuModel> {
    Arc::new(CpuModel {
        profile,
        leaves: Vec::new(),
        xcr0: Xcr0::RESET,
        cr4_features: 0,
    })
}

#[test]
fn vms_that_share_a_model_share_what_is_derived_from_it() {
    let (first, second) = (model(CpuProfile::V1), model(CpuProfile::V2));
    let count = Cell::new(0);
    let derived = Derived::default();
    let of = |model| {
        derived.of(model, |model| {
            count.set(count.get() + 1);
            Ok::<_, ()>(model.profile)
        })
    };
    for _ in 0..3 {
        assert_eq!(of(&first), Ok(Arc::new(CpuProfile::V1)));
    }
    assert_eq!(count.get(), 1);
    assert_eq!(of(&second), Ok(Arc::new(CpuProfile::V2)));
    assert_eq!(count.get(), 2);
}

#[test]
fn what_cannot_be_derived_is_tried_again() {
    let model = model(CpuProfile::V1);
    let derived = Derived::default();
    assert_eq!(derived.of(&model, |_| Err::<u8, _>("no")), Err("no"));
    assert_eq!(derived.of(&model, |_| Ok::<_, ()>(7)), Ok(Arc::new(7)));
}
