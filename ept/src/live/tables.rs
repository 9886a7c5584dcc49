//! One consistent reading of a VM's tables: memory that the walker and the verifier take as any other.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use std::sync::{Arc, Mutex, PoisonError};

use memory_model::{Gpa, Hpa, PageSize};

use super::LiveError;
use super::host::{KvmModule, SecondLevel};
use super::kernel::Kernel;
use super::page::LivePage;
use super::vm::{LiveSlot, LiveVm, VcpuState};
use crate::access::{Controls, Rights};
use crate::format::{Entry, Format, Kind, Levels, MaxPhyAddr};
use crate::mappings::{Mapping, mappings};
use crate::mmu::SpteBits;
use crate::paging::Paging;
use crate::phys::{MemoryError, PhysMemory};
use crate::registers::Processor;

/// A root that vCPUs use, or that KVM keeps for them.
#[derive(Clone, Debug)]
pub struct LiveRoot {
    /// Its tables.
    pub paging: Paging,
    /// KVM's descriptor of it.
    pub page: LivePage,
    /// The vCPUs that use it now.
    pub vcpus: Vec<u32>,
    /// The guest's own tables that it is the shadow of.
    pub guest: Option<Paging>,
    /// It is the TDP MMU's.
    is_tdp: bool,
}

impl SwitcherEntry {
    /// Whether user mode gets through it.
    pub const fn grants_user(&self) -> bool {
        self.entry & 1 << 2 != 0
    }
}

/// A leaf of KVM's, and what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveLeaf {
    /// The first guest-physical address that it maps, as KVM has it.
    pub gpa: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// Where the page is.
    pub hpa: Hpa,
    /// What the leaf alone grants.
    pub rights: Rights,
    /// Where the leaf is.
    pub entry_address: Hpa,
    /// Its raw value.
    pub entry: u64,
    /// It is of system management mode, so that the slots of that address space count.
    pub smm: bool,
    /// It is of a guest of the guest: then what [`gpa`](Self::gpa) is depends on whose tables are shadowed.
    pub nested: bool,
}

impl LiveLeaf {
    fn of_tdp(root: &LiveRoot, mapping: Mapping) -> Self {
        Self {
            gpa: Gpa(mapping.address),
            size: mapping.size,
            hpa: Hpa(mapping.frame),
            rights: mapping.rights,
            entry_address: Hpa(mapping.step.entry_address()),
            entry: mapping.step.entry,
            smm: root.page.smm,
            nested: root.page.nested,
        }
    }
}

/// A VM's tables, slots and counters, as two readings one after the other have found them alike.
///
/// Reads of a table of KVM's give what was read then. Reads of other host-physical memory (the guest's own tables, say)
/// go to the kernel, and each page of it is read once.
#[derive(Debug)]
pub struct LiveTables {
    kernel: Arc<Kernel>,
    reading: Reading,
    roots: Vec<LiveRoot>,
    others: Mutex<BTreeMap<u64, Table>>,
}

type Table = Box<[u64; ENTRIES]>;
const ENTRIES: usize = 512;
const FRAME: u64 = PageSize::Size4K.bytes();

