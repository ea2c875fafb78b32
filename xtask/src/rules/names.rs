//! A module is named after what it holds: no `common`, no `util`.

use syn::ItemMod;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Violation;
use super::source::SourceFile;

const RULE: &str = "module-name";
const EMPTY_NAMES: [&str; 6] = ["common", "util", "utils", "helper", "helpers", "misc"];

/// Lists every module whose name says nothing.
pub(super) fn check(file: &SourceFile) -> Vec<Violation> {
    let mut visitor = NameVisitor {
        path: &file.path,
        violations: Vec::new(),
    };
    visitor.visit_file(&file.syntax);
    visitor.violations
}

/// Whether a crate or module name says nothing about the contents.
pub(super) fn is_empty_name(name: &str) -> bool {
    EMPTY_NAMES.contains(&name)
}

struct NameVisitor<'a> {
    path: &'a str,
    violations: Vec<Violation>,
}

impl<'ast> Visit<'ast> for NameVisitor<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = module.ident.to_string();
        if is_empty_name(&name) {
            self.violations.push(Violation {
                path: self.path.to_owned(),
                line: module.span().start().line,
                rule: RULE,
                message: format!("module `{name}` is not named after what it holds"),
                item: name,
            });
        }
        visit::visit_item_mod(self, module);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::samples::sample;

    #[test]
    fn a_module_named_after_its_contents_passes() {
        assert_eq!(
            check(&sample("mod walker; mod utility_bill { mod commons {} }")),
            []
        );
    }

    #[test]
    fn a_module_whose_name_says_nothing_fails_at_any_depth() {
        for text in [
            "mod common;",
            "mod a { mod util {} }",
            "pub mod utils;",
            "mod helpers {}",
        ] {
            assert_eq!(check(&sample(text)).len(), 1, "{text}");
        }
    }
}
