//! Looking into macro invocations, whose contents the parser leaves as tokens.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Calls `visit` with every run of tokens at every depth of a macro's contents, innermost last.
pub(super) fn walk(tokens: &TokenStream, visit: &mut impl FnMut(&[TokenTree])) {
    let run: Vec<TokenTree> = tokens.clone().into_iter().collect();
    visit(&run);
    for token in &run {
        if let TokenTree::Group(group) = token {
            walk(&group.stream(), visit);
        }
    }
}

/// The attributes (`#[..]` and `#![..]`) in a run of tokens, by their bracket groups.
pub(super) fn attributes(run: &[TokenTree]) -> impl Iterator<Item = &Group> {
    run.iter()
        .enumerate()
        .filter_map(|(index, token)| match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                let is_attribute = match run[..index] {
                    [.., ref hash, ref bang] if is_punct(bang, '!') => is_punct(hash, '#'),
                    [.., ref hash] => is_punct(hash, '#'),
                    [] => false,
                };
                is_attribute.then_some(group)
            }
            _ => None,
        })
}

/// Whether the token is the identifier `name`.
pub(super) fn is_ident(token: &TokenTree, name: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == name)
}

/// Whether the token is the punctuation character `character`.
pub(super) fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}
