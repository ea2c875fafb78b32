//! Builds the guests of this repository for tests, examples and benchmarks.
//!
//! The build script does the work; the ELF files are part of this crate, so a test needs no path and no prior step.

#![forbid(unsafe_code)]

/// The Rust guest, `guests/rust-user`: a static ELF.
#[must_use]
pub fn rust_user() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/rust_user.elf"))
}

/// The Rust guest that tells its host things without leaving, `guests/rust-telling`: a static ELF.
#[must_use]
pub fn rust_telling() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/rust_telling.elf"))
}

/// The C guest that does the same, `guests/c-telling`, for amd64: a static ELF, or `None` when there was no C compiler at build time.
#[must_use]
pub fn c_telling() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/c_telling.rs"))
}

/// The same C program as an i686 kernel, or `None` when there was no C compiler for it at build time.
#[must_use]
pub fn i686_telling() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/i686_telling.rs"))
}

/// The C guest, `guests/c-user`: a static ELF, or `None` when there was no C compiler at build time.
#[must_use]
pub fn c_user() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/c_user.rs"))
}

/// The 32-bit C kernel, `guests/c-i686`: a static ELF, or `None` when there was no C compiler for it at build time.
#[must_use]
pub fn i686_c() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/i686_c.rs"))
}

/// The 32-bit Rust kernel without paging, `guests/kernel`: a static ELF, or `None` when there was no Rust toolchain for it at build
/// time. It needs one with the sources of the standard library; the build says what to install.
#[must_use]
pub fn i686_rust() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/i686_rust.rs"))
}

/// The 32-bit Rust kernel on page tables that the host builds, `guests/kernel`: a static ELF, or `None` as for [`i686_rust`].
#[must_use]
pub fn i686_paged() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/i686_paged.rs"))
}

/// The 64-bit Rust kernel, `guests/kernel`: a static ELF, or `None` as for [`i686_rust`].
#[must_use]
pub fn amd64_kernel() -> Option<&'static [u8]> {
    include!(concat!(env!("OUT_DIR"), "/amd64_kernel.rs"))
}
