//! The first process inside: a shell script that loads KVM, runs the steps and reports on the second serial port.

use std::fmt::Write as _;

use super::boots::{Boot, Step};
use super::modules::Module;
use super::programs::Kind;
use super::transcript::MARK;

/// Where KVM's modules lie inside.
pub(super) const MODULES: &str = "/modules";
/// A directory for files of the tests.
const SCRATCH: &str = "/scratch";
/// Where the tests report their engines.
const ENGINES: &str = "/engines";
/// Where the suite of all engines reports its checks.
const CHECKS: &str = "/checks";
/// What the current step writes to standard error.
const ERRORS: &str = "/errors";
/// The module that makes `/dev/kvm`.
pub(super) const KVM_MODULE: &str = "kvm_amd";

/// Directories that must exist before the script runs.
pub(super) const DIRECTORIES: [&str; 4] = ["/dev", "/proc", "/sys", SCRATCH];

/// File systems, and the serial port in a mode that changes no byte. The first port is the kernel's.
const SETUP: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tracefs none /sys/kernel/tracing
mkdir -p /dev/shm
mount -t tmpfs none /dev/shm
mount -t tmpfs none /scratch
stty raw </dev/ttyS1
exec </dev/null >/dev/ttyS1 2>&1
ulimit -c 0
";

/// Writes the script.
///
/// Two test threads, so that a line about a test is written at once when the test ends: with one, what a test's child process
/// prints would come into the middle of the line. For the same reason standard error is kept apart until the step ends: the harness
/// writes a line piece by piece.
pub(super) fn script(boot: Boot, modules: &[Module], steps: &[Step]) -> String {
    let mut script = String::from(SETUP);
    let mut line = |text: &str| {
        let _ = writeln!(script, "{text}");
    };
    line(&format!(
        "export TMPDIR={SCRATCH} VELLUM_TEST_REPORT={ENGINES} VELLUM_CONFORMANCE_REPORT={CHECKS} RUST_BACKTRACE=1 VELLUM_REQUIRE_HARDWARE=1"
    ));
    line(&format!("echo \"{MARK} kernel $(uname -r)\""));
    for module in modules {
        let parameters = if module.name == KVM_MODULE {
            boot.module_parameters()
        } else {
            ""
        };
        line(&format!("insmod {MODULES}/{}.ko {parameters}", module.name));
    }
    line(&format!(
        "echo \"{MARK} npt $(cat /sys/module/{KVM_MODULE}/parameters/npt 2>/dev/null || echo absent)\""
    ));
    for (index, step) in steps.iter().enumerate() {
        let mut command = String::new();
        for (name, value) in &step.environment {
            let _ = write!(command, "{name}={} ", quoted(value));
        }
        command.push_str(&quoted(&step.program.inner_path()));
        if step.program.kind == Kind::Tests {
            let _ = write!(command, " --test-threads=2");
        }
        for argument in &step.arguments {
            let _ = write!(command, " {}", quoted(argument));
        }
        if step.program.kind == Kind::Tests {
            line(&format!(
                "echo; echo '{MARK} list {index}'; {command} --list"
            ));
        }
        line(&format!(
            "echo; echo '{MARK} start {index}'; {command} 2>{ERRORS}"
        ));
        line(&format!(
            "status=$?; cat {ERRORS}; echo; echo \"{MARK} end {index} $status\""
        ));
    }
    for (word, file) in [("engine", ENGINES), ("check", CHECKS)] {
        line(&format!(
            "touch {file}; while read -r row; do echo \"{MARK} {word} $row\"; done <{file}"
        ));
    }
    line(&format!("echo '{MARK} done'"));
    line("poweroff -f");
    script
}

/// A word of the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::vm_test::programs::Program;

    fn steps(filter: &str) -> Vec<Step> {
        let program = Program {
            name: "backend/kvm".into(),
            kind: Kind::Tests,
            executable: "kvm".into(),
        };
        Boot::Shadow.steps(&[program], Some(filter))
    }

    #[test]
    fn the_script_loads_the_modules_and_frames_each_step() {
        let modules = ["kvm", KVM_MODULE].map(|name| Module {
            name: name.into(),
            contents: Vec::new(),
        });
        let script = script(Boot::Shadow, &modules, &steps("loop"));
        let expected = [
            "insmod /modules/kvm.ko",
            "insmod /modules/kvm_amd.ko npt=0",
            "list 0'; '/tests/backend/kvm' --test-threads=2 'loop' --list",
            "start 0'; '/tests/backend/kvm' --test-threads=2 'loop' 2>/errors",
            "status=$?; cat /errors",
            "end 0 $status",
            "done'",
            "poweroff",
        ];
        let mut rest = script.as_str();
        for text in expected {
            let at = rest
                .find(text)
                .unwrap_or_else(|| panic!("{text} is not in {rest}"));
            rest = &rest[at + text.len()..];
        }
    }

    #[test]
    fn a_filter_is_one_word_whatever_is_in_it() {
        let script = script(Boot::Shadow, &[], &steps("it's; reboot"));
        assert!(script.contains(r"'it'\''s; reboot'"), "{script}");
    }
}
