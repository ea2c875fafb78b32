//! Calls of a sandbox: typed ones, dynamic ones, and going on with one that a snapshot was taken in.

use vellum_abi::function::Signature;
use vellum_abi::message::Slot;
use vellum_abi::value::{ValueRef, ValueType};

use super::{Health, Sandbox};
use crate::call::{CallOptions, Phase, ReplyBytes, Session};
use crate::error::{Error, Failure};
use crate::guest_fn::GuestFn;
use crate::snapshot::Suspension;
use crate::value::{Arguments, FromValue, Value};

impl Sandbox {
    /// Goes on behind the point at which the guest asked for the snapshot that the sandbox stands on, and returns what the
    /// interrupted call returns; nothing, `()`, for the guest's initialisation.
    ///
    /// A guest may read small arguments of that call as before. Large ones, which it fetches from the host, it must have fetched.
    ///
    /// # Errors
    /// [`ErrorKind::Suspended`](crate::ErrorKind::Suspended) when the guest is not suspended,
    /// [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch) when the call returns another type; else as [`GuestFn::call`].
    pub fn resume<Ret: FromValue>(&mut self, options: &CallOptions) -> Result<Ret, Error> {
        let returns = self.suspended_in()?.1;
        if returns != Ret::TYPE {
            return Err(Failure::ResumeType {
                expected: Ret::TYPE,
                actual: returns,
            }
            .into());
        }
        let value = self.resume_dynamic(options)?;
        Ok(Ret::from_value(value)
            .ok_or_else(|| Failure::Protocol("a checked value has another type"))?)
    }

    /// [`resume`](Self::resume) for a call whose type is known at run time only.
    ///
    /// # Errors
    /// As [`resume`](Self::resume), but for types.
    pub fn resume_dynamic(&mut self, options: &CallOptions) -> Result<Value, Error> {
        let (phase, returns) = self.suspended_in()?;
        match phase {
            Phase::Booting => {
                self.boot(options)?;
                Ok(Value::Unit)
            }
            Phase::Calling { function } => {
                self.enter(phase, options, |session| session.resume(function, returns))
            }
        }
    }

    /// What the guest is in the middle of, and what that returns.
    fn suspended_in(&self) -> Result<(Phase, ValueType), Failure> {
        match (self.health, self.suspension()) {
            (Health::Suspended(phase), Some(Suspension::Booting)) => Ok((phase, ValueType::Unit)),
            (Health::Suspended(phase), Some(Suspension::Calling(function))) => {
                Ok((phase, function.signature().ret()))
            }
            (Health::Dirty, _) => Err(Failure::NeedsRestore),
            (Health::Dead, _) => Err(Failure::Unusable),
            _ => Err(Failure::NotSuspended),
        }
    }

    /// Runs the guest's initialisation.
    pub(crate) fn boot(&mut self, options: &CallOptions) -> Result<(), Error> {
        self.enter(Phase::Booting, options, Session::boot)
    }

    /// Finds an exported function and checks its types.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFunction`](crate::ErrorKind::UnknownFunction) or
    /// [`ErrorKind::TypeMismatch`](crate::ErrorKind::TypeMismatch).
    pub fn function<Args: Arguments, Ret: FromValue>(
        &self,
        name: &str,
    ) -> Result<GuestFn<Args, Ret>, Error> {
        let index = self.check(name, Args::TYPES, Some(Ret::TYPE))?.0;
        Ok(GuestFn::new(self.image(), index))
    }

    /// Calls a function by its name. A [`GuestFn`] saves the look-up.
    ///
    /// # Errors
    /// As [`function`](Self::function) and [`GuestFn::call`].
    pub fn call<Args: Arguments, Ret: FromValue>(
        &mut self,
        name: &str,
        args: Args,
    ) -> Result<Ret, Error> {
        self.function::<Args, Ret>(name)?.call(self, args)
    }

