//! The tables of exported and imported functions in the guest's ELF.
//!
//! A guest has two sections of [`FunctionEntry`] arrays: [`EXPORTS_SECTION`] with the functions that the host may
//! call, and [`IMPORTS_SECTION`] with the host functions that the guest needs. The place of an entry in its section
//! is the function's index in messages. Both sections are allocated and read-only. The host reads them from the
//! file, once, with the addresses already final (guests are linked statically at fixed addresses).

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::message::MAX_SLOTS;
use crate::value::ValueType;

/// ELF section with the functions that the guest exports.
pub const EXPORTS_SECTION: &str = "vellum_functions";
/// ELF section with the host functions that the guest imports.
pub const IMPORTS_SECTION: &str = "vellum_imports";
/// Flag of an import: the host function has no answer, and calls of it go through the [outbox](crate::outbox).
pub const FLAG_ONE_WAY: u16 = 1;
/// Longest function name.
pub const MAX_NAME_LEN_BYTES: usize = 128;

/// One function, as it lies in the table.
///
/// This is the raw form with addresses as numbers. Guest code in Rust or C declares the same layout with pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FunctionEntry {
    /// Guest-virtual address of the name, not zero-terminated.
    pub name_ptr: u64,
    /// Length of the name.
    pub name_len_bytes: u32,
    /// Number of parameters, at most [`MAX_SLOTS`].
    pub param_count: u8,
    /// [`ValueType`] code of the returned value.
    pub ret: u8,
    /// 0 or [`FLAG_ONE_WAY`].
    pub flags: u16,
    /// [`ValueType`] codes of the parameters; zero past `param_count`.
    pub params: [u8; MAX_SLOTS],
    /// Guest-virtual address of the guest's own call thunk; the host only displays it. 0 for imports.
    pub entry: u64,
}

const _: () = {
    assert!(
        size_of::<FunctionEntry>() == FunctionEntry::LEN_BYTES && align_of::<FunctionEntry>() == 8
    );
    assert!(core::mem::offset_of!(FunctionEntry, name_len_bytes) == 8);
    assert!(core::mem::offset_of!(FunctionEntry, param_count) == 12);
    assert!(core::mem::offset_of!(FunctionEntry, ret) == 13);
    assert!(core::mem::offset_of!(FunctionEntry, params) == 16);
    assert!(core::mem::offset_of!(FunctionEntry, entry) == 32);
};

/// A table or an entry that the ABI does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FunctionError {
    /// The section's length is not a multiple of the entry's.
    #[error(
        "function table has {len_bytes} bytes, not a multiple of {}",
        FunctionEntry::LEN_BYTES
    )]
    TableLength {
        /// Length of the section.
        len_bytes: usize,
    },
    /// More parameters than a message has slots.
    #[error("function has {0} parameters, at most {MAX_SLOTS} are possible")]
    TooManyParameters(
        /// What the entry says.
        u8,
    ),
    /// A parameter has a type code that the ABI does not define.
    #[error("parameter {index} has unknown type code {code}")]
    ParameterType {
        /// Which parameter, from 0.
        index: usize,
        /// Its code.
        code: u8,
    },
    /// The returned value has a type code that the ABI does not define.
    #[error("return value has unknown type code {0}")]
    ReturnType(
        /// Its code.
        u8,
    ),
    /// A flag without meaning, or a parameter past the count, is not zero.
    #[error("function entry has a reserved field that is not zero")]
    ReservedNotZero,
    /// A one-way function that returns something.
    #[error("one-way function returns {0}, must return nothing")]
    OneWayResult(
        /// What it returns.
        ValueType,
    ),
    /// A one-way function that the guest exports; only the host can have such.
    #[error("exported function is declared one-way, which only host functions can be")]
    OneWayExport,
    /// The name is empty or too long.
    #[error("function name has {len_bytes} bytes, allowed are 1 to {MAX_NAME_LEN_BYTES}")]
    NameLength {
        /// Its length.
        len_bytes: usize,
    },
    /// The name has a byte outside printable ASCII without the space.
    #[error("function name has byte {byte:#04x} at {at}, allowed is printable ascii without space")]
    NameByte {
        /// Which byte, from 0.
        at: usize,
        /// Its value.
        byte: u8,
    },
}

impl FunctionEntry {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 40;

