//! Values that cross the VM boundary, and the Rust types that stand for them.

use vellum_abi::message::Slot;
use vellum_abi::value::{ValueRef, ValueType};

/// A value of any type that a function may take or return.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Unit,
    /// `bool`.
    Bool(bool),
    /// `i32`.
    I32(i32),
    /// `u32`.
    U32(u32),
    /// `i64`.
    I64(i64),
    /// `u64`.
    U64(u64),
    /// `f32`.
    F32(f32),
    /// `f64`.
    F64(f64),
    /// A string.
    String(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// Its type.
    pub fn value_type(&self) -> ValueType {
        self.as_ref().value_type()
    }

    /// The same value, borrowed.
    #[inline]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Unit => ValueRef::Unit,
            Self::Bool(value) => ValueRef::Bool(*value),
            Self::I32(value) => ValueRef::I32(*value),
            Self::U32(value) => ValueRef::U32(*value),
            Self::I64(value) => ValueRef::I64(*value),
            Self::U64(value) => ValueRef::U64(*value),
            Self::F32(value) => ValueRef::F32(*value),
            Self::F64(value) => ValueRef::F64(*value),
            Self::String(value) => ValueRef::String(value),
            Self::Bytes(value) => ValueRef::Bytes(value),
        }
    }

    #[inline]
    pub(crate) fn from_ref(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Unit => Self::Unit,
            ValueRef::Bool(value) => Self::Bool(value),
            ValueRef::I32(value) => Self::I32(value),
            ValueRef::U32(value) => Self::U32(value),
            ValueRef::I64(value) => Self::I64(value),
            ValueRef::U64(value) => Self::U64(value),
            ValueRef::F32(value) => Self::F32(value),
            ValueRef::F64(value) => Self::F64(value),
            ValueRef::String(value) => Self::String(value.to_owned()),
            ValueRef::Bytes(value) => Self::Bytes(value.to_owned()),
        }
    }
}

/// A Rust type that can be an argument: `bool`, `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, `&str`, `String`, `&[u8]`, `Vec<u8>`.
pub trait Argument {
    /// The type that the function declares.
    const TYPE: ValueType;

    /// The value, borrowed for the call.
    fn as_value(&self) -> ValueRef<'_>;
}

/// A Rust type that can be a result: those of [`Argument`] that own their data, and `()`.
pub trait FromValue: Sized {
    /// The type that the function declares.
    const TYPE: ValueType;

    /// The value, if it has this type.
    fn from_value(value: Value) -> Option<Self>;
}

/// The value with these bits, if they are one of a type of fixed size.
#[inline]
pub(crate) fn from_bits<T: FromValue>(bits: u64) -> Option<T> {
    let value = ValueRef::from_scalar_bits(T::TYPE, bits)?;
    T::from_value(Value::from_ref(value))
}

macro_rules! scalar {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl Argument for $rust {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn as_value(&self) -> ValueRef<'_> {
                ValueRef::$variant(*self)
            }
        }

        impl FromValue for $rust {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }
        }
    )*};
}

scalar! {
    bool => Bool,
    i32 => I32,
    u32 => U32,
    i64 => I64,
    u64 => U64,
    f32 => F32,
    f64 => F64,
}

macro_rules! variable {
    ($($owned:ty, $borrowed:ty => $variant:ident),* $(,)?) => {$(
        impl Argument for $owned {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn as_value(&self) -> ValueRef<'_> {
                ValueRef::$variant(self)
            }
        }

        impl Argument for &$borrowed {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn as_value(&self) -> ValueRef<'_> {
                ValueRef::$variant(self)
            }
        }

        impl FromValue for $owned {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }
        }
    )*};
}

variable! {
    String, str => String,
    Vec<u8>, [u8] => Bytes,
}

impl FromValue for () {
    const TYPE: ValueType = ValueType::Unit;

    #[inline]
    fn from_value(value: Value) -> Option<Self> {
        matches!(value, Value::Unit).then_some(())
    }
}

/// The arguments of a call: a tuple of up to eight [`Argument`]s.
pub trait Arguments {
    /// Their types, in order.
    const TYPES: &'static [ValueType];

    /// Lends the values to `then`.
    fn with_values<R>(&self, then: impl FnOnce(&[ValueRef<'_>]) -> R) -> R;

    /// Lends the values to `then` as they are in a message, if all are of fixed size.
    #[doc(hidden)]
    #[inline]
    fn with_slots<R>(&self, then: impl FnOnce(Option<&[Slot]>) -> R) -> R {
        then(None)
    }
}

macro_rules! tuple {
    ($($name:ident $index:tt),*) => {
        impl<$($name: Argument),*> Arguments for ($($name,)*) {
            const TYPES: &'static [ValueType] = &[$($name::TYPE),*];

            #[inline]
            fn with_values<R>(&self, then: impl FnOnce(&[ValueRef<'_>]) -> R) -> R {
                then(&[$(self.$index.as_value()),*])
            }

            #[inline]
            fn with_slots<R>(&self, then: impl FnOnce(Option<&[Slot]>) -> R) -> R {
                let slots = || Some([$(Slot::of_scalar(self.$index.as_value())?),*]);
                then(slots().as_ref().map(<[Slot; _]>::as_slice))
            }
        }
    };
}

tuple!();
tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
