//! RFLAGS, and how arithmetic sets it (Intel SDM volume 1, section 3.4.3).

use crate::width::Width;

pub(crate) const CF: u64 = 1 << 0;
pub(crate) const FIXED: u64 = 1 << 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const VIF: u64 = 1 << 19;
pub(crate) const VIP: u64 = 1 << 20;
pub(crate) const ID: u64 = 1 << 21;

/// The six flags that report a result.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Every flag that exists.
pub(crate) const DEFINED: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

/// The register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u64);

impl Flags {
    #[inline]
    pub(crate) fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    #[inline]
    pub(crate) fn put(&mut self, flag: u64, value: bool) {
        self.0 = if value { self.0 | flag } else { self.0 & !flag };
    }

    #[inline]
    pub(crate) fn carry(self) -> u64 {
        self.0 & CF
    }

    /// The I/O privilege level.
    pub(crate) fn iopl(self) -> u8 {
        (self.0 >> 12 & 3) as u8
    }

    /// PF, ZF and SF of a result.
    #[inline]
    fn of_result<W: Width>(result: u64) -> u64 {
        parity(result) | u64::from(result == 0) << 6 | (result & W::SIGN) >> (W::BITS - 1) << 7
    }

    /// All six from a result and the carries out of each bit.
    #[inline]
    fn set_arithmetic<W: Width>(&mut self, result: u64, carries: u64) {
        let top = carries >> (W::BITS - 2);
        let carry = top >> 1 & 1;
        let overflow = (top >> 1 ^ top) & 1;
        self.0 = self.0 & !STATUS
            | carry
            | overflow << 11
            | (carries & 8) << 1
            | Self::of_result::<W>(result);
    }

    /// `a + b + carry`.
    #[inline]
    pub(crate) fn add<W: Width>(&mut self, a: u64, b: u64, carry: u64) -> u64 {
        let result = a.wrapping_add(b).wrapping_add(carry) & W::MASK;
        self.set_arithmetic::<W>(result, a & b | (a | b) & !result);
        result
    }

    /// `a - b - borrow`.
    #[inline]
    pub(crate) fn sub<W: Width>(&mut self, a: u64, b: u64, borrow: u64) -> u64 {
        let result = a.wrapping_sub(b).wrapping_sub(borrow) & W::MASK;
        self.set_arithmetic::<W>(result, !a & b | (!a | b) & result);
        result
    }

    /// `and`, `or`, `xor`, `test`: CF and OF are cleared, AF is undefined (cleared here, as processors do).
    #[inline]
    pub(crate) fn logic<W: Width>(&mut self, result: u64) -> u64 {
        self.0 = self.0 & !STATUS | Self::of_result::<W>(result);
        result
    }

    /// PF, ZF and SF alone.
    #[inline]
    pub(crate) fn set_result<W: Width>(&mut self, result: u64) {
        self.0 = self.0 & !(PF | ZF | SF) | Self::of_result::<W>(result);
    }

    /// `inc`: as an addition of 1 that leaves CF.
    #[inline]
    pub(crate) fn inc<W: Width>(&mut self, a: u64) -> u64 {
        let carry = self.carry();
        let result = self.add::<W>(a, 1, 0);
        self.0 = self.0 & !CF | carry;
        result
    }

    /// `dec`: as a subtraction of 1 that leaves CF.
    #[inline]
    pub(crate) fn dec<W: Width>(&mut self, a: u64) -> u64 {
        let carry = self.carry();
        let result = self.sub::<W>(a, 1, 0);
        self.0 = self.0 & !CF | carry;
        result
    }

    /// Whether the condition with this number holds (Intel SDM volume 1, appendix B).
    #[inline]
    pub(crate) fn condition(self, number: u8) -> bool {
        let holds = match number >> 1 {
            0 => self.has(OF),
            1 => self.has(CF),
            2 => self.has(ZF),
            3 => self.has(CF | ZF),
            4 => self.has(SF),
            5 => self.has(PF),
            6 => self.has(SF) != self.has(OF),
            _ => self.has(ZF) || self.has(SF) != self.has(OF),
        };
        holds != (number & 1 != 0)
    }
}

/// PF: set when the low byte has an even number of ones.
#[inline]
fn parity(result: u64) -> u64 {
    /// Bit `n` is set when `n` has an even number of ones.
    const EVEN: u64 = 0x9669;
    let nibble = (result ^ result >> 4) & 0xF;
    (EVEN >> nibble & 1) << 2
}
