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

/// The ELF note that marks a Vellum guest.
#[doc(hidden)]
#[macro_export]
macro_rules! __note {
    () => {
        #[used]
        #[unsafe(link_section = ".note.vellum")]
        static __VELLUM_NOTE: $crate::abi::note::Note = $crate::abi::note::Note::AMD64_USER;
    };
}

/// `_start`, and what else has to be assembly.
///
/// The host enters with RDI = PEB, RSP = top of the stack, 16-byte aligned (System V ABI for amd64, section 3.2.2,
/// wants that before a call), DF clear.
#[doc(hidden)]
#[macro_export]
macro_rules! __start {
    () => {
        ::core::arch::global_asm!(
            // The linker defines these where the sections exist; a guest may lack either.
            ".weak __start_vellum_functions",
            ".weak __stop_vellum_functions",
            ".weak __start_vellum_imports",
            ".section .text._start, \"ax\", @progbits",
            ".globl _start",
            ".type _start, @function",
            ".p2align 4",
            "_start:",
            // Outermost frame: a debugger stops here.
            "    xor ebp, ebp",
            // Second to fourth argument: the tables' bounds. The first, the PEB, is in RDI already.
            "    movabs rsi, offset __start_vellum_functions",
            "    movabs rdx, offset __stop_vellum_functions",
            "    movabs rcx, offset __start_vellum_imports",
            // RSP is 16-byte aligned here, as it must be before a call.
            "    call {start}",
            // __vellum_start does not return.
            "    ud2",
            ".size _start, . - _start",
            // `core` and `alloc` come compiled with unwind tables that name these; with panic = "abort" nothing
            // calls them.
            ".globl rust_eh_personality",
            ".type rust_eh_personality, @function",
            "rust_eh_personality:",
            ".globl _Unwind_Resume",
            ".type _Unwind_Resume, @function",
            "_Unwind_Resume:",
            "    ud2",
            ".size rust_eh_personality, . - rust_eh_personality",
            ".size _Unwind_Resume, . - _Unwind_Resume",
            ".text",
            start = sym __vellum_start,
        );
    };
}
