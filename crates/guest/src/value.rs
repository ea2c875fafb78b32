//! The Rust types that a call can carry.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display};

use vellum_abi::message::{Argument, ErrorCode, Slot};
use vellum_abi::value::{ValueRef, ValueType};

use crate::dispatch::{Failure, Fetch};

/// A type of a parameter of a guest function, or of what a host function returns.
///
/// ```
/// # use vellum_guest::guest_function;
/// #[guest_function]
/// fn scale(value: u64, text: &str) -> Result<u64, core::num::ParseIntError> {
///     Ok(value * text.parse::<u64>()?)
/// }
/// # fn main() {}
/// ```
///
/// Other types do not compile:
///
/// ```compile_fail,E0277
/// # use vellum_guest::guest_function;
/// #[guest_function]
/// fn scale(value: u8, text: &str) -> u64 {
///     0
/// }
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cross between guest and host",
    note = "possible are bool, i32, u32, i64, u64, f32, f64, String, Vec<u8>, (), and as parameters &str and &[u8]"
)]
pub trait GuestValue: Sized {
    /// The type in the function table.
    const TYPE: ValueType;

    /// The value of an argument of this type.
    #[doc(hidden)]
    fn from_argument(argument: Argument<'_>, fetch: &Fetch<'_>) -> Result<Self, Failure>;

    /// The value that the bits of a slot of this type stand for, if the type is of fixed size and they are one.
    #[doc(hidden)]
    #[inline]
    fn from_bits(_bits: u64) -> Option<Self> {
        None
    }

    /// The value on its way out.
    #[doc(hidden)]
    fn into_outgoing(self) -> Outgoing;
}

/// A type that a guest function can return: a [`GuestValue`], or a `Result` of one with a displayable error.
#[diagnostic::on_unimplemented(
    message = "a guest function cannot return `{Self}`",
    note = "possible are bool, i32, u32, i64, u64, f32, f64, String, Vec<u8>, (), and Results of these whose error has a Display"
)]
pub trait Returned {
    /// The type in the function table.
    const RETURNED_TYPE: ValueType;

    /// The value on its way out, or the failure.
    #[doc(hidden)]
    fn into_answer(self) -> Result<Outgoing, Failure>;
}

/// A type that can be given to a host function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be given to a host function",
    note = "possible are bool, i32, u32, i64, u64, f32, f64, String, &str, Vec<u8>, &[u8]"
)]
pub trait HostArgument {
    /// The type in the function table.
    const ARGUMENT_TYPE: ValueType;

    /// The value, borrowed.
    #[doc(hidden)]
    fn as_value(&self) -> ValueRef<'_>;
}

/// An error of a guest function, with a text for the host.
///
/// Any error type with a `Display` will do; this one is for functions that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestError {
    text: String,
}

/// A value on its way out. Text and bytes are owned, so that they can outlive the function that made them.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// A value of fixed size, as it is in a message.
    Scalar(Slot),
    /// Text.
    String(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Outgoing {
    /// What of it does not lie in a slot.
    pub(crate) fn into_payload(self) -> Option<Vec<u8>> {
        match self {
            Self::Scalar(_) => None,
            Self::String(text) => Some(text.into_bytes()),
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

impl GuestError {
    /// An error with this text. The host sees its first 1024 bytes.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

impl Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for GuestError {}

impl From<crate::HostError> for GuestError {
    fn from(error: crate::HostError) -> Self {
        Self::new(error.to_string())
    }
}

impl<T: GuestValue> Returned for T {
    const RETURNED_TYPE: ValueType = T::TYPE;

    #[inline]
    fn into_answer(self) -> Result<Outgoing, Failure> {
        Ok(self.into_outgoing())
    }
}

impl<T: GuestValue, E: Display> Returned for Result<T, E> {
    const RETURNED_TYPE: ValueType = T::TYPE;

    #[inline]
    fn into_answer(self) -> Result<Outgoing, Failure> {
        self.map(GuestValue::into_outgoing)
            .map_err(|error| Failure::new(ErrorCode::FunctionFailed, error.to_string()))
    }
}

macro_rules! scalar {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl GuestValue for $rust {
            const TYPE: ValueType = ValueType::$variant;

            #[cold]
            fn from_argument(argument: Argument<'_>, _: &Fetch<'_>) -> Result<Self, Failure> {
                match argument {
                    Argument::Value(ValueRef::$variant(value)) => Ok(value),
                    other => Err(Failure::wrong_type(Self::TYPE, other.value_type())),
                }
            }

            #[inline]
            fn from_bits(bits: u64) -> Option<Self> {
                match ValueRef::from_scalar_bits(Self::TYPE, bits) {
                    Some(ValueRef::$variant(value)) => Some(value),
                    _ => None,
                }
            }

            #[inline]
            fn into_outgoing(self) -> Outgoing {
                // Every value of such a type has bits.
                let bits = ValueRef::$variant(self).scalar_bits().unwrap_or_default();
                Outgoing::Scalar(Slot::plain(Self::TYPE, bits))
            }
        }

        impl HostArgument for $rust {
            const ARGUMENT_TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn as_value(&self) -> ValueRef<'_> {
                ValueRef::$variant(*self)
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

impl GuestValue for () {
    const TYPE: ValueType = ValueType::Unit;

    fn from_argument(argument: Argument<'_>, _: &Fetch<'_>) -> Result<Self, Failure> {
        match argument {
            Argument::Value(ValueRef::Unit) => Ok(()),
            other => Err(Failure::wrong_type(Self::TYPE, other.value_type())),
        }
    }

    #[inline]
    fn from_bits(bits: u64) -> Option<Self> {
        (bits == 0).then_some(())
    }

    #[inline]
    fn into_outgoing(self) -> Outgoing {
        Outgoing::Scalar(Slot::plain(Self::TYPE, 0))
    }
}

impl GuestValue for String {
    const TYPE: ValueType = ValueType::String;

    fn from_argument(argument: Argument<'_>, fetch: &Fetch<'_>) -> Result<Self, Failure> {
        match argument {
            Argument::Value(ValueRef::String(text)) => Ok(Self::from(text)),
            Argument::External(external) if external.value_type == Self::TYPE => {
                Self::from_utf8(fetch.bytes(&external)?).map_err(|_| {
                    Failure::new(
                        ErrorCode::MalformedMessage,
                        "string argument is not utf-8".into(),
                    )
                })
            }
            other => Err(Failure::wrong_type(Self::TYPE, other.value_type())),
        }
    }

    fn into_outgoing(self) -> Outgoing {
        Outgoing::String(self)
    }
}

impl GuestValue for Vec<u8> {
    const TYPE: ValueType = ValueType::Bytes;

    fn from_argument(argument: Argument<'_>, fetch: &Fetch<'_>) -> Result<Self, Failure> {
        match argument {
            Argument::Value(ValueRef::Bytes(bytes)) => Ok(Self::from(bytes)),
            Argument::External(external) if external.value_type == Self::TYPE => {
                fetch.bytes(&external)
            }
            other => Err(Failure::wrong_type(Self::TYPE, other.value_type())),
        }
    }

    fn into_outgoing(self) -> Outgoing {
        Outgoing::Bytes(self)
    }
}

macro_rules! borrowed {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl HostArgument for $rust {
            const ARGUMENT_TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn as_value(&self) -> ValueRef<'_> {
                ValueRef::$variant(self)
            }
        }
    )*};
}

borrowed! {
    String => String,
    &str => String,
    &String => String,
    Vec<u8> => Bytes,
    &[u8] => Bytes,
    &Vec<u8> => Bytes,
}
