//! Builds the guests of this repository with the tools that are at hand: the Rust guest with the cargo that runs this
//! script, the C guests with the C compiler, if there is one.

mod c_guest;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guests are made of, from the repository's root.
const SOURCES: [&str; 15] = [
    "Cargo.toml",
    "rust-toolchain.toml",
    "crates/abi",
    "crates/guest",
    "crates/guest-macros",
    "crates/layout/src",
    "crates/layout/build.rs",
    "crates/layout/Cargo.toml",
    "crates/vmem/src",
    "crates/vmem/Cargo.toml",
    "guests/.cargo",
    "guests/Cargo.toml",
    "guests/c-i686",
    "guests/c-user",
    "guests/rust-user",
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = manifest
        .ancestors()
        .nth(2)
        .expect("the crate lies two levels below the repository's root");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=CC");

    build_rust(root, &out);
    for guest in [c_guest::USER, c_guest::I686] {
        let elf = c_guest::build(&guest, root, &out);
        write_option(&out, guest.name, elf.as_deref());
    }
}

/// Writes the expression that `src/lib.rs` includes for a guest that may be missing.
fn write_option(out: &Path, name: &str, elf: Option<&Path>) {
    let text = elf.map_or_else(
        || String::from("None"),
        |path| format!("Some(include_bytes!({:?}))", path.display().to_string()),
    );
    fs::write(out.join(format!("{name}.rs")), text)
        .expect("the build script can write to its output directory");
}

fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}

/// Builds `guests/rust-user` and puts the ELF into `out`.
fn build_rust(root: &Path, out: &Path) {
    let target_directory = out.join("rust-target");
    let mut cargo = Command::new(variable("CARGO"));
    clean_environment(&mut cargo);
    cargo
        // Cargo looks for .cargo/config.toml from the working directory upward.
        .current_dir(root.join("guests"))
        .args(["--config", &remap_paths(root)])
        .args([
            "build",
            "--release",
            "--package",
            "vellum-guest-rust",
            "--target-dir",
        ])
        .arg(&target_directory);
    let status = cargo
        .status()
        .expect("cargo can be started, it has started this script");
    assert!(
        status.success(),
        "building guests/rust-user failed, see above"
    );
    let elf = target_directory.join("x86_64-unknown-linux-gnu/release/vellum-guest-rust");
    fs::copy(&elf, out.join("rust_user.elf")).expect("cargo leaves the guest where it always does");
}

/// A Cargo setting that keeps this machine's paths out of the guest's panic locations, so that the same sources give
/// the same ELF everywhere. Cargo appends the list to the one in `guests/.cargo/config.toml`.
fn remap_paths(root: &Path) -> String {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let root = fs::canonicalize(root).ok();
    let from = [(root, "vellum"), (home, "cargo")];
    let flags: Vec<String> = from
        .into_iter()
        .filter_map(|(path, name)| Some((path?, name)))
        .map(|(path, name)| {
            format!(
                "{:?}",
                format!("--remap-path-prefix={}={name}", path.display())
            )
        })
        .collect();
    format!(
        "target.x86_64-unknown-linux-gnu.rustflags=[{}]",
        flags.join(", ")
    )
}

/// Removes what this build has set for itself. Flags, wrappers (clippy is one) and target directories of the host's
/// build are not the guest's.
fn clean_environment(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let is_of_build =
            text.starts_with("CARGO") || text.starts_with("RUSTC") || text.starts_with("RUSTDOC");
        let is_flags = [
            "RUSTFLAGS",
            "MAKEFLAGS",
            "TARGET",
            "HOST",
            "PROFILE",
            "OUT_DIR",
        ]
        .contains(&text);
        if (is_of_build || is_flags) && text != "CARGO_HOME" && !text.starts_with("CARGO_NET") {
            command.env_remove(&name);
        }
    }
}
