//! Procedural macros of the Vellum guest library.
//!
//! Guests use them through `vellum_guest`, which re-exports both. They expand to paths below `::vellum_guest`, so a
//! guest must know that crate by its own name.

mod guest_function;
mod host_functions;
mod parameter;

use proc_macro::TokenStream;

/// Exports a function to the host.
///
/// The function stays as it is and can be called from the guest as before. Beside it the macro puts an entry into
/// the table of exports, under the function's own name or that of `#[guest_function(name = "...")]`, and a thunk that
/// decodes the arguments.
///
/// ```ignore
/// #[guest_function]
/// fn add(a: i32, b: i32) -> i32 {
///     a + b
/// }
///
/// #[guest_function(name = "parse")]
/// fn parse_number(text: &str) -> Result<u64, core::num::ParseIntError> {
///     text.parse()
/// }
/// ```
///
/// The types of parameters and results are listed in the documentation of `vellum_guest`.
#[proc_macro_attribute]
pub fn guest_function(attribute: TokenStream, item: TokenStream) -> TokenStream {
    guest_function::expand(attribute.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Declares functions that the host offers.
///
/// Each becomes a Rust function of the same name that returns `Result<T, vellum_guest::HostError>`. The host
/// refuses to load a guest whose declarations it cannot satisfy.
///
/// ```ignore
/// #[host_functions]
/// extern "host" {
///     /// Adds on the host's side.
///     fn host_add(a: i32, b: i32) -> i32;
///     pub fn store(key: &str, value: &[u8]);
///     /// Costs no exit.
///     #[one_way]
///     fn audit(what: &str);
/// }
/// ```
///
/// A function marked `#[one_way]` has no answer. The host runs it when the guest leaves next, in order with the other calls, with
/// log records and metrics; an error means that the call was not made.
#[proc_macro_attribute]
pub fn host_functions(attribute: TokenStream, item: TokenStream) -> TokenStream {
    host_functions::expand(&attribute.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
