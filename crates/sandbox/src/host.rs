//! Host functions: closures that a guest may call.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vellum_abi::function::{Signature, check_name};
use vellum_abi::message::{
    ErrorCode, MAX_ERROR_TEXT_LEN_BYTES, MessageHeader, MessageKind, Slot, plain_bits, plain_slots,
};
use vellum_abi::value::ValueType;
use zerocopy::FromBytes;

use crate::error::Failure;
use crate::image::Function;
use crate::metrics::{MetricSink, Metrics};
use crate::value::{FromValue, Value, from_bits};

/// The host functions that sandboxes may call, by name. Cheap to clone; many sandboxes can share one set.
///
/// ```
/// use vellum_sandbox::HostFunctions;
///
/// let host = HostFunctions::new()
///     .with("host_add", |a: i32, b: i32| a + b)
///     .with("host_read", |name: String| std::fs::read(&name).map_err(|error| error.to_string()));
/// assert_eq!(host.names().collect::<Vec<_>>(), ["host_add", "host_read"]);
/// ```
///
/// A closure takes up to six of `bool`, `i32`, `u32`, `i64`, `u64`, `f32`, `f64`, `String` and `Vec<u8>`, and returns one of
/// them, `()`, or a `Result` of one with any error that can be displayed. What it is given comes from a hostile guest. A
/// panic is caught and reported to the guest as an error.
#[derive(Clone, Default)]
pub struct HostFunctions {
    functions: BTreeMap<String, Arc<Registered>>,
    /// The first mistake in building the set, reported when a sandbox is built.
    mistake: Option<Mistake>,
    metrics: Option<Arc<Metrics>>,
}

struct Registered {
    signature: Signature,
    call: Box<Erased>,
    call_plain: Box<ErasedPlain>,
}

/// Names of metrics, unless the embedder says otherwise.
const DEFAULT_METRIC_NAMES: usize = 256;

/// A function whose types are forgotten.
type Erased = dyn Fn(&dyn Incoming) -> Result<Result<Value, String>, Failure> + Send + Sync;
/// The same of one whose arguments and result are of fixed size: from the slots of a message to the bits of the result. `None`, and nothing
/// was called, where the slots hold anything else.
type ErasedPlain = dyn Fn(&[u8]) -> Option<Result<u64, String>> + Send + Sync;

#[derive(Clone, Debug)]
enum Mistake {
    Duplicate(String),
    Name(String),
    OneWayResult(String),
}

/// The arguments of a call, fetched one by one.
pub(crate) trait Incoming {
    /// The argument at a position; its type was checked before.
    fn argument(&self, index: usize) -> Result<Value, Failure>;

    /// The bits of an argument that is of this type of fixed size, if it lies at hand.
    fn scalar_bits(&self, _index: usize, _ty: ValueType) -> Option<u64> {
        None
    }
}

/// The slots of a call with values of fixed size only.
struct PlainSlots<'a>(&'a [u8]);

impl Incoming for PlainSlots<'_> {
    /// Only for an argument that is no sound value of its type.
    #[cold]
    fn argument(&self, _index: usize) -> Result<Value, Failure> {
        Err(Failure::Protocol("an argument of another type"))
    }

    #[inline]
    fn scalar_bits(&self, index: usize, ty: ValueType) -> Option<u64> {
        plain_bits(self.0, index, ty)
    }
}

impl HostFunctions {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function. A name that is taken already, empty, longer than 128 bytes or not printable ASCII is reported when
    /// a sandbox is built with the set.
    #[must_use]
    pub fn with<Args, F: HostFunction<Args>>(self, name: impl Into<String>, function: F) -> Self {
        self.register(name.into(), F::signature(), function)
    }