/// What one reading gives.
#[derive(Debug)]
struct Reading {
    slots: Vec<LiveSlot>,
    vcpus: Vec<VcpuState>,
    /// The shadow MMU's.
    pages: Vec<LivePage>,
    /// The TDP MMU's.
    tdp_roots: Vec<LivePage>,
    /// KVM's own count of leaves of 4K, 2M and 1G.
    counted: [u64; 3],
    /// By physical address.
    tables: BTreeMap<u64, Table>,
    /// Of the shadow MMU's tables that are no direct ones, by their physical addresses: what each entry is made of.
    translations: BTreeMap<u64, Table>,
    /// Entries in roots that are the host's own.
    switcher: Vec<SwitcherEntry>,
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

/// Readings before giving up.
const READINGS: u32 = 32;
/// The kernel puts its map of physical memory at a multiple of 1 GiB, in the upper half of all addresses.
const DIRECT_MAP_ALIGN: u64 = 1 << 30;
const UPPER_HALF: u64 = 1 << 63;

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
        for (at, count) in (self.kvm + self.kernel.layout.kvm_leaves.offset()..).step_by(8).zip(&mut counted)
        {
            *count = self.kernel.word(at)?;
        }
        let (tables, translations, switcher) = Default::default();
        let mut reading = Reading { slots, vcpus, pages, tdp_roots, counted, tables, translations, switcher };
        reading.read_tables(&self.kernel)?;
        Ok(reading)
    }
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
                if base >= UPPER_HALF && base % DIRECT_MAP_ALIGN == 0 {
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
            && self.translations == other.translations
            && self.switcher == other.switcher
            && self.tables.keys().eq(other.tables.keys())
            && self.tables.values().zip(other.tables.values()).all(alike)
    }
}

impl LiveTables {
    fn new(kernel: Arc<Kernel>, reading: Reading) -> Self {
        let mut roots = Vec::new();
        if let Some(&direct_map) = kernel.direct_map.get() {
            let tdp = reading.tdp_roots.iter().map(|page| (page, true));
            let in_use = |page: &&LivePage| {
                reading.vcpus.iter().any(|vcpu| vcpu.root.wrapping_add(direct_map) == page.table)
            };
            let shadow = reading.pages.iter().filter(in_use).map(|page| (page, false));
            let pages = tdp.chain(shadow).filter(|(page, _)| !page.invalid);
            roots.extend(pages.filter_map(|page| root(&kernel, page, direct_map, &reading.vcpus)));
        }
        Self { kernel, reading, roots, others: Mutex::default() }
    }

    /// The roots: all of the TDP MMU's, and of the shadow MMU's those that a vCPU uses.
    ///
    /// Roots of PAE paging are not among them: their page-directory pointers have no descriptor.
    pub fn roots(&self) -> &[LiveRoot] {
        &self.roots
    }

    /// The numbers of the vCPUs.
    pub fn vcpus(&self) -> impl Iterator<Item = u32> {
        self.reading.vcpus.iter().map(|vcpu| vcpu.id)
    }

    /// The root that a vCPU uses now.
    pub fn root_of(&self, vcpu: u32) -> Option<&LiveRoot> {
        self.roots.iter().find(|root| root.vcpus.contains(&vcpu))
    }

    /// The shadow MMU's tables: shadows, and direct ones where the TDP MMU is off.
    pub fn pages(&self) -> &[LivePage] {
        &self.reading.pages
    }

    /// The slots, as they were then.
    pub fn slots(&self) -> &[LiveSlot] {
        &self.reading.slots
    }

    /// KVM's own count of leaves of 4K, 2M and 1G (`pages_4k`, `pages_2m`, `pages_1g`).
    pub fn counted(&self) -> [u64; 3] {
        self.reading.counted
    }

    /// The host's own entries in roots, which walks do not see: none but on `kvm_pvm`. They should not grant USER.
    pub fn switcher(&self) -> &[SwitcherEntry] {
        &self.reading.switcher
    }

    /// All leaves: of the TDP MMU those of each root, of the shadow MMU those of each table, whether or not a vCPU gets
    /// there.
    pub fn leaves(&self) -> impl Iterator<Item = LiveLeaf> {
        let tdp = self.roots.iter().filter(|root| root.is_tdp);
        let tdp =
            tdp.flat_map(|root| mappings(self, &root.paging).map(|mapping| LiveLeaf::of_tdp(root, mapping)));
        tdp.chain(self.reading.pages.iter().flat_map(|page| self.leaves_of(page)))
    }

