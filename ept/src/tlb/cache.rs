//! What a processor remembers: keys with their values.

use alloc::boxed::Box;
use alloc::vec;

/// Says what a value belongs to: an address space and the number of a page, or of what a table spans.
///
/// Packed: the space's bits, and `54:52 level | 51:0 number`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key(u128);

/// The address space of a [`Key`] (rule IV3).
///
/// Packed: `127 in use | 126 behind EPT | 123:84 EPTP[51:12] | 83:68 VPID | 67:55 PCID`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space(u128);

impl Space {
    const USED: u128 = 1 << 127;
    const BEHIND_EPT: u128 = 1 << 126;
    const BITS: u128 = u128::MAX << 55;
    /// In the place of a PCID, which has twelve bits: a global page, which all PCIDs share.
    const GLOBAL: u128 = 0x1000 << 55;
    const PCID: u128 = 0x1fff << 55;

    /// `second` is the root of the second level, if the address lies behind one; `vpid` is 0 outside VMX and for
    /// guest-physical mappings.
    #[inline]
    pub(super) const fn new(second: Option<u64>, vpid: u16, pcid: u16) -> Self {
        let second = match second {
            Some(root) => Self::BEHIND_EPT | ((root >> 12) as u128 & 0xff_ffff_ffff) << 84,
            None => 0,
        };
        Self(Self::USED | second | (vpid as u128) << 68 | (pcid as u128 & 0xfff) << 55)
    }

    /// That of the global pages.
    #[inline]
    pub(super) const fn global(self) -> Self {
        Self(self.0 & !Self::PCID | Self::GLOBAL)
    }

    /// The same without a second level.
    pub(super) const fn linear(self) -> Self {
        Self(self.0 & (Self::USED | 0xffff << 68 | Self::PCID))
    }

    pub(super) const fn is_global(self) -> bool {
        self.0 & Self::GLOBAL != 0
    }

    pub(super) const fn second(self) -> Option<u64> {
        let root = ((self.0 >> 84) as u64 & 0xff_ffff_ffff) << 12;
        if self.0 & Self::BEHIND_EPT != 0 { Some(root) } else { None }
    }

    /// `None` for global pages.
    pub(super) const fn pcid(self) -> Option<u16> {
        if self.is_global() { None } else { Some((self.0 >> 55) as u16 & 0xfff) }
    }

    pub(super) const fn vpid(self) -> u16 {
        (self.0 >> 68) as u16
    }
}

impl Key {
    const FREE: Self = Self(0);

    /// `number` is an address shifted right by log2 of what the page or the table spans.
    #[inline]
    pub(super) const fn new(space: Space, level: u8, number: u64) -> Self {
        Self(space.0 | ((level as u64) << 52 | number & 0xf_ffff_ffff_ffff) as u128)
    }

    pub(super) const fn space(self) -> Space {
        Space(self.0 & Space::BITS)
    }

    /// The address of a page, cut to 64 bits less the twelve of its offset.
    pub(super) const fn address(self) -> u64 {
        (self.0 as u64) << 12
    }

    /// 0 for a page, else the level of a table.
    pub(super) const fn level(self) -> u8 {
        (self.0 >> 52) as u8 & 0x7
    }

    /// The address, shifted right by log2 of what the page or the table spans.
    pub(super) const fn number(self) -> u64 {
        self.0 as u64 & 0xf_ffff_ffff_ffff
    }

    #[inline]
    const fn hash(self) -> u64 {
        let folded = self.0 as u64 ^ ((self.0 >> 64) as u64).rotate_left(32);
        folded.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A cache in which each key has one place: a newer value there takes the place of the older. Hardware may forget at any
/// time, too.
#[derive(Clone, Debug)]
pub(super) struct Cache<V> {
    places: Box<[(Key, Option<V>)]>,
    /// By how much a hash is shifted to number a place.
    shift: u32,
}

impl<V: Copy> Cache<V> {
    /// Room for at least `entries`, if each had a place of its own.
    pub(super) fn new(entries: usize) -> Self {
        let places = entries.next_power_of_two().max(2);
        Self { places: vec![(Key::FREE, None); places].into(), shift: 64 - places.trailing_zeros() }
    }

    #[inline]
    fn place(&self, key: Key) -> usize {
        (key.hash() >> self.shift) as usize
    }

    #[inline(always)]
    pub(super) fn get(&self, key: Key) -> Option<&V> {
        let (known, value) = &self.places[self.place(key)];
        if *known == key { value.as_ref() } else { None }
    }

    #[inline]
    pub(super) fn insert(&mut self, key: Key, value: V) {
        let place = self.place(key);
        self.places[place] = (key, Some(value));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &V)> {
        self.places.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)))
    }

    pub(super) fn remove(&mut self, key: Key) {
        let place = self.place(key);
        if self.places[place].0 == key {
            self.places[place] = (Key::FREE, None);
        }
    }

    /// Forgets what `gone` names.
    pub(super) fn forget(&mut self, gone: impl Fn(Key, &V) -> bool) {
        for place in &mut self.places {
            if place.1.as_ref().is_some_and(|value| gone(place.0, value)) {
                *place = (Key::FREE, None);
            }
        }
    }
}