    fn register<Args, F: HostFunction<Args>>(
        mut self,
        name: String,
        signature: Signature,
        function: F,
    ) -> Self {
        if check_name(name.as_bytes()).is_err() {
            self.mistake.get_or_insert(Mistake::Name(name));
            return self;
        }
        let function = Arc::new(function);
        let registered = Registered {
            signature,
            call: Box::new({
                let function = function.clone();
                move |incoming: &dyn Incoming| function.call(incoming)
            }),
            call_plain: Box::new(move |slots: &[u8]| {
                // Arguments are fetched before the function runs, and nothing else fails.
                let result = function.call(&PlainSlots(slots)).ok()?;
                Some(result.and_then(|value| bits_of(&value, F::RETURNS)))
            }),
        };
        let known = self.functions.insert(name.clone(), Arc::new(registered));
        if known.is_some() {
            self.mistake.get_or_insert(Mistake::Duplicate(name));
        }
        self
    }

    /// Adds a function that has no answer: a call costs the guest no exit, and is made when the guest has left the next time, in
    /// order with its log records, metrics and other calls. It returns nothing, or a `Result` of nothing; an error is counted and
    /// logged, and the guest does not learn of it. The guest must declare the function as one-way, too.
    #[must_use]
    pub fn with_one_way<Args, F: HostFunction<Args>>(
        self,
        name: impl Into<String>,
        function: F,
    ) -> Self {
        let name = name.into();
        let answered = F::signature();
        match Signature::one_way(answered.params()) {
            Some(signature) if answered.ret() == ValueType::Unit => {
                self.register(name, signature, function)
            }
            _ => {
                let mut set = self;
                set.mistake.get_or_insert(Mistake::OneWayResult(name));
                set
            }
        }
    }

    /// Hands the numbers that guests report to `sink`, under at most 256 different names over all sandboxes that have the set; what
    /// has yet another name is counted and dropped. Without a sink the numbers lead nowhere.
    #[must_use]
    pub fn with_metrics(self, sink: impl MetricSink + 'static) -> Self {
        self.with_bounded_metrics(DEFAULT_METRIC_NAMES, sink)
    }

    /// As [`with_metrics`](Self::with_metrics), with another bound on the number of names.
    #[must_use]
    pub fn with_bounded_metrics(
        mut self,
        max_names: usize,
        sink: impl MetricSink + 'static,
    ) -> Self {
        self.metrics = Some(Metrics::new(Box::new(sink), max_names));
        self
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    /// Finds what a guest imports, in the order of its import table.
    pub(crate) fn resolve(&self, imports: &[Function]) -> Result<Resolved, Failure> {
        match &self.mistake {
            Some(Mistake::Duplicate(name)) => {
                return Err(Failure::DuplicateHostFunction { name: name.clone() });
            }
            Some(Mistake::Name(name)) => {
                return Err(Failure::HostFunctionName { name: name.clone() });
            }
            Some(Mistake::OneWayResult(name)) => {
                return Err(Failure::OneWayResult { name: name.clone() });
            }
            None => {}
        }
        let functions = imports
            .iter()
            .map(|import| self.find(import))
            .collect::<Result<_, _>>()?;
        Ok(Resolved {
            functions,
            metrics: self.metrics.clone(),
        })
    }

    fn find(&self, import: &Function) -> Result<Arc<Registered>, Failure> {
        let name = import.name().to_owned();
        let wanted = *import.signature();
        let Some(registered) = self.functions.get(&name) else {
            return Err(Failure::MissingHostFunction { name, wanted });
        };
        if registered.signature != wanted {
            return Err(Failure::HostFunctionSignature {
                name,
                wanted,
                given: registered.signature,
            });
        }
        Ok(registered.clone())
    }
}

impl fmt::Debug for HostFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self
            .functions
            .iter()
            .map(|(name, registered)| (name, registered.signature));
        f.debug_map().entries(functions).finish()
    }
}

/// Host functions by index of the guest's import table.
pub(crate) struct Resolved {
    functions: Vec<Arc<Registered>>,
    metrics: Option<Arc<Metrics>>,
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolved({})", self.functions.len())
    }
}