    /// Calls a function whose types are known at run time only.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn call_dynamic(
        &mut self,
        name: &str,
        args: &[Value],
        options: &CallOptions,
    ) -> Result<Value, Error> {
        let types: Vec<ValueType> = args.iter().map(Value::value_type).collect();
        let (index, signature) = self.check(name, &types, None)?;
        let values: Vec<ValueRef<'_>> = args.iter().map(Value::as_ref).collect();
        self.invoke(index, &values, signature.ret(), options)
    }

    pub(crate) fn check(
        &self,
        name: &str,
        params: &[ValueType],
        ret: Option<ValueType>,
    ) -> Result<(u32, Signature), Failure> {
        let (index, function) =
            self.image()
                .find_export(name)
                .ok_or_else(|| Failure::UnknownFunction {
                    name: name.to_owned(),
                })?;
        let actual = *function.signature();
        if actual.params() == params && ret.is_none_or(|ret| ret == actual.ret()) {
            return Ok((index, actual));
        }
        let asked = Signature::new(params, ret.unwrap_or(actual.ret()));
        Err(Failure::Signature {
            name: name.to_owned(),
            asked: asked.map_or_else(
                || format!("of {} parameters", params.len()),
                |asked| asked.to_string(),
            ),
            actual,
        })
    }

    /// A call of arguments and a result of fixed size, as the slots and the bits that they are in messages. Most calls are.
    pub(crate) fn invoke_plain(
        &mut self,
        index: u32,
        arguments: &[Slot],
        returns: ValueType,
        options: &CallOptions,
    ) -> Result<u64, Error> {
        self.check_ready()?;
        let phase = Phase::Calling { function: index };
        self.enter(phase, options, |session| {
            session.call_plain(index, arguments, returns)
        })
    }

    /// Any other call.
    pub(crate) fn invoke(
        &mut self,
        index: u32,
        values: &[ValueRef<'_>],
        returns: ValueType,
        options: &CallOptions,
    ) -> Result<Value, Error> {
        self.check_ready()?;
        let request = self.session.encode_call(index, values)?;
        let phase = Phase::Calling { function: index };
        self.enter(phase, options, |session| {
            session.call(request, values, returns)
        })
    }

    /// A call that returns bytes, which are read where they lie.
    pub(crate) fn invoke_reading<R>(
        &mut self,
        index: u32,
        values: &[ValueRef<'_>],
        options: &CallOptions,
        read: impl FnOnce(&mut ReplyBytes<'_>) -> R,
    ) -> Result<R, Error> {
        self.check_ready()?;
        let request = self.session.encode_call(index, values)?;
        let phase = Phase::Calling { function: index };
        self.enter(phase, options, |session| {
            session.call_reading(request, values, read)
        })
    }

    /// Enters the guest for a call, from its beginning or from where it is suspended.
    #[inline]
    fn enter<T>(
        &mut self,
        phase: Phase,
        options: &CallOptions,
        run: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Session {
            instance, control, ..
        } = &mut *self.session;
        let guard = options.begin(control, || instance.vm().meter())?;
        self.health = Health::Dirty;
        self.session.begin(phase);
        let result = run(&mut self.session);
        self.session.end();
        if let Some(guard) = guard {
            drop(guard);
            self.unlimit();
        }
        // A guest whose function failed idles again like one whose function returned.
        if result.as_ref().map_or_else(Error::is_of_function, |_| true) {
            self.health = Health::Ready;
        }
        result
    }

    /// Lets the guest execute as many instructions as it likes again.
    #[cold]
    fn unlimit(&mut self) {
        if let Some(meter) = self.session.instance.vm().meter() {
            meter.limit(None);
        }
    }

    #[inline]
    pub(super) fn check_ready(&self) -> Result<(), Error> {
        match self.health {
            Health::Ready => Ok(()),
            _ => Err(self.why_not_ready().into()),
        }
    }

    #[cold]
    fn why_not_ready(&self) -> Failure {
        match self.health {
            Health::Suspended(_) => Failure::Suspended {
                what: match self.suspension() {
                    Some(Suspension::Calling(function)) => format!("call {}", function.name()),
                    _ => "its initialisation".to_owned(),
                },
            },
            Health::Ready | Health::Dirty => Failure::NeedsRestore,
            Health::Dead => Failure::Unusable,
        }
    }
}
