//! `cfg` stands only on module declarations and at the top of a file, so that both sides of every choice are
//! whole modules. A facade file that re-exports the chosen side is listed as an exception.

use proc_macro2::TokenTree;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, ItemExternCrate, ItemMod, Macro};

use super::source::SourceFile;
use super::{Violation, tokens};

const RULE: &str = "cfg-density";

/// Lists every `cfg` that is not on a module declaration.
pub(super) fn check(file: &SourceFile) -> Vec<Violation> {
    let mut visitor = CfgVisitor {
        path: &file.path,
        violations: Vec::new(),
    };
    // Attributes of the file itself speak for the whole module, so only its items are visited.
    for item in &file.syntax.items {
        visitor.visit_item(item);
    }
    visitor.violations
}

struct CfgVisitor<'a> {
    path: &'a str,
    violations: Vec<Violation>,
}

impl CfgVisitor<'_> {
    fn report(&mut self, line: usize, what: &str) {
        self.violations.push(Violation {
            path: self.path.to_owned(),
            line,
            rule: RULE,
            item: String::new(),
            message: format!("{what} outside a module declaration; move the choice to a `mod`"),
        });
    }
}

impl<'ast> Visit<'ast> for CfgVisitor<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // The attributes of the declaration are where cfg belongs; only the contents are visited.
        for item in module.content.iter().flat_map(|(_, items)| items) {
            self.visit_item(item);
        }
    }

    fn visit_item_extern_crate(&mut self, _: &'ast ItemExternCrate) {
        // Like a module declaration: it brings in a whole crate or nothing.
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        for name in ["cfg", "cfg_attr"] {
            if attribute.path().is_ident(name) {
                self.report(attribute.span().start().line, &format!("#[{name}]"));
            }
        }
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        if invocation.path.is_ident("cfg") {
            self.report(invocation.span().start().line, "cfg!");
        }
        tokens::walk(&invocation.tokens, &mut |run| {
            for attribute in tokens::attributes(run) {
                if let Some(name @ TokenTree::Ident(_)) = attribute.stream().into_iter().next()
                    && (tokens::is_ident(&name, "cfg") || tokens::is_ident(&name, "cfg_attr"))
                {
                    self.report(name.span().start().line, &format!("#[{name}]"));
                }
            }
            for pair in run.windows(2) {
                if tokens::is_ident(&pair[0], "cfg") && tokens::is_punct(&pair[1], '!') {
                    self.report(pair[0].span().start().line, "cfg!");
                }
            }
        });
        visit::visit_macro(self, invocation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::samples::sample;

    #[test]
    fn cfg_on_a_module_declaration_or_the_file_passes() {
        let passing = [
            "#![cfg(target_os = \"linux\")] #![cfg_attr(not(test), no_std)] fn f() {}",
            "#[cfg(test)] mod tests { #[test] fn works() { assert_eq!(1, 1) } }",
            "#[cfg(guest_arch)] mod amd64;",
            "#[cfg(test)] extern crate alloc;",
            "fn cfg() { cfg(); } fn g() { let cfg = 1; println!(\"{}\", cfg) }",
        ];
        for text in passing {
            assert_eq!(check(&sample(text)), [], "{text}");
        }
    }

    #[test]
    fn cfg_anywhere_else_fails_once() {
        let failing = [
            "#[cfg(test)] fn f() {}",
            "#[cfg(test)] use a::b;",
            "struct S { #[cfg(test)] field: u8 }",
            "fn f(#[cfg(test)] x: u8) {}",
            "fn f() { match 1 { #[cfg(test)] 1 => {}, _ => {} } }",
            "fn f() { if cfg!(test) {} }",
            "#[cfg_attr(test, derive(Debug))] struct S;",
            "fn f() { println!(\"{}\", cfg!(test)) }",
            "macro_rules! m { () => { #[cfg(test)] fn f() {} } }",
            "mod inner { #[cfg(test)] fn f() {} }",
        ];
        for text in failing {
            assert_eq!(check(&sample(text)).len(), 1, "{text}");
        }
    }
}
