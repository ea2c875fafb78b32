//! Guests: a few instructions each, assembled with this crate.
#![expect(
    unsafe_code,
    reason = "the bytes of assembled guests are read through linker symbols"
)]

use std::fmt;

/// A few instructions, and the text that they were assembled from.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// Its source, one instruction a line.
    pub source: &'static str,
    /// First and last byte, as the linker placed them.
    pub(crate) bounds: fn() -> (*const u8, *const u8),
}

impl Guest {
    /// The assembled bytes.
    pub fn code(&self) -> &'static [u8] {
        let (start, end) = (self.bounds)();
        // SAFETY: `guest!`, which alone makes these values, defines both symbols in one section of read-only data, the end behind
        // the start; the bytes between them are initialised and never written.
        unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("name", &self.name)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Defines a guest: its name, the size of its code segment (16, 32 or 64), and its instructions. A name occurs once in the crate.
macro_rules! guest {
    ($(#[$doc:meta])* $name:ident, $bits:literal, $($line:literal),+ $(,)?) => {
        $(#[$doc])*
        #[expect(unsafe_code, reason = "a guest is assembly, placed between two linker symbols")]
        pub(crate) const $name: $crate::guest::Guest = {
            mod assembled { ::std::arch::global_asm!(
                ".pushsection .rodata.vellum_conformance, \"a\", @progbits",
                concat!(".globl vellum_conformance_", stringify!($name)),
                concat!(".globl vellum_conformance_", stringify!($name), "_end"),
                concat!(".code", $bits),
                concat!("vellum_conformance_", stringify!($name), ":"),
                $($line,)+
                concat!("vellum_conformance_", stringify!($name), "_end:"),
                ".code64",
                ".popsection",
            ); }
            $crate::guest::Guest {
                name: stringify!($name),
                source: concat!($($line, "\n"),+),
                bounds: || {
                    unsafe extern "C" {
                        #[link_name = concat!("vellum_conformance_", stringify!($name))]
                        static START: u8;
                        #[link_name = concat!("vellum_conformance_", stringify!($name), "_end")]
                        static END: u8;
                    }
                    (&raw const START, &raw const END)
                },
            }
        };
    };
}

pub(crate) use guest;

#[cfg(test)]
mod tests;
