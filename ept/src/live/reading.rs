//! Reading all of a VM's tables, until two readings agree.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use memory_model::{Hpa, PageSize};

use super::LiveError;
use super::counters::Counts;
use super::host::KvmModule;
use super::kernel::Kernel;
use super::page::LivePage;
use super::stats::KvmStats;
use super::tables::LiveTables;
use super::vm::{LiveSlot, LiveVm, VcpuState};
use crate::format::{Entry, Format, Kind, Levels};
use crate::mmu::SpteBits;

pub(super) type Table = Box<[u64; ENTRIES]>;
const ENTRIES: usize = 512;
pub(super) const FRAME: u64 = PageSize::Size4K.bytes();

/// What one reading gives.
#[derive(Debug)]
pub(super) struct Reading {
    pub slots: Vec<LiveSlot>,
    pub vcpus: Vec<VcpuState>,
    /// The shadow MMU's.
    pub pages: Vec<LivePage>,
    /// The TDP MMU's.
    pub tdp_roots: Vec<LivePage>,
    /// KVM's own count of leaves of 4K, 2M and 1G.
    pub counted: [u64; 3],
    /// The same by the VM's file, where this process may ask.
    pub counted_by_file: Option<[u64; 3]>,
    /// What else it counts. This was read last, so that it covers what was read before.
    pub counts: Counts,
    /// By physical address.
    pub tables: BTreeMap<u64, Table>,
    /// Of the shadow MMU's tables that are no direct ones, by their physical addresses: what each entry is made of.
    pub translations: BTreeMap<u64, Table>,
    /// Entries in roots that are the host's own.
    pub switcher: Vec<SwitcherEntry>,
}

/// An entry in a root that is not KVM's. `kvm_pvm` runs guests in ring 3 on the tables that it has made for them, and so
/// puts the host's code that enters and leaves them into each root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwitcherEntry {
    /// The root table.
    pub table: Hpa,
    /// Its number in the table.
    pub index: u16,
    /// The entry.
    pub entry: u64,
}

impl SwitcherEntry {
    /// Whether user mode gets through it.
    pub const fn grants_user(&self) -> bool {
        self.entry & 1 << 2 != 0
    }
}

/// Readings before giving up.
const READINGS: u32 = 32;
/// Whether the kernel's map of physical memory may begin there: at a multiple of 1 GiB, in the upper half of all addresses.
pub(super) const fn may_be_direct_map(base: u64) -> bool {
    const ALIGN: u64 = 1 << 30;
    const UPPER_HALF: u64 = 1 << 63;
    base >= UPPER_HALF && base.is_multiple_of(ALIGN)
}

impl LiveVm {
    /// Reads all tables. While the VM runs they may change: they are read until two readings agree but for the flags that
    /// hardware sets, and not without end.
    pub fn tables(&self) -> Result<LiveTables, LiveError> {
        let flags = self.kernel.format(Levels::Four, false).flags(true, true);
        let mut before = self.read();
        for _ in 1..READINGS {
            // What is freed while it is read looks like anything, so that one that failed is read again, too.
            match (before, self.read()) {
                (Ok(before), Ok(now)) if now.is_like(&before, flags) => {
                    return Ok(LiveTables::new(self.kernel.clone(), now));
                }
                (_, now) => before = now,
            }
        }
        before.and(Err(LiveError::Changing { readings: READINGS }))
    }

    fn read(&self) -> Result<Reading, LiveError> {
        let (slots, vcpus) = (self.slots()?, self.vcpus()?);
        let (pages, tdp_roots) = (self.active_pages()?, self.tdp_roots()?);
        let mut counted = [0; 3];
        let leaves = self.kvm.wrapping_add(self.kernel.layout.kvm_leaves.offset());
        for (size, count) in (0..).zip(&mut counted) {
            *count = self.kernel.word(leaves.wrapping_add(size * 8))?;
        }
        let counted_by_file = self.stats.as_ref().map(leaves_by_file).transpose()?.flatten();
        let (counts, tables, translations, switcher) = Default::default();
        let mut reading = Reading {
            slots,
            vcpus,
            pages,
            tdp_roots,
            counted,
            counted_by_file,
            counts,
            tables,
            translations,
            switcher,
        };
        reading.read_tables(&self.kernel)?;
        let vcpus = reading.vcpus.iter().map(|state| state.vcpu);
        reading.counts = self.kernel.counters.read(&self.kernel, self.kvm, vcpus)?;
        Ok(reading)
    }
}

