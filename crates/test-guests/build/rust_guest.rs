//! Guests in Rust: packages of the workspace `guests/`, built by a cargo of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::variable;

/// A program of the guests' workspace.
struct Guest {
    /// Cargo's name of the program.
    binary: &'static str,
    /// Name of the file in `OUT_DIR`, and of the function in `src/lib.rs`.
    name: &'static str,
}

/// The amd64 user guests, for [`USER_TARGET`].
const USERS: [Guest; 2] = [
    Guest {
        binary: "vellum-guest-rust",
        name: "rust_user",
    },
    Guest {
        binary: "vellum-guest-telling",
        name: "rust_telling",
    },
];

/// The target of `guests/.cargo/config.toml`.
const USER_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Kernels of `guests/kernel` for one target of their own: no target that toolchains come with has neither SSE nor x87 and static
/// code at low addresses.
struct KernelTarget {
    /// Cargo's name of the target.
    name: &'static str,
    /// The file that specifies it, from `guests/`.
    file: &'static str,
    kernels: &'static [Guest],
}

const KERNEL_TARGETS: [KernelTarget; 2] = [
    KernelTarget {
        name: "i686-vellum-none",
        file: "kernel/i686-vellum-none.json",
        kernels: &[
            Guest {
                binary: "vellum-kernel-identity",
                name: "i686_rust",
            },
            Guest {
                binary: "vellum-kernel-paged",
                name: "i686_paged",
            },
        ],
    },
    KernelTarget {
        name: "x86_64-vellum-none",
        file: "kernel/x86_64-vellum-none.json",
        kernels: &[Guest {
            binary: "vellum-kernel-paged",
            name: "amd64_kernel",
        }],
    },
];

/// The first release whose cargo takes target specifications from a file as [`KERNEL_FLAGS`] asks for it; also the
/// `rust-version` of this repository.
const KERNEL_LEAST_MINOR_VERSION: u32 = 95;

/// A target of one's own needs `core` and `alloc` built for it, which stable toolchains can do when told to act as
/// the compiler of the standard library does: by `RUSTC_BOOTSTRAP`.
const KERNEL_FLAGS: [&str; 2] = ["-Zbuild-std=core,alloc", "-Zjson-target-spec"];

/// A cargo and a rustc that belong together.
struct Toolchain {
    cargo: OsString,
    rustc: OsString,
    /// The sources of the standard library.
    sources: PathBuf,
}

/// Builds the user guests and puts their ELF files into `out`.
pub(crate) fn build_users(root: &Path, out: &Path) {
    let target_directory = out.join("rust-target");
    let mut cargo = Command::new(variable("CARGO"));
    prepare(&mut cargo, root, USER_TARGET, &remapped_paths(root));
    cargo.arg("build");
    build(&mut cargo, &USERS, &target_directory);
    for guest in &USERS {
        copy_elf(guest, &target_directory.join(USER_TARGET), out);
    }
}

/// Builds `guests/kernel` for each of its machines. Returns the names of the kernels and their ELF files, or says why there are
/// none.
pub(crate) fn build_kernels(root: &Path, out: &Path) -> Vec<(&'static str, Option<PathBuf>)> {
    let toolchain = kernel_toolchain();
    if toolchain.is_none() {
        println!(
            "cargo::warning=guests/kernel is not built and its tests are skipped: there is no Rust toolchain from \
             1.{KERNEL_LEAST_MINOR_VERSION} with the sources of the standard library (Debian: apt-get install rustc-web \
             cargo-web rust-web-src; rustup: rustup component add rust-src; then cargo clean -p vellum-test-guests)"
        );
    }
    KERNEL_TARGETS
        .iter()
        .flat_map(|target| {
            let is_built = toolchain
                .as_ref()
                .is_some_and(|toolchain| build_kernel_target(toolchain, target, root, out));
            let elf = move |guest: &Guest| {
                let directory = kernel_directory(out).join(target.name);
                is_built.then(|| copy_elf(guest, &directory, out))
            };
            target
                .kernels
                .iter()
                .map(move |guest| (guest.name, elf(guest)))
        })
        .collect()
}

/// Where the kernels of all targets are built.
fn kernel_directory(out: &Path) -> PathBuf {
    out.join("kernel-target")
}

/// Builds the kernels of one target; `false`, after a warning, if what they depend on cannot be fetched.
fn build_kernel_target(
    toolchain: &Toolchain,
    target: &KernelTarget,
    root: &Path,
    out: &Path,
) -> bool {
    let mut fetch = kernel_cargo(toolchain, target, root, "fetch");
    let is_fetched = fetch.status().is_ok_and(|status| status.success());
    if !is_fetched {
        println!(
            "cargo::warning=guests/kernel is not built for {} and its tests are skipped: what the standard library \
             depends on could not be fetched, see the build script's output",
            target.name
        );
        return false;
    }
    let mut cargo = kernel_cargo(toolchain, target, root, "build");
    build(&mut cargo, target.kernels, &kernel_directory(out));
    true
}

/// A cargo that works on the guests' workspace for a target of its own.
fn kernel_cargo(
    toolchain: &Toolchain,
    target: &KernelTarget,
    root: &Path,
    command: &str,
) -> Command {
    let mut paths = remapped_paths(root);
    paths.push((toolchain.sources.clone(), "rust"));
    let mut cargo = Command::new(&toolchain.cargo);
    prepare(&mut cargo, root, target.name, &paths);
    cargo
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .arg(command)
        .args(KERNEL_FLAGS)
        .args(["--target", target.file]);
    cargo
}

/// The toolchain that runs this script, or else the one that a distribution installs, if it has what a target of
/// one's own takes.
fn kernel_toolchain() -> Option<Toolchain> {
    let candidates = [
        (variable("CARGO"), variable("RUSTC")),
        ("/usr/bin/cargo".into(), "/usr/bin/rustc".into()),
    ];
    candidates
        .into_iter()
        .filter(|(_, rustc)| {
            minor_version(rustc).is_some_and(|it| it >= KERNEL_LEAST_MINOR_VERSION)
        })
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

/// Runs a prepared `cargo build` for some programs.
fn build(cargo: &mut Command, guests: &[Guest], target_directory: &Path) {
    for guest in guests {
        cargo.args(["--bin", guest.binary]);
    }
    let status = cargo
        .args(["--release", "--target-dir"])
        .arg(target_directory)
        .status()
        .expect("cargo can be started");
    assert!(
        status.success(),
        "building {} failed, see above",
        guests[0].binary
    );
}

/// Copies a program from the directory of its target to `out`.
fn copy_elf(guest: &Guest, target_directory: &Path, out: &Path) -> PathBuf {
    let from = target_directory.join("release").join(guest.binary);
    let elf = out.join(guest.name).with_extension("elf");
    fs::copy(from, &elf).expect("cargo leaves the guest where it always does");
    elf
}

/// Makes a cargo one of the guests' workspace.
fn prepare(cargo: &mut Command, root: &Path, target: &str, paths: &[(PathBuf, &str)]) {
    clean_environment(cargo);
    // Cargo looks for .cargo/config.toml from the working directory upward.
    cargo
        .current_dir(root.join("guests"))
        .args(["--config", &remap_setting(target, paths)]);
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
