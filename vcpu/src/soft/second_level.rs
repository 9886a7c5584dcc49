//! The MMU of a software VM, whichever it is.

use ept::mmu::{Memslot, Stats, Tdp, Zapped};
use ept::{Access, Error, Flags, walk};
use memory_model::{AddrRange, Gpa, Hpa};

use super::host::Host;
use super::options::SoftOptions;
use crate::{SecondLevelLeaf, VcpuError};

/// KVM's MMU of a VM. What it takes back, it says so: [`Zapped::flush`].
#[derive(Debug)]
pub enum SoftMmu {
    /// Tables from guest-physical addresses to the host's, beside the guest's own.
    Tdp(Tdp),
}

impl SoftMmu {
    pub(super) fn new(options: &SoftOptions, host: &Host) -> Result<Self, VcpuError> {
        Ok(Self::Tdp(Tdp::new(options.second_level.format(), options.tdp(), host)?))
    }

    /// KVM's counters.
    pub fn stats(&self) -> Stats {
        match self {
            Self::Tdp(tdp) => tdp.stats(),
        }
    }

    /// Bytes of all tables.
    pub fn table_bytes(&self) -> u64 {
        match self {
            Self::Tdp(tdp) => tdp.table_bytes(),
        }
    }

    pub(super) fn leaf(&self, gpa: Gpa, host: &Host) -> Option<SecondLevelLeaf> {
        let Self::Tdp(tdp) = self;
        let walk = walk(host, tdp.paging(), gpa.raw(), Access::READ.by_user(), Flags::Keep);
        let (leaf, last) = (walk.outcome.ok()?, *walk.path.last()?);
        Some(SecondLevelLeaf {
            hpa: Hpa(leaf.address),
            size: leaf.size,
            rights: leaf.rights(),
            entry_address: Hpa(last.entry_address()),
            entry: leaf.entry,
        })
    }

    /// A slot goes.
    pub(super) fn zap(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.zap(range, host),
        }
    }

    /// The host's pages behind `range` are about to change.
    pub(super) fn invalidate_begin(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_begin(range, host),
        }
    }

    pub(super) fn invalidate_end(&mut self) {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_end(),
        }
    }

    /// A slot's log has started or ended.
    pub(super) fn set_logging(
        &mut self,
        slot: &Memslot,
        initially_set: bool,
        host: &Host,
    ) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.set_logging(slot, initially_set, host),
        }
    }

    /// Pages are taken out of the log: their next writes are to get into it. `dirty` hears of those that the processor
    /// has marked since they were taken out before.
    pub(super) fn clear_dirty(
        &mut self,
        range: AddrRange<Gpa>,
        dirty: impl FnMut(Gpa),
        host: &Host,
    ) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.clear_dirty(range, dirty, host),
        }
    }

    /// The slots have changed.
    pub(super) fn slots_changed(&mut self, generation: u64, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_mmio(generation, host),
        }
    }

    /// No table is left for a fault.
    pub(super) fn reclaim(&mut self, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.reclaim(host),
        }
    }

    /// Whether a page of `range` was accessed; from now on, none was.
    pub(super) fn age(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<bool, Error> {
        match self {
            Self::Tdp(tdp) => tdp.age(range, host),
        }
    }

    pub(super) fn test_age(&self, range: AddrRange<Gpa>, host: &Host) -> Result<bool, Error> {
        match self {
            Self::Tdp(tdp) => tdp.test_age(range, host),
        }
    }
}
