//! What the machine inside is made of: QEMU, a distribution's kernel and busybox, by the names of Debian's packages.
//!
//! Nothing is installed. Packages are downloaded and unpacked below the cache directory, each set once; a QEMU in the
//! search path is used as it is. To get newer packages, remove the cache directory.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::progress;

const QEMU_PROGRAM: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
/// Depends on the newest kernel for virtual machines: no drivers of real devices, and KVM as modules.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// Everything that a boot needs besides the programs to run.
#[derive(Debug)]
pub(super) struct Platform {
    pub(super) qemu: QemuProgram,
    /// The kernel's image.
    pub(super) kernel: PathBuf,
    /// The unpacked package of the kernel, with its modules somewhere below.
    pub(super) kernel_root: PathBuf,
    pub(super) busybox: PathBuf,
}

/// QEMU, installed or unpacked.
#[derive(Debug)]
pub(super) struct QemuProgram {
    program: PathBuf,
    /// Where an unpacked QEMU lies.
    root: Option<PathBuf>,
}

impl QemuProgram {
    /// A command that starts QEMU, with the paths that an unpacked one needs.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let libraries = [
                "usr/lib/x86_64-linux-gnu",
                "lib/x86_64-linux-gnu",
                "usr/lib/x86_64-linux-gnu/pulseaudio",
            ];
            let path: OsString = env::join_paths(libraries.map(|directory| root.join(directory)))
                .expect("the cache directory has no colon in its name");
            command.env("LD_LIBRARY_PATH", path).env(
                "QEMU_MODULE_DIR",
                root.join("usr/lib/x86_64-linux-gnu/qemu"),
            );
            for directory in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(directory));
            }
        }
        command
    }
}

impl QemuProgram {
    /// What it says that it is.
    pub(super) fn version(&self) -> Result<String> {
        let output = self.command().arg("--version").output();
        let output = output.context("could not run QEMU")?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// Finds or downloads everything. The error says what is missing and what to do.
pub(super) fn obtain(cache: &Path) -> Result<Platform> {
    fs::create_dir_all(cache).with_context(|| format!("could not create {}", cache.display()))?;
    let qemu = qemu(cache)?;
    let kernel_root = unpacked(cache, "kernel", || {
        let depends = apt(Command::new("apt-cache").args(["depends", KERNEL_PACKAGE]))?;
        let package = kernel_of(&depends).with_context(|| {
            format!("{KERNEL_PACKAGE} depends on no kernel; this distribution is not Debian")
        })?;
        Ok(vec![package])
    })?;
    let busybox_root = unpacked(cache, "busybox", || Ok(vec![BUSYBOX_PACKAGE.to_owned()]))?;
    let kernel = file_with_prefix(&kernel_root.join("boot"), "vmlinuz-")?;
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| busybox_root.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .context("the package of busybox has no busybox")?;
    Ok(Platform {
        qemu,
        kernel,
        kernel_root,
        busybox,
    })
}

fn qemu(cache: &Path) -> Result<QemuProgram> {
    let installed = env::var_os("PATH")
        .iter()
        .flat_map(|path| env::split_paths(path).collect::<Vec<_>>())
        .map(|directory| directory.join(QEMU_PROGRAM))
        .find(|program| program.is_file());
    if let Some(program) = installed {
        return Ok(QemuProgram {
            program,
            root: None,
        });
    }
    let root = unpacked(cache, "qemu", || {
        // What an installation would add, as apt works it out; that needs no rights.
        let plan = apt(Command::new("apt-get").args([
            "--simulate",
            "--no-install-recommends",
            "install",
            QEMU_PACKAGE,
        ]))?;
        let packages = to_be_installed(&plan);
        if packages.is_empty() {
            bail!("{QEMU_PACKAGE} is installed, but {QEMU_PROGRAM} is not in the search path");
        }
        Ok(packages)
    })
    .with_context(|| format!("no QEMU (to install it: apt-get install {QEMU_PACKAGE})"))?;
    Ok(QemuProgram {
        program: root.join("usr/bin").join(QEMU_PROGRAM),
        root: Some(root),
    })
}

/// The directory `name` in the cache, made from packages if it is not there.
fn unpacked(
    cache: &Path,
    name: &str,
    packages: impl FnOnce() -> Result<Vec<String>>,
) -> Result<PathBuf> {
    let root = cache.join(name);
    if root.is_dir() {
        return Ok(root);
    }
    let packages = packages()?;
    progress(&format!("downloading {}", packages.join(" ")));
    // Renamed when it is complete, so that an interrupted download is not taken for one.
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let downloads = partial.join("downloads");
    fs::create_dir_all(&downloads)?;
    apt(Command::new("apt-get")
        .arg("download")
        .args(&packages)
        .current_dir(&downloads))?;
    for file in fs::read_dir(&downloads)? {
        apt(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file?.path())
            .arg(&partial))?;
    }
    fs::remove_dir_all(&downloads)?;
    fs::rename(&partial, &root)?;
    Ok(root)
}

/// Runs a program of the package system and returns what it printed.
fn apt(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("`{line}` cannot be run; vm-test needs Debian's packages"))?;
    if !output.status.success() {
        bail!(
            "`{line}` failed ({}): {} (the lists of packages may be empty or old: apt-get update)",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The kernel that `apt-cache depends` of the metapackage names.
fn kernel_of(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// The packages that a simulated `apt-get install` lists.
fn to_be_installed(plan: &str) -> Vec<String> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn file_with_prefix(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("could not read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .with_context(|| format!("{} has no {prefix}*", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            kernel_of(depends).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(
            kernel_of("linux-image-cloud-amd64\n  Depends: libc6\n"),
            None
        );
    }

    #[test]
    fn a_simulated_installation_names_its_packages() {
        let plan = "Reading package lists...\nInst libfdt1 (1.6.1-4 Debian:12 [amd64])\n\
                    Inst qemu-system-x86 [1:7.2] (1:7.2+b3 Debian:12 [amd64])\nConf libfdt1 (1.6.1-4)\n";
        assert_eq!(to_be_installed(plan), ["libfdt1", "qemu-system-x86"]);
    }
}
