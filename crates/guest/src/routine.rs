//! Routines in assembly, as the linker must see them.

/// Defines a routine of assembly lines under each of these names, with `$prefix` before it, in a section of its own, so that the linker
/// leaves it out where nothing calls it. The section has the first name.
#[doc(hidden)]
#[macro_export]
macro_rules! __routine {
    ($prefix:literal, [$first:literal $(, $other:literal)*], $($line:literal,)+) => {
        ::core::arch::global_asm!(
            concat!(".section .text.", $prefix, $first, ", \"ax\", @progbits"),
            concat!(".globl ", $prefix, $first),
            concat!(".type ", $prefix, $first, ", @function"),
            $(
                concat!(".globl ", $prefix, $other),
                concat!(".type ", $prefix, $other, ", @function"),
            )*
            ".p2align 4",
            concat!($prefix, $first, ":"),
            $(concat!($prefix, $other, ":"),)*
            $($line,)+
            concat!(".size ", $prefix, $first, ", . - ", $prefix, $first),
            $(concat!(".size ", $prefix, $other, ", . - ", $prefix, $other),)*
            ".text",
        );
    };
}
