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