/// What a host function told the guest.
pub(crate) type Answer = Result<Value, (ErrorCode, String)>;
/// The same to a call with values of fixed size only: a result of fixed size, as it is in a message, or any other answer.
pub(crate) type PlainAnswer = Result<Slot, Answer>;

impl Resolved {
    /// Where the guest's numbers go.
    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_deref()
    }

    /// The signature of an import.
    pub(crate) fn signature(&self, index: u32) -> Option<&Signature> {
        Some(&self.functions.get(index as usize)?.signature)
    }

    /// Calls the import that a message asks for, if it is an import with an answer and the message has nothing but its arguments, all of fixed
    /// size: most calls. `None` says only that the message must be looked at more closely; nothing was called then.
    #[inline]
    pub(crate) fn call_plain(&self, message: &[u8]) -> Option<(u32, PlainAnswer)> {
        let (header, _) = MessageHeader::read_from_prefix(message).ok()?;
        let function = self.functions.get(header.function as usize)?;
        let signature = &function.signature;
        let count = signature.params().len();
        let slots = plain_slots(message, MessageKind::HostCall, header.function, count)?;
        if signature.is_one_way() {
            return None;
        }
        Some((header.function, function.call_plain(slots)?))
    }

    /// Calls an import whose arguments have the right types.
    pub(crate) fn call(&self, index: u32, incoming: &dyn Incoming) -> Result<Answer, Failure> {
        match self.functions.get(index as usize) {
            Some(function) => function.call(incoming),
            None => Ok(Err((
                ErrorCode::UnknownFunction,
                format!("no host function {index}"),
            ))),
        }
    }
}

impl Registered {
    /// Calls the function. A panic ends here.
    fn call(&self, incoming: &dyn Incoming) -> Result<Answer, Failure> {
        match catch_unwind(AssertUnwindSafe(|| (self.call)(incoming))) {
            Ok(Ok(Ok(value))) => Ok(Ok(value)),
            Ok(Ok(Err(text))) => Ok(Err(failed(text))),
            Ok(Err(failure)) => Err(failure),
            Err(panic) => Ok(Err(panicked(panic.as_ref()))),
        }
    }

    /// Calls the function if the slots hold what it takes. A panic ends here.
    #[inline]
    fn call_plain(&self, slots: &[u8]) -> Option<PlainAnswer> {
        if self.signature.ret().is_variable() {
            return self.call(&PlainSlots(slots)).ok().map(Err);
        }
        match catch_unwind(AssertUnwindSafe(|| (self.call_plain)(slots))) {
            Ok(Some(Ok(bits))) => Some(Ok(Slot::plain(self.signature.ret(), bits))),
            Ok(Some(Err(text))) => Some(Err(Err(failed(text)))),
            Ok(None) => None,
            Err(panic) => Some(Err(Err(panicked(panic.as_ref())))),
        }
    }
}

/// The bits of a result of fixed size, if it is of the type that its function declares.
#[inline]
fn bits_of(value: &Value, declared: ValueType) -> Result<u64, String> {
    let value = value.as_ref();
    match value.scalar_bits() {
        Some(bits) if value.value_type() == declared => Ok(bits),
        _ => Err(format!(
            "the function declares {declared} and returns another type"
        )),
    }
}

#[cold]
fn failed(text: String) -> (ErrorCode, String) {
    (ErrorCode::FunctionFailed, bounded(text))
}

#[cold]
fn panicked(panic: &(dyn Any + Send)) -> (ErrorCode, String) {
    (ErrorCode::FunctionPanicked, panic_text(panic))
}

/// Cuts a text to what a message may carry.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR_TEXT_LEN_BYTES {
        let end = (0..=MAX_ERROR_TEXT_LEN_BYTES)
            .rev()
            .find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    bounded(text.unwrap_or_else(|| "host function panicked".to_owned()))
}

