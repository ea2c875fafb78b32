//! Typed handles to guest functions.

use std::fmt;
use std::marker::PhantomData;

use crate::call::{CallOptions, NO_OPTIONS, ReplyBytes};
use crate::error::{Error, Failure};
use crate::image::GuestImage;
use crate::sandbox::Sandbox;
use crate::value::{Arguments, FromValue, from_bits};

/// A typed handle to a function of a guest, checked once. It works with every sandbox of the image.
///
/// ```no_run
/// # fn example(sandbox: &mut vellum_sandbox::Sandbox) -> Result<(), vellum_sandbox::Error> {
/// let add = sandbox.function::<(i32, i32), i32>("add")?;
/// assert_eq!(add.call(sandbox, (40, 2))?, 42);
/// # Ok(())
/// # }
/// ```
pub struct GuestFn<Args, Ret> {
    image: GuestImage,
    index: u32,
    types: PhantomData<fn(Args) -> Ret>,
}

impl<Args, Ret> GuestFn<Args, Ret> {
    #[inline]
    fn check_image(&self, sandbox: &Sandbox) -> Result<(), Error> {
        if sandbox.image().is_same(&self.image) {
            return Ok(());
        }
        let (what, than) = ("function handle", "image");
        Err(Failure::Incompatible { what, than }.into())
    }
}

impl<Args: Arguments, Ret: FromValue> GuestFn<Args, Ret> {
    /// The export with this index, whose types were checked.
    pub(crate) fn new(image: &GuestImage, index: u32) -> Self {
        Self {
            image: image.clone(),
            index,
            types: PhantomData,
        }
    }

    /// Calls the function.
    ///
    /// # Errors
    /// [`ErrorKind::GuestError`](crate::ErrorKind::GuestError) when the function returns an error. After any other error that
    /// comes from the guest the sandbox must be restored.
    #[inline]
    pub fn call(&self, sandbox: &mut Sandbox, args: Args) -> Result<Ret, Error> {
        self.call_with(sandbox, args, &NO_OPTIONS)
    }

    /// Calls the function with a deadline, or so that it can be cancelled.
    ///
    /// # Errors
    /// As [`call`](Self::call), and [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) or
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a call takes its arguments like any function"
    )]
    pub fn call_with(
        &self,
        sandbox: &mut Sandbox,
        args: Args,
        options: &CallOptions,
    ) -> Result<Ret, Error> {
        self.check_image(sandbox)?;
        // Which of the two it is, is known when the program is compiled.
        let value = args.with_slots(|slots| match slots {
            Some(slots) if !Ret::TYPE.is_variable() => sandbox
                .invoke_plain(self.index, slots, Ret::TYPE, options)
                .map(from_bits),
            _ => args
                .with_values(|values| sandbox.invoke(self.index, values, Ret::TYPE, options))
                .map(Ret::from_value),
        })?;
        Ok(value.ok_or_else(|| Failure::Protocol("a checked value has another type"))?)
    }
}

impl<Args: Arguments> GuestFn<Args, Vec<u8>> {
    /// Calls the function and lets `read` look at the bytes that it returns, where they lie in the guest's memory. What is not looked
    /// at is not copied.
    ///
    /// ```no_run
    /// # fn example(sandbox: &mut vellum_sandbox::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let render = sandbox.function::<(u32,), Vec<u8>>("render")?;
    /// let mut file = std::fs::File::create("frame")?;
    /// render.call_reading(sandbox, (3,), &Default::default(), |frame| frame.write_to(&mut file))??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`call_with`](Self::call_with).
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a call takes its arguments like any function"
    )]
    pub fn call_reading<R>(
        &self,
        sandbox: &mut Sandbox,
        args: Args,
        options: &CallOptions,
        read: impl FnOnce(&mut ReplyBytes<'_>) -> R,
    ) -> Result<R, Error> {
        self.check_image(sandbox)?;
        args.with_values(|values| sandbox.invoke_reading(self.index, values, options, read))
    }
}

impl<Args, Ret> Clone for GuestFn<Args, Ret> {
    fn clone(&self) -> Self {
        Self {
            image: self.image.clone(),
            index: self.index,
            types: PhantomData,
        }
    }
}

impl<Args, Ret> fmt::Debug for GuestFn<Args, Ret> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestFn({})", self.index)
    }
}
