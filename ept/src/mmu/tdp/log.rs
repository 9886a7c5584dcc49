//! Dirty logging: rules D1, D2 and D4.
//!
//! By write protection, each page loses W, and its next write faults. By D (page-modification logging, `PML`), it loses
//! D, which the processor sets again; [`Tdp::clear_dirty`] finds those where it did. Either way a page is logged whole
//! only where it is small: large ones are split when the log starts, or lose W and are split by their next write.

use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, PageSize};

use super::Tdp;
use super::table::{Spot, Table};
use super::zap::Gone;
use crate::error::Error;
use crate::mmu::spte::Target;
use crate::mmu::{HostFrames, Memslot, Zapped};

impl Tdp {
    /// The log of a slot has started or ended, as [`Memslot::log_dirty`] says (`kvm_mmu_slot_apply_flags`).
    ///
    /// One that starts with all pages in it (`KVM_DIRTY_LOG_INITIALLY_SET`) changes nothing yet: pages are made to be
    /// logged when they are taken out of it, by [`write_protect`](Self::write_protect) or
    /// [`clear_dirty`](Self::clear_dirty). When one ends, tables give way to the large pages that the host has there.
    pub fn set_logging(
        &mut self,
        slot: &Memslot,
        initially_set: bool,
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        let Some(range) = AddrRange::new(slot.base, slot.bytes.into()) else { return Ok(Zapped::default()) };
        match (slot.log_dirty, initially_set) {
            (false, _) => self.recover_huge_pages(slot, range, host),
            (true, true) => Ok(Zapped::default()),
            (true, false) if self.logs_by_dirty_bits() => self.clear_dirty(range, |_| {}, host),
            (true, false) => self.write_protect(range, host),
        }
    }

    /// Takes W from every leaf that shares an address with `range`, so that the next write to each page faults and is
    /// logged (rule D1). Host-writable and MMU-writable stay (rule D4).
    pub fn write_protect(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<Zapped, Error> {
        self.split_huge_pages(range, host)?;
        let mut zapped = Zapped::default();
        self.each_leaf(self.root(), range, host, &mut |spot| {
            let changed = self.change(spot, host, |spte| self.sptes.write_protected(spte))?;
            zapped.leaves += u64::from(changed.is_some());
            Ok(())
        })?;
        Ok(self.flush(range, zapped))
    }

    /// Clears D in every leaf that shares an address with `range`, and says which pages had it, also if they were
    /// zapped since. Large pages lose W as well. In formats without D, and without [`TdpOptions::dirty_bits`], that is
    /// the same as [`write_protect`](Self::write_protect).
    ///
    /// [`TdpOptions::dirty_bits`]: super::TdpOptions::dirty_bits
    pub fn clear_dirty(
        &mut self,
        range: AddrRange<Gpa>,
        mut dirty: impl FnMut(Gpa),
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        if !self.logs_by_dirty_bits() {
            return self.write_protect(range, host);
        }
        self.split_huge_pages(range, host)?;
        let late: Vec<Gpa> = self.dirty.range(range.first()..=range.last()).copied().collect();
        for gpa in late {
            self.dirty.remove(&gpa);
            dirty(gpa);
        }
        let mut zapped = Zapped::default();
        let [set, clear] = [self.sptes.bits.logged, self.sptes.dirty];
        self.each_leaf(self.root(), range, host, &mut |spot| {
            let large = spot.table.level > 1;
            let changed = self.change(spot, host, |spte| match large {
                true => self.sptes.write_protected(spte) & !clear,
                false => spte & !clear | set,
            })?;
            let Some(old) = changed else { return Ok(()) };
            if !large && old & clear != 0 {
                dirty(spot.gpa());
            }
            zapped.leaves += u64::from(old & (clear | if large { self.sptes.write } else { 0 }) != 0);
            Ok(())
        })?;
        Ok(self.flush(range, zapped))
    }

    /// Splits the large pages that share an address with `range`, if that is to be done beforehand
    /// (`kvm_mmu_try_split_huge_pages`). With no more tables to have, the rest is left to the write faults.
    fn split_huge_pages(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<(), Error> {
        if !self.options.eager_page_split {
            return Ok(());
        }
        match self.split_below(self.root(), range, host) {
            Err(Error::OutOfTables) => Ok(()),
            done => done,
        }
    }

    fn split_below(&self, table: Table, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<(), Error> {
        for index in table.indices(range).filter(|_| table.level > 1) {
            let mut spot = self.read(table, index, host)?;
            let child = loop {
                match self.sptes.target(table.level, spot.spte) {
                    Target::Absent => break None,
                    Target::Table(frame) => break Some(table.child(index, frame)),
                    Target::Leaf(..) => _ = self.split(spot, 0, host)?,
                }
                spot = self.read(table, index, host)?;
            };
            if let Some(child) = child {
                self.split_below(child, range, host)?;
            }
        }
        Ok(())
    }

    /// Rule D2: zaps the tables in whose place a large page could be (`zap_collapsible_spte_range`): the next fault
    /// maps it.
    fn recover_huge_pages(
        &mut self,
        slot: &Memslot,
        range: AddrRange<Gpa>,
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        let mut gone = Gone::default();
        let done = self.recover_below(self.root(), (slot, range), host, &mut gone);
        // No log wants to know any longer.
        gone.dirty.clear();
        self.dirty.retain(|&gpa| !range.contains(gpa));
        if self.logs_by_dirty_bits() {
            let logged = self.sptes.bits.logged;
            self.each_leaf(self.root(), range, host, &mut |spot| {
                self.change(spot, host, |spte| spte & !logged).map(|_| ())
            })?;
        }
        self.settle(range, gone, done)
    }

    fn recover_below(
        &self,
        table: Table,
        (slot, range): (&Memslot, AddrRange<Gpa>),
        host: &impl HostFrames,
        gone: &mut Gone,
    ) -> Result<(), Error> {
        for index in table.indices(range) {
            let spot = self.read(table, index, host)?;
            let Target::Table(frame) = self.sptes.target(table.level, spot.spte) else { continue };
            let child = table.child(index, frame);
            match self.collapses(spot, child, slot, host)? {
                true => self.take_table(spot, child, host, gone)?,
                false => self.recover_below(child, (slot, range), host, gone)?,
            }
        }
        Ok(())
    }

    /// Whether a large page could take the place of `table`. The host is asked for a page that is mapped, so that it
    /// has nothing to fault in.
    fn collapses(
        &self,
        spot: Spot,
        table: Table,
        slot: &Memslot,
        host: &impl HostFrames,
    ) -> Result<bool, Error> {
        let size = PageSize::of_level(spot.table.level).filter(|&size| self.paging.format.has_size(size));
        let Some(size) = size else { return Ok(false) };
        let mut mapped: Vec<Gpa> = Vec::new();
        self.each_leaf(table, table.range(), host, &mut |spot| {
            if mapped.is_empty() {
                mapped.push(spot.gpa());
            }
            Ok(())
        })?;
        let hva = mapped.first().and_then(|&gpa| slot.hva_of(gpa));
        let Some(hva) = hva else { return Ok(false) };
        let congruent = hva.page_offset(size) == mapped[0].page_offset(size);
        let large = || host.host_frame(hva, false).is_ok_and(|found| found.size >= size);
        Ok(congruent && slot.covers_page(spot.gpa(), size) && large())
    }
}
