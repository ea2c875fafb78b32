//! Builds the guests of this repository with the tools that are at hand: the amd64 Rust guest with the cargo that runs
//! this script, the C guests with the C compiler, if there is one, and the Rust kernels with any Rust toolchain that
//! can build for a target of one's own, if there is one.

mod c_guest;
mod rust_guest;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// What the guests are made of, from the repository's root.
const SOURCES: [&str; 19] = [
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
    "guests/c-telling",
    "guests/c-user",
    "guests/kernel",
    "guests/residue",
    "guests/rust-telling",
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

    rust_guest::build_users(root, &out);
    for (name, elf) in rust_guest::build_kernels(root, &out) {
        write_option(&out, name, elf.as_deref());
    }
    for guest in c_guest::ALL {
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
