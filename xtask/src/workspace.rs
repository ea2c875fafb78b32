//! Where the workspace is and which files it has.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The checkout that xtask works on.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace from the manifest that cargo runs.
    pub(crate) fn find() -> Result<Self> {
        // Cargo sets the variable for `cargo run`; the compile-time value serves a binary started by hand.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("the xtask manifest has no parent directory")?;
        if !root.join("Cargo.lock").is_file() {
            bail!(
                "{} is not the workspace root; run xtask as `cargo xtask`",
                root.display()
            );
        }
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    /// The root directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory for build products, which an environment variable may move.
    pub(crate) fn target_dir(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// A cargo command in the root directory, with the toolchain that runs xtask.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// A cargo command in the workspace of the guest programs, whose own cargo settings apply there.
    pub(crate) fn guests_cargo(&self) -> Command {
        let mut command = self.cargo();
        command.current_dir(self.root.join("guests"));
        command.env("CARGO_TARGET_DIR", self.target_dir().join("guests-check"));
        command
    }

    /// Files under version control and new files that are not ignored, relative to the root, sorted.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let output = Command::new("git")
            .current_dir(&self.root)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()
            .context(
                "could not run git, which lists the files to check (Debian: apt-get install git)",
            )?;
        if !output.status.success() {
            bail!(
                "git ls-files failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let mut files: Vec<String> = String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .filter(|path| self.root.join(path).is_file())
            .map(str::to_owned)
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }
}
