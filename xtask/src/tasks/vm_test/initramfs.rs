//! The file system that the kernel starts with: busybox, modules, programs and their libraries.

use std::path::Path;

use anyhow::{Context, Result};

use super::boots::{Boot, Step};
use super::cpio::Archive;
use super::loaded::loaded_part;
use super::modules::{self, Module};
use super::packages::Platform;
use super::programs::{self, Program, read};
use super::script::{DIRECTORIES, KVM_MODULE, MODULES, script};

/// What all boots share.
#[derive(Debug)]
pub(super) struct Contents {
    archive: Archive,
    modules: Vec<Module>,
}

impl Contents {
    /// Collects everything but the script.
    pub(super) fn collect(platform: &Platform, programs: &[Program]) -> Result<Self> {
        let modules = modules::with_dependencies(&platform.kernel_root, KVM_MODULE)?;
        let mut archive = Archive::default();
        for directory in DIRECTORIES {
            archive.directory(directory);
        }
        // The kernel opens it for the first process before anything is mounted (admin-guide/devices.txt: 5, 1).
        archive.character_device("/dev/console", 5, 1);
        archive.file("/bin/busybox", &read(&platform.busybox)?);
        for module in &modules {
            archive.file(&format!("{MODULES}/{}.ko", module.name), &module.contents);
        }
        for program in programs {
            let executable = loaded_part(read(&program.executable)?)
                .with_context(|| format!("could not pack {}", program.name))?;
            archive.file(&program.inner_path(), &executable);
        }
        for library in programs::libraries(programs)? {
            archive.file(&library, &read(Path::new(&library))?);
        }
        Ok(Self { archive, modules })
    }

    /// The archive of one boot.
    pub(super) fn initramfs(&self, boot: Boot, steps: &[Step]) -> Vec<u8> {
        let mut archive = self.archive.clone();
        archive.file("/init", script(boot, &self.modules, steps).as_bytes());
        archive.finish()
    }
}