    /// The entries of a table section.
    ///
    /// # Errors
    /// The length of `section` is not a multiple of [`Self::LEN_BYTES`].
    pub fn parse_table(
        section: &[u8],
    ) -> Result<impl ExactSizeIterator<Item = Self> + '_, FunctionError> {
        let entries = section.chunks_exact(Self::LEN_BYTES);
        if !entries.remainder().is_empty() {
            return Err(FunctionError::TableLength {
                len_bytes: section.len(),
            });
        }
        Ok(entries.map(|entry| {
            let mut raw = [0; Self::LEN_BYTES];
            raw.copy_from_slice(entry);
            zerocopy::transmute!(raw)
        }))
    }

    /// The function's types.
    ///
    /// # Errors
    /// A count or code is out of range, or a reserved field is not zero.
    pub fn signature(&self) -> Result<Signature, FunctionError> {
        let count = usize::from(self.param_count);
        if count > MAX_SLOTS {
            return Err(FunctionError::TooManyParameters(self.param_count));
        }
        if self.flags & !FLAG_ONE_WAY != 0 || self.params[count..].iter().any(|code| *code != 0) {
            return Err(FunctionError::ReservedNotZero);
        }
        let mut params = [ValueType::Unit; MAX_SLOTS];
        for (index, (param, code)) in params.iter_mut().zip(&self.params[..count]).enumerate() {
            *param = ValueType::try_from(*code)
                .map_err(|_| FunctionError::ParameterType { index, code: *code })?;
        }
        let ret = ValueType::try_from(self.ret).map_err(|_| FunctionError::ReturnType(self.ret))?;
        let is_one_way = self.flags & FLAG_ONE_WAY != 0;
        if is_one_way && ret != ValueType::Unit {
            return Err(FunctionError::OneWayResult(ret));
        }
        Ok(Signature {
            params,
            count,
            ret,
            is_one_way,
        })
    }
}

/// Types of a function.
#[derive(Clone, Copy)]
pub struct Signature {
    params: [ValueType; MAX_SLOTS],
    count: usize,
    ret: ValueType,
    is_one_way: bool,
}

impl Signature {
    /// A signature, or `None` when there are more parameters than slots.
    #[must_use]
    pub fn new(params: &[ValueType], ret: ValueType) -> Option<Self> {
        let mut all = [ValueType::Unit; MAX_SLOTS];
        all.get_mut(..params.len())?.copy_from_slice(params);
        Some(Self {
            params: all,
            count: params.len(),
            ret,
            is_one_way: false,
        })
    }

    /// The signature of a host function that has no answer, or `None` when there are more parameters than slots.
    #[must_use]
    pub fn one_way(params: &[ValueType]) -> Option<Self> {
        Some(Self {
            is_one_way: true,
            ..Self::new(params, ValueType::Unit)?
        })
    }

    /// Whether calls have no answer.
    #[must_use]
    #[inline]
    pub const fn is_one_way(&self) -> bool {
        self.is_one_way
    }

    /// Types of the parameters, in order.
    #[must_use]
    #[inline]
    pub fn params(&self) -> &[ValueType] {
        &self.params[..self.count]
    }

    /// Type of the returned value.
    #[must_use]
    #[inline]
    pub const fn ret(&self) -> ValueType {
        self.ret
    }
}

impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        self.params() == other.params()
            && self.ret == other.ret
            && self.is_one_way == other.is_one_way
    }
}

impl Eq for Signature {}

impl core::fmt::Display for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("(")?;
        for (index, param) in self.params().iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{param}")?;
        }
        if self.is_one_way {
            return f.write_str(") one-way");
        }
        write!(f, ") -> {}", self.ret)
    }
}

impl core::fmt::Debug for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// The bytes of a function name, checked: 1 to [`MAX_NAME_LEN_BYTES`] bytes of printable ASCII without space, so
/// that a name is harmless in a log or on a terminal.
///
/// # Errors
/// The length or a byte is outside these rules.
pub fn check_name(bytes: &[u8]) -> Result<&str, FunctionError> {
    let length = FunctionError::NameLength {
        len_bytes: bytes.len(),
    };
    if bytes.is_empty() || bytes.len() > MAX_NAME_LEN_BYTES {
        return Err(length);
    }
    if let Some(at) = bytes.iter().position(|byte| !byte.is_ascii_graphic()) {
        return Err(FunctionError::NameByte {
            at,
            byte: bytes[at],
        });
    }
    // All bytes are ASCII, so this conversion succeeds.
    core::str::from_utf8(bytes).map_err(|_| length)
}

#[cfg(test)]
mod tests;
