//! `cargo xtask build-guests`: the guest programs as ELF files in target/guests.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::GCC;
use crate::process::{self, progress};
use crate::workspace::Workspace;

/// The package whose build script builds the guests.
const PACKAGE: &str = "vellum-test-guests";

/// Builds the guests and copies every ELF file that the build produced.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if !GCC.is_present() {
        progress(&format!("note: {}; the C guest is skipped", GCC.missing()));
    }
    progress("building the guests");
    let messages = process::capture(workspace.cargo().args([
        "build",
        "--package",
        PACKAGE,
        "--message-format=json-render-diagnostics",
    ]))?;
    let built = out_dir(&messages)?;
    let destination = workspace.target_dir().join("guests");
    fs::create_dir_all(&destination)
        .with_context(|| format!("could not create {}", destination.display()))?;
    let mut copied = 0;
    for entry in
        fs::read_dir(&built).with_context(|| format!("could not list {}", built.display()))?
    {
        let path = entry?.path();
        if !is_elf(&path) {
            continue;
        }
        let target = destination.join(path.file_name().context("a listed file has no name")?);
        let len_bytes = fs::copy(&path, &target)
            .with_context(|| format!("could not copy to {}", target.display()))?;
        progress(&format!(
            "{} ({} KiB)",
            target.display(),
            len_bytes.div_ceil(1024)
        ));
        copied += 1;
    }
    if copied == 0 {
        bail!(
            "the build script of {PACKAGE} left no ELF file in {}",
            built.display()
        );
    }
    Ok(())
}

/// The output directory of the guests' build script, from cargo's JSON messages.
fn out_dir(messages: &str) -> Result<PathBuf> {
    for line in messages.lines() {
        let message: Value =
            serde_json::from_str(line).context("cargo printed a line that is not JSON")?;
        let package = message["package_id"].as_str().unwrap_or_default();
        if message["reason"] == "build-script-executed" && package.contains(PACKAGE_DIRECTORY) {
            let directory = message["out_dir"]
                .as_str()
                .context("cargo named no output directory")?;
            return Ok(PathBuf::from(directory));
        }
    }
    bail!("{PACKAGE} has no build script that ran; the guests cannot be found")
}

/// Cargo's package id holds the directory of the package.
const PACKAGE_DIRECTORY: &str = "crates/test-guests";

/// Whether the file starts with the ELF magic number (System V ABI, chapter 4, ELF identification).
fn is_elf(path: &std::path::Path) -> bool {
    path.is_file() && fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_directory_is_that_of_the_guests_package() {
        let messages = concat!(
            r#"{"reason":"build-script-executed","package_id":"registry+x#libc@0.2","out_dir":"/a"}"#,
            "\n",
            r#"{"reason":"build-script-executed","package_id":"path+file:///w/crates/test-guests#vellum-test-guests@0.1.0","out_dir":"/b"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(out_dir(messages).unwrap(), PathBuf::from("/b"));
    }

    #[test]
    fn a_build_without_the_script_is_an_error() {
        assert!(out_dir(r#"{"reason":"build-finished","success":true}"#).is_err());
        assert!(out_dir("not json").is_err());
    }
}
