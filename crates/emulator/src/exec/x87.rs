//! x87 instructions.

use iced_x86::Instruction;

use crate::op::Handler;

pub(super) fn select(_: &Instruction, _: u8) -> Option<Handler> {
    None
}
