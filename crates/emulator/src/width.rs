//! Operand widths as types, so that each handler exists once for each width.

/// Registers of a [`crate::cpu::Cpu`], with room for indices that stand for none and for the high bytes.
pub(crate) type RegisterFile = [u64; 32];

/// The index of a register that is always zero: the base or index that an address does not have.
pub(crate) const ZERO: u8 = 16;
/// Index of AH; CH, DH and BH follow.
pub(crate) const HIGH_BYTES: u8 = 20;

/// A width of integer operands. Values travel zero-extended in 64 bits.
pub(crate) trait Width: Copy + 'static {
    const BYTES: u64;
    const BITS: u32 = Self::BYTES as u32 * 8;
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    const SIGN: u64 = 1 << (Self::BITS - 1);

    fn get(registers: &RegisterFile, index: u8) -> u64;
    fn set(registers: &mut RegisterFile, index: u8, value: u64);

    /// The value with its sign in all higher bits.
    fn extend(value: u64) -> i64 {
        ((value << (64 - Self::BITS)) as i64) >> (64 - Self::BITS)
    }
}

impl Width for u8 {
    const BYTES: u64 = 1;

    #[inline]
    fn get(registers: &RegisterFile, index: u8) -> u64 {
        if index >= HIGH_BYTES {
            registers[usize::from(index - HIGH_BYTES) & 31] >> 8 & 0xFF
        } else {
            registers[usize::from(index) & 31] & 0xFF
        }
    }

    #[inline]
    fn set(registers: &mut RegisterFile, index: u8, value: u64) {
        if index >= HIGH_BYTES {
            let register = &mut registers[usize::from(index - HIGH_BYTES) & 31];
            *register = *register & !0xFF00 | (value & 0xFF) << 8;
        } else {
            let register = &mut registers[usize::from(index) & 31];
            *register = *register & !0xFF | value & 0xFF;
        }
    }
}

impl Width for u16 {
    const BYTES: u64 = 2;

    #[inline]
    fn get(registers: &RegisterFile, index: u8) -> u64 {
        registers[usize::from(index) & 31] & 0xFFFF
    }

    #[inline]
    fn set(registers: &mut RegisterFile, index: u8, value: u64) {
        let register = &mut registers[usize::from(index) & 31];
        *register = *register & !0xFFFF | value & 0xFFFF;
    }
}

impl Width for u32 {
    const BYTES: u64 = 4;

    #[inline]
    fn get(registers: &RegisterFile, index: u8) -> u64 {
        registers[usize::from(index) & 31] & 0xFFFF_FFFF
    }

    /// The upper half becomes zero (Intel SDM volume 1, section 3.4.1.1).
    #[inline]
    fn set(registers: &mut RegisterFile, index: u8, value: u64) {
        registers[usize::from(index) & 31] = value & 0xFFFF_FFFF;
    }
}

impl Width for u64 {
    const BYTES: u64 = 8;

    #[inline]
    fn get(registers: &RegisterFile, index: u8) -> u64 {
        registers[usize::from(index) & 31]
    }

    #[inline]
    fn set(registers: &mut RegisterFile, index: u8, value: u64) {
        registers[usize::from(index) & 31] = value;
    }
}