/// How many leaves of 4K, 2M and 1G the file tells.
fn leaves_by_file(stats: &KvmStats) -> Result<Option<[u64; 3]>, LiveError> {
    let [small, large, huge] = ["pages_4k", "pages_2m", "pages_1g"].map(|name| stats.get(name));
    Ok(small?.zip(large?).zip(huge?).map(|((small, large), huge)| [small, large, huge]))
}

impl Reading {
    fn read_tables(&mut self, kernel: &Kernel) -> Result<(), LiveError> {
        let pages = self.pages.len() + self.tdp_roots.len();
        if pages == 0 {
            return Ok(());
        }
        let direct_map = match kernel.direct_map.get() {
            Some(&known) => known,
            None => {
                let found = self.direct_map().ok_or(LiveError::NoRoot { pages })?;
                *kernel.direct_map.get_or_init(|| found)
            }
        };
        for page in &self.pages {
            let (at, mut table) = (page.table.wrapping_sub(direct_map), kernel.table(page.table)?);
            if kernel.host.module == KvmModule::Pvm && page.level >= 4 {
                self.switcher.extend(take_switcher(at, &mut table));
            }
            self.tables.insert(at, table);
            if page.translation != 0 {
                self.translations.insert(at, kernel.table(page.translation)?);
            }
        }
        for root in self.tdp_roots.iter().filter(|root| !root.invalid) {
            let format = kernel.format(Levels::Four, root.flags_off);
            let mut open = [(root.level, root.table.wrapping_sub(direct_map))].to_vec();
            while let Some((level, at)) = open.pop() {
                if self.tables.contains_key(&at) {
                    continue;
                }
                let table = kernel.table(at.wrapping_add(direct_map))?;
                if level > 1 {
                    open.extend(table.iter().filter_map(|&entry| match format.decode(level, entry) {
                        Entry::Table(next) => Some((level - 1, next)),
                        _ => None,
                    }));
                }
                self.tables.insert(at, table);
            }
        }
        Ok(())
    }

    /// Where the kernel has physical memory: a root is known by its physical address in a vCPU, and by the kernel's in
    /// its descriptor. Of all ways to pair them, the right one explains most roots.
    fn direct_map(&self) -> Option<u64> {
        let mut explains: BTreeMap<u64, usize> = BTreeMap::new();
        for vcpu in &self.vcpus {
            let roots = self.pages.iter().chain(&self.tdp_roots).filter(|page| page.level == vcpu.root_level);
            for table in roots.map(|page| page.table).chain([vcpu.pae_root]) {
                let base = table.wrapping_sub(vcpu.root);
                if may_be_direct_map(base) {
                    *explains.entry(base).or_default() += 1;
                }
            }
        }
        let most = explains.values().copied().max()?;
        let mut best = explains.into_iter().filter(|&(_, explained)| explained == most);
        best.next().filter(|_| best.next().is_none()).map(|(base, _)| base)
    }

    fn is_like(&self, other: &Self, flags: u64) -> bool {
        let alike = |(one, other): (&Table, &Table)| {
            one.iter().zip(other.iter()).all(|(one, other)| (one ^ other) & !flags == 0)
        };
        self.slots == other.slots
            && self.pages == other.pages
            && self.tdp_roots == other.tdp_roots
            && self.counted == other.counted
            && self.counted_by_file == other.counted_by_file
            && self.translations == other.translations
            && self.switcher == other.switcher
            && self.tables.keys().eq(other.tables.keys())
            && self.tables.values().zip(other.tables.values()).all(alike)
    }
}

/// Takes the host's own entries out of a root: those that hardware uses and KVM did not make (`SPTE_MMU_PRESENT`).
fn take_switcher(at: u64, table: &mut Table) -> Vec<SwitcherEntry> {
    const PRESENT: u64 = 1 << 0;
    let mut taken = Vec::new();
    for (index, entry) in (0..).zip(table.iter_mut()) {
        if *entry & PRESENT != 0 && !SpteBits::of(Kind::Ia32e).is_present(*entry) {
            taken.push(SwitcherEntry { table: Hpa(at), index, entry: core::mem::take(entry) });
        }
    }
    taken
}

