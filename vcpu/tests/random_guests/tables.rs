//! The tables of a guest as its program leaves them, flags aside: what is mapped where, and what a processor may
//! remember of an entry that changes.

use std::collections::BTreeMap;

use crate::layout::PAGE;
use crate::program::{Change, Setting};

const PRESENT: u64 = 1 << 0;
const PAGE_SIZE: u64 = 1 << 7;
const FRAME: u64 = (1 << 46) - PAGE;

/// The entries, by address.
#[derive(Clone, Debug)]
pub struct Tables {
    setting: Setting,
    entries: BTreeMap<u64, u64>,
}

/// Where a path through the tables is.
#[derive(Clone, Copy)]
struct At {
    table: u64,
    level: u8,
    gva: u64,
}

impl Tables {
    pub fn new(setting: Setting) -> Self {
        Self { setting, entries: BTreeMap::new() }
    }

    pub fn get(&self, entry: u64) -> u64 {
        self.entries.get(&entry).copied().unwrap_or(0)
    }

    pub fn is_present(&self, entry: u64) -> bool {
        self.get(entry) & PRESENT != 0
    }

    pub fn change(&mut self, entry: u64, change: Change) {
        let value = change.apply(self.get(entry));
        self.entries.insert(entry, value);
    }

    fn shift(level: u8) -> u32 {
        12 + 9 * (u32::from(level) - 1)
    }

    fn is_leaf(level: u8, value: u64) -> bool {
        level == 1 || level <= 3 && value & PAGE_SIZE != 0
    }

    /// The table that an entry of that level with that value leads to.
    pub fn link(&self, level: u8, value: u64) -> Option<u64> {
        (value & PRESENT != 0 && !Self::is_leaf(level, value)).then_some(value & FRAME)
    }

    fn top(&self, root: u64) -> At {
        At { table: root, level: self.setting.levels(), gva: 0 }
    }

    /// Where `gva` is in guest-physical memory, whatever the rights; `None` if it is nowhere.
    pub fn translate(&self, root: u64, gva: u64) -> Option<u64> {
        let At { mut table, mut level, .. } = self.top(root);
        loop {
            let shift = Self::shift(level);
            let value = self.get(table + 8 * (gva >> shift & 511));
            if value & PRESENT == 0 {
                return None;
            }
            if Self::is_leaf(level, value) {
                let inside = (1 << shift) - 1;
                return Some(value & FRAME & !inside | gva & inside);
            }
            (table, level) = (value & FRAME, level - 1);
        }
    }

    /// The entries that lead to `gva`, root first, up to the first that is absent.
    pub fn path(&self, root: u64, gva: u64) -> Vec<u64> {
        let At { mut table, mut level, .. } = self.top(root);
        let mut path = Vec::new();
        loop {
            let at = table + 8 * (gva >> Self::shift(level) & 511);
            path.push(at);
            let value = self.get(at);
            if value & PRESENT == 0 || Self::is_leaf(level, value) {
                return path;
            }
            (table, level) = (value & FRAME, level - 1);
        }
    }

    /// The first linear address of each page that is mapped through the entry. If there is none, the first address that
    /// the entry translates, wherever it is linked: the processor may remember the way there.
    pub fn pages_through(&self, root: u64, entry: u64) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut ways = Vec::new();
        self.find(self.top(root), entry, &mut ways);
        for At { level, gva, .. } in &ways {
            self.leaves(entry, *level, *gva, &mut pages);
        }
        if pages.is_empty() {
            pages.extend(ways.iter().map(|at| self.sign(at.gva)));
        }
        pages
    }

    /// All places where the entry is met below `at`; `gva` of each is the first that the entry translates.
    fn find(&self, at: At, entry: u64, ways: &mut Vec<At>) {
        let shift = Self::shift(at.level);
        if entry & !(PAGE - 1) == at.table {
            ways.push(At { gva: at.gva | (entry % PAGE / 8) << shift, ..at });
        }
        for (&address, &value) in self.entries.range(at.table..at.table + PAGE) {
            if value & PRESENT != 0 && !Self::is_leaf(at.level, value) {
                let gva = at.gva | (address % PAGE / 8) << shift;
                self.find(At { table: value & FRAME, level: at.level - 1, gva }, entry, ways);
            }
        }
    }

    fn leaves(&self, entry: u64, level: u8, gva: u64, pages: &mut Vec<u64>) {
        let value = self.get(entry);
        if value & PRESENT == 0 {
            return;
        }
        if Self::is_leaf(level, value) {
            pages.push(self.sign(gva));
            return;
        }
        let (table, shift) = (value & FRAME, Self::shift(level - 1));
        for &below in self.entries.range(table..table + PAGE).map(|(address, _)| address) {
            self.leaves(below, level - 1, gva | (below % PAGE / 8) << shift, pages);
        }
    }

    fn sign(&self, gva: u64) -> u64 {
        let unused = if self.setting.five_levels { 64 - 57 } else { 64 - 48 };
        ((gva << unused) as i64 >> unused) as u64
    }
}
