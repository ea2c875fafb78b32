//! `#[guest_function]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::parse::Parser;
use syn::{Error, ItemFn, LitStr, Result, Type};

use crate::parameter::{Parameter, Passing, check_signature, parameters, passing, returned};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let exported_name = exported_name(attribute)?;
    let function: ItemFn = syn::parse2(item)?;
    check_signature(&function.sig)?;
    let parameters = parameters(&function.sig.inputs)?;
    let identifier = &function.sig.ident;
    let name =
        exported_name.unwrap_or_else(|| LitStr::new(&identifier.to_string(), identifier.span()));
    let entry = entry(
        &name,
        identifier,
        &parameters,
        &returned(&function.sig.output),
    )?;
    Ok(quote! { #function #entry })
}

/// The name in `#[guest_function(name = "...")]`, if there is one.
fn exported_name(attribute: TokenStream) -> Result<Option<LitStr>> {
    let mut name: Option<LitStr> = None;
    let parser = syn::meta::parser(|meta| {
        if !meta.path.is_ident("name") {
            return Err(meta.error("the one option is `name = \"...\"`"));
        }
        name = Some(meta.value()?.parse()?);
        Ok(())
    });
    parser.parse2(attribute)?;
    if let Some(name) = &name
        && (name.value().is_empty() || !name.value().bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(Error::new(
            name.span(),
            "a function name is printable ASCII without space, and not empty",
        ));
    }
    Ok(name)
}

/// The thunk and the table entry.
fn entry(
    name: &LitStr,
    function: &syn::Ident,
    parameters: &[Parameter],
    returned: &Type,
) -> Result<TokenStream> {
    let (mut types, mut names, mut lent) = (Vec::new(), Vec::new(), Vec::new());
    for (index, parameter) in parameters.iter().enumerate() {
        let name = format_ident!("argument_{index}");
        match passing(&parameter.ty)? {
            Passing::Owned(ty) => {
                types.push(ty);
                lent.push(quote!(#name));
            }
            Passing::Borrowed(ty) => {
                types.push(ty);
                lent.push(quote!(&#name));
            }
        }
        names.push(name);
    }
    Ok(quote! {
        const _: () = {
            #[allow(unused_mut, reason = "a function without parameters takes nothing")]
            fn thunk(mut incoming: ::vellum_guest::rt::Incoming<'_>) -> ::vellum_guest::rt::Answer {
                #( let #names: #types = incoming.take()?; )*
                // The function may call the host, which overwrites what `incoming` refers to.
                incoming.end();
                #[allow(clippy::unit_arg, clippy::let_unit_value, reason = "the type is the author's")]
                ::vellum_guest::Returned::into_answer(#function(#(#lent),*))
            }

            #[used]
            #[unsafe(link_section = "vellum_functions")]
            static ENTRY: ::vellum_guest::rt::Export = ::vellum_guest::rt::Export::new(
                #name,
                &[#( <#types as ::vellum_guest::GuestValue>::TYPE ),*],
                <#returned as ::vellum_guest::Returned>::RETURNED_TYPE,
                thunk,
            );
        };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_function_stays_and_an_entry_joins_it() {
        let function = quote!(
            fn add(a: i32, text: &str) -> i32 {
                1
            }
        );
        let expanded = expand(TokenStream::new(), function.clone())
            .expect("sound")
            .to_string();
        assert!(expanded.starts_with(&function.to_string()));
        for part in [
            "\"add\"",
            "add (argument_0 , & argument_1)",
            "\"vellum_functions\"",
        ] {
            assert!(expanded.contains(part), "{part} in {expanded}");
        }
    }

    #[test]
    fn the_exported_name_can_be_chosen() {
        let expanded = expand(
            quote!(name = "other"),
            quote!(
                fn add() {}
            ),
        )
        .expect("sound")
        .to_string();
        assert!(expanded.contains("Export :: new (\"other\""), "{expanded}");
    }

    #[test]
    fn wrong_options_names_and_items_are_refused() {
        let function = quote!(
            fn f() {}
        );
        let attributes = [
            quote!(rename = "x"),
            quote!(name = 3),
            quote!(name = ""),
            quote!(name = "a b"),
            quote!(name),
        ];
        for attribute in attributes {
            assert!(
                expand(attribute.clone(), function.clone()).is_err(),
                "{attribute}"
            );
        }
        assert!(
            expand(
                TokenStream::new(),
                quote!(
                    struct NotAFunction;
                )
            )
            .is_err()
        );
    }
}
