use super::*;

#[test]
fn a_kind_is_found_by_its_name() {
    for kind in EngineKind::ALL {
        assert_eq!(EngineKind::from_name(kind.name()), Some(kind));
    }
    assert_eq!(EngineKind::from_name("KVM"), None);
}

#[test]
fn each_attempt_is_named_with_its_whole_cause() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot open")]
    struct Outer(#[source] std::io::Error);
    let error = NoEngine {
        attempts: vec![
            (
                "kvm".into(),
                Box::new(Outer(std::io::Error::other("too many files"))),
            ),
            ("mshv".into(), "absent".into()),
        ],
    };
    assert_eq!(
        error.to_string(),
        "kvm: cannot open: too many files; mshv: absent"
    );
}

#[test]
fn an_unknown_engine_is_told_which_there_are() {
    let text = NoEngine::unknown("xen".into()).to_string();
    assert!(text.starts_with("xen: "), "{text}");
    for kind in EngineKind::ALL {
        assert!(text.contains(kind.name()), "{text}");
    }
}

/// Opens the one named kind and nothing else.
fn only(
    there: EngineKind,
) -> impl Fn(EngineKind) -> Result<EngineKind, Box<dyn Error + Send + Sync>> {
    move |kind| {
        if kind == there {
            Ok(kind)
        } else {
            Err("absent".into())
        }
    }
}

#[test]
fn the_first_kind_that_works_is_taken_and_the_last_resort_is_announced() {
    use EngineKind::{Emulator, Kvm, Mshv};
    for there in [Kvm, Mshv] {
        let (kind, line) = first(&EngineKind::ALL, only(there)).expect("opened");
        assert_eq!((kind, line), (there, None));
    }
    let (kind, line) = first(&EngineKind::ALL, only(Emulator)).expect("opened");
    assert_eq!(kind, Emulator);
    let line = line.expect("it is announced");
    assert!(
        line.starts_with("no hypervisor: kvm: absent; mshv: absent; using the emulator, about "),
        "{line}"
    );
    assert!(!line.contains('\n'), "{line}");
}

#[test]
fn an_emulator_that_was_asked_for_is_not_announced() {
    let (_, line) = first(&[EngineKind::Emulator], only(EngineKind::Emulator)).expect("opened");
    assert_eq!(line, None);
}

#[test]
fn hardware_alone_never_ends_at_the_emulator() {
    let error = first(&EngineKind::HARDWARE, only(EngineKind::Emulator)).expect_err("refused");
    assert_eq!(error.to_string(), "kvm: absent; mshv: absent");
}

#[test]
fn the_environment_can_forbid_the_last_resort() {
    let cases: [(Option<&str>, &[EngineKind]); 5] = [
        (None, &EngineKind::ALL),
        (Some(""), &EngineKind::ALL),
        (Some("0"), &EngineKind::ALL),
        (Some("1"), &EngineKind::HARDWARE),
        (Some("no"), &EngineKind::HARDWARE),
    ];
    for (value, expected) in cases {
        assert_eq!(permitted_with(value.map(OsStr::new)), expected, "{value:?}");
    }
}
