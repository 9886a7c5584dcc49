//! A second verifier, written from the rules: entry by entry, page by page, with no code of the first.
//!
//! For one root of four levels, strict policy, and slots that share no address.

use std::collections::{BTreeMap, BTreeSet};

use ept::verify::{DirtyLog, HostPage, Slot};
use ept::{Kind, PhysMemory};

use crate::world::*;

/// What is broken where: number of the invariant, and address.
pub type Broken = BTreeSet<(u8, u64)>;

const FRAME: u64 = 0x0000_3fff_ffff_f000;
const RESERVED: u64 = 0x000f_c000_0000_0000;

pub fn broken(world: &World) -> Broken {
    let mut oracle = Oracle { world, broken: Broken::new(), tables: BTreeSet::new(), users: BTreeMap::new() };
    let root = world.roots[0].root;
    oracle.tables.insert(root);
    oracle.table(root, 4, 0);
    oracle.shared_frames();
    oracle.broken
}

struct Oracle<'a> {
    world: &'a World,
    broken: Broken,
    tables: BTreeSet<u64>,
    /// The addresses that map a frame, and whether that one counts as an alias.
    users: BTreeMap<u64, Vec<(u64, bool)>>,
}

impl Oracle<'_> {
    fn table(&mut self, table: u64, level: u32, base: u64) {
        for index in 0..512 {
            let entry = self.world.memory.read_entry(table + index * 8).unwrap();
            let mut gpa = base + (index << (12 + 9 * (level - 1)));
            if self.world.kind() == Kind::Ia32e && gpa >> 47 & 1 != 0 {
                gpa |= 0xffff_0000_0000_0000;
            }
            match self.world.kind() {
                Kind::Ept => self.ept_entry(entry, level, gpa),
                _ => self.x86_entry(entry, level, gpa),
            }
        }
    }

    fn is_wrong(&mut self, invariant: u8, gpa: u64, wrong: bool) -> bool {
        if wrong {
            self.broken.insert((invariant, gpa));
        }
        wrong
    }

    fn ept_entry(&mut self, entry: u64, level: u32, gpa: u64) {
        let bit = |n: u32| entry >> n & 1 == 1;
        if !bit(0) && !bit(1) && !bit(2) {
            self.is_wrong(6, gpa, entry != 0);
            return;
        }
        let leaf = level == 1 || level <= 3 && bit(7);
        let mut malformed = bit(1) && !bit(0) || entry & RESERVED != 0;
        if leaf {
            malformed |= [2, 3, 7].contains(&(entry >> 3 & 7));
            malformed |= level == 2 && entry & 0x1f_f000 != 0 || level == 3 && entry & 0x3fff_f000 != 0;
        } else {
            malformed |= entry & 0xf8 != 0;
        }
        if self.is_wrong(5, gpa, malformed) {
            return;
        }
        if !leaf {
            return self.pointer(entry, level, gpa, entry & 7 == 7);
        }
        self.is_wrong(11, gpa, bit(9) && !bit(8));
        let device = 0x00;
        let ram = 0x70;
        self.leaf(entry, level, gpa, bit(1), &|is_device| {
            entry & 0x78 == if is_device { device } else { ram }
        });
    }

    fn x86_entry(&mut self, entry: u64, level: u32, gpa: u64) {
        let bit = |n: u32| entry >> n & 1 == 1;
        if !bit(0) {
            self.is_wrong(6, gpa, entry != 0);
            return;
        }
        let leaf = level == 1 || level <= 3 && bit(7);
        let malformed = entry & RESERVED != 0
            || level == 4 && bit(7)
            || leaf && level == 2 && entry & 0x1f_e000 != 0
            || leaf && level == 3 && entry & 0x3fff_e000 != 0;
        if self.is_wrong(5, gpa, malformed) {
            return;
        }
        if !leaf {
            return self.pointer(entry, level, gpa, bit(1) && bit(2) && !bit(63));
        }
        self.is_wrong(11, gpa, bit(6) && !bit(5));
        self.is_wrong(10, gpa, self.world.kind() == Kind::Npt && !bit(2));
        let pat = if level == 1 { bit(7) } else { bit(12) };
        self.leaf(entry, level, gpa, bit(1), &|is_device| !pat && bit(3) == is_device && bit(4) == is_device);
    }

    fn pointer(&mut self, entry: u64, level: u32, gpa: u64, all_rights: bool) {
        self.is_wrong(6, gpa, !all_rights);
        let table = entry & FRAME;
        let there = table <= ram().last().raw() && self.world.memory.read_entry(table).is_ok();
        if self.is_wrong(7, gpa, !there) {
            return;
        }
        let new = self.tables.insert(table);
        if !self.is_wrong(7, gpa, !new) {
            self.table(table, level - 1, gpa);
        }
    }

    fn slot(&self, gpa: u64) -> Option<&Slot<'static>> {
        self.world.slots.iter().find(|slot| gpa.wrapping_sub(slot.memslot.base.raw()) < slot.memslot.bytes)
    }

    fn leaf(&mut self, entry: u64, level: u32, gpa: u64, writable: bool, type_is: &dyn Fn(bool) -> bool) {
        let size = 1u64 << (12 + 9 * (level - 1));
        let frame = entry & FRAME & !(size - 1);
        let pages = (0..size).step_by(0x1000);
        let slots: Vec<_> = pages.clone().map(|at| self.slot(gpa + at).copied()).collect();
        let Some(slot) = slots.iter().flatten().next() else {
            self.is_wrong(1, gpa, true);
            pages.for_each(|at| self.user(frame + at, gpa + at, true));
            return;
        };
        self.is_wrong(3, gpa, slot.memslot.log_dirty && level > 1);
        self.is_wrong(3, gpa, writable && slot.memslot.readonly);
        if let (true, true, 1, DirtyLog::Bitmap(words)) = (writable, slot.memslot.log_dirty, level, slot.log)
        {
            let page = (gpa - slot.memslot.base.raw()) / 0x1000;
            let logged = words.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1);
            self.is_wrong(3, gpa, !logged);
        }
        let base = slot.memslot.base;
        if slots.iter().any(|other| other.is_none_or(|other| other.memslot.base != base)) {
            self.is_wrong(4, gpa, true);
            pages.for_each(|at| self.user(frame + at, gpa + at, true));
            return;
        }
        let hva = slot.memslot.hva.raw() + (gpa - base.raw());
        self.is_wrong(4, gpa, !hva.is_multiple_of(size));
        let mut device = false;
        for at in pages {
            let page = self.world.host.get(hva + at);
            device |= page.is_device();
            let wrong = match page.hpa() {
                Some(hpa) => hpa.raw() != frame + at,
                None => page == HostPage::ABSENT,
            };
            self.is_wrong(2, gpa, wrong);
            self.is_wrong(3, gpa, page.is_read_only() && writable);
            self.user(frame + at, gpa + at, wrong || !page.is_shared());
        }
        self.is_wrong(10, gpa, !type_is(device));
    }

    fn user(&mut self, frame: u64, gpa: u64, counts: bool) {
        self.users.entry(frame).or_default().push((gpa, counts));
    }

    fn shared_frames(&mut self) {
        for (frame, users) in &self.users {
            if self.tables.contains(frame) {
                self.broken.extend(users.iter().map(|&(gpa, _)| (8, gpa)));
            }
            if *frame <= ram().last().raw() {
                let mut alone: Vec<_> =
                    users.iter().filter(|(_, counts)| *counts).map(|&(gpa, _)| gpa).collect();
                alone.sort();
                self.broken.extend(alone.into_iter().skip(1).map(|gpa| (9, gpa)));
            }
        }
    }
}
