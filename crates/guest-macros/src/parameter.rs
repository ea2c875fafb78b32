//! Parameters of guest and host functions.

use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, FnArg, Ident, Pat, Result, ReturnType, Signature, Token, Type, parse_quote};

/// Most parameters of a function; the ABI's number of slots.
const MAX_PARAMETERS: usize = 16;

/// A parameter: its name and its type as written.
pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
}

/// How a guest function receives a parameter.
pub(crate) enum Passing {
    /// By value, of this type.
    Owned(Type),
    /// By reference to a value of this type that the thunk owns.
    Borrowed(Type),
}

/// The parameters of a function, by the names that the signature gives, or by number where it gives a pattern.
pub(crate) fn parameters(inputs: &Punctuated<FnArg, Token![,]>) -> Result<Vec<Parameter>> {
    if inputs.len() > MAX_PARAMETERS {
        let text = format!(
            "a function that crosses between guest and host has at most {MAX_PARAMETERS} parameters"
        );
        return Err(Error::new(inputs.span(), text));
    }
    inputs
        .iter()
        .enumerate()
        .map(|(index, input)| parameter(index, input))
        .collect()
}

fn parameter(index: usize, input: &FnArg) -> Result<Parameter> {
    match input {
        FnArg::Receiver(receiver) => Err(Error::new(
            receiver.span(),
            "methods cannot cross between guest and host",
        )),
        FnArg::Typed(typed) => {
            let name = match &*typed.pat {
                Pat::Ident(pattern) => pattern.ident.clone(),
                other => Ident::new(&format!("parameter_{index}"), other.span()),
            };
            Ok(Parameter {
                name,
                ty: (*typed.ty).clone(),
            })
        }
    }
}

/// Refuses signatures that have no meaning across the boundary.
pub(crate) fn check_signature(signature: &Signature) -> Result<()> {
    let refused = [
        (
            signature.asyncness.map(|token| token.span()),
            "an async function cannot cross between guest and host",
        ),
        (
            signature.unsafety.map(|token| token.span()),
            "the other side cannot uphold the contract of an unsafe function",
        ),
        (
            signature.variadic.as_ref().map(Spanned::span),
            "a variadic function cannot cross between guest and host",
        ),
        (
            (!signature.generics.params.is_empty()).then(|| signature.generics.span()),
            "a generic function has no single type to put into the function table",
        ),
    ];
    for (span, text) in refused {
        if let Some(span) = span {
            return Err(Error::new(span, text));
        }
    }
    Ok(())
}

/// How a guest function receives a parameter of type `ty`: `&str` and `&[u8]` borrow from the thunk, all else is owned.
pub(crate) fn passing(ty: &Type) -> Result<Passing> {
    let Type::Reference(reference) = ty else {
        return Ok(Passing::Owned(ty.clone()));
    };
    let refused = || {
        Error::new(
            ty.span(),
            "of references, a guest function can take `&str` and `&[u8]` only",
        )
    };
    if reference.mutability.is_some() {
        return Err(refused());
    }
    match &*reference.elem {
        Type::Path(path) if path.path.is_ident("str") => {
            Ok(Passing::Borrowed(parse_quote!(::vellum_guest::rt::String)))
        }
        Type::Slice(slice) if matches!(&*slice.elem, Type::Path(path) if path.path.is_ident("u8")) => {
            Ok(Passing::Borrowed(parse_quote!(::vellum_guest::rt::Vec<u8>)))
        }
        _ => Err(refused()),
    }
}

/// The returned type; `()` where none is written.
pub(crate) fn returned(output: &ReturnType) -> Type {
    match output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, ty) => (**ty).clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn str_and_byte_slices_are_borrowed_and_the_rest_is_owned() {
        let is_borrowed = |ty: Type| matches!(passing(&ty), Ok(Passing::Borrowed(_)));
        let is_owned = |ty: Type| matches!(passing(&ty), Ok(Passing::Owned(_)));
        assert!(is_borrowed(parse_quote!(&str)));
        assert!(is_borrowed(parse_quote!(&'static [u8])));
        assert!(is_owned(parse_quote!(String)));
        assert!(is_owned(parse_quote!(alloc::vec::Vec<u8>)));
        for refused in [
            parse_quote!(&mut str),
            parse_quote!(&[u16]),
            parse_quote!(&String),
            parse_quote!(&&str),
        ] {
            assert!(passing(&refused).is_err());
        }
    }

    #[test]
    fn signatures_without_a_meaning_are_refused() {
        let refused: [Signature; 3] = [
            parse_quote!(async fn f()),
            parse_quote!(unsafe fn f()),
            parse_quote!(fn f<T>(value: T)),
        ];
        for signature in refused {
            assert!(check_signature(&signature).is_err());
        }
        let accepted: Signature = parse_quote!(fn f(a: i32, (b, c): Pair, _: ()) -> u8);
        assert!(check_signature(&accepted).is_ok());
        let names: Vec<_> = parameters(&accepted.inputs)
            .expect("sound")
            .into_iter()
            .map(|p| p.name.to_string())
            .collect();
        assert_eq!(names, ["a", "parameter_1", "parameter_2"]);
    }

    #[test]
    fn methods_and_long_parameter_lists_are_refused() {
        let method: Signature = parse_quote!(fn f(&self));
        assert!(parameters(&method.inputs).is_err());
        let inputs = |count: usize| -> Punctuated<FnArg, Token![,]> {
            (0..count)
                .map(|_| -> FnArg { parse_quote!(_: i32) })
                .collect()
        };
        assert!(parameters(&inputs(16)).is_ok());
        assert!(parameters(&inputs(17)).is_err());
    }
}
