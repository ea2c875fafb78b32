//! The x87 registers.

use crate::float::{EXTENDED, Environment, Number, Rounding, flag};
use crate::state::area;

/// Bits of the status word (Intel SDM volume 1, section 8.1.3).
pub(crate) mod status {
    /// ES: an exception that is not masked was raised.
    pub(crate) const ERROR_SUMMARY: u16 = 1 << 7;
    pub(crate) const C0: u16 = 1 << 8;
    pub(crate) const C1: u16 = 1 << 9;
    pub(crate) const C2: u16 = 1 << 10;
    pub(crate) const C3: u16 = 1 << 14;
    /// Exception flags and the stack fault.
    pub(crate) const EXCEPTIONS: u16 = 0x7F;
    /// B, which equals ES.
    pub(crate) const BUSY: u16 = 1 << 15;
}

/// Bits of the control word that can be set, and the one that always is.
const CONTROL: (u16, u16) = (0x1F3F, 0x40);

/// The x87 unit (Intel SDM volume 1, chapter 8). Registers are numbered physically.
#[derive(Clone, Debug)]
pub(crate) struct X87 {
    pub(crate) control: u16,
    /// Bits 11 to 13 hold the number of the register on top.
    pub(crate) status: u16,
    /// One bit for each register that is not empty.
    pub(crate) used: u8,
    pub(crate) opcode: u16,
    pub(crate) instruction: u64,
    pub(crate) operand: u64,
    /// Numbers of 80 bits.
    pub(crate) registers: [u128; 8],
}

impl Default for X87 {
    /// As after `fninit`.
    fn default() -> Self {
        Self {
            control: 0x37F,
            status: 0,
            used: 0,
            opcode: 0,
            instruction: 0,
            operand: 0,
            registers: [0; 8],
        }
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(raw)
}

/// 80 bits.
pub(crate) const MASK: u128 = (1 << 80) - 1;

impl X87 {
    pub(crate) fn top(&self) -> u8 {
        (self.status >> 11 & 7) as u8
    }

    pub(crate) fn set_top(&mut self, top: u8) {
        self.status = self.status & !(7 << 11) | u16::from(top & 7) << 11;
    }

    /// The physical number of ST(i).
    pub(crate) fn physical(&self, index: u8) -> usize {
        usize::from(self.top().wrapping_add(index) & 7)
    }

    fn bit(&self, index: u8) -> u8 {
        1 << self.physical(index)
    }

    /// Whether ST(i) is empty.
    pub(crate) fn is_empty(&self, index: u8) -> bool {
        self.used & self.bit(index) == 0
    }

    /// ST(i), whether it is empty or not.
    pub(crate) fn get(&self, index: u8) -> u128 {
        self.registers[self.physical(index)]
    }

    pub(crate) fn put(&mut self, index: u8, value: u128) {
        self.registers[self.physical(index)] = value;
        self.used |= self.bit(index);
    }

    pub(crate) fn free(&mut self, index: u8) {
        self.used &= !self.bit(index);
    }

    pub(crate) fn push(&mut self, value: u128) {
        self.set_top(self.top().wrapping_sub(1));
        self.put(0, value);
    }

