//! A set of interrupt vectors: IRR, ISR and TMR.

/// One bit a vector, in the eight words that the registers show.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] &= !(1 << (vector % 32));
    }

    pub fn set(&mut self, vector: u8, present: bool) {
        if present { self.insert(vector) } else { self.remove(vector) }
    }

    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] >> (vector % 32) & 1 != 0
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }

    /// The word of vectors `32 * index` and up.
    pub fn word(&self, index: usize) -> u32 {
        self.0[index]
    }
}

/// The priority class of a vector, of TPR and of PPR: its upper half.
pub(super) fn class(priority: u8) -> u8 {
    priority >> 4
}
