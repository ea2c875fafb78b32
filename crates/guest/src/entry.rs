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
        $crate::__start!();
        $crate::__memory_routines!("");

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
            unsafe { $crate::rt::start(peb, [functions_start, functions_end], imports_start) };
            $init($($argument)*);
            $crate::rt::idle()
        }
    };
}
