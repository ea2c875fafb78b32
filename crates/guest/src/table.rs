//! Function tables, in the form that the linker builds: with pointers.

#![expect(
    unsafe_code,
    reason = "statics that hold pointers need a promise that they can be shared"
)]

use core::mem::offset_of;

use vellum_abi::function::{FLAG_ONE_WAY, FunctionEntry, MAX_NAME_LEN_BYTES};
use vellum_abi::message::MAX_SLOTS;
use vellum_abi::value::ValueType;

use crate::dispatch::{Answer, Incoming};

/// Decodes the arguments of a call, runs the function, hands back what it returned. Made by `#[guest_function]`.
pub type Thunk = fn(Incoming<'_>) -> Answer;

/// A pointer in a table, which has 64 bits for it in either architecture.
#[repr(C, align(8))]
#[derive(Debug)]
struct Wide<P> {
    pointer: P,
    /// Zero, and in 64-bit code nothing.
    high: [u32; HIGH_WORDS],
}

/// 32-bit words between the end of a pointer and 64 bits.
const HIGH_WORDS: usize = (8 - size_of::<usize>()) / 4;

impl<P> Wide<P> {
    const fn new(pointer: P) -> Self {
        Self {
            pointer,
            high: [0; HIGH_WORDS],
        }
    }
}

/// A function in a table: [`FunctionEntry`] with pointers in place of addresses.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    name_ptr: Wide<*const u8>,
    name_len_bytes: u32,
    param_count: u8,
    ret: u8,
    flags: u16,
    params: [u8; MAX_SLOTS],
    thunk: Wide<Option<Thunk>>,
}

const _: () = {
    assert!(size_of::<Entry>() == size_of::<FunctionEntry>());
    assert!(align_of::<Entry>() == align_of::<FunctionEntry>());
    assert!(offset_of!(Entry, name_len_bytes) == offset_of!(FunctionEntry, name_len_bytes));
    assert!(offset_of!(Entry, param_count) == offset_of!(FunctionEntry, param_count));
    assert!(offset_of!(Entry, ret) == offset_of!(FunctionEntry, ret));
    assert!(offset_of!(Entry, flags) == offset_of!(FunctionEntry, flags));
    assert!(offset_of!(Entry, params) == offset_of!(FunctionEntry, params));
    assert!(offset_of!(Entry, thunk) == offset_of!(FunctionEntry, entry));
};

/// A guest function that the host may call; an element of section `vellum_functions`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Export(Entry);

/// A host function that the guest needs; an element of section `vellum_imports`.
#[repr(transparent)]
#[derive(Debug)]
pub struct Import(Entry);

// SAFETY: the pointers lead to the name, which is immutable and lives for ever, and to code.
unsafe impl Sync for Export {}
// SAFETY: as for `Export`.
unsafe impl Sync for Import {}

impl Export {
    /// An export. Fails the build when the name or the number of parameters is not possible.
    #[must_use]
    pub const fn new(
        name: &'static str,
        params: &[ValueType],
        ret: ValueType,
        thunk: Thunk,
    ) -> Self {
        Self(Entry::new(name, params, ret, Some(thunk)))
    }

    /// Number of parameters.
    #[inline]
    pub(crate) const fn param_count(&self) -> usize {
        self.0.param_count as usize
    }

    /// The thunk. Every export has one; a table whose bytes say otherwise was not made by this library.
    #[inline]
    pub(crate) const fn thunk(&self) -> Option<Thunk> {
        self.0.thunk.pointer
    }
}

impl Import {
    /// An import. Fails the build when the name or the number of parameters is not possible.
    #[must_use]
    pub const fn new(name: &'static str, params: &[ValueType], ret: ValueType) -> Self {
        Self(Entry::new(name, params, ret, None))
    }

    /// An import whose calls have no answer. Fails the build as [`new`](Self::new) does.
    #[must_use]
    pub const fn one_way(name: &'static str, params: &[ValueType]) -> Self {
        let mut entry = Entry::new(name, params, ValueType::Unit, None);
        entry.flags = FLAG_ONE_WAY;
        Self(entry)
    }
}

impl Entry {
    const fn new(
        name: &'static str,
        params: &[ValueType],
        ret: ValueType,
        thunk: Option<Thunk>,
    ) -> Self {
        assert!(
            params.len() <= MAX_SLOTS,
            "a function of a guest has at most 16 parameters"
        );
        assert!(
            !name.is_empty() && name.len() <= MAX_NAME_LEN_BYTES,
            "a function name has 1 to 128 bytes"
        );
        let mut codes = [0; MAX_SLOTS];
        let mut index = 0;
        while index < params.len() {
            codes[index] = params[index].code();
            index += 1;
        }
        Self {
            name_ptr: Wide::new(name.as_ptr()),
            // At most 128 and 16, asserted above.
            #[expect(clippy::cast_possible_truncation)]
            name_len_bytes: name.len() as u32,
            #[expect(clippy::cast_possible_truncation)]
            param_count: params.len() as u8,
            ret: ret.code(),
            flags: 0,
            params: codes,
            thunk: Wide::new(thunk),
        }
    }
}
