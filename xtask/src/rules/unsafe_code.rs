//! Unsafe code is opted into with a reason, and every unsafe block says why it is sound.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{
    Attribute, ExprUnsafe, ItemForeignMod, ItemImpl, ItemMod, ItemTrait, Macro, Meta, Signature,
};

use super::source::SourceFile;
use super::{Violation, tokens};

const COMMENT_RULE: &str = "unsafe-comment";
const OPT_IN_RULE: &str = "unsafe-opt-in";

/// Lists every unsafe block and unsafe impl without a `SAFETY:` comment.
pub(super) fn check_comments(file: &SourceFile) -> Vec<Violation> {
    let lines: Vec<&str> = file.text.lines().collect();
    let uses = UnsafeUses::of(file);
    let missing = uses
        .need_comment
        .iter()
        .filter(|line| !has_safety_comment(&lines, **line));
    missing
        .map(|line| Violation {
            path: file.path.clone(),
            line: *line,
            rule: COMMENT_RULE,
            item: String::new(),
            message:
                "unsafe without a SAFETY comment that lists the preconditions and who upholds each"
                    .to_owned(),
        })
        .collect()
}

/// The guest programs are the sandboxed side and misbehave on purpose; their workspace does not deny unsafe code.
const GUEST_PROGRAMS: &str = "guests/";

/// Lists every file with unsafe code that neither it nor a module above it opts into with a reason.
pub(super) fn check_opt_in(files: &[SourceFile]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let uses: Vec<UnsafeUses> = files.iter().map(UnsafeUses::of).collect();
    let covered: Vec<String> = uses
        .iter()
        .flat_map(|uses| uses.opted_in_files.clone())
        .collect();
    for (file, uses) in files.iter().zip(&uses) {
        for line in &uses.opt_ins_without_reason {
            violations.push(opt_in_violation(
                file,
                *line,
                "unsafe_code is opted into without a reason",
            ));
        }
        let is_covered =
            uses.has_opt_in || covered.iter().any(|prefix| is_below(&file.path, prefix));
        let is_guest = file.path.starts_with(GUEST_PROGRAMS);
        if let (Some(line), false) = (uses.first, is_covered || is_guest) {
            let message = "unsafe code in a file that has no #[expect(unsafe_code, reason = ..)]";
            violations.push(opt_in_violation(file, line, message));
        }
    }
    violations
}

fn opt_in_violation(file: &SourceFile, line: usize, message: &str) -> Violation {
    Violation {
        path: file.path.clone(),
        line,
        rule: OPT_IN_RULE,
        item: String::new(),
        message: message.to_owned(),
    }
}

/// Whether `path` is the module file `module.rs`, `module/mod.rs` or lies below `module/`.
fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Whether a comment with `SAFETY:` stands on the line (from 1), just inside, or above its statement.
fn has_safety_comment(lines: &[&str], line: usize) -> bool {
    let is_safety = |text: &str| {
        text.split_once("//")
            .is_some_and(|(_, comment)| comment.contains("SAFETY:"))
    };
    if lines[line - 1..].iter().take(2).any(|text| is_safety(text)) {
        return true;
    }
    for text in lines[..line - 1].iter().rev().map(|text| text.trim()) {
        if text.starts_with("//") || text.starts_with("#[") {
            if is_safety(text) {
                return true;
            }
        } else if text.is_empty() || text.ends_with([';', '}', '{']) {
            // The statement that holds the block begins after this line.
            return false;
        }
    }
    false
}

/// What a file says about unsafe code.
#[derive(Default)]
struct UnsafeUses {
    /// The first line with unsafe code.
    first: Option<usize>,
    /// Lines of the blocks and impls that need a comment.
    need_comment: Vec<usize>,
    has_opt_in: bool,
    opt_ins_without_reason: Vec<usize>,
    /// Module files, without `.rs`, that this file opts in: its children or a declared module.
    opted_in_files: Vec<String>,
    /// Path of this file's child modules, without the slash at the end.
    directory: String,
}

