//! The crates that guests use too: each builds alone without its default features, and all of them link into a guest.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

const CRATES: [&str; 3] = ["vellum-layout", "vellum-abi", "vellum-vmem"];

/// A guest that uses something of each crate. Linking it shows what a build for the host cannot: that no dependency
/// brings in `std`, which would define the panic handler a second time.
const GUEST: &str = r"//! Shows that the crates link into a guest.
#![no_std]
#![no_main]

extern crate alloc;

vellum_guest::entry!();

#[vellum_guest::guest_function]
fn parts() -> u64 {
    vellum_layout::PAGE_SIZE + u64::from(vellum_abi::ABI_VERSION) + vellum_vmem::Attrs::WRITE.bits()
}
";

/// Builds each crate alone and then the guest.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    for package in CRATES {
        let mut command = workspace.cargo();
        process::run(command.args(["build", "--package", package, "--no-default-features"]))?;
    }
    build_guest(workspace).context("the crates do not build as part of a guest")
}

fn build_guest(workspace: &Workspace) -> Result<()> {
    let directory = workspace.target_dir().join("guest-parts");
    let source = directory.join("src");
    fs::create_dir_all(&source)
        .with_context(|| format!("could not create {}", source.display()))?;
    let manifest = directory.join("Cargo.toml");
    let files = [
        (manifest.clone(), guest_manifest(workspace)),
        (source.join("main.rs"), GUEST.to_owned()),
    ];
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    // The versions that the workspace uses; cargo drops what this program does not need.
    fs::copy(
        workspace.root().join("Cargo.lock"),
        directory.join("Cargo.lock"),
    )
    .context("could not copy Cargo.lock")?;
    // From the guests' directory, so that the linker settings there apply.
    let mut command = workspace.guests_cargo();
    command.args(["build", "--manifest-path"]).arg(manifest);
    process::run(&mut command)
}

fn guest_manifest(workspace: &Workspace) -> String {
    let mut manifest = String::from(
        "[workspace]\n[package]\nname = \"guest-parts\"\nedition = \"2024\"\n\
         [profile.dev]\npanic = \"abort\"\nopt-level = 1\n[dependencies]\n",
    );
    for package in CRATES.into_iter().chain(["vellum-guest"]) {
        let name = package.strip_prefix("vellum-").unwrap_or(package);
        let path = workspace.root().join("crates").join(name);
        // A TOML literal string, in which nothing is escaped.
        let _ = writeln!(
            manifest,
            "{package} = {{ path = '{}', default-features = false }}",
            path.display()
        );
    }
    manifest
}
