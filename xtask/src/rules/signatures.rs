//! At most six parameters, and no bool parameters in public functions: a call site that reads `true` says
//! nothing about what is true.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Block, FnArg, ImplItemFn, ItemFn, ItemImpl, ItemMod, ItemTrait, Signature, TraitItemFn, Type,
    Visibility,
};

use super::Violation;
use super::source::SourceFile;

const BOOL_RULE: &str = "bool-parameter";
const COUNT_RULE: &str = "parameter-count";
const MAX_PARAMETERS: usize = 6;

/// A function, method or trait method.
pub(super) struct Function<'a> {
    /// With the modules and the type around it, such as `Mapper::map`.
    pub(super) name: String,
    pub(super) signature: &'a Signature,
    /// Absent for a required trait method.
    pub(super) body: Option<&'a Block>,
    is_public: bool,
}

/// Lists every function with too many parameters and every public one with a bool parameter.
pub(super) fn check(file: &SourceFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    for function in functions(file) {
        let parameters = &function.signature.inputs;
        let mut report = |rule, message| {
            violations.push(Violation {
                path: file.path.clone(),
                line: function.signature.span().start().line,
                rule,
                item: function.name.clone(),
                message,
            });
        };
        if parameters.len() > MAX_PARAMETERS {
            let count = parameters.len();
            report(
                COUNT_RULE,
                format!(
                    "`{}` has {count} parameters; at most {MAX_PARAMETERS}",
                    function.name
                ),
            );
        }
        if function.is_public && parameters.iter().any(is_bool) {
            report(
                BOOL_RULE,
                format!(
                    "`{}` takes a bool; a two-variant enum says what is meant",
                    function.name
                ),
            );
        }
    }
    violations
}

/// Every function of a file.
pub(super) fn functions(file: &SourceFile) -> Vec<Function<'_>> {
    let mut visitor = FunctionVisitor {
        scope: Vec::new(),
        functions: Vec::new(),
    };
    visitor.visit_file(&file.syntax);
    visitor.functions
}

fn is_bool(parameter: &FnArg) -> bool {
    let FnArg::Typed(parameter) = parameter else {
        return false;
    };
    matches!(&*parameter.ty, Type::Path(path) if path.path.is_ident("bool"))
}

struct FunctionVisitor<'a> {
    scope: Vec<String>,
    functions: Vec<Function<'a>>,
}

impl<'a> FunctionVisitor<'a> {
    fn add(&mut self, signature: &'a Signature, body: Option<&'a Block>, is_public: bool) {
        let mut name = self.scope.clone();
        name.push(signature.ident.to_string());
        self.functions.push(Function {
            name: name.join("::"),
            signature,
            body,
            is_public,
        });
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.scope.push(name);
        visit(self);
        self.scope.pop();
    }
}

impl<'a> Visit<'a> for FunctionVisitor<'a> {
    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        self.within(module.ident.to_string(), |this| {
            visit::visit_item_mod(this, module);
        });
    }

    fn visit_item_impl(&mut self, block: &'a ItemImpl) {
        self.within(type_name(&block.self_ty), |this| {
            visit::visit_item_impl(this, block);
        });
    }

    fn visit_item_trait(&mut self, item: &'a ItemTrait) {
        let is_public = matches!(item.vis, Visibility::Public(_));
        self.within(item.ident.to_string(), |this| {
            for member in &item.items {
                if let syn::TraitItem::Fn(TraitItemFn { sig, default, .. }) = member {
                    this.add(sig, default.as_ref(), is_public);
                }
            }
        });
    }

    fn visit_item_fn(&mut self, function: &'a ItemFn) {
        self.add(
            &function.sig,
            Some(&function.block),
            matches!(function.vis, Visibility::Public(_)),
        );
        self.within(function.sig.ident.to_string(), |this| {
            visit::visit_item_fn(this, function);
        });
    }

    fn visit_impl_item_fn(&mut self, function: &'a ImplItemFn) {
        self.add(
            &function.sig,
            Some(&function.block),
            matches!(function.vis, Visibility::Public(_)),
        );
        self.within(function.sig.ident.to_string(), |this| {
            visit::visit_impl_item_fn(this, function);
        });
    }
}

/// The last path segment of a type, which is what a reader calls it.
fn type_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path
            .path
            .segments
            .last()
            .map(|last| last.ident.to_string())
            .unwrap_or_default(),
        Type::Reference(reference) => type_name(&reference.elem),
        _ => "_".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::samples::sample;

    fn rules(text: &str) -> Vec<(&'static str, String)> {
        check(&sample(text))
            .into_iter()
            .map(|violation| (violation.rule, violation.item))
            .collect()
    }

    #[test]
    fn private_functions_and_other_types_may_be() {
        let passing = [
            "fn f(flag: bool) {}",
            "pub fn f(flag: Flag, values: &[bool]) -> bool { true }",
            "impl From<bool> for S { fn from(value: bool) -> S { S } }",
            "trait T { fn f(flag: bool); }",
            "pub fn f(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8) {}",
        ];
        for text in passing {
            assert_eq!(rules(text), [], "{text}");
        }
    }

    #[test]
    fn a_bool_in_a_public_function_fails_with_its_name() {
        let rows = [
            ("pub fn f(flag: bool) {}", "f"),
            (
                "impl Map<T> { pub fn set(&mut self, flag: bool) {} }",
                "Map::set",
            ),
            ("pub trait T { fn f(flag: bool); }", "T::f"),
            ("mod m { pub fn f(flag: bool) {} }", "m::f"),
        ];
        for (text, name) in rows {
            assert_eq!(rules(text), [(BOOL_RULE, name.to_owned())], "{text}");
        }
    }

    #[test]
    fn a_seventh_parameter_fails_also_in_a_private_function() {
        let text = "fn f(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) {}";
        assert_eq!(rules(text), [(COUNT_RULE, "f".to_owned())]);
    }
}
