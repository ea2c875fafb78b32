//! The note of i686 kernels with paging. Their memory routines are those of any 32-bit kernel.

/// The ELF note: a 32-bit kernel on page tables that the host has built.
#[doc(hidden)]
#[macro_export]
macro_rules! __kernel_note {
    () => {
        #[used]
        #[unsafe(link_section = ".note.vellum")]
        static __VELLUM_NOTE: $crate::abi::note::Note = $crate::abi::note::Note::I686_PAGED;
    };
}

/// Defines `memcpy` and its family.
#[doc(hidden)]
#[macro_export]
macro_rules! __kernel_memory_routines {
    ($prefix:literal) => {
        $crate::__memory_routines!($prefix);
    };
}
