//! The x87 registers.

use crate::state::area;

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

    /// From the area that `fxsave` writes, which holds registers from the top on.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut x87 = Self {
            control: u16_at(bytes, area::FCW),
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
        /// ES: an exception that is not masked was raised.
        const ERROR_SUMMARY: u16 = 1 << 7;
        if self.x87.status & ERROR_SUMMARY != 0 {
            return Err(self.fault(crate::trap::vector::MF));
        }
        Ok(())
    }
}
