//! A second check of shadow tables, address by address, with no code of the first: what is broken at which leaf.
//!
//! For one shadow of four levels in a strict policy, CR0.WP set, and the slots of [`ShadowWorld`].

use std::collections::BTreeMap;

use ept::PhysMemory;

use super::world::*;
use crate::oracle::Broken;
use crate::world::*;

const FRAME: u64 = 0x0000_3fff_ffff_f000;
const RESERVED: u64 = 0x000f_c000_0000_0000;

/// The guest's page at an address: its 4K, whether it may be written, is the user's and can be executed, and how far it
/// reaches.
struct Found {
    gpa: u64,
    write: bool,
    user: bool,
    exec: bool,
    size: u64,
}

enum Walk {
    Page(Found),
    Nothing,
    Unknown,
}

fn hpa(world: &ShadowWorld, gpa: u64) -> Option<u64> {
    Some(world.world.host.get(HVA + gpa / K4 * K4).hpa()?.raw() + gpa % K4)
}

/// Number of the slot.
fn slot_of(world: &ShadowWorld, gpa: u64) -> Option<usize> {
    world.world.slots.iter().position(|slot| gpa.wrapping_sub(slot.memslot.base.raw()) < slot.memslot.bytes)
}

fn walk(world: &ShadowWorld, gva: u64) -> Walk {
    let (mut table, mut write, mut user, mut exec) = (ROOT, true, true, true);
    for shift in [39, 30, 21, 12] {
        if slot_of(world, table).is_none() {
            return Walk::Nothing;
        }
        let at = hpa(world, table + (gva >> shift) % 512 * 8);
        let Some(entry) = at.and_then(|at| world.world.memory.read_entry(at).ok()) else {
            return Walk::Unknown;
        };
        let (present, accessed) = (entry & 1 != 0, entry & 0x20 != 0);
        if !present || !accessed || entry & RESERVED != 0 {
            return Walk::Nothing;
        }
        write &= entry & 2 != 0;
        user &= entry & 4 != 0;
        exec &= entry >> 63 == 0;
        let large = entry & 0x80 != 0;
        if large && shift == 39
            || large && (shift == 30 || shift == 21) && entry & ((1 << shift) - (1 << 13)) != 0
        {
            return Walk::Nothing;
        }
        if large || shift == 12 {
            let size = 1 << shift;
            let gpa = (entry & FRAME) / size * size + gva % size;
            return Walk::Page(Found { gpa, write: write && entry & 0x40 != 0, user, exec, size });
        }
        table = entry & FRAME;
    }
    unreachable!()
}

/// Leaves that break invariant 14, and those that make one of the guest's tables writable, by the addresses of entries.
pub fn broken(world: &ShadowWorld) -> Broken {
    let mut oracle =
        Oracle { world, levels: BTreeMap::new(), broken: Broken::new(), guest_tables: Vec::new() };
    let root = world.world.roots[0].root;
    oracle.levels.insert(root, 4);
    oracle.follow(root, 4, 0, Some(ROOT));
    oracle.table(root, 4, 0, (true, true, true));
    oracle.broken
}

struct Oracle<'a> {
    world: &'a ShadowWorld,
    /// Each table has the level at which it is met first.
    levels: BTreeMap<u64, u32>,
    broken: Broken,
    /// Addresses of the guest's tables that are the ones shadowed.
    guest_tables: Vec<u64>,
}

impl Oracle<'_> {
    fn entries(&self, table: u64, level: u32, base: u64) -> Vec<(u64, u64, u64)> {
        (0..512)
            .map(|index| {
                let at = table + index * 8;
                let gva = base | index << (12 + 9 * (level - 1));
                let gva = if gva >> 47 & 1 == 1 { gva | 0xffff_0000_0000_0000 } else { gva };
                (at, gva, self.world.world.memory.read_entry(at).unwrap())
            })
            .filter(|(_, _, entry)| entry & 1 != 0)
            .collect()
    }

    fn is_malformed(entry: u64, level: u32) -> bool {
        let large = entry & 0x80 != 0 && level > 1;
        entry & RESERVED != 0
            || large && (level == 4 || entry & ((1 << (12 + 9 * (level - 1))) - (1 << 13)) != 0)
    }

    /// The next table, unless it is no memory, or was first met at another level.
    fn next(&mut self, entry: u64, level: u32) -> Option<u64> {
        let table = entry & FRAME;
        let there = table <= ram().last().raw() && self.world.world.memory.read_entry(table).is_ok();
        (there && *self.levels.entry(table).or_insert(level - 1) == level - 1).then_some(table)
    }

    fn table(&mut self, table: u64, level: u32, base: u64, (w, u, x): (bool, bool, bool)) {
        for (at, gva, entry) in self.entries(table, level, base) {
            if Self::is_malformed(entry, level) {
                continue;
            }
            let rights = (w && entry & 2 != 0, u && entry & 4 != 0, x && entry >> 63 == 0);
            if level == 1 || entry & 0x80 != 0 {
                self.leaf((at, entry), level, gva, rights);
            } else if let Some(next) = self.next(entry, level) {
                self.table(next, level - 1, gva, rights);
            }
        }
    }

    /// The guest's tables on the way to each shadow table: found without regard to rights.
    fn follow(&mut self, table: u64, level: u32, base: u64, guest: Option<u64>) {
        self.guest_tables.extend(guest);
        if level == 1 {
            return;
        }
        for (_, gva, entry) in self.entries(table, level, base) {
            if !Self::is_malformed(entry, level)
                && entry & 0x80 == 0
                && let Some(next) = self.next(entry, level)
            {
                let guest = guest.and_then(|guest| self.guest_entry(guest, level, gva));
                self.follow(next, level - 1, gva, guest);
            }
        }
    }

    /// The table that the guest's entry of that level points to.
    fn guest_entry(&self, table: u64, level: u32, gva: u64) -> Option<u64> {
        slot_of(self.world, table)?;
        let at = hpa(self.world, table + (gva >> (12 + 9 * (level - 1))) % 512 * 8)?;
        let entry = self.world.world.memory.read_entry(at).ok()?;
        (entry & 0x21 == 0x21 && entry & 0x80 == 0 && entry & RESERVED == 0).then_some(entry & FRAME)
    }

    fn leaf(&mut self, (place, entry): (u64, u64), level: u32, gva: u64, (w, u, x): (bool, bool, bool)) {
        let world = self.world;
        let size = 1u64 << (12 + 9 * (level - 1));
        let frame = (entry & FRAME) / size * size;
        let found = match walk(world, gva) {
            Walk::Page(found) => found,
            Walk::Nothing => {
                self.broken.insert((14, place));
                return;
            }
            Walk::Unknown => return,
        };
        let larger = size > found.size;
        let part = size.min(found.size);
        let writable = w && self.guest_tables.iter().any(|table| table / part == found.gpa / part);
        if writable {
            self.broken.insert((8, place));
        }
        let pages = || (0..part).step_by(K4 as usize);
        let slot = slot_of(world, found.gpa);
        let inside = slot.is_some() && pages().all(|at| slot_of(world, found.gpa + at) == slot);
        let moved = |at| {
            let page = world.world.host.get(HVA + found.gpa + at);
            page.hpa().is_some_and(|hpa| hpa.raw() != frame + at) || page == ept::verify::HostPage::ABSENT
        };
        if larger || w && !found.write || u && !found.user || x && !found.exec || inside && pages().any(moved)
        {
            self.broken.insert((14, place));
        }
    }
}