impl Kernel {
    /// The format of KVM's tables on this host.
    pub(super) fn format(&self, levels: Levels, flags_off: bool) -> Format {
        self.host.format(levels, flags_off)
    }

    pub(super) fn table(&self, address: u64) -> Result<Table, LiveError> {
        let mut bytes = [0; FRAME as usize];
        self.read(address, &mut bytes)?;
        let mut table = Box::new([0; ENTRIES]);
        for (entry, bytes) in table.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = bytes.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte));
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::registers::Registers;

    const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
    const FLAGS: u64 = 0x60;

    fn page(level: u8, at: u64) -> LivePage {
        LivePage {
            table: DIRECT_MAP + at,
            translation: 0,
            gfn: 0,
            level,
            direct: true,
            unsync: false,
            smm: false,
            nested: false,
            flags_off: false,
            invalid: false,
        }
    }

    fn vcpu(root_level: u8, root: u64, pae_root: u64) -> VcpuState {
        VcpuState { vcpu: 0, id: 0, root, root_level, pae_root, registers: Registers::default() }
    }

    fn reading(vcpus: Vec<VcpuState>, pages: Vec<LivePage>, entry: u64) -> Reading {
        let tables = BTreeMap::from([(0x1000, Box::new([entry; ENTRIES]))]);
        let (slots, tdp_roots, counted) = Default::default();
        let (counted_by_file, counts, translations, switcher) = Default::default();
        Reading {
            slots,
            vcpus,
            pages,
            tdp_roots,
            counted,
            counted_by_file,
            counts,
            tables,
            translations,
            switcher,
        }
    }

    #[test]
    fn physical_memory_lies_where_both_addresses_of_a_root_say() {
        let direct_map = |vcpus, pages| reading(vcpus, pages, 0).direct_map();
        let (root, other) = (page(4, 0x1_2345_6000), page(4, 0x77_7000));
        let user = vcpu(4, 0x1_2345_6000, 0);
        assert_eq!(direct_map(vec![user], vec![other, root]), Some(DIRECT_MAP));
        assert_eq!(direct_map(vec![user], vec![page(3, 0x1_2345_6000)]), None, "a table of another level");
        assert_eq!(direct_map(vec![vcpu(4, u64::MAX, 0)], vec![root]), None, "no root");
        // A table that lies like the root, 1 GiB further on, is another way to explain it; a second root decides.
        let like = page(4, 0x1_6345_6000);
        assert_eq!(direct_map(vec![user], vec![root, like]), None);
        assert_eq!(direct_map(vec![user, vcpu(4, 0x77_7000, 0)], vec![root, like, other]), Some(DIRECT_MAP));
        let pae = vcpu(3, 0x8000, DIRECT_MAP + 0x8000);
        assert_eq!(direct_map(vec![pae], vec![page(2, 0x9000)]), Some(DIRECT_MAP));
    }

    #[test]
    fn readings_are_alike_but_for_flags() {
        let one = reading(vec![], vec![page(1, 0x1000)], 0x9067);
        assert!(one.is_like(&reading(vec![], vec![page(1, 0x1000)], 0x9007), FLAGS));
        assert!(!one.is_like(&reading(vec![], vec![page(1, 0x1000)], 0xa067), FLAGS), "another frame");
        assert!(!one.is_like(&reading(vec![], vec![page(2, 0x1000)], 0x9067), FLAGS), "another level");
        let mut counted = reading(vec![], vec![page(1, 0x1000)], 0x9067);
        counted.counted[0] = 1;
        assert!(!one.is_like(&counted, FLAGS));
    }

    #[test]
    fn what_kvm_did_not_make_is_taken_out_of_a_root() {
        let mut table: Table = Box::new([0; ENTRIES]);
        let (kvms, absent, host) = (0x5000 | 0x827, 1 << 63, 0x6000 | 0x63);
        (table[0], table[1], table[256]) = (kvms, absent, host);
        let taken = take_switcher(0x1000, &mut table);
        assert_eq!(taken, [SwitcherEntry { table: Hpa(0x1000), index: 256, entry: host }]);
        assert_eq!((table[0], table[1], table[256]), (kvms, absent, 0));
        assert!(!taken[0].grants_user());
        assert!(SwitcherEntry { entry: host | 4, ..taken[0] }.grants_user());
    }
}
