//! Random numbers that like the edges of integers.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Anything, with a liking for what lies around the ends of 8, 16, 32 and 64-bit integers.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(5).wrapping_sub(2),
            1 | 2 => {
                let edge = 1_u64 << self.pick(&[7, 8, 15, 16, 31, 32, 63]);
                edge.wrapping_add(self.below(5)).wrapping_sub(2)
            }
            3 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}
