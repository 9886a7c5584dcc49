//! Random calls: mostly on a few slots in a small arena, with every fault of the tables mixed in.

use kvm_bindings::{kvm_userspace_memory_region as Region, kvm_userspace_memory_region2 as Region2};
use slot_manager::{MAX_GFN, Memslot, SlotId};

use crate::pair::{Call, Host, PAGE, Pair, region};

/// Guest pages that the small slots are put on.
pub const ARENA: u64 = 1200;
/// Slots that are used, and one at the end of the numbers.
pub const IDS: [u32; 7] = [0, 1, 2, 3, 4, 5, 32763];

/// SplitMix64: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    fn id(&mut self) -> u32 {
        self.of(&IDS)
    }

    fn slot(&mut self) -> u32 {
        match self.one_in(30) {
            true => self.of(&[32764, 0x7fff, 0xffff, 0x1_0000, 0x7_0001, 0xffff_0000]),
            false => self.id(),
        }
    }

    fn gpa(&mut self) -> u64 {
        match self.below(40) {
            0 => self.of(&[1, 0x800, PAGE + 0x200]),
            1 => self.of(&[1 << 52, MAX_GFN * PAGE, 1 << 63, u64::MAX - 0xfff, u64::MAX - 0x1fff]),
            _ => self.below(ARENA / 8) * 8 * PAGE,
        }
    }

    fn size(&mut self) -> u64 {
        match self.below(60) {
            0 => self.of(&[1, 0x800, PAGE + 1, u64::MAX]),
            1 => self.of(&[1 << 43, (1 << 43) + PAGE, 1 << 63, u64::MAX - 0xfff]),
            2 => 64 << 20,
            3..14 => 0,
            _ => self.of(&[1, 8, 8, 63, 64, 65, 130]) * PAGE,
        }
    }

    fn hva(&mut self) -> u64 {
        match self.below(40) {
            0 => self.of(&[1, 0x7f00_0000_0800, 1 << 63, u64::MAX - 0xfff]),
            1 => 0,
            2..6 => 0x7f00_0010_0000,
            _ => 0x7f00_0000_0000,
        }
    }

    fn flags(&mut self) -> u32 {
        match self.one_in(30) {
            true => self.of(&[4, 5, 8, 1 << 31]),
            false => self.of(&[0, 0, 0, 1, 1, 2, 3]),
        }
    }

    /// One call. `host` says what there is to call, `pair` what it meets.
    pub fn call(&mut self, host: &Host, pair: &Pair) -> Call {
        let files = pair.files.len();
        match self.below(100) {
            0..45 => Call::Region(self.region(pair)),
            45..60 if host.region2 => self.region2(pair),
            45..75 => {
                let slot = self.known(pair).map_or(self.slot(), |slot| slot.id.0);
                Call::GetLog { slot, readable: !self.one_in(8) }
            }
            75..92 => self.clear_log(pair),
            92..95 => Call::ManualProtect(self.of(&[0, 0, 1, 3, 3, 3, 3, 2, 4, 5])),
            95 => match self.below(6) {
                // After this the VM has no bitmaps left to look at, so it is rare.
                0 if self.one_in(8) => Call::Ring(self.of(&[4096, 1 << 20])),
                0 => Call::RingBitmap,
                1 => Call::ResetRings,
                _ => Call::Ring(self.of(&[0, 1, 16, 2048, 6144, 1 << 21, 1 << 63, u64::MAX])),
            },
            96 => Call::CloseMemfd(2 + self.below(files as u64) as usize),
            97.. if host.caps.guest_memfd.is_some() => Call::CreateMemfd {
                size: self.of(&[0, PAGE, 1 << 20, 1 << 20, 16 << 20, 0x800, 1 << 63, u64::MAX]),
                flags: if self.one_in(10) { 1 << 40 } else { 0 },
            },
            _ => Call::ManualProtect(3),
        }
    }

    fn clear_log(&mut self, pair: &Pair) -> Call {
        let known = self.known(pair);
        let first_page = self.of(&[0, 0, 0, 64, 128, 1, 1 << 40, !63]);
        let to_the_end = known.and_then(|slot| slot.npages().checked_sub(first_page));
        let any = self.of(&[0, 1, 8, 63, 64, 65, 66, 128, 130, u32::MAX]);
        Call::ClearLog {
            slot: known.map_or(self.slot(), |slot| slot.id.0),
            first_page,
            num_pages: to_the_end.filter(|_| self.one_in(2)).map_or(any, |pages| pages as u32),
            mask: self.next() & self.next(),
            readable: !self.one_in(12),
        }
    }

    /// A slot that is there, most of the time.
    fn known(&mut self, pair: &Pair) -> Option<Memslot> {
        let slots: Vec<_> = pair.model.slots().iter().copied().collect();
        (!slots.is_empty() && !self.one_in(3)).then(|| self.of(&slots))
    }

    /// A call out of nothing, or one that differs in little from a slot that is there.
    fn region(&mut self, pair: &Pair) -> Region {
        let (slot, flags, gpa, size, hva) = (self.slot(), self.flags(), self.gpa(), self.size(), self.hva());
        let random = region(slot, flags, gpa, size, hva);
        let Some(old) = self.known(pair) else { return random };
        let old =
            region(old.id.0, old.flags.bits(), old.gpa.first().0, old.npages() * PAGE, old.userspace_addr.0);
        match self.below(12) {
            0..3 => Region { guest_phys_addr: gpa, ..old },
            3..6 => Region { flags: old.flags ^ 1, ..old },
            6 => Region { flags: old.flags ^ 1, guest_phys_addr: gpa, ..old },
            7 => Region { flags, ..old },
            8 => Region { memory_size: 0, ..old },
            9 => Region { slot, ..old },
            10 => Region { guest_phys_addr: old.guest_phys_addr + PAGE, ..old },
            _ => random,
        }
    }

    fn region2(&mut self, pair: &Pair) -> Call {
        let unused = IDS.into_iter().find(|id| pair.model.slots().by_id(SlotId(*id)).is_none());
        let first = match unused.filter(|_| self.one_in(2)) {
            // What can get private memory: a slot that is not there.
            Some(id) => region(id, 0, self.gpa(), self.of(&[1, 8]) * PAGE, 0x7f00_0000_0000),
            None => self.region(pair),
        };
        let region = Region2 {
            slot: first.slot,
            flags: if self.one_in(3) { first.flags } else { 4 },
            guest_phys_addr: first.guest_phys_addr,
            memory_size: first.memory_size,
            userspace_addr: first.userspace_addr,
            guest_memfd_offset: match self.below(12) {
                0 => self.of(&[1, 0x800, u64::MAX - 0xfff, 1 << 63]),
                _ => self.below(6) * 8 * PAGE,
            },
            ..Default::default()
        };
        let file = (!self.one_in(12)).then(|| self.below(pair.files.len() as u64) as usize);
        Call::Region2 { region, file }
    }
}
