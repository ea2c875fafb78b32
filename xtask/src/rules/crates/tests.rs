use serde_json::json;

use super::*;

fn rules_of(name: &str, dependencies: &[(&str, &str)], features: &[&str]) -> Vec<&'static str> {
    let dependencies: Vec<Value> = dependencies
        .iter()
        .map(|(name, kind)| json!({ "name": name, "kind": if kind.is_empty() { Value::Null } else { json!(kind) } }))
        .collect();
    let features: Value = features
        .iter()
        .map(|feature| ((*feature).to_owned(), json!([])))
        .collect();
    let metadata = json!({ "packages": [{ "name": name, "dependencies": dependencies, "features": features }] });
    check(&metadata)
        .into_iter()
        .map(|violation| violation.rule)
        .collect()
}

#[test]
fn dependencies_that_point_down_pass() {
    assert!(rules_of("vellum-layout", &[("thiserror", "")], &["default", "std"]).is_empty());
    assert!(
        rules_of(
            "vellum-vmem",
            &[("vellum-layout", ""), ("vellum-sandbox", "dev")],
            &[]
        )
        .is_empty()
    );
    assert!(
        rules_of(
            "vellum-backend",
            &[("kvm-ioctls", ""), ("vellum-vmem", "")],
            &[]
        )
        .is_empty()
    );
    assert!(
        rules_of(
            "vellum-sandbox",
            &[("kvm-ioctls", "dev"), ("libc", "")],
            &[]
        )
        .is_empty()
    );
}

#[test]
fn dependencies_that_point_up_or_sideways_fail() {
    let rows = [
        ("vellum-layout", "vellum-abi"),
        ("vellum-abi", "vellum-vmem"),
        ("vellum-vmem", "vellum-backend"),
        ("vellum-backend", "vellum-sandbox"),
        ("vellum-guest", "vellum-sandbox"),
    ];
    for (name, dependency) in rows {
        for kind in ["", "build"] {
            assert_eq!(
                rules_of(name, &[(dependency, kind)], &[]),
                [DIRECTION_RULE],
                "{name} -> {dependency}"
            );
        }
    }
}

#[test]
fn only_the_backend_knows_a_hypervisor_and_guests_know_no_host() {
    let rows = [
        ("vellum-vmem", "kvm-bindings"),
        ("vellum-sandbox", "kvm-ioctls"),
        ("vellum-sandbox", "mshv-ioctls"),
        ("vellum-abi", "libc"),
        ("vellum-guest", "vmm-sys-util"),
    ];
    for (name, dependency) in rows {
        assert_eq!(
            rules_of(name, &[(dependency, "")], &[]),
            [HYPERVISOR_RULE],
            "{name} -> {dependency}"
        );
    }
}

#[test]
fn a_feature_that_names_an_architecture_fails() {
    for feature in ["amd64", "i686", "guest-x86_64", "arch_i386", "Identity"] {
        assert_eq!(
            rules_of("vellum-sandbox", &[], &[feature]),
            [FEATURE_RULE],
            "{feature}"
        );
    }
    for feature in ["default", "std", "tracing", "proptest"] {
        assert!(
            rules_of("vellum-sandbox", &[], &[feature]).is_empty(),
            "{feature}"
        );
    }
}

#[test]
fn an_unknown_crate_or_an_empty_name_fails() {
    assert_eq!(rules_of("vellum-new", &[], &[]), [DIRECTION_RULE]);
    assert_eq!(
        rules_of("vellum-common", &[], &[]),
        [NAME_RULE, DIRECTION_RULE]
    );
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let with = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n";
    let without = "[package]\nversion.workspace = true\n[dependencies]\n";
    assert_eq!(check_lints("crates/a/Cargo.toml", with), []);
    assert_eq!(check_lints("guests/a/Cargo.toml", without), []);
    assert_eq!(check_lints("crates/a/Cargo.toml", without).len(), 1);
    assert_eq!(check_lints("xtask/Cargo.toml", without).len(), 1);
}
