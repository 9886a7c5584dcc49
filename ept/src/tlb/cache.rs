//! What a processor remembers: small keys, their values beside them, four to a set.

use alloc::boxed::Box;

/// Says what a cached value belongs to: an address space, a level and the number of a page or of a table's range.
///
/// Packed, so that the keys of a set fill one cache line:
/// `127 in use | 126 behind EPT | 123:84 EPTP[51:12] | 83:68 VPID | 67:55 PCID | 54:52 level | 51:0 number`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key(u128);

/// The address space of a [`Key`] (rule IV3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    /// Root of the second level, if the address lies behind one.
    pub(super) second: Option<u64>,
    /// VPID; 0 outside VMX and for guest-physical mappings.
    pub(super) vpid: u16,
    /// PCID, or [`GLOBAL`].
    pub(super) pcid: u16,
}

/// In the place of a PCID, which has twelve bits: a global page, which all PCIDs share.
pub(super) const GLOBAL: u16 = 0x1000;

impl Key {
    const FREE: Self = Self(0);
    const USED: u128 = 1 << 127;
    const BEHIND_EPT: u128 = 1 << 126;

    /// `number` is an address shifted right by what one entry of that level spans.
    pub(super) const fn new(space: Space, level: u8, number: u64) -> Self {
        let second = match space.second {
            Some(root) => Self::BEHIND_EPT | ((root >> 12) as u128 & 0xff_ffff_ffff) << 84,
            None => 0,
        };
        let space = second | (space.vpid as u128) << 68 | (space.pcid as u128 & 0x1fff) << 55;
        Self(Self::USED | space | (level as u128) << 52 | number as u128 & 0xf_ffff_ffff_ffff)
    }

    pub(super) const fn space(self) -> Space {
        let root = ((self.0 >> 84) as u64 & 0xff_ffff_ffff) << 12;
        Space {
            second: if self.0 & Self::BEHIND_EPT != 0 { Some(root) } else { None },
            vpid: (self.0 >> 68) as u16,
            pcid: (self.0 >> 55) as u16 & 0x1fff,
        }
    }

    /// The address of a page, cut to 64 bits less the twelve of its offset.
    pub(super) const fn address(self) -> u64 {
        (self.0 as u64) << 12
    }

    const fn hash(self) -> u64 {
        let folded = self.0 as u64 ^ ((self.0 >> 64) as u64).rotate_left(32);
        folded.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

const WAYS: usize = 4;

/// A set-associative cache. The oldest entry of a full set gives way: hardware may forget at any time, too.
#[derive(Clone, Debug)]
pub(super) struct Cache<V> {
    keys: Box<[[Key; WAYS]]>,
    values: Box<[[Option<V>; WAYS]]>,
    /// By how much a hash is shifted to number a set.
    shift: u32,
}

impl<V: Copy> Cache<V> {
    /// Room for at least `entries`, a power of two of sets.
    pub(super) fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two().max(2);
        Self {
            keys: (0..sets).map(|_| [Key::FREE; WAYS]).collect(),
            values: (0..sets).map(|_| [None; WAYS]).collect(),
            shift: 64 - sets.trailing_zeros(),
        }
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<V> {
        let set = (key.hash() >> self.shift) as usize;
        let way = self.keys[set].iter().position(|&other| other == key)?;
        self.values[set][way]
    }

    pub(super) fn insert(&mut self, key: Key, value: V) {
        let set = (key.hash() >> self.shift) as usize;
        let (keys, values) = (&mut self.keys[set], &mut self.values[set]);
        let way_of = |key| keys.iter().position(|&other: &Key| other == key);
        let way = way_of(key).or_else(|| way_of(Key::FREE)).unwrap_or(WAYS - 1);
        // The youngest stands first.
        keys[..=way].rotate_right(1);
        values[..=way].rotate_right(1);
        keys[0] = key;
        values[0] = Some(value);
    }

    pub(super) fn remove(&mut self, key: Key) {
        let set = (key.hash() >> self.shift) as usize;
        if let Some(way) = self.keys[set].iter().position(|&other| other == key) {
            self.keys[set][way] = Key::FREE;
            self.values[set][way] = None;
        }
    }

    /// Forgets what `gone` names.
    pub(super) fn forget(&mut self, gone: impl Fn(Key, &V) -> bool) {
        for (keys, values) in self.keys.iter_mut().zip(&mut self.values) {
            for (key, value) in keys.iter_mut().zip(values) {
                if value.as_ref().is_some_and(|value| gone(*key, value)) {
                    *key = Key::FREE;
                    *value = None;
                }
            }
        }
    }
}
