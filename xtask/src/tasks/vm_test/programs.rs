//! The programs that run inside: tests, demo and benchmark, with the shared libraries that they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, progress};
use crate::tasks::mshv;
use crate::workspace::Workspace;

/// Packages with tests that need a hypervisor.
const PACKAGES: [&str; 4] = [
    "vellum-backend",
    "vellum-conformance",
    "vellum-mshv-double",
    SANDBOX,
];
const SANDBOX: &str = "vellum-sandbox";
const DEMO: &str = "demo";
const BENCHMARK: &str = "table";

/// A program that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Package and target: `vellum-backend/kvm`.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) executable: PathBuf,
}

/// How a program is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A test harness: lists its tests and runs those that a filter selects.
    Tests,
    Demo,
    Benchmark,
    /// The shared library of the double of `/dev/mshv`, with which other programs are run.
    Double,
}

impl Program {
    /// Where the program lies inside.
    pub(super) fn inner_path(&self) -> String {
        format!("/tests/{}", self.name)
    }
}

/// Builds all programs; where packages are named, or a test program, only those tests.
pub(super) fn build(
    workspace: &Workspace,
    packages: &[String],
    suite: Option<&str>,
) -> Result<Vec<Program>> {
    progress("building the tests");
    if !packages.is_empty() || suite.is_some() {
        let mut packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        if packages.is_empty() {
            packages.extend(PACKAGES);
        }
        let mut tests = workspace.cargo();
        tests.args(["test", "--no-run", "--test", suite.unwrap_or("*")]);
        let mut programs = build_with(&mut tests, &packages)?;
        if programs.is_empty() {
            bail!("cargo built no tests of {}", packages.join(", "));
        }
        if packages.contains(&SANDBOX) {
            programs.push(double(workspace)?);
        }
        return Ok(programs);
    }
    let mut tests = workspace.cargo();
    tests.args(["test", "--no-run", "--test", "*", "--bench", BENCHMARK]);
    let mut programs = build_with(&mut tests, &PACKAGES)?;
    // Its other tests compare with silicon, which QEMU is not.
    let mut privileged = workspace.cargo();
    privileged.args(["test", "--no-run", "--test", "privileged"]);
    programs.extend(build_with(&mut privileged, &["vellum-emulator"])?);
    // `cargo test` would make a test harness of it.
    let mut demo = workspace.cargo();
    demo.args(["build", "--example", DEMO]);
    programs.extend(build_with(&mut demo, &[SANDBOX])?);
    programs.push(double(workspace)?);
    programs.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    for kind in [Kind::Tests, Kind::Demo, Kind::Benchmark] {
        if !programs.iter().any(|program| program.kind == kind) {
            bail!("cargo built no program of kind {kind:?}");
        }
    }
    Ok(programs)
}

fn double(workspace: &Workspace) -> Result<Program> {
    Ok(Program {
        name: "mshv-double/library".into(),
        kind: Kind::Double,
        executable: mshv::build_double(workspace)?,
    })
}

/// Builds the benchmark as it is measured: optimised.
pub(super) fn build_benchmark(workspace: &Workspace) -> Result<Program> {
    progress("building the benchmark");
    let mut bench = workspace.cargo();
    bench.args(["bench", "--no-run", "--bench", BENCHMARK]);
    let programs = build_with(&mut bench, &[SANDBOX])?;
    let benchmark = programs
        .into_iter()
        .find(|program| program.kind == Kind::Benchmark);
    benchmark.context("cargo built no benchmark")
}

fn build_with(command: &mut Command, packages: &[&str]) -> Result<Vec<Program>> {
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["--package", package]);
    }
    let messages = process::capture(command).context("the tests do not build")?;
    Ok(messages.lines().filter_map(program).collect())
}

/// The program of one of cargo's messages, if it is about one.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let executable = message.get("executable")?.as_str()?;
    let target = message.get("target")?;
    let name = target.get("name")?.as_str()?;
    let kind = match target.get("kind")?.get(0)?.as_str()? {
        "test" => Kind::Tests,
        "example" if name == DEMO => Kind::Demo,
        "bench" if name == BENCHMARK => Kind::Benchmark,
        _ => return None,
    };
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    let directory = manifest.parent()?.file_name()?.to_str()?;
    Some(Program {
        name: format!("{directory}/{name}"),
        kind,
        executable: executable.into(),
    })
}

/// The shared libraries of all programs, at the paths at which the loader finds them here and so inside.
pub(super) fn libraries(programs: &[Program]) -> Result<BTreeSet<String>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let output = Command::new("ldd")
            .arg(&program.executable)
            .output()
            .context("could not run ldd (Debian: apt-get install libc-bin)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        libraries
            .extend(loaded_files(&text).with_context(|| format!("libraries of {}", program.name))?);
    }
    Ok(libraries)
}

/// The absolute paths in what `ldd` prints; none for a static program.
fn loaded_files(ldd: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("{line}");
        }
        let place = line.split_once("=> ").map_or(line, |(_, place)| place);
        if let Some((path, _)) = place.split_once(" (")
            && path.starts_with('/')
        {
            files.push(path.to_owned());
        }
    }
    Ok(files)
}

/// Reads a file of the machine; the error names it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_demo_and_benchmark_are_picked_from_the_messages_of_cargo() {
        let message = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/crates/sandbox/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},"executable":{executable}}}"#
            )
        };
        let cases = [
            (message("test", "vm", "\"/t/vm-1\""), Some(Kind::Tests)),
            (message("example", "demo", "\"/t/demo\""), Some(Kind::Demo)),
            (
                message("bench", "table", "\"/t/table-1\""),
                Some(Kind::Benchmark),
            ),
            (message("example", "smoke", "\"/t/smoke\""), None),
            (message("lib", "vellum_sandbox", "null"), None),
            (
                r#"{"reason":"build-finished","success":true}"#.to_owned(),
                None,
            ),
            ("warning: not JSON".to_owned(), None),
        ];
        for (text, kind) in cases {
            assert_eq!(program(&text).map(|program| program.kind), kind, "{text}");
        }
        let vm = program(&message("test", "vm", "\"/t/vm-1\"")).unwrap();
        assert_eq!(vm.inner_path(), "/tests/sandbox/vm");
    }

    #[test]
    fn libraries_are_the_files_that_the_loader_names() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            loaded_files(ldd).unwrap(),
            ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(loaded_files("\tstatically linked\n").unwrap(), [""; 0]);
        assert!(loaded_files("\tlibx.so => not found\n").is_err());
    }
}
