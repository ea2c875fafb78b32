//! `#[host_functions]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Error, ForeignItem, ForeignItemFn, ItemForeignMod, LitStr, Result};

use crate::parameter::{check_signature, parameters, returned};

pub(crate) fn expand(attribute: &TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new_spanned(
            attribute,
            "this attribute has no options",
        ));
    }
    let block: ItemForeignMod = syn::parse2(item)?;
    if block
        .abi
        .name
        .as_ref()
        .is_none_or(|name| name.value() != "host")
    {
        return Err(Error::new_spanned(
            &block.abi,
            "host functions are declared in `extern \"host\" { ... }`",
        ));
    }
    let functions: Result<Vec<_>> = block.items.iter().map(expand_item).collect();
    let functions = functions?;
    Ok(quote! { #(#functions)* })
}

fn expand_item(item: &ForeignItem) -> Result<TokenStream> {
    match item {
        ForeignItem::Fn(function) => expand_function(function),
        other => Err(Error::new_spanned(other, "the host offers functions only")),
    }
}

fn expand_function(function: &ForeignItemFn) -> Result<TokenStream> {
    let ForeignItemFn {
        attrs, vis, sig, ..
    } = function;
    check_signature(sig)?;
    let parameters = parameters(&sig.inputs)?;
    let returned = returned(&sig.output);
    let is_one_way = attrs.iter().any(is_one_way);
    if is_one_way && !matches!(sig.output, syn::ReturnType::Default) {
        return Err(Error::new_spanned(
            &sig.output,
            "a one-way function has no answer, so it returns nothing",
        ));
    }
    let attrs = attrs
        .iter()
        .filter(|attribute| !self::is_one_way(attribute));
    let identifier = &sig.ident;
    let name = LitStr::new(&identifier.to_string(), identifier.span());
    let names: Vec<_> = parameters.iter().map(|parameter| &parameter.name).collect();
    let types: Vec<_> = parameters.iter().map(|parameter| &parameter.ty).collect();
    let values = quote!(&[#( ::vellum_guest::HostArgument::as_value(&#names) ),*]);
    let parameters = quote!(&[#( <#types as ::vellum_guest::HostArgument>::ARGUMENT_TYPE ),*]);
    let (import, call) = if is_one_way {
        (
            quote!(one_way(#name, #parameters)),
            quote!(::vellum_guest::rt::tell_host(&IMPORT, #values)),
        )
    } else {
        (
            quote!(new(#name, #parameters, <#returned as ::vellum_guest::GuestValue>::TYPE)),
            quote!(::vellum_guest::rt::call_host(&IMPORT, #values)),
        )
    };
    Ok(quote! {
        #(#attrs)*
        #vis fn #identifier(#(#names: #types),*) -> ::core::result::Result<#returned, ::vellum_guest::HostError> {
            #[used]
            #[unsafe(link_section = "vellum_imports")]
            static IMPORT: ::vellum_guest::rt::Import = ::vellum_guest::rt::Import::#import;
            #call
        }
    })
}

/// `#[one_way]`, which marks a function whose calls have no answer.
fn is_one_way(attribute: &Attribute) -> bool {
    attribute.path().is_ident("one_way")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_becomes_a_function_that_can_fail() {
        let block = quote!(
            extern "host" {
                /// Adds.
                pub fn host_add(a: i32, b: &str) -> i32;
            }
        );
        let expanded = expand(&TokenStream::new(), block)
            .expect("sound")
            .to_string();
        for part in [
            "pub fn host_add (a : i32 , b : & str) -> :: core :: result :: Result < i32 , :: vellum_guest :: HostError >",
            "\"vellum_imports\"",
            "\"host_add\"",
            "Adds.",
        ] {
            assert!(expanded.contains(part), "{part} in {expanded}");
        }
    }

    #[test]
    fn a_one_way_declaration_becomes_a_function_that_returns_nothing() {
        let block = quote!(
            extern "host" {
                /// Tells.
                #[one_way]
                fn audit(what: &str);
            }
        );
        let expanded = expand(&TokenStream::new(), block)
            .expect("sound")
            .to_string();
        for part in [
            "fn audit (what : & str) -> :: core :: result :: Result < () , :: vellum_guest :: HostError >",
            "Import :: one_way (\"audit\"",
            "rt :: tell_host",
            "Tells.",
        ] {
            assert!(expanded.contains(part), "{part} in {expanded}");
        }
        assert!(!expanded.contains("[one_way]"), "{expanded}");
    }

    #[test]
    fn other_blocks_items_and_options_are_refused() {
        let none = TokenStream::new();
        for block in [
            quote!(
                extern "C" {
                    fn f();
                }
            ),
            quote!(
                extern "C" {
                    fn f();
                }
            ),
            quote!(
                extern "host" {
                    static X: i32;
                }
            ),
            quote!(
                extern "host" {
                    fn f(values: ...);
                }
            ),
            quote!(
                extern "host" {
                    #[one_way]
                    fn f() -> i32;
                }
            ),
            quote!(
                fn f() {}
            ),
        ] {
            assert!(expand(&none, block.clone()).is_err(), "{block}");
        }
        assert!(
            expand(
                &quote!(option),
                quote!(
                    extern "host" {}
                )
            )
            .is_err()
        );
    }
}
