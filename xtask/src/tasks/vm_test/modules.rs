//! Kernel modules: found in the unpacked package, decompressed, and put into the order of their dependencies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::programs::read;

/// A module that can be loaded once those before it are.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) contents: Vec<u8>,
}

/// The module `name` behind everything that it depends on.
pub(super) fn with_dependencies(root: &Path, name: &str) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    collect_files(root, &mut files)?;
    let mut modules = Vec::new();
    load(&files, name, &mut modules)?;
    Ok(modules)
}

fn load(files: &[PathBuf], name: &str, modules: &mut Vec<Module>) -> Result<()> {
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file).as_deref() == Some(name))
        .with_context(|| format!("the kernel's package has no module {name}"))?;
    let contents = contents(file)?;
    for dependency in dependencies(&contents) {
        load(files, &dependency, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        contents,
    });
    Ok(())
}

fn collect_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("could not read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The name of the module in a file, as other modules write it.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (stem, rest) = name.split_once('.')?;
    matches!(rest, "ko" | "ko.xz" | "ko.zst" | "ko.gz").then(|| stem.replace('-', "_"))
}

fn contents(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read(file),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(file)
        .output()
        .with_context(|| format!("could not run {program}, which unpacks kernel modules"))?;
    if !output.status.success() {
        bail!("{program} -dc {} failed", file.display());
    }
    Ok(output.stdout)
}

/// The modules that a module's information section names: zero-terminated `key=value` texts.
fn dependencies(contents: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let list = contents
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(KEY))
        .unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_information_section() {
        let module = |depends: &str| format!("\x7fELF..\0license=GPL\0{depends}\0name=kvm\0");
        let cases: [(&str, &[&str]); 3] = [
            ("depends=kvm,irqbypass", &["kvm", "irqbypass"]),
            ("depends=", &[]),
            ("retpoline=Y", &[]),
        ];
        for (depends, expected) in cases {
            assert_eq!(dependencies(module(depends).as_bytes()), expected);
        }
    }

    #[test]
    fn a_module_has_one_name_however_its_file_is_written() {
        for file in ["kvm-amd.ko", "a/kvm-amd.ko.xz", "kvm_amd.ko.zst"] {
            assert_eq!(module_name(Path::new(file)).as_deref(), Some("kvm_amd"));
        }
        for file in ["kvm-amd.txt", "vmlinuz", "kvm.ko.sig"] {
            assert_eq!(module_name(Path::new(file)), None);
        }
    }
}
