use std::error::Error as _;

use super::*;

#[test]
fn a_refused_open_says_what_to_do() {
    let cases = [
        (libc::ENOENT, "load the kvm_intel or kvm_amd module"),
        (libc::ENXIO, "load the kvm_intel or kvm_amd module"),
        (libc::ENODEV, "enable nested virtualization"),
        (libc::EACCES, "add the user to group kvm"),
        (libc::EPERM, "add the user to group kvm"),
    ];
    for (errno, advice) in cases {
        let error = OpenError::from(Refusal::of(errno));
        assert!(error.to_string().contains(advice), "{errno}: {error}");
        assert!(error.source().is_none(), "{errno}");
    }
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let cases = [
        (
            OpenError::ApiVersion { version: 11 },
            "api version 11, not 12",
        ),
        (
            OpenError::MissingCapability {
                name: "KVM_CAP_IMMEDIATE_EXIT",
            },
            "lacks KVM_CAP_IMMEDIATE_EXIT",
        ),
    ];
    for (error, part) in cases {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn required_capabilities_go_by_their_kernel_names() {
    let numbers = [
        (kvm_bindings::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
        (
            kvm_bindings::KVM_CAP_IMMEDIATE_EXIT,
            "KVM_CAP_IMMEDIATE_EXIT",
        ),
        (kvm_bindings::KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
        (kvm_bindings::KVM_CAP_XSAVE, "KVM_CAP_XSAVE"),
    ];
    assert_eq!(
        REQUIRED.map(|(capability, name)| (capability as u32, name)),
        numbers
    );
}

#[test]
fn leaves_survive_the_way_to_kvm_and_back() {
    for subleaf in [None, Some(0), Some(1), Some(u32::MAX)] {
        let leaf = CpuidLeaf {
            leaf: 0x8000_0001,
            subleaf,
            eax: 1,
            ebx: 2,
            ecx: 3,
            edx: u32::MAX,
        };
        let entry = leaf_to_kvm(&leaf);
        assert_eq!(entry.index, subleaf.unwrap_or(0));
        assert_eq!(leaf_from_kvm(&entry), leaf);
    }
}

#[test]
fn an_index_counts_only_where_kvm_says_so() {
    let mut entry = kvm_cpuid_entry2 {
        function: 7,
        index: 3,
        ..kvm_cpuid_entry2::default()
    };
    assert_eq!(leaf_from_kvm(&entry).subleaf, None);
    entry.flags = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    assert_eq!(leaf_from_kvm(&entry).subleaf, Some(3));
}

#[test]
fn a_model_with_more_leaves_than_kvm_takes_is_refused() {
    let leaf = leaf_from_kvm(&kvm_cpuid_entry2::default());
    let of_leaves = |count| CpuModel {
        profile: CpuProfile::V1,
        leaves: vec![leaf; count],
        xcr0: crate::state::Xcr0::RESET,
        cr4_features: 0,
    };
    let encode = |count| encode(&of_leaves(count));
    assert!(encode(KVM_MAX_CPUID_ENTRIES).is_ok());
    let result = encode(1 << 24);
    assert!(
        matches!(result, Err(VmError::Hypervisor { .. })),
        "{result:?}"
    );
}