    pub(crate) fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top().wrapping_add(1));
    }

    /// ST(i) as an operand. An empty one is an exception, and stands for the result of one.
    pub(crate) fn operand(&self, environment: &mut Environment, index: u8) -> Number {
        EXTENDED.unpack(self.operand_bits(environment, index))
    }

    pub(crate) fn operand_bits(&self, environment: &mut Environment, index: u8) -> u128 {
        if self.is_empty(index) {
            environment.raise(flag::INVALID | flag::STACK);
            return EXTENDED.indefinite();
        }
        self.get(index)
    }

    /// How the control word says to compute.
    pub(crate) fn environment(&self) -> Environment {
        Environment {
            rounding: Rounding::from_bits(u32::from(self.control >> 10)),
            denormals_are_zero: false,
            flush_to_zero: false,
            masked: u32::from(self.control) & flag::ALL,
            raised: 0,
            rounded_up: false,
            larger_nan: true,
            extends_exponents: true,
        }
    }

    /// Bits of significands that the control word asks for (Intel SDM volume 1, section 8.1.5.2).
    pub(crate) fn precision(&self) -> u32 {
        match self.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        }
    }

    /// Notes the exceptions of an operation, and with C1 whether it rounded away from zero or found the stack full. Says whether its
    /// result counts.
    pub(crate) fn conclude(&mut self, environment: &Environment) -> bool {
        let early = environment.unmasked() & flag::EARLY != 0;
        let raised = if early {
            environment.raised & (flag::EARLY | flag::STACK)
        } else {
            environment.raised
        };
        let stack = raised & flag::STACK != 0;
        self.set_conditions(
            status::C1,
            if environment.rounded_up && (stack || !early) {
                status::C1
            } else {
                0
            },
        );
        self.status |= raised as u16;
        self.summarize();
        !early
    }

    /// Sets ST(i) to the result of an operation, unless an exception keeps it from counting. Says whether it counts.
    pub(crate) fn finish(&mut self, environment: &Environment, index: u8, value: u128) -> bool {
        let counts = self.conclude(environment);
        if counts {
            self.put(index, value);
        }
        counts
    }

    /// Of the condition bits in `mask`, those of `value`.
    pub(crate) fn set_conditions(&mut self, mask: u16, value: u16) {
        self.status = self.status & !mask | value;
    }

    /// ES and B from exceptions and masks.
    pub(crate) fn summarize(&mut self) {
        const SUMMARY: u16 = status::ERROR_SUMMARY | status::BUSY;
        let unmasked = self.status & !self.control & flag::ALL as u16;
        self.set_conditions(SUMMARY, if unmasked == 0 { 0 } else { SUMMARY });
    }

    pub(crate) fn set_control(&mut self, control: u16) {
        self.control = control & CONTROL.0 | CONTROL.1;
        self.summarize();
    }

    /// From the area that `fxsave` writes, which holds registers from the top on.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut x87 = Self {
            control: u16_at(bytes, area::FCW) & CONTROL.0 | CONTROL.1,
            status: u16_at(bytes, area::FSW),
            used: bytes[area::FTW],
            opcode: u16_at(bytes, area::FOP) & 0x7FF,
            instruction: u64_at(bytes, area::FIP),
            operand: u64_at(bytes, area::FDP),
            registers: [0; 8],
        };
        for (index, raw) in (0..8).zip(bytes[area::ST..area::XMM].chunks_exact(16)) {
            let mut wide = [0; 16];
            wide.copy_from_slice(raw);
            x87.registers[x87.physical(index)] = u128::from_le_bytes(wide) & MASK;
        }
        x87.summarize();
        x87
    }

    /// Into such an area.
    pub(crate) fn write(&self, bytes: &mut [u8]) {
        let mut put = |offset: usize, raw: &[u8]| {
            bytes[offset..offset + raw.len()].copy_from_slice(raw);
        };
        put(area::FCW, &self.control.to_le_bytes());
        put(area::FSW, &self.status.to_le_bytes());
        put(area::FTW, &[self.used, 0]);
        put(area::FOP, &self.opcode.to_le_bytes());
        put(area::FIP, &self.instruction.to_le_bytes());
        put(area::FDP, &self.operand.to_le_bytes());
        for index in 0..8_u8 {
            let value = self.registers[self.physical(index)];
            put(area::ST + usize::from(index) * 16, &value.to_le_bytes());
        }
    }
}

impl crate::cpu::Cpu {
    /// #MF where an x87 exception that is not masked waits.
    pub(crate) fn check_x87_pending(&mut self) -> Result<(), crate::trap::Trap> {
        if self.x87.status & status::ERROR_SUMMARY != 0 {
            return Err(self.fault(crate::trap::vector::MF));
        }
        Ok(())
    }
}