    /// The leaves of a table of the shadow MMU, which knows itself what each of them is for.
    fn leaves_of<'a>(&'a self, page: &'a LivePage) -> impl Iterator<Item = LiveLeaf> {
        let format = self.kernel.format(Levels::Four, page.flags_off);
        let at = self.kernel.direct_map.get().map_or(0, |&direct_map| page.table.wrapping_sub(direct_map));
        let table =
            self.reading.tables.get(&at).into_iter().flat_map(|table| (0u16..).zip(table.iter().copied()));
        let translation = self.reading.translations.get(&at);
        table.filter_map(move |(index, entry)| {
            let Entry::Leaf(frame, size) = format.decode(page.level, entry) else { return None };
            let gpa = match translation {
                Some(made_of) => made_of[usize::from(index)] & !(FRAME - 1),
                None => page.gfn << 12 | u64::from(index) << format.shift(page.level),
            };
            Some(LiveLeaf {
                gpa: Gpa(gpa).align_down(size),
                size,
                hpa: Hpa(frame),
                rights: format.rights(entry),
                entry_address: Hpa(at + u64::from(index) * 8),
                entry,
                smm: page.smm,
                nested: page.nested,
            })
        })
    }

    /// What these tables translate.
    pub fn second_level(&self) -> SecondLevel {
        self.kernel.second_level()
    }

    /// Whether leaves may be hidden from hardware, so that KVM sees when a page is used again (rule D3).
    pub(super) fn hides_leaves(&self) -> bool {
        self.reading.pages.iter().chain(&self.reading.tdp_roots).any(|page| page.flags_off)
    }

    /// Changes an entry, in this reading and not in the VM: to see what a check says of it. `false` if no table of KVM's
    /// lies there.
    pub fn overwrite(&mut self, entry_address: Hpa, entry: u64) -> bool {
        let frame = entry_address.align_down(PageSize::Size4K).raw();
        let table = self.reading.tables.get_mut(&frame);
        table.map(|table| table[(entry_address.raw() % FRAME / 8) as usize] = entry).is_some()
    }

    /// Where the tables lie, lowest first.
    pub fn frames(&self) -> impl Iterator<Item = Hpa> {
        self.reading.tables.keys().copied().map(Hpa)
    }
}

/// A root of four or five levels.
fn root(
    kernel: &Kernel,
    (page, is_tdp): (&LivePage, bool),
    direct_map: u64,
    vcpus: &[VcpuState],
) -> Option<LiveRoot> {
    let levels = match page.level {
        4 => Levels::Four,
        5 => Levels::Five,
        _ => return None,
    };
    let address = page.table.wrapping_sub(direct_map);
    let users = || vcpus.iter().filter(|vcpu| vcpu.root == address);
    let processor = Processor { amd: kernel.host.amd, ..Processor::new(MaxPhyAddr::MAX) };
    let guest = match page.direct {
        true => None,
        false => users().find_map(|vcpu| Paging::from_registers(&vcpu.registers, processor).ok()?),
    };
    let paging = Paging::new(kernel.format(levels, page.flags_off), address);
    let paging = Paging { controls: Controls::WP, ..paging };
    Some(LiveRoot { paging, page: *page, vcpus: users().map(|vcpu| vcpu.id).collect(), guest, is_tdp })
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
    fn format(&self, levels: Levels, flags_off: bool) -> Format {
        self.host.format(levels, flags_off)
    }

    fn table(&self, address: u64) -> Result<Table, LiveError> {
        let mut bytes = [0; FRAME as usize];
        self.read(address, &mut bytes)?;
        let mut table = Box::new([0; ENTRIES]);
        for (entry, bytes) in table.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = bytes.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte));
        }
        Ok(table)
    }
}

impl PhysMemory for LiveTables {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        let (frame, index) = (address & !(FRAME - 1), (address % FRAME / 8) as usize);
        if let Some(table) = self.reading.tables.get(&frame) {
            return Ok(table[index]);
        }
        let absent = MemoryError::Absent { address };
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = others.get(&frame) {
            return Ok(page[index]);
        }
        let direct_map = self.kernel.direct_map.get().ok_or(absent)?;
        let page = self.kernel.table(frame.wrapping_add(*direct_map)).map_err(|_| absent)?;
        Ok(others.entry(frame).or_insert(page)[index])
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}
