//! Counting a guest's instructions, where an engine carries them out one by one.

/// What an engine that interprets its guests can do besides: the same guest with the same inputs gives the same numbers each time.
///
/// Reached by [`Vm::meter`](crate::Vm::meter).
pub trait Meter {
    /// Instructions that the guest has executed since the VM was made, in any ring. A pass of a repeated string instruction that is interrupted
    /// or faults counts as one.
    fn executed(&self) -> u64;

    /// Ends the run that would execute more than so many instructions from now on, over all runs together, with
    /// [`Exit::OutOfFuel`](crate::Exit::OutOfFuel). `None` takes the limit away.
    fn limit(&mut self, instructions: Option<u64>);

    /// Starts to note which blocks of code run, and forgets what was noted before.
    fn trace_blocks(&mut self);

    /// The instruction pointers at which the blocks begin that ran since [`trace_blocks`](Self::trace_blocks), each once, in ascending order.
    fn traced_blocks(&self) -> Vec<u64>;
}