/// A closure that can be a host function. Implemented for `Fn` of up to six arguments.
pub trait HostFunction<Args>: Send + Sync + 'static {
    /// Parameter and return types.
    #[doc(hidden)]
    fn signature() -> Signature;

    /// What it returns.
    #[doc(hidden)]
    const RETURNS: ValueType;

    /// Calls it.
    #[doc(hidden)]
    #[expect(
        private_interfaces,
        private_bounds,
        reason = "implemented and called by this crate only"
    )]
    fn call<I: Incoming + ?Sized>(&self, incoming: &I) -> Result<Result<Value, String>, Failure>;
}

/// A type that a host function can return.
pub trait HostResult {
    /// The type that the guest sees.
    const TYPE: ValueType;

    /// The value, or the text of an error.
    ///
    /// # Errors
    /// The error that the function returned, as text.
    fn into_value(self) -> Result<Value, String>;
}

impl<T: HostResult, E: fmt::Display> HostResult for Result<T, E> {
    const TYPE: ValueType = T::TYPE;

    #[inline]
    fn into_value(self) -> Result<Value, String> {
        self.map_err(|error| error.to_string())?.into_value()
    }
}

macro_rules! host_result {
    ($($rust:ty => $variant:ident),* $(,)?) => {$(
        impl HostResult for $rust {
            const TYPE: ValueType = ValueType::$variant;

            #[inline]
            fn into_value(self) -> Result<Value, String> {
                Ok(Value::$variant(self))
            }
        }
    )*};
}

host_result! {
    bool => Bool,
    i32 => I32,
    u32 => U32,
    i64 => I64,
    u64 => U64,
    f32 => F32,
    f64 => F64,
    String => String,
    Vec<u8> => Bytes,
}

impl HostResult for () {
    const TYPE: ValueType = ValueType::Unit;

    #[inline]
    fn into_value(self) -> Result<Value, String> {
        Ok(Value::Unit)
    }
}

#[inline]
fn fetch<T: FromValue, I: Incoming + ?Sized>(incoming: &I, index: usize) -> Result<T, Failure> {
    if !T::TYPE.is_variable()
        && let Some(bits) = incoming.scalar_bits(index, T::TYPE)
        && let Some(value) = from_bits(bits)
    {
        return Ok(value);
    }
    T::from_value(incoming.argument(index)?)
        .ok_or_else(|| Failure::Protocol("an argument changed its type"))
}

macro_rules! host_function {
    ($($name:ident $index:tt),*) => {
        impl<Function, Output, $($name),*> HostFunction<($($name,)*)> for Function
        where
            Function: Fn($($name),*) -> Output + Send + Sync + 'static,
            Output: HostResult,
            $($name: FromValue,)*
        {
            fn signature() -> Signature {
                let types: &[ValueType] = &[$($name::TYPE),*];
                // Six parameters are fewer than a signature may have.
                Signature::new(types, Output::TYPE).unwrap_or_else(|| unreachable!("at most six parameters"))
            }

            const RETURNS: ValueType = Output::TYPE;

            #[expect(private_interfaces, private_bounds, reason = "implemented and called by this crate only")]
            #[allow(unused_variables, reason = "a function without parameters fetches nothing")]
            #[inline]
            fn call<I: Incoming + ?Sized>(&self, incoming: &I) -> Result<Result<Value, String>, Failure> {
                Ok(self($(fetch::<$name, I>(incoming, $index)?),*).into_value())
            }
        }
    };
}

host_function!();
host_function!(A 0);
host_function!(A 0, B 1);
host_function!(A 0, B 1, C 2);
host_function!(A 0, B 1, C 2, D 3);
host_function!(A 0, B 1, C 2, D 3, E 4);
host_function!(A 0, B 1, C 2, D 3, E 4, F 5);

#[cfg(test)]
mod tests;
