//! What a caller may say about one call.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use vellum_backend::Meter;

use super::control::{Control, StopReason};
use super::deadline::{self, Ticket};
use crate::error::Failure;

/// Options of one call: a deadline, a limit of instructions, a token by which another thread can cancel it.
///
/// ```
/// use std::time::Duration;
/// use vellum_sandbox::{CallOptions, CancelToken};
///
/// let token = CancelToken::new();
/// let options = CallOptions::new().timeout(Duration::from_millis(50)).cancel_token(&token);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    timeout: Option<Duration>,
    fuel: Option<u64>,
    token: Option<CancelToken>,
}

/// Those of most calls, made once.
pub(crate) static NO_OPTIONS: CallOptions = CallOptions {
    timeout: None,
    fuel: None,
    token: None,
};

impl CallOptions {
    /// No deadline, no limit, no token.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the call when it has taken this long. The guest is stopped within about a millisecond of it.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends the call before it executes more than so many instructions, as if its deadline had passed.
    ///
    /// The emulator counts: a call with the same arguments on the same state ends at the same instruction each time, or never. A hypervisor cannot
    /// count, and gives the call as many nanoseconds of wall-clock time instead, which is more than most guests need for as many instructions: a bound, not a measure. A
    /// program that must behave alike everywhere takes [`timeout`](Self::timeout) and no fuel.
    ///
    /// [`Sandbox::executed_instructions`](crate::Sandbox::executed_instructions) says what calls need.
    #[must_use]
    pub const fn fuel(mut self, instructions: u64) -> Self {
        self.fuel = Some(instructions);
        self
    }

    /// Lets `token` cancel the call.
    #[must_use]
    pub fn cancel_token(mut self, token: &CancelToken) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// Whether the call can be stopped at all.
    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.timeout.is_none() && self.token.is_none() && self.fuel.is_none()
    }

    /// How long the call may take by the clock. Fuel is time where nobody counts instructions.
    fn time(&self, meter: Option<&dyn Meter>) -> Option<Duration> {
        match (self.fuel, meter) {
            (Some(fuel), None) => {
                let time = Duration::from_nanos(fuel);
                Some(self.timeout.map_or(time, |timeout| timeout.min(time)))
            }
            (None, _) | (_, Some(_)) => self.timeout,
        }
    }
}

/// Cancels the calls that it is given to, from any thread.
///
/// Cancelling is sticky: a call that begins afterwards with the same token ends at once, and its guest does not run. It reaches
/// no other call: one that is made with another token, or none, is not touched, however close in time. So make a new token
/// for each call, or for each group of calls that are to end together.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    inner: Arc<Mutex<TokenState>>,
}

#[derive(Debug, Default)]
struct TokenState {
    is_cancelled: bool,
    calls: Vec<(Weak<Control>, u64)>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels every call that has the token, now and later. Returns when the running ones have been told; they end at their
    /// next instruction, or when the host function that they are in returns.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.is_cancelled = true;
        for (control, serial) in &state.calls {
            if let Some(control) = control.upgrade() {
                control.stop(*serial, StopReason::Cancelled);
            }
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.lock().is_cancelled
    }

    /// Adds a call, unless the token is cancelled.
    fn attach(&self, control: &Arc<Control>, serial: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.is_cancelled {
            return Err(Failure::Cancelled);
        }
        state.calls.push((Arc::downgrade(control), serial));
        Ok(())
    }

    fn detach(&self, control: &Arc<Control>, serial: u64) {
        self.lock().calls.retain(|(other, number)| {
            *number != serial || !std::ptr::eq(other.as_ptr(), Arc::as_ptr(control))
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TokenState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that can be stopped, from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    control: Arc<Control>,
    token: Option<&'a CancelToken>,
    serial: u64,
    /// Watched until the guard is dropped.
    deadline: Option<Ticket>,
}

impl CallOptions {
    /// Begins a call. `None` when nothing can stop it, which most calls are and costs nothing. A VM with a meter is told how much fuel there is;
    /// whoever ends the call takes the limit away.
    #[inline]
    pub(crate) fn begin<'m>(
        &self,
        control: &Arc<Control>,
        meter: impl FnOnce() -> Option<&'m mut dyn Meter>,
    ) -> Result<Option<Box<Guard<'_>>>, Failure> {
        if self.is_empty() {
            return Ok(None);
        }
        // Elsewhere, so that a call without a guard has no room to keep for one.
        self.arm(control, meter()).map(Box::new).map(Some)
    }

    #[inline(never)]
    fn arm(
        &self,
        control: &Arc<Control>,
        meter: Option<&mut dyn Meter>,
    ) -> Result<Guard<'_>, Failure> {
        let serial = control.arm();
        let mut guard = Guard {
            control: control.clone(),
            token: None,
            serial,
            deadline: None,
        };
        if let Some(token) = &self.token {
            token.attach(control, serial)?;
            guard.token = Some(token);
        }
        if let Some(timeout) = self.time(meter.as_deref()) {
            if timeout.is_zero() {
                return Err(Failure::DeadlineExceeded);
            }
            // A time that no clock can show never comes.
            guard.deadline = Instant::now()
                .checked_add(timeout)
                .map(|at| deadline::watch(at, control, serial));
        }
        if let Some(meter) = meter {
            meter.limit(self.fuel);
        }
        Ok(guard)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.deadline = None;
        if let Some(token) = self.token {
            token.detach(&self.control, self.serial);
        }
        self.control.disarm();
    }
}

#[cfg(test)]
mod tests;
