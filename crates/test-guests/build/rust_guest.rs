//! Guests in Rust: packages of the workspace `guests/`, built by a cargo of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::variable;

/// A package of the guests' workspace.
struct Guest {
    package: &'static str,
    /// Name of the file in `OUT_DIR`, and of the function in `src/lib.rs`.
    name: &'static str,
    /// Cargo's name of the target.
    target: &'static str,
}

/// The amd64 user guest, for the target of `guests/.cargo/config.toml`.
const USER: Guest = Guest {
    package: "vellum-guest-rust",
    name: "rust_user",
    target: "x86_64-unknown-linux-gnu",
};

/// The i686 kernel, for the target that [`I686_TARGET_FILE`] specifies.
const I686: Guest = Guest {
    package: "vellum-guest-i686",
    name: "i686_rust",
    target: "i686-vellum-none",
};

/// From `guests/`. No target that toolchains come with has neither SSE nor x87.
const I686_TARGET_FILE: &str = "i686-kernel/i686-vellum-none.json";

/// The first release whose cargo takes target specifications from a file as [`I686_FLAGS`] asks for it; also the
/// `rust-version` of this repository.
const I686_LEAST_MINOR_VERSION: u32 = 95;

/// A target of one's own needs `core` and `alloc` built for it, which stable toolchains can do when told to act as
/// the compiler of the standard library does: by `RUSTC_BOOTSTRAP`.
const I686_FLAGS: [&str; 4] = [
    "-Zbuild-std=core,alloc",
    "-Zjson-target-spec",
    "--target",
    I686_TARGET_FILE,
];

/// A cargo and a rustc that belong together.
struct Toolchain {
    cargo: OsString,
    rustc: OsString,
    /// The sources of the standard library.
    sources: PathBuf,
}

/// Builds `guests/rust-user` and puts the ELF into `out`.
pub(crate) fn build_user(root: &Path, out: &Path) {
    let target_directory = out.join("rust-target");
    let mut cargo = Command::new(variable("CARGO"));
    let paths = remapped_paths(root);
    prepare(&mut cargo, root, &USER, &paths);
    cargo.arg("build");
    build(&mut cargo, &USER, &target_directory, out);
}

/// Builds `guests/i686-kernel` and returns its ELF, or says why it cannot.
pub(crate) fn build_i686(root: &Path, out: &Path) -> Option<PathBuf> {
    let Some(toolchain) = i686_toolchain() else {
        println!(
            "cargo::warning=guests/i686-kernel is not built and its tests are skipped: there is no Rust toolchain from \
             1.{I686_LEAST_MINOR_VERSION} with the sources of the standard library (Debian: apt-get install rustc-web \
             cargo-web rust-web-src; rustup: rustup component add rust-src; then cargo clean -p vellum-test-guests)"
        );
        return None;
    };
    let mut paths = remapped_paths(root);
    paths.push((toolchain.sources.clone(), "rust"));
    let mut fetch = i686_cargo(&toolchain, root, &paths);
    let is_fetched = fetch
        .arg("fetch")
        .args(I686_FLAGS)
        .status()
        .is_ok_and(|status| status.success());
    if !is_fetched {
        println!(
            "cargo::warning=guests/i686-kernel is not built and its tests are skipped: what the standard library \
             depends on could not be fetched, see the build script's output"
        );
        return None;
    }
    let mut cargo = i686_cargo(&toolchain, root, &paths);
    cargo.arg("build").args(I686_FLAGS);
    Some(build(&mut cargo, &I686, &out.join("i686-target"), out))
}

fn i686_cargo(toolchain: &Toolchain, root: &Path, paths: &[(PathBuf, &str)]) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    prepare(&mut cargo, root, &I686, paths);
    cargo
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1");
    cargo
}

/// The toolchain that runs this script, or else the one that a distribution installs, if it has what a target of
/// one's own takes.
fn i686_toolchain() -> Option<Toolchain> {
    let candidates = [
        (variable("CARGO"), variable("RUSTC")),
        ("/usr/bin/cargo".into(), "/usr/bin/rustc".into()),
    ];
    candidates
        .into_iter()
        .filter(|(_, rustc)| minor_version(rustc).is_some_and(|it| it >= I686_LEAST_MINOR_VERSION))
        .find_map(|(cargo, rustc)| {
            let sources = Path::new(&output_of(&rustc, &["--print", "sysroot"])?)
                .join("lib/rustlib/src/rust");
            sources
                .join("library/core/Cargo.toml")
                .exists()
                .then_some(Toolchain {
                    cargo,
                    rustc,
                    sources,
                })
        })
}

/// The y of `rustc x.y.z (...)`; there is no other x than 1.
fn minor_version(rustc: &OsString) -> Option<u32> {
    let version = output_of(rustc, &["--version"])?;
    version.split('.').nth(1)?.parse().ok()
}

/// The first line that a command prints, if it succeeds.
fn output_of(command: &OsString, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?;
    output.status.success().then(|| line.to_owned())
}

/// Runs a prepared `cargo build` and copies the ELF to `out`.
fn build(cargo: &mut Command, guest: &Guest, target_directory: &Path, out: &Path) -> PathBuf {
    let status = cargo
        .args(["--release", "--package", guest.package, "--target-dir"])
        .arg(target_directory)
        .status()
        .expect("cargo can be started");
    assert!(
        status.success(),
        "building {} failed, see above",
        guest.package
    );
    let from = target_directory
        .join(guest.target)
        .join("release")
        .join(guest.package);
    let elf = out.join(guest.name).with_extension("elf");
    fs::copy(from, &elf).expect("cargo leaves the guest where it always does");
    elf
}

/// Makes a cargo one of the guests' workspace.
fn prepare(cargo: &mut Command, root: &Path, guest: &Guest, paths: &[(PathBuf, &str)]) {
    clean_environment(cargo);
    // Cargo looks for .cargo/config.toml from the working directory upward.
    cargo
        .current_dir(root.join("guests"))
        .args(["--config", &remap_setting(guest.target, paths)]);
}

/// Directories of this machine and what to call them.
fn remapped_paths(root: &Path) -> Vec<(PathBuf, &'static str)> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let root = fs::canonicalize(root).ok();
    let from = [(root, "vellum"), (home, "cargo")];
    from.into_iter()
        .filter_map(|(path, name)| Some((path?, name)))
        .collect()
}

/// A Cargo setting that keeps this machine's paths out of the guest's panic locations, so that the same sources give
/// the same ELF everywhere. Cargo appends the list to the one in `guests/.cargo/config.toml`.
fn remap_setting(target: &str, paths: &[(PathBuf, &str)]) -> String {
    let flags: Vec<String> = paths
        .iter()
        .map(|(path, name)| {
            format!(
                "{:?}",
                format!("--remap-path-prefix={}={name}", path.display())
            )
        })
        .collect();
    format!("target.{target}.rustflags=[{}]", flags.join(", "))
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
