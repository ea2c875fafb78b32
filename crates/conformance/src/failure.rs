//! Why a check failed, and where.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::panic::Location;

/// A check that did not hold: what was expected and what came, and the line that compared them.
#[derive(Clone, Debug)]
pub struct Failure {
    message: String,
    location: &'static Location<'static>,
}

impl Failure {
    /// A failure found by the calling line.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            location: Location::caller(),
        }
    }

    /// The same failure, with what was being done.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.location)
    }
}

/// An operation that had to succeed. The whole chain of causes becomes the message.
impl<E: Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let _ = write!(message, ": {error}");
            cause = error.source();
        }
        Self::new(message)
    }
}

/// The result of a check or of a part of it.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        // Not `if !`: a comparison of floats or partial orders keeps its meaning.
        if $condition {} else {
            return Err($crate::failure::Failure::new(format!($($message)+)));
        }
    };
}

/// Fails the check unless both values are equal; the message says what they are.
macro_rules! ensure_eq {
    ($actual:expr, $expected:expr, $($message:tt)+) => {
        match (&$actual, &$expected) {
            (actual, expected) => {
                if actual != expected {
                    return Err($crate::failure::Failure::new(format!(
                        "{}: got {actual:x?}, expected {expected:x?}",
                        format_args!($($message)+)
                    )));
                }
            }
        }
    };
}

pub(crate) use {ensure, ensure_eq};

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(one: u32, other: u32) -> Result {
        ensure_eq!(one, other, "numbers");
        Ok(())
    }

    #[test]
    fn a_failure_says_what_was_compared_and_where() {
        assert!(compare(1, 1).is_ok());
        let failure = compare(1, 2).expect_err("they differ").within("outside");
        let text = failure.to_string();
        assert!(
            text.starts_with("outside: numbers: got 1, expected 2 ("),
            "{text}"
        );
        assert!(text.contains("failure.rs"), "{text}");
    }

    #[test]
    fn an_error_becomes_a_failure_with_its_causes() {
        fn fails() -> Result {
            Err(std::io::Error::other(std::fmt::Error))?;
            Ok(())
        }
        let text = fails().expect_err("it fails").to_string();
        assert!(text.contains("an error occurred"), "{text}");
        assert!(text.contains("failure.rs"), "{text}");
    }
}