impl UnsafeUses {
    fn of(file: &SourceFile) -> Self {
        let mut uses = Self {
            directory: child_directory(&file.path),
            ..Self::default()
        };
        if file.syntax.attrs.iter().any(is_opt_in) {
            uses.opted_in_files.push(uses.directory.clone());
        }
        uses.visit_file(&file.syntax);
        uses
    }

    fn add(&mut self, line: usize) {
        self.first = Some(self.first.map_or(line, |first| first.min(line)));
    }

    fn add_block(&mut self, line: usize) {
        self.add(line);
        self.need_comment.push(line);
    }

    fn add_macro_tokens(&mut self, contents: &TokenStream) {
        tokens::walk(contents, &mut |run| {
            for pair in run.windows(2) {
                let [word, TokenTree::Group(group)] = pair else {
                    continue;
                };
                if tokens::is_ident(word, "unsafe") && group.delimiter() == Delimiter::Brace {
                    // The crate that expands the macro opts in, so this is no use of unsafe code by this file.
                    self.need_comment.push(word.span().start().line);
                }
            }
            for attribute in tokens::attributes(run) {
                if let Ok(meta) = syn::parse2::<Meta>(attribute.stream()) {
                    self.add_lint_level(&meta, attribute.span().start().line);
                }
            }
        });
    }

    fn add_lint_level(&mut self, meta: &Meta, line: usize) {
        let Some(contents) = lint_level_of_unsafe_code(meta) else {
            return;
        };
        self.has_opt_in = true;
        if !contents.contains("reason") {
            self.opt_ins_without_reason.push(line);
        }
    }
}

/// The contents of an `expect(unsafe_code, ..)` or `allow(unsafe_code, ..)`.
fn lint_level_of_unsafe_code(meta: &Meta) -> Option<String> {
    let Meta::List(list) = meta else { return None };
    let is_level = list.path.is_ident("expect") || list.path.is_ident("allow");
    let names_it = list
        .tokens
        .clone()
        .into_iter()
        .any(|token| tokens::is_ident(&token, "unsafe_code"));
    (is_level && names_it).then(|| list.tokens.to_string())
}

fn is_opt_in(attribute: &Attribute) -> bool {
    lint_level_of_unsafe_code(&attribute.meta).is_some()
}

/// Where the child modules of a file live: beside a crate root or `mod.rs`, else in a directory of its name.
fn child_directory(path: &str) -> String {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    match stem.rsplit_once('/') {
        Some((parent, "lib" | "main" | "mod")) => parent.to_owned(),
        _ => stem.to_owned(),
    }
}

impl<'ast> Visit<'ast> for UnsafeUses {
    fn visit_expr_unsafe(&mut self, block: &'ast ExprUnsafe) {
        self.add_block(block.unsafe_token.span().start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        if let Some(word) = &block.unsafety {
            self.add_block(word.span().start().line);
        }
        visit::visit_item_impl(self, block);
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        if let Some(word) = &item.unsafety {
            self.add(word.span().start().line);
        }
        visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, block: &'ast ItemForeignMod) {
        if let Some(word) = &block.unsafety {
            self.add(word.span().start().line);
        }
        visit::visit_item_foreign_mod(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        if let Some(word) = &signature.unsafety {
            self.add(word.span().start().line);
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if module.attrs.iter().any(is_opt_in) {
            self.opted_in_files
                .push(format!("{}/{}", self.directory, module.ident));
        }
        visit::visit_item_mod(self, module);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let line = attribute.span().start().line;
        if matches!(&attribute.meta, Meta::List(list) if list.path.is_ident("unsafe")) {
            self.add(line);
        }
        self.add_lint_level(&attribute.meta, line);
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        self.add_macro_tokens(&invocation.tokens);
    }
}

#[cfg(test)]
mod tests;
