//! What the machine offers: the hypervisor device and the tools, with what to do where one is missing.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Device number of `/dev/kvm`: major 10 (misc), minor 232 (Linux, admin-guide/devices.txt), as `st_rdev` packs them.
const KVM_DEVICE: u64 = (10 << 8) + 232;

/// Whether `/dev/kvm` can be opened, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    Usable,
    Absent { cpu_flag: Option<&'static str> },
    NoPermission { owner: String, mode: u32 },
    NotADevice,
    Failed { error: String },
}

impl Kvm {
    /// Probes the device of this machine.
    pub(crate) fn probe() -> Self {
        Self::probe_at(Path::new("/dev/kvm"), Path::new("/proc/cpuinfo"))
    }

    fn probe_at(device: &Path, cpuinfo: &Path) -> Self {
        let metadata = match fs::metadata(device) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let cpuinfo = fs::read_to_string(cpuinfo).unwrap_or_default();
                return Self::Absent {
                    cpu_flag: virtualization_flag(&cpuinfo),
                };
            }
            Err(error) => {
                return Self::Failed {
                    error: error.to_string(),
                };
            }
        };
        if !metadata.file_type().is_char_device() || metadata.rdev() != KVM_DEVICE {
            return Self::NotADevice;
        }
        match OpenOptions::new().read(true).write(true).open(device) {
            Ok(_) => Self::Usable,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Self::NoPermission {
                owner: format!("uid {} gid {}", metadata.uid(), metadata.gid()),
                mode: metadata.mode() & 0o7777,
            },
            Err(error) => Self::Failed {
                error: error.to_string(),
            },
        }
    }

    /// Why KVM cannot be used and what to do, or `None` where it can.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Usable => None,
            Self::Absent { cpu_flag: Some(flag) } => {
                let module = if *flag == "vmx" { "kvm_intel" } else { "kvm_amd" };
                Some(format!(
                    "/dev/kvm is absent although the CPU offers {flag}: load the module with \
                     `modprobe {module}`; in a container, pass the device in with `--device /dev/kvm`"
                ))
            }
            Self::Absent { cpu_flag: None } => Some(
                "/dev/kvm is absent and the CPU offers neither vmx nor svm: enable virtualization in the \
                 firmware, or nested virtualization in the settings of this virtual machine; in a container, \
                 pass the device in with `--device /dev/kvm`"
                    .to_owned(),
            ),
            Self::NoPermission { owner, mode } => {
                // The kvm group helps only where the device lets a group read and write.
                let first = if mode & 0o060 == 0o060 {
                    ""
                } else {
                    "`sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm`, then "
                };
                Some(format!(
                    "/dev/kvm exists but this user may not open it (owner {owner}, mode {mode:04o}): {first}\
                     `sudo usermod -aG kvm $USER` and log in again, or for now `sudo setfacl -m u:$USER:rw /dev/kvm`"
                ))
            }
            Self::NotADevice => Some(
                "/dev/kvm is not the character device 10:232: something else was created under that name; remove \
                 it and load the kvm module"
                    .to_owned(),
            ),
            Self::Failed { error } => Some(format!("/dev/kvm cannot be opened: {error}")),
        }
    }
}

/// A program that some tasks need, and how to get it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    purpose: &'static str,
    install: &'static str,
}

/// The C compiler: links Rust programs and builds the C guest.
pub(crate) const GCC: Tool = Tool {
    program: "gcc",
    purpose: "builds the C guest",
    install: "apt-get install gcc libc6-dev",
};

/// The book generator.
pub(crate) const MDBOOK: Tool = Tool {
    program: "mdbook",
    purpose: "builds docs/ into a book",
    install: "cargo install mdbook",
};

impl Tool {
    /// Whether the program is in the search path.
    pub(crate) fn is_present(self) -> bool {
        env::var_os("PATH").is_some_and(|path| {
            env::split_paths(&path).any(|directory| directory.join(self.program).is_file())
        })
    }

    /// What is missing and how to install it.
    pub(crate) fn missing(self) -> String {
        format!(
            "{} is missing; it {} (to install: {})",
            self.program, self.purpose, self.install
        )
    }
}

/// The hardware virtualization flag that `/proc/cpuinfo` lists, if any.
fn virtualization_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"]
        .into_iter()
        .find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

#[cfg(test)]
mod tests;
