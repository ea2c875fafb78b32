//! Guests in C, from plain gcc or clang and `vellum.h`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A guest of one source file.
pub(crate) struct Guest {
    /// Name of the function in `src/lib.rs` and of the file in `OUT_DIR`.
    pub(crate) name: &'static str,
    /// Its source, from the repository's root.
    source: &'static str,
    /// Flags beside [`FLAGS`].
    flags: &'static [&'static str],
}

/// The amd64 user guest.
const USER: Guest = Guest {
    name: "c_user",
    source: "guests/c-user/main.c",
    flags: &[],
};

/// The i686 kernel: no SSE and no x87, both of which a kernel would have to switch on, and addresses below the
/// default ones of Linux programs. Without start files and libraries it needs no 32-bit packages.
const I686: Guest = Guest {
    name: "i686_c",
    source: "guests/c-i686/main.c",
    flags: I686_FLAGS,
};

/// The amd64 user guest that uses its outbox.
const TELLING_USER: Guest = Guest {
    name: "c_telling",
    source: "guests/c-telling/main.c",
    flags: &[],
};

/// The same program as an i686 kernel.
const TELLING_I686: Guest = Guest {
    name: "i686_telling",
    source: "guests/c-telling/main.c",
    flags: I686_FLAGS,
};

/// Every guest in C.
pub(crate) const ALL: [Guest; 4] = [USER, I686, TELLING_USER, TELLING_I686];

const I686_FLAGS: &[&str] = &[
    "-m32",
    "-march=i686",
    "-mgeneral-regs-only",
    "-Wl,-Ttext-segment=0x100000",
];

/// A static program at fixed addresses, without start files or C library, code and data on separate pages.
const FLAGS: [&str; 16] = [
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-no-pie",
    "-static",
    "-nostdlib",
    "-nostartfiles",
    "-Wl,-z,separate-code,-z,max-page-size=4096,-z,noexecstack,-z,norelro",
    "-Wl,--build-id=none",
];

/// Builds a guest and returns its ELF, or says why it cannot.
pub(crate) fn build(guest: &Guest, root: &Path, out: &Path) -> Option<PathBuf> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let elf = out.join(guest.name).with_extension("elf");
    let include = root.join("crates/abi/include");
    let prefix_map = format!("-fmacro-prefix-map={}=vellum", root.display());
    let extra = [
        OsString::from(prefix_map),
        OsString::from("-I"),
        include.into(),
    ];
    match compile(&compiler, guest, &extra, &root.join(guest.source), &elf) {
        Err(error) => {
            println!(
                "cargo::warning={} is not built and its tests are skipped: cannot run {}: {error} \
                 (Debian: apt-get install gcc)",
                guest.source,
                compiler.display()
            );
            None
        }
        Ok(status) if status.success() => Some(elf),
        Ok(_) => {
            assert!(
                !can_build_empty(&compiler, guest, out),
                "building {} failed, see above",
                guest.source
            );
            println!(
                "cargo::warning={} is not built and its tests are skipped: {} cannot build for its architecture ({:?})",
                guest.source,
                compiler.display(),
                guest.flags
            );
            None
        }
    }
}

/// Whether the compiler can make such a guest of any source at all.
fn can_build_empty(compiler: &OsString, guest: &Guest, out: &Path) -> bool {
    let source = out.join("empty.c");
    fs::write(&source, "void _start(void) {}\n")
        .expect("the build script can write to its output directory");
    compile(compiler, guest, &[], &source, &out.join("empty.elf"))
        .is_ok_and(|status| status.success())
}

fn compile(
    compiler: &OsString,
    guest: &Guest,
    extra: &[OsString],
    source: &Path,
    elf: &Path,
) -> io::Result<ExitStatus> {
    Command::new(compiler)
        .args(FLAGS)
        .args(guest.flags)
        .args(extra)
        .arg("-o")
        .arg(elf)
        .arg(source)
        .status()
}
