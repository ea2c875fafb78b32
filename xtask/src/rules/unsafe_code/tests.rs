use super::*;
use crate::rules::samples::{sample, sample_at};

#[test]
fn a_block_with_a_safety_comment_passes() {
    let passing = [
        "fn f() {\n    // SAFETY: the caller holds the lock.\n    unsafe { g() };\n}",
        "fn f() {\n    // SAFETY: two\n    // lines.\n    let x =\n        unsafe { g() };\n}",
        "fn f() {\n    unsafe {\n        // SAFETY: inside.\n        g()\n    }\n}",
        "fn f() {\n    unsafe { g() } // SAFETY: beside.\n}",
        "// SAFETY: no state.\n#[derive(Debug)]\nunsafe impl Send for S {}",
        "macro_rules! m { () => {\n    // SAFETY: in a macro.\n    unsafe { g() }\n} }",
        "/// # Safety\n/// Never.\nunsafe fn f() {}",
        "fn f() { println!(\"unsafe {{ }}\") }",
    ];
    for text in passing {
        assert_eq!(check_comments(&sample(text)), [], "{text}");
    }
}

#[test]
fn a_block_without_a_safety_comment_fails_at_its_line() {
    let rows = [
        ("fn f() {\n    unsafe { g() };\n}", 2),
        ("fn f() {\n    // This is fine.\n    unsafe { g() };\n}", 3),
        (
            "fn f() {\n    // SAFETY: of the other one.\n    h();\n    unsafe { g() };\n}",
            4,
        ),
        (
            "fn f() {\n    // SAFETY: far away.\n\n    unsafe { g() };\n}",
            4,
        ),
        ("unsafe impl Send for S {}", 1),
        ("macro_rules! m { () => {\n    unsafe { g() }\n} }", 2),
    ];
    for (text, line) in rows {
        let violations = check_comments(&sample(text));
        assert_eq!(
            violations
                .iter()
                .map(|found| found.line)
                .collect::<Vec<_>>(),
            [line],
            "{text}"
        );
    }
}

#[test]
fn an_opt_in_with_a_reason_covers_the_file_and_its_modules() {
    let opted = "#![expect(unsafe_code, reason = \"ioctl\")]\nfn f() { unsafe { g() } }";
    assert_eq!(check_opt_in(&[sample_at("crates/a/src/kvm.rs", opted)]), []);

    let child = sample_at("crates/a/src/kvm/run.rs", "fn f() { unsafe { g() } }");
    let parent = sample_at(
        "crates/a/src/kvm.rs",
        "#![expect(unsafe_code, reason = \"ioctl\")]\nmod run;",
    );
    assert_eq!(check_opt_in(&[parent, child]), []);

    let child = sample_at("crates/a/src/kvm.rs", "fn f() { unsafe { g() } }");
    let root = sample_at(
        "crates/a/src/lib.rs",
        "#[expect(unsafe_code, reason = \"ioctl\")]\nmod kvm;",
    );
    assert_eq!(check_opt_in(&[root, child]), []);
}

#[test]
fn unsafe_code_without_an_opt_in_fails() {
    let failing = [
        "fn f() { unsafe { g() } }",
        "unsafe fn f() {}",
        "unsafe extern \"C\" { fn f(); }",
        "unsafe trait T {}",
        "#[unsafe(no_mangle)] extern \"C\" fn f() {}",
    ];
    for text in failing {
        assert_eq!(check_opt_in(&[sample(text)]).len(), 1, "{text}");
    }
    let sibling = sample_at("crates/a/src/kvmish.rs", "unsafe fn f() {}");
    let root = sample_at(
        "crates/a/src/lib.rs",
        "#[expect(unsafe_code, reason = \"ioctl\")]\nmod kvm;",
    );
    assert_eq!(check_opt_in(&[root, sibling]).len(), 1);
}

#[test]
fn macros_for_other_crates_and_guest_programs_need_no_opt_in() {
    let text = "macro_rules! m { () => { unsafe { g() } } }";
    assert_eq!(check_opt_in(&[sample(text)]), []);
    let guest = sample_at("guests/a/src/main.rs", "fn f() { unsafe { g() } }");
    assert_eq!(check_opt_in(&[guest]), []);
}

#[test]
fn an_opt_in_without_a_reason_fails_also_in_a_macro() {
    for text in [
        "#![allow(unsafe_code)]\nunsafe fn f() {}",
        "#[expect(unsafe_code)]\nunsafe fn f() {}",
        "macro_rules! m { () => { #[allow(unsafe_code)] fn f() {} } }",
    ] {
        assert_eq!(check_opt_in(&[sample(text)]).len(), 1, "{text}");
    }
}
