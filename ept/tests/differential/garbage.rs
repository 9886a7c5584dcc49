//! Tables of garbage that is mostly plausible: entries that lead on, into a few frames, with some bits turned over.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ept::{MemoryError, PhysMemory};

use crate::oracle::nested::Cells;

/// There is memory from 0 up to here: so few frames that walks meet in them.
pub const MEMORY: u64 = 16 << 12;
pub const ROOT: u64 = 0x1000;

/// Numbers that follow from a seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.number() % sides
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    pub fn coin(&mut self) -> bool {
        self.one_in(2)
    }

    /// Some of these bits.
    pub fn some_of(&mut self, bits: u64) -> u64 {
        self.number() & bits
    }

    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.roll(values.len() as u64) as usize]
    }
}

/// Makes the eight bytes at an address.
pub type Make = fn(&mut Dice) -> u64;

/// Memory whose content follows from a seed, until it is written.
pub struct Garbage {
    seed: u64,
    make: Make,
    pub written: RefCell<BTreeMap<u64, u64>>,
}

impl Garbage {
    pub fn new(seed: u64, make: Make) -> Self {
        Self { seed, make, written: RefCell::default() }
    }

    /// What is there until it is written.
    pub fn original(&self, address: u64) -> Option<u64> {
        let dice = Dice(self.seed ^ address.wrapping_mul(0xd134_2543_de82_ef95));
        (address < MEMORY).then(|| (self.make)(&mut { dice }))
    }

    pub fn get(&self, address: u64) -> Option<u64> {
        let written = self.written.borrow().get(&address).copied();
        written.or_else(|| self.original(address))
    }
}

impl Cells for Garbage {
    fn get(&self, address: u64) -> Option<u64> {
        self.get(address)
    }

    fn set(&self, address: u64, value: u64) {
        self.written.borrow_mut().insert(address, value);
    }
}

impl PhysMemory for Garbage {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.get(address).ok_or(MemoryError::Absent { address })
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let same = self.read_entry(address)? == current;
        if same {
            self.written.borrow_mut().insert(address, new);
        }
        Ok(same)
    }
}

/// Where an entry leads: mostly to a table, else to a large page.
fn target(dice: &mut Dice) -> u64 {
    let high = if dice.one_in(4) { dice.roll(1 << 14) << 30 } else { dice.roll(4) << 30 };
    match dice.roll(24) {
        0 => 1 << 7 | high | dice.roll(1 << 9) << 21,
        1 => 1 << 7 | high,
        _ => dice.roll(MEMORY >> 12) << 12,
    }
}

/// A bit or two turned over, now and then; seldom nothing left of the entry.
fn spoilt(dice: &mut Dice, mut entry: u64) -> u64 {
    if dice.one_in(8) {
        for _ in 0..=dice.roll(2) {
            entry ^= 1 << dice.roll(64);
        }
    }
    if dice.one_in(64) { dice.number() } else { entry }
}

pub fn ept(dice: &mut Dice) -> u64 {
    let rights = if dice.one_in(4) { dice.one_of(&[0, 0, 1, 1, 3, 3, 3, 4, 5, 5, 5, 2, 6]) } else { 7 };
    let mut entry = target(dice) | rights;
    entry |= dice.some_of(1 << 8 | 1 << 9 | 1 << 57 | 1 << 58 | 1 << 60 | 1 << 61 | 1 << 63);
    entry |= if dice.one_in(6) { 0 } else { 1 << 10 };
    if entry & 1 << 7 != 0 || dice.one_in(16) {
        entry |= dice.one_of(&[0, 1, 4, 5, 6, 6, 6, 2, 3, 7]) << 3 | dice.some_of(1 << 6);
    }
    spoilt(dice, entry)
}

/// P, and mostly W and U.
fn granting(dice: &mut Dice) -> u64 {
    match dice.roll(16) {
        0 => dice.roll(8),
        1..5 => dice.some_of(0x6) | 1,
        _ => 0x7,
    }
}

pub fn ia32e(dice: &mut Dice) -> u64 {
    let entry = pae(dice) | dice.some_of(0xf << 59);
    entry | if dice.one_in(16) { 1 << 8 } else { 0 }
}

pub fn pae(dice: &mut Dice) -> u64 {
    let mut entry = target(dice) | granting(dice);
    entry |= dice.some_of(1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9);
    if dice.one_in(8) {
        entry |= 1 << 63;
    }
    spoilt(dice, entry)
}

/// Two entries of four bytes.
pub fn legacy32(dice: &mut Dice) -> u64 {
    let mut entry = || {
        let mut entry = dice.roll(MEMORY >> 12) << 12 | granting(dice);
        entry |= dice.some_of(1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9);
        if dice.one_in(3) {
            entry = entry & 0xfff | 1 << 7 | dice.roll(1 << 10) << 22 | dice.some_of(1 << 13 | 1 << 14);
        }
        spoilt(dice, entry) & 0xffff_ffff
    };
    entry() | entry() << 32
}

/// Entries that are good for EPT, NPT and a guest's paging alike, since a walk may come to them in either dimension; few
/// are bad, since it needs up to 35 of them.
pub fn nested_pae(dice: &mut Dice) -> u64 {
    let mut entry = dice.roll(MEMORY >> 12) << 12 | 7 | 1 << 10 | dice.some_of(1 << 9);
    if dice.one_in(24) {
        entry ^= 1 << dice.one_of(&[0, 0, 1, 1, 2, 2, 3, 5, 6, 7, 8, 10, 45, 63]);
    }
    if dice.one_in(64) {
        entry = entry & 0xfff | 1 << 7 | dice.roll(2) << 30;
    }
    entry | if dice.one_in(64) { MEMORY } else { 0 }
}

/// The same with the bits of rules X3 and X4, which are reserved in PAE paging.
pub fn nested(dice: &mut Dice) -> u64 {
    let entry = nested_pae(dice) | dice.some_of(1 << 57);
    entry | if dice.one_in(8) { 0 } else { 1 << 58 }
}

/// The same for a guest with entries of four bytes, whose upper halves EPT finds in its bits 63:32.
pub fn nested32(dice: &mut Dice) -> u64 {
    let entry = nested_pae(dice) & 0xffff_ffff;
    if dice.coin() { entry | (nested_pae(dice) & 0x7) << 32 } else { entry }
}
