//! The types a call can carry.

use thiserror::Error;

/// Type of a parameter or of a returned value, as it is written in tables and slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ValueType {
    /// No value.
    Unit = 0,
    /// `false` or `true`.
    Bool = 1,
    /// 32-bit signed integer.
    I32 = 2,
    /// 32-bit unsigned integer.
    U32 = 3,
    /// 64-bit signed integer.
    I64 = 4,
    /// 64-bit unsigned integer.
    U64 = 5,
    /// IEEE 754 binary32; NaN payloads are carried unchanged.
    F32 = 6,
    /// IEEE 754 binary64; NaN payloads are carried unchanged.
    F64 = 7,
    /// UTF-8 text.
    String = 8,
    /// Bytes of any content.
    Bytes = 9,
}

impl ValueType {
    /// Every type, in order of its code.
    pub const ALL: [Self; 10] = [
        Self::Unit,
        Self::Bool,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::F32,
        Self::F64,
        Self::String,
        Self::Bytes,
    ];

    /// The code that stands for this type in tables and slots.
    #[must_use]
    #[inline]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether values of this type have a length and live outside their slot.
    #[must_use]
    #[inline]
    pub const fn is_variable(self) -> bool {
        matches!(self, Self::String | Self::Bytes)
    }

    /// The type's name in messages to people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unit => "()",
            Self::Bool => "bool",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::String => "string",
            Self::Bytes => "bytes",
        }
    }
}

impl core::fmt::Display for ValueType {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// A type code that the ABI does not define.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0} is not the code of a value type")]
pub struct UnknownType(pub u8);

impl TryFrom<u8> for ValueType {
    type Error = UnknownType;

    #[inline]
    fn try_from(code: u8) -> Result<Self, UnknownType> {
        Self::ALL
            .get(usize::from(code))
            .copied()
            .ok_or(UnknownType(code))
    }
}

/// A value whose text or bytes are borrowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    /// No value.
    Unit,
    /// A truth value.
    Bool(bool),
    /// A 32-bit signed integer.
    I32(i32),
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 64-bit signed integer.
    I64(i64),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A binary32 number.
    F32(f32),
    /// A binary64 number.
    F64(f64),
    /// Text.
    String(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl<'a> ValueRef<'a> {
    /// The value's type.
    #[must_use]
    #[inline]
    pub const fn value_type(&self) -> ValueType {
        match self {
            Self::Unit => ValueType::Unit,
            Self::Bool(_) => ValueType::Bool,
            Self::I32(_) => ValueType::I32,
            Self::U32(_) => ValueType::U32,
            Self::I64(_) => ValueType::I64,
            Self::U64(_) => ValueType::U64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
            Self::String(_) => ValueType::String,
            Self::Bytes(_) => ValueType::Bytes,
        }
    }

    /// The bytes that lie outside the slot: those of a string or of bytes, else none.
    #[must_use]
    #[inline]
    pub const fn payload(&self) -> &'a [u8] {
        match self {
            Self::String(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// The slot bits of a fixed-size value: signed integers sign-extended, everything else zero-extended.
    /// `None` for strings and bytes.
    #[must_use]
    #[inline]
    pub const fn scalar_bits(&self) -> Option<u64> {
        Some(match *self {
            Self::Unit => 0,
            Self::Bool(value) => value as u64,
            Self::I32(value) => i64::cast_unsigned(value as i64),
            Self::U32(value) => value as u64,
            Self::I64(value) => value.cast_unsigned(),
            Self::U64(value) => value,
            Self::F32(value) => value.to_bits() as u64,
            Self::F64(value) => value.to_bits(),
            Self::String(_) | Self::Bytes(_) => return None,
        })
    }

    /// The fixed-size value of type `ty` that `bits` encodes, or `None` when a bit that the type does not use is
    /// set (for `i32`: when the value is not sign-extended) or `ty` is not of fixed size.
    #[must_use]
    #[inline]
    pub fn from_scalar_bits(ty: ValueType, bits: u64) -> Option<ValueRef<'static>> {
        let low = u32::try_from(bits);
        Some(match ty {
            ValueType::Unit if bits == 0 => ValueRef::Unit,
            ValueType::Bool if bits <= 1 => ValueRef::Bool(bits == 1),
            ValueType::I32 => ValueRef::I32(i32::try_from(bits.cast_signed()).ok()?),
            ValueType::U32 => ValueRef::U32(low.ok()?),
            ValueType::I64 => ValueRef::I64(bits.cast_signed()),
            ValueType::U64 => ValueRef::U64(bits),
            ValueType::F32 => ValueRef::F32(f32::from_bits(low.ok()?)),
            ValueType::F64 => ValueRef::F64(f64::from_bits(bits)),
            ValueType::Unit | ValueType::Bool | ValueType::String | ValueType::Bytes => {
                return None;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_type_or_refused() {
        for code in 0..=u8::MAX {
            match ValueType::try_from(code) {
                Ok(ty) => assert_eq!(ty.code(), code),
                Err(error) => assert_eq!((error, code >= 10), (UnknownType(code), true)),
            }
        }
    }

    #[test]
    fn scalars_survive_their_bits() {
        let values = [
            ValueRef::Unit,
            ValueRef::Bool(false),
            ValueRef::Bool(true),
            ValueRef::I32(i32::MIN),
            ValueRef::I32(-1),
            ValueRef::I32(i32::MAX),
            ValueRef::U32(u32::MAX),
            ValueRef::I64(i64::MIN),
            ValueRef::U64(u64::MAX),
            ValueRef::F32(-0.5),
            ValueRef::F64(f64::INFINITY),
        ];
        for value in values {
            let bits = value.scalar_bits().expect("a scalar");
            assert_eq!(
                ValueRef::from_scalar_bits(value.value_type(), bits),
                Some(value)
            );
        }
    }

    #[test]
    fn bits_that_a_type_does_not_use_are_refused() {
        let refused = [
            (ValueType::Unit, 1),
            (ValueType::Bool, 2),
            (ValueType::Bool, 1 << 63),
            (ValueType::I32, 0x8000_0000),
            (ValueType::I32, 0xFFFF_FFFF_7FFF_FFFF),
            (ValueType::U32, 1 << 32),
            (ValueType::F32, 1 << 32),
            (ValueType::String, 0),
            (ValueType::Bytes, 0),
        ];
        for (ty, bits) in refused {
            assert_eq!(ValueRef::from_scalar_bits(ty, bits), None, "{ty} {bits:#x}");
        }
    }

    #[test]
    fn nan_payloads_are_kept() {
        let bits = 0x7FF8_0000_DEAD_BEEF;
        let value = ValueRef::from_scalar_bits(ValueType::F64, bits).expect("any bits are an f64");
        assert_eq!(value.scalar_bits(), Some(bits));
    }
}
