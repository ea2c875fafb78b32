use super::*;

#[test]
fn a_missing_device_is_absent_whatever_the_cpu_says() {
    let nowhere = Path::new("/nonexistent/kvm");
    assert_eq!(
        Kvm::probe_at(nowhere, Path::new("/nonexistent/cpuinfo")),
        Kvm::Absent { cpu_flag: None }
    );
}

#[test]
fn other_files_and_devices_are_not_taken_for_the_device() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for path in [&file, Path::new("/dev/null")] {
        assert_eq!(
            Kvm::probe_at(path, Path::new("/nonexistent/cpuinfo")),
            Kvm::NotADevice
        );
    }
}

#[test]
fn the_virtualization_flag_is_a_whole_word_of_the_flags_line() {
    let rows = [
        ("flags\t\t: fpu vmx sse", Some("vmx")),
        ("model name: x\nflags : fpu svm npt", Some("svm")),
        ("flags : fpu svm_lock vmxish", None),
        ("vmx flags : vmx", None),
        ("", None),
    ];
    for (cpuinfo, expected) in rows {
        assert_eq!(virtualization_flag(cpuinfo), expected, "{cpuinfo:?}");
    }
}

#[test]
fn every_problem_says_what_to_do() {
    let rows = [
        (
            Kvm::Absent {
                cpu_flag: Some("vmx"),
            },
            "modprobe kvm_intel",
        ),
        (
            Kvm::Absent {
                cpu_flag: Some("svm"),
            },
            "modprobe kvm_amd",
        ),
        (Kvm::Absent { cpu_flag: None }, "nested virtualization"),
        (
            Kvm::NoPermission {
                owner: "uid 0 gid 106".into(),
                mode: 0o660,
            },
            "usermod -aG kvm",
        ),
        (
            Kvm::NoPermission {
                owner: "uid 0 gid 0".into(),
                mode: 0o600,
            },
            "chmod 0660",
        ),
        (Kvm::NotADevice, "character device"),
        (
            Kvm::Failed {
                error: "device busy".into(),
            },
            "device busy",
        ),
    ];
    for (kvm, expected) in rows {
        let problem = kvm.problem().expect("an unusable device is a problem");
        assert!(
            problem.contains("/dev/kvm") && problem.contains(expected),
            "{problem}"
        );
    }
    assert_eq!(Kvm::Usable.problem(), None);
}

#[test]
fn a_missing_tool_names_its_package() {
    let tool = Tool {
        program: "vellum-no-such-program",
        ..GCC
    };
    assert!(!tool.is_present());
    assert!(
        tool.missing().contains("apt-get install gcc libc6-dev"),
        "{}",
        tool.missing()
    );
}
