//! The `entry!` macro.

/// Makes the program a guest: entry point, panic handler, heap, and the symbols that compiled code expects.
///
/// `entry!()` goes at the top level of the guest's `main.rs`, once. `entry!(init)` also runs the function `init: fn()`
/// before the guest reports that it is ready; snapshots taken then hold its work. `init` cannot call the host.
#[macro_export]
macro_rules! entry {
    () => {
        $crate::entry!(::core::convert::identity::<()>, ());
    };
    ($init:path) => {
        $crate::entry!($init,);
    };
    ($init:path, $($argument:tt)*) => {
        $crate::__note!();
        $crate::__memory_routines!("");
        $crate::__program!($crate::rt::start, $init, $($argument)*);
    };
}

/// Makes the program a kernel with paging: as [`entry!`](crate::entry), in ring 0 on page tables that the host has built, with
/// exceptions handled by this library. See [`kernel`](crate::kernel).
///
/// Built for x86-64 it is an amd64 kernel, for 32-bit x86 an i686 paged one. Either must be compiled for a target without vector
/// registers and, on x86-64, without a red zone, because exceptions save neither.
#[macro_export]
macro_rules! kernel_entry {
    () => {
        $crate::kernel_entry!(::core::convert::identity::<()>, ());
    };
    ($init:path) => {
        $crate::kernel_entry!($init,);
    };
    ($init:path, $($argument:tt)*) => {
        $crate::__kernel_note!();
        $crate::__kernel_memory_routines!("");
        $crate::__program!($crate::rt::start_kernel, $init, $($argument)*);
    };
}

/// What all guests have: the first instructions, heap, panic handler, the way to the first call.
#[doc(hidden)]
#[macro_export]
macro_rules! __program {
    ($start:path, $init:path, $($argument:tt)*) => {
        $crate::__start!();

        #[global_allocator]
        static __VELLUM_HEAP: $crate::rt::Heap = $crate::rt::Heap::new();

        #[panic_handler]
        fn __vellum_panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::rt::report_panic(info)
        }

        /// The first Rust code of the guest.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn __vellum_start(
            peb: *const $crate::abi::peb::Peb,
            functions_start: *const $crate::rt::Export,
            functions_end: *const $crate::rt::Export,
            imports_start: *const $crate::rt::Import,
        ) -> ! {
            // SAFETY: `_start` passes the host's PEB and the bounds that the linker gave to the tables; nothing has
            // run before it.
            unsafe { $start(peb, [functions_start, functions_end], imports_start) };
            $init($($argument)*);
            $crate::rt::idle()
        }
    };
}
