//! One consistent reading of a VM's tables: memory that the walker and the verifier take as any other.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use std::sync::{Arc, Mutex, PoisonError};

use memory_model::{Hpa, PageSize};

use super::host::SecondLevel;
use super::kernel::Kernel;
use super::page::LivePage;
use super::reading::{FRAME, Reading, SwitcherEntry, Table};
use super::vm::{LiveSlot, VcpuState};
use crate::access::Controls;
use crate::format::{Levels, MaxPhyAddr};
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
    pub(super) is_tdp: bool,
}

/// A VM's tables, slots and counters, as two readings one after the other have found them alike.
///
/// Reads of a table of KVM's give what was read then. Reads of other host-physical memory (the guest's own tables, say)
/// go to the kernel, and each page of it is read once.
#[derive(Debug)]
pub struct LiveTables {
    pub(super) kernel: Arc<Kernel>,
    pub(super) reading: Reading,
    roots: Vec<LiveRoot>,
    others: Mutex<BTreeMap<u64, Table>>,
}

impl LiveTables {
    pub(super) fn new(kernel: Arc<Kernel>, reading: Reading) -> Self {
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

    /// The same as [`KvmStats`](super::KvmStats) has it; `None` of another process's VM.
    pub fn counted_by_file(&self) -> Option<[u64; 3]> {
        self.reading.counted_by_file
    }

    /// What else KVM counts of the VM and, in sum, of its vCPUs, by the kernel's own names: `pf_fixed`, `mmu_unsync` and others.
    /// Unlike all else here it may have gone on between two readings.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.reading.counts.iter().copied()
    }

    /// One of them; `None` if this kernel does not count that.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.counts().find(|count| count.0 == name).map(|(_, count)| count)
    }

    /// The host's own entries in roots, which walks do not see: none but on `kvm_pvm`. They should not grant USER.
    pub fn switcher(&self) -> &[SwitcherEntry] {
        &self.reading.switcher
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

    /// Changes a count in the same way. `false` if this kernel does not count that.
    pub fn set_count(&mut self, name: &str, count: u64) -> bool {
        let known = self.reading.counts.iter_mut().find(|known| known.0 == name);
        known.map(|known| known.1 = count).is_some()
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

    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        if let Some(known) = self.reading.tables.get(&table) {
            *entries = **known;
            return Ok(());
        }
        for (at, entry) in (table..).step_by(8).zip(entries) {
            *entry = self.read_entry(at)?;
        }
        Ok(())
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}
