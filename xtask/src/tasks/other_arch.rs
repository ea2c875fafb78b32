//! A stage of `cargo xtask lint`: what needs no x86 processor compiles for another one, the emulator first of all.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::{self, progress};
use crate::workspace::Workspace;

/// Another architecture, on which the emulator is the only engine.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// What is compiled for it, with all that it depends on.
const PACKAGES: [&str; 2] = ["vellum-abi", "vellum-emulator"];

/// How the standard library of the target is had.
#[derive(Debug, PartialEq, Eq)]
enum Library {
    Installed,
    /// From its sources, as the toolchain's own build does.
    Built,
}

/// A cargo and a rustc that belong together.
struct Toolchain {
    cargo: OsString,
    rustc: OsString,
    library: Library,
}

/// Checks the packages, which needs no linker; says visibly if no toolchain here can.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let Some(toolchain) = toolchain() else {
        progress(&format!(
            "SKIPPED: no standard library for {TARGET}: `rustup target add {TARGET}`, or on Debian `apt-get install cargo rust-src`"
        ));
        return Ok(());
    };
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(workspace.root())
        .env("RUSTC", &toolchain.rustc)
        .env(
            "CARGO_TARGET_DIR",
            workspace.target_dir().join("other-arch"),
        )
        .args(["check", "--target", TARGET]);
    if toolchain.library == Library::Built {
        command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std");
    }
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    process::run(&mut command)
}

/// The toolchain that runs this program if it has the target, or else any that has the sources of the library.
fn toolchain() -> Option<Toolchain> {
    let own = (variable_or("CARGO", "cargo"), variable_or("RUSTC", "rustc"));
    let distribution = ("/usr/bin/cargo".into(), "/usr/bin/rustc".into());
    let installed = [own.clone()].into_iter().filter(|(_, rustc)| {
        let directory = printed(rustc, &["--print", "target-libdir", "--target", TARGET]);
        directory.is_some_and(|it| Path::new(&it).is_dir())
    });
    let with_sources = [own, distribution].into_iter().filter(|(_, rustc)| {
        let root = printed(rustc, &["--print", "sysroot"]);
        root.is_some_and(|it| {
            Path::new(&it)
                .join("lib/rustlib/src/rust/library/std/Cargo.toml")
                .is_file()
        })
    });
    let toolchains = installed
        .map(|it| (it, Library::Installed))
        .chain(with_sources.map(|it| (it, Library::Built)));
    toolchains
        .map(|((cargo, rustc), library)| Toolchain {
            cargo,
            rustc,
            library,
        })
        .next()
}

fn variable_or(name: &str, default: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| default.into())
}

/// The line that a command prints, if it succeeds.
fn printed(program: &OsString, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
