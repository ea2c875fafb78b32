//! Why an instruction does not complete.

use vellum_backend::Exit;

use crate::cpu::Cpu;

/// The instruction at hand ends without an effect. Why, stands in the [`Cpu`]; results thus stay small enough for registers.
#[derive(Debug)]
pub(crate) struct Trap(());

/// What stands in the [`Cpu`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cause {
    /// The guest's handler is called.
    Exception(Exception),
    /// The host gets an exit.
    Exit(Exit),
    /// A repeated string instruction pauses; it goes on where it is.
    Again,
}

/// An exception (Intel SDM volume 3, section 7.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    pub(crate) error: Option<u32>,
    /// The address that CR2 gets, for a page fault.
    pub(crate) address: u64,
}

pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const XM: u8 = 19;
}

impl Exception {
    pub(crate) const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            address: 0,
        }
    }

    pub(crate) const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            address: 0,
        }
    }
}

impl Cpu {
    #[cold]
    pub(crate) fn raise(&mut self, exception: Exception) -> Trap {
        self.cause = Cause::Exception(exception);
        Trap(())
    }

    /// An exception without error code.
    #[cold]
    pub(crate) fn fault(&mut self, vector: u8) -> Trap {
        self.raise(Exception::plain(vector))
    }

    /// An exception with an error code.
    #[cold]
    pub(crate) fn fault_with(&mut self, vector: u8, error: u32) -> Trap {
        self.raise(Exception::with_error(vector, error))
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn gp(&mut self) -> Trap {
        self.fault_with(vector::GP, 0)
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Trap {
        self.fault(vector::UD)
    }

    /// Leaves the guest at this instruction.
    #[cold]
    pub(crate) fn exit(&mut self, exit: Exit) -> Trap {
        self.cause = Cause::Exit(exit);
        Trap(())
    }

    /// Pauses a repeated instruction.
    #[cold]
    pub(crate) fn again(&mut self) -> Trap {
        self.cause = Cause::Again;
        Trap(())
    }
}
