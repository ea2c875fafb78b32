//! The string comparisons of SSE4.2 (Intel SDM volume 2, section 4.1).

use iced_x86::{Instruction, Mnemonic};

use super::lanes::{lane, signed};
use crate::cpu::{Cpu, Write, reg};
use crate::flags::{CF, OF, SF, STATUS, ZF};
use crate::op::{Handler, Op};
use crate::trap::Trap;
use crate::width::Width;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 => compare::<true, false>,
        Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 => compare::<true, true>,
        Mnemonic::Pcmpistri => compare::<false, false>,
        Mnemonic::Pcmpistrm => compare::<false, true>,
        _ => return None,
    })
}

/// What an immediate asks for.
#[derive(Clone, Copy)]
struct Control(u8);

impl Control {
    fn has_words(self) -> bool {
        self.0 & 1 != 0
    }

    fn count(self) -> u32 {
        if self.has_words() { 8 } else { 16 }
    }

    fn element(self, vector: u128, index: u32) -> i64 {
        let raw = if self.has_words() {
            lane::<16>(vector, index)
        } else {
            lane::<8>(vector, index)
        };
        match (self.0 & 2 != 0, self.has_words()) {
            (false, _) => raw as i64,
            (true, true) => signed::<16>(raw),
            (true, false) => signed::<8>(raw),
        }
    }
}

/// A string: elements, and how many of them count.
#[derive(Clone, Copy)]
struct Text {
    vector: u128,
    len: u32,
}

/// The length of an explicit string: a register, without its sign.
fn explicit(cpu: &Cpu, op: &Op, register: u8, count: u32) -> u32 {
    let value = if op.is_wide() {
        cpu.gpr[usize::from(register)] as i64
    } else {
        i64::from(u32::get(&cpu.gpr, register) as i32)
    };
    value.unsigned_abs().min(u64::from(count)) as u32
}

fn implicit(control: Control, vector: u128) -> u32 {
    (0..control.count())
        .find(|index| control.element(vector, *index) == 0)
        .unwrap_or(control.count())
}

/// One bit for each element of the second string.
fn results(control: Control, first: Text, second: Text) -> u32 {
    let count = control.count();
    let x = |index| control.element(first.vector, index);
    let y = |index| control.element(second.vector, index);
    (0..count).fold(0, |bits, j| {
        let valid = j < second.len;
        let hit = match control.0 >> 2 & 3 {
            // Any element of the first string.
            0 => valid && (0..first.len).any(|i| x(i) == y(j)),
            // Within any range of the first string.
            1 => {
                valid
                    && (0..first.len / 2).any(|pair| x(pair * 2) <= y(j) && y(j) <= x(pair * 2 + 1))
            }
            // The same element; two ends are the same.
            2 => match (j < first.len, valid) {
                (true, true) => x(j) == y(j),
                (false, false) => true,
                _ => false,
            },
            // The first string begins here.
            _ => (0..first.len.min(count - j)).all(|i| i + j < second.len && x(i) == y(i + j)),
        };
        bits | u32::from(hit) << j
    })
}

fn compare<const EXPLICIT: bool, const MASK: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.require_vectors()?;
    let control = Control(op.imm as u8);
    let count = control.count();
    let second = if op.b.is_memory() {
        // It need not be aligned.
        let linear = cpu.linear(op, 16, Write::No)?;
        cpu.load_wide(linear)?
    } else {
        cpu.get_vector(op, op.b)?
    };
    let first = cpu.xmm[usize::from(op.a.index) & 15];
    let (first_len, second_len) = if EXPLICIT {
        (
            explicit(cpu, op, reg::RAX, count),
            explicit(cpu, op, reg::RDX, count),
        )
    } else {
        (implicit(control, first), implicit(control, second))
    };
    let (first, second) = (
        Text {
            vector: first,
            len: first_len,
        },
        Text {
            vector: second,
            len: second_len,
        },
    );
    let all = (1_u32 << count) - 1;
    let raw = results(control, first, second);
    let bits = match control.0 >> 4 & 3 {
        1 => !raw & all,
        3 => raw ^ (1_u32 << second_len).wrapping_sub(1) & all,
        _ => raw,
    };
    if MASK {
        cpu.xmm[0] = mask_of(control, bits);
    } else {
        let index = match (bits, control.0 >> 6 & 1) {
            (0, _) => count,
            (bits, 0) => bits.trailing_zeros(),
            (bits, _) => bits.ilog2(),
        };
        u64::set(&mut cpu.gpr, reg::RCX, u64::from(index));
    }
    cpu.flags.0 &= !STATUS;
    cpu.flags.put(CF, bits != 0);
    cpu.flags.put(ZF, second_len < count);
    cpu.flags.put(SF, first_len < count);
    cpu.flags.put(OF, bits & 1 != 0);
    Ok(())
}

/// The result as a bit, or as a whole element, for each element.
fn mask_of(control: Control, bits: u32) -> u128 {
    if control.0 >> 6 & 1 == 0 {
        return u128::from(bits);
    }
    let width = 128 / control.count();
    (0..control.count())
        .filter(|index| bits >> index & 1 != 0)
        .fold(0, |mask, index| {
            mask | ((1_u128 << width) - 1) << (index * width)
        })
}
