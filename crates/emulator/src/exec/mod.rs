//! What instructions do. Each module selects handlers for a family of them.

mod alu;
mod bits;
mod decimal;
mod flow;
mod input_output;
mod moves;
mod muldiv;
mod shifts;
pub(crate) mod simd;
mod stack;
pub(crate) mod strings;
mod system;
mod tables;
mod transfer;
mod x87;

use iced_x86::{Instruction, OpKind};

pub(crate) use system::{CR0_EM, CR0_TS};

use crate::op::Handler;

/// A handler of one width out of those of a generic function.
macro_rules! sized {
    ($size:expr, $function:ident $(, $more:ty)*) => {
        match $size {
            1 => $function::<u8 $(, $more)*> as $crate::op::Handler,
            2 => $function::<u16 $(, $more)*>,
            4 => $function::<u32 $(, $more)*>,
            _ => $function::<u64 $(, $more)*>,
        }
    };
}
pub(crate) use sized;

/// The handler of an instruction whose operands are `size` bytes long; `None` where there is none.
pub(crate) fn select(instruction: &Instruction, size: u8) -> Option<Handler> {
    const FAMILIES: [fn(&Instruction, u8) -> Option<Handler>; 14] = [
        alu::select,
        moves::select,
        flow::select,
        stack::select,
        shifts::select,
        bits::select,
        muldiv::select,
        strings::select,
        simd::select,
        x87::select,
        decimal::select,
        input_output::select,
        system::select,
        tables::select,
    ];
    FAMILIES.iter().find_map(|family| family(instruction, size))
}

/// The size in bytes of the general operands.
pub(crate) fn operand_size(instruction: &Instruction) -> u8 {
    let size = match instruction.op0_kind() {
        OpKind::Register if instruction.op0_register().is_gpr() => {
            instruction.op0_register().size()
        }
        OpKind::Memory => instruction.memory_size().size(),
        _ if instruction.op_count() > 1
            && instruction.op1_kind() == OpKind::Register
            && instruction.op1_register().is_gpr() =>
        {
            instruction.op1_register().size()
        }
        _ => instruction.memory_size().size(),
    };
    u8::try_from(size).unwrap_or(0)
}
