//! Dependencies point one way, hypervisor crates stay in the backend, and no feature selects a guest's
//! architecture.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Violation, names};
use crate::workspace::Workspace;

const DIRECTION_RULE: &str = "dependency-direction";
const HYPERVISOR_RULE: &str = "hypervisor-dependency";
const FEATURE_RULE: &str = "architecture-feature";
const NAME_RULE: &str = "crate-name";
const LINTS_RULE: &str = "workspace-lints";

/// Which crates of the workspace each crate may depend on. Development dependencies are free.
const DIRECTION: [(&str, &[&str]); 13] = [
    ("vellum-layout", &[]),
    ("vellum-abi", &["vellum-layout"]),
    ("vellum-vmem", &["vellum-layout"]),
    (
        "vellum-backend",
        &["vellum-layout", "vellum-abi", "vellum-vmem"],
    ),
    (
        "vellum-emulator",
        &[
            "vellum-layout",
            "vellum-abi",
            "vellum-vmem",
            "vellum-backend",
        ],
    ),
    ("vellum-conformance", &["vellum-layout", "vellum-backend"]),
    (
        "vellum-sandbox",
        &[
            "vellum-layout",
            "vellum-abi",
            "vellum-vmem",
            "vellum-backend",
            "vellum-emulator",
        ],
    ),
    (
        "vellum-cli",
        &["vellum-layout", "vellum-abi", "vellum-sandbox"],
    ),
    (
        "vellum-guest",
        &[
            "vellum-layout",
            "vellum-abi",
            "vellum-vmem",
            "vellum-guest-macros",
        ],
    ),
    ("vellum-guest-macros", &["vellum-abi"]),
    ("vellum-mshv-double", &[]),
    ("vellum-test-guests", &[]),
    ("xtask", &[]),
];

/// The crates that may know a hypervisor's interface.
const HYPERVISOR_CRATES: [&str; 3] = ["vellum-backend", "vellum-emulator", "vellum-mshv-double"];
const HYPERVISOR_PREFIXES: [&str; 2] = ["kvm-", "mshv-"];

/// The crates that guests build too, which know nothing of the host's operating system either.
const GUEST_CRATES: [&str; 5] = [
    "vellum-layout",
    "vellum-abi",
    "vellum-vmem",
    "vellum-guest",
    "vellum-guest-macros",
];
const HOST_SYSTEM_CRATES: [&str; 4] = ["libc", "nix", "rustix", "vmm-sys-util"];

/// Words that name a guest's architecture or translation.
const ARCHITECTURE_WORDS: [&str; 9] = [
    "amd64", "x86-64", "x86_64", "x64", "i686", "i386", "x86", "identity", "paged",
];

/// What cargo knows about the workspace, without a build.
pub(super) fn metadata(workspace: &Workspace) -> Result<Value> {
    let mut command = workspace.cargo();
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str(&crate::process::capture(&mut command)?)
        .context("could not read cargo metadata")
}

/// Checks every package of the workspace.
pub(super) fn check(metadata: &Value) -> Vec<Violation> {
    elements(&metadata["packages"])
        .flat_map(check_package)
        .collect()
}

fn check_package(package: &Value) -> Vec<Violation> {
    let name = text(&package["name"]);
    let mut found = Findings {
        package: name,
        violations: Vec::new(),
    };
    if names::is_empty_name(name.strip_prefix("vellum-").unwrap_or(name)) {
        found.report(
            NAME_RULE,
            format!("crate `{name}` is not named after what it holds"),
        );
    }
    let allowed = DIRECTION
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, allowed)| *allowed);
    if allowed.is_none() {
        found.report(
            DIRECTION_RULE,
            format!("crate `{name}` has no row in the table of dependencies"),
        );
    }
    for dependency in
        elements(&package["dependencies"]).filter(|dependency| dependency["kind"] != "dev")
    {
        check_dependency(
            &mut found,
            text(&dependency["name"]),
            allowed.unwrap_or_default(),
        );
    }
    let features = package["features"].as_object().into_iter().flatten();
    for (feature, _) in features.filter(|(feature, _)| names_architecture(feature)) {
        let message = format!(
            "feature `{feature}` of `{name}` selects a guest architecture; that is a run-time value"
        );
        found.report(FEATURE_RULE, message);
    }
    found.violations
}

fn check_dependency(found: &mut Findings<'_>, dependency: &str, allowed: &[&str]) {
    let name = found.package;
    if dependency.starts_with("vellum-") && !allowed.contains(&dependency) {
        found.report(
            DIRECTION_RULE,
            format!("`{name}` must not depend on `{dependency}`"),
        );
    }
    let is_hypervisor = HYPERVISOR_PREFIXES
        .iter()
        .any(|prefix| dependency.starts_with(prefix));
    if is_hypervisor && !HYPERVISOR_CRATES.contains(&name) {
        found.report(
            HYPERVISOR_RULE,
            format!("`{name}` must not know a hypervisor (`{dependency}`)"),
        );
    }
    if HOST_SYSTEM_CRATES.contains(&dependency) && GUEST_CRATES.contains(&name) {
        found.report(
            HYPERVISOR_RULE,
            format!("`{name}` is built for guests, so it must not depend on `{dependency}`"),
        );
    }
}

fn names_architecture(feature: &str) -> bool {
    let feature = feature.to_ascii_lowercase();
    ARCHITECTURE_WORDS.iter().any(|word| {
        feature == *word
            || feature.split(['-', '_']).any(|part| part == *word)
            || feature.ends_with(word)
    })
}

/// The violations of one package.
struct Findings<'a> {
    package: &'a str,
    violations: Vec<Violation>,
}

impl Findings<'_> {
    fn report(&mut self, rule: &'static str, message: String) {
        let directory = self
            .package
            .strip_prefix("vellum-")
            .map(|name| format!("crates/{name}"));
        self.violations.push(Violation {
            path: format!(
                "{}/Cargo.toml",
                directory.as_deref().unwrap_or(self.package)
            ),
            line: 0,
            rule,
            item: String::new(),
            message,
        });
    }
}

/// Every crate takes the lint levels of the workspace, which deny unsafe code and warn of missing docs.
pub(super) fn check_lints(path: &str, manifest: &str) -> Vec<Violation> {
    let is_crate = path == "xtask/Cargo.toml"
        || (path.starts_with("crates/") && path.ends_with("/Cargo.toml"));
    let mut lines = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1);
    if !is_crate || lines.any(|line| line == "workspace = true") {
        return Vec::new();
    }
    vec![Violation {
        path: path.to_owned(),
        line: 0,
        rule: LINTS_RULE,
        item: String::new(),
        message: "the crate does not take the workspace lints; add [lints] workspace = true"
            .to_owned(),
    }]
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
