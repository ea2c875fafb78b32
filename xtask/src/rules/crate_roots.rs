//! The crates that guests build too are `no_std` and free of unsafe code.

use syn::Attribute;

use super::Violation;
use super::source::SourceFile;
use super::tokens::is_ident;

const RULE: &str = "guest-crate-root";

/// Crate roots that must carry both attributes.
const GUEST_CRATE_ROOTS: [&str; 3] = [
    "crates/layout/src/lib.rs",
    "crates/abi/src/lib.rs",
    "crates/vmem/src/lib.rs",
];

/// Lists every guest crate whose root lacks an attribute.
pub(super) fn check(files: &[SourceFile]) -> Vec<Violation> {
    let roots = files
        .iter()
        .filter(|file| GUEST_CRATE_ROOTS.contains(&file.path.as_str()));
    roots.flat_map(check_root).collect()
}

fn check_root(file: &SourceFile) -> Vec<Violation> {
    let attributes = &file.syntax.attrs;
    let required = [
        (
            "#![no_std]",
            attributes
                .iter()
                .any(|attribute| attribute.path().is_ident("no_std")),
        ),
        (
            "#![forbid(unsafe_code)]",
            attributes.iter().any(forbids_unsafe_code),
        ),
    ];
    let missing = required.into_iter().filter(|(_, present)| !present);
    missing
        .map(|(attribute, _)| Violation {
            path: file.path.clone(),
            line: 0,
            rule: RULE,
            item: String::new(),
            message: format!("guests build this crate too, so its root needs {attribute}"),
        })
        .collect()
}

fn forbids_unsafe_code(attribute: &Attribute) -> bool {
    attribute.path().is_ident("forbid")
        && attribute.meta.require_list().is_ok_and(|list| {
            list.tokens
                .clone()
                .into_iter()
                .any(|token| is_ident(&token, "unsafe_code"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::samples::sample_at;

    #[test]
    fn a_root_with_both_attributes_passes_and_other_crates_are_not_asked() {
        let files = [
            sample_at(
                "crates/abi/src/lib.rs",
                "#![no_std]\n#![forbid(unsafe_code)]",
            ),
            sample_at("crates/backend/src/lib.rs", "fn f() {}"),
        ];
        assert_eq!(check(&files), []);
    }

    #[test]
    fn each_missing_attribute_fails() {
        let rows = [
            ("#![no_std]", 1),
            ("#![forbid(unsafe_code)]", 1),
            ("#![deny(unsafe_code)]", 2),
            ("fn f() {}", 2),
        ];
        for (text, expected) in rows {
            let file = sample_at("crates/vmem/src/lib.rs", text);
            assert_eq!(check(&[file]).len(), expected, "{text}");
        }
    }
}
