//! Slots and host pages go, and what was mapped of them.
//!
//! A slot that goes takes its tables along: those that translate nothing but it, and those that are left without a page.
//! A page of the host that goes leaves tables alone, as in KVM (`kvm_tdp_mmu_unmap_gfn_range`): another frame is about to
//! come. Tables that stay empty are found by [`Tdp::reclaim`].

use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa};

use super::Tdp;
use super::counters::Count;
use super::table::{Spot, Table};
use crate::error::Error;
use crate::mmu::mmio::MmioMaker;
use crate::mmu::spte::Target;
use crate::mmu::{HostFrames, Zapped};
use crate::phys::PhysMemory;

/// What is on its way out.
#[derive(Default)]
pub(super) struct Gone {
    pub zapped: Zapped,
    /// Pages with D set whose log was not told yet.
    pub dirty: Vec<Gpa>,
}

impl Tdp {
    /// Takes away every leaf that shares an address with `range`, a large one as a whole, and the tables that have none
    /// left: for a slot that is deleted or moved (rules Z2, Z3).
    pub fn zap(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<Zapped, Error> {
        let mut gone = Gone::default();
        let done = self.zap_below(self.root(), range, host, &mut gone);
        self.settle(range, gone, done)
    }

    /// Takes away everything (`kvm_mmu_zap_all`, rule Z3). KVM makes a new root and frees the old one step by step;
    /// here the root stays, and all is gone at once.
    pub fn zap_all(&mut self, host: &impl HostFrames) -> Result<Zapped, Error> {
        self.zap(self.root().range(), host)
    }

    /// Takes away the tables that are there only because a page was executed, so that it may be large again
    /// (`kvm_recover_nx_huge_pages`, rule L5). KVM takes a share of them from time to time.
    pub fn recover_nx_huge_pages(&mut self, host: &impl HostFrames) -> Result<Zapped, Error> {
        let (all, mut gone) = (self.root().range(), Gone::default());
        let done = self.each_table(self.root(), all, host, &mut |spot, table| match spot.spte
            & self.sptes.bits.huge_disallowed
        {
            0 => Ok(()),
            _ => self.take_table(spot, table, host, &mut gone),
        });
        self.settle(all, gone, done)
    }

    /// The slots have changed and have this generation now. When the part of it that entries for MMIO hold starts anew, old
    /// ones look new: everything goes (`kvm_mmu_invalidate_mmio_sptes`, rule I2).
    pub fn invalidate_mmio(&mut self, generation: u64, host: &impl HostFrames) -> Result<Zapped, Error> {
        match self.mmio.is_some() && generation & MmioMaker::GENERATION == 0 {
            true => self.zap_all(host),
            false => Ok(Zapped::default()),
        }
    }

    /// The start of an invalidation by the host: nothing of `range` is installed until its end, and the leaves that share
    /// an address with it go (rule N1).
    pub fn invalidate_begin(
        &mut self,
        range: AddrRange<Gpa>,
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        self.invalidations.begin(range);
        let mut gone = Gone::default();
        let done = self
            .each_leaf(self.root(), range, host, &mut |spot| self.take(spot, 0, host, &mut gone).map(|_| ()));
        self.settle(range, gone, done)
    }

    /// Its end.
    pub fn invalidate_end(&mut self) {
        self.invalidations.end();
    }

    pub(super) fn zap_below(
        &self,
        table: Table,
        range: AddrRange<Gpa>,
        host: &impl HostFrames,
        gone: &mut Gone,
    ) -> Result<(), Error> {
        for index in table.indices(range) {
            let spot = self.read(table, index, host)?;
            match self.sptes.target(table.level, spot.spte) {
                Target::Absent => {}
                Target::Leaf(..) => _ = self.take(spot, 0, host, gone)?,
                Target::Table(frame) => {
                    let child = table.child(index, frame);
                    if !range.covers(child.range()) {
                        self.zap_below(child, range, host, gone)?;
                        if !self.is_empty(child, host)? {
                            continue;
                        }
                    }
                    self.take_table(spot, child, host, gone)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a table away from its entry, with all that is below it.
    pub(super) fn take_table(
        &self,
        spot: Spot,
        child: Table,
        host: &impl HostFrames,
        gone: &mut Gone,
    ) -> Result<(), Error> {
        self.take(spot, 0, host, gone)?;
        self.free_tree(child, false, host, gone)
    }

    /// Puts `new`, which translates nothing, into an entry, whatever is there; returns what was.
    pub(super) fn take(
        &self,
        spot: Spot,
        new: u64,
        memory: &impl PhysMemory,
        gone: &mut Gone,
    ) -> Result<u64, Error> {
        let old = self.change(spot, memory, |_| new)?.unwrap_or(new);
        if let Target::Leaf(..) = self.sptes.target(spot.table.level, old) {
            gone.zapped.leaves += 1;
            let unlogged = self.sptes.bits.logged | self.sptes.dirty;
            if self.sptes.dirty != 0 && old & unlogged == unlogged {
                gone.dirty.push(spot.gpa());
            }
        }
        Ok(old)
    }

    /// Books what has gone.
    pub(super) fn settle(
        &mut self,
        range: AddrRange<Gpa>,
        gone: Gone,
        done: Result<(), Error>,
    ) -> Result<Zapped, Error> {
        self.dirty.extend(gone.dirty);
        self.counters.add(range.first(), Count::Zapped, gone.zapped.leaves);
        done.map(|()| self.flush(range, gone.zapped))
    }

    /// Asks for a flush, if anything has changed.
    pub(super) fn flush(&self, range: AddrRange<Gpa>, zapped: Zapped) -> Zapped {
        let flush = zapped.leaves > 0 || zapped.tables > 0;
        self.counters.add(range.first(), Count::Flushes, u64::from(flush));
        Zapped { flush, ..zapped }
    }
}
