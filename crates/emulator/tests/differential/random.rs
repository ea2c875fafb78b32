//! Random numbers that repeat.

/// A generator of 64-bit numbers (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// True once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number of the kind that finds mistakes: small, near a power of two, or anything.
    pub(crate) fn interesting(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(4),
            1 => (1_u64 << self.below(64))
                .wrapping_add(self.below(3))
                .wrapping_sub(1),
            2 => u64::MAX - self.below(4),
            3 => self.next() & 0xFFFF_FFFF,
            _ => self.next(),
        }
    }

    /// The bits of a double of the kind that finds mistakes.
    pub(crate) fn double(&mut self) -> u64 {
        const SPECIAL: [u64; 14] = [
            0,
            1 << 63,
            0x3FF0_0000_0000_0000,
            0xBFF0_0000_0000_0000,
            0x7FF0_0000_0000_0000,
            0xFFF0_0000_0000_0000,
            0x7FF8_0000_0000_0000,
            0x7FF0_0000_0000_0001,
            1,
            0x000F_FFFF_FFFF_FFFF,
            0x0010_0000_0000_0000,
            0x7FEF_FFFF_FFFF_FFFF,
            0x41DF_FFFF_FFC0_0000,
            0x43E0_0000_0000_0000,
        ];
        match self.below(4) {
            0 => self.pick(&SPECIAL),
            1 => (self.below(2000) as f64 / 8.0 - 100.0).to_bits(),
            2 => self.next() & 0x800F_FFFF_FFFF_FFFF | (0x3E0 + self.below(0x40)) << 52,
            _ => self.next(),
        }
    }

    /// The bits of two floats of that kind.
    pub(crate) fn floats(&mut self) -> u64 {
        let mut one = || -> u64 {
            const SPECIAL: [u32; 12] = [
                0,
                1 << 31,
                0x3F80_0000,
                0x7F80_0000,
                0xFF80_0000,
                0x7FC0_0000,
                0x7F80_0001,
                1,
                0x007F_FFFF,
                0x0080_0000,
                0x7F7F_FFFF,
                0x4F00_0000,
            ];
            u64::from(match self.below(4) {
                0 => self.pick(&SPECIAL),
                1 => (self.below(2000) as f32 / 8.0 - 100.0).to_bits(),
                2 => (self.next() as u32) & 0x807F_FFFF | (0x60 + self.below(0x30) as u32) << 23,
                _ => self.next() as u32,
            })
        };
        one() | one() << 32
    }
}
