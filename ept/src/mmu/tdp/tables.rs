//! Tables: allocated, filled, freed and listed.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use memory_model::{AddrRange, Gpa, Hpa};

use super::Tdp;
use super::counters::Count;
use super::page::TdpPage;
use super::table::{Spot, Table};
use super::zap::Gone;
use crate::error::Error;
use crate::mmu::HostFrames;
use crate::mmu::spte::{FROZEN, Target};
use crate::phys::PhysMemory;

impl Tdp {
    /// An empty table, and the entry that would point to it.
    pub(super) fn allocate(&self, host: &impl HostFrames) -> Result<(u64, u64), Error> {
        let most = self.options.max_tables.map_or(u64::MAX, |most| most.max(self.least_tables()));
        let table = match self.tables.fetch_add(1, Ordering::Relaxed) < most {
            true => host.allocate_table().ok_or(Error::OutOfTables),
            false => Err(Error::OutOfTables),
        };
        let pointer = table.and_then(|table| {
            let pointer = self.sptes.table(table).inspect_err(|_| host.free_table(table));
            pointer.map(|pointer| (table, pointer))
        });
        pointer.inspect_err(|_| _ = self.tables.fetch_sub(1, Ordering::Relaxed))
    }

    /// What a page takes: a table of each level.
    pub(super) fn least_tables(&self) -> u64 {
        self.paging.format.levels().into()
    }

    /// Frees a table that no entry points to.
    pub(super) fn free_table(&self, table: Table, host: &impl HostFrames) {
        self.tables.fetch_sub(1, Ordering::Relaxed);
        host.free_table(table.frame);
    }

    /// Puts an empty table into an absent entry (`tdp_mmu_link_sp`); `None` if somebody was faster.
    pub(super) fn link(
        &self,
        spot: Spot,
        software: u64,
        host: &impl HostFrames,
    ) -> Result<Option<Table>, Error> {
        let (frame, pointer) = self.allocate(host)?;
        self.hang(spot, frame, pointer | software, host)
    }

    /// Puts a table of smaller leaves, which map the same, in the place of a large one (`tdp_mmu_split_huge_page`);
    /// `None` if somebody was faster, or hardware has set a flag.
    pub(super) fn split(
        &self,
        spot: Spot,
        software: u64,
        host: &impl HostFrames,
    ) -> Result<Option<Table>, Error> {
        const PART: u64 = 64;
        let (frame, pointer) = self.allocate(host)?;
        let table = spot.table.child(spot.index, frame);
        let mut first = self.sptes.first_piece(spot.table.level, spot.spte);
        if table.level == 1 && self.options.nx_huge_pages {
            // As `make_small_spte` does: what is not large may be executed again.
            first = self.sptes.with_exec(first);
        }
        let step = 1 << self.paging.format.shift(table.level);
        for part in 0..u64::from(Table::ENTRIES) / PART {
            let pieces: [u64; PART as usize] =
                core::array::from_fn(|index| first + (part * PART + index as u64) * step);
            if let Err(error) = host.write_entries(frame + part * PART * 8, &pieces) {
                self.free_table(table, host);
                return Err(error.into());
            }
        }
        let hung = self.hang(spot, frame, pointer | software, host)?;
        if let (Some(table), Some(size)) = (hung, self.paging.format.page_size(table.level)) {
            self.counters.add(Gpa(table.base), Count::pages(size), Table::ENTRIES.into());
        }
        Ok(hung)
    }

    /// Makes an entry point to a table, or frees the table again.
    fn hang(
        &self,
        spot: Spot,
        frame: u64,
        pointer: u64,
        host: &impl HostFrames,
    ) -> Result<Option<Table>, Error> {
        let table = spot.table.child(spot.index, frame);
        match self.exchange(spot, pointer, host) {
            Ok(true) => Ok(Some(table)),
            failed => {
                self.free_table(table, host);
                failed.map(|_| None)
            }
        }
    }

    /// Frees a table that no entry points to any longer, and all below it (`handle_removed_pt`). If others run beside,
    /// some may still be in it: each entry is frozen, so that what they would put there is refused.
    pub(super) fn free_tree(
        &self,
        table: Table,
        shared: bool,
        host: &impl HostFrames,
        gone: &mut Gone,
    ) -> Result<(), Error> {
        for index in 0..Table::ENTRIES {
            let spot = self.read(table, index, host)?;
            if spot.spte == 0 && !shared {
                continue;
            }
            let old = self.take(spot, FROZEN, host, gone)?;
            if let Target::Table(child) = self.sptes.target(table.level, old) {
                self.free_tree(table.child(index, child), shared, host, gone)?;
            }
        }
        self.free_table(table, host);
        gone.zapped.tables += 1;
        Ok(())
    }

    /// Whether no entry is in use.
    pub(super) fn is_empty(&self, table: Table, memory: &impl PhysMemory) -> Result<bool, Error> {
        for index in 0..Table::ENTRIES {
            let Spot { spte, .. } = self.read(table, index, memory)?;
            if self.sptes.bits.is_present(spte) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Calls `act` for each table below `table` that shares an address with `range`, children first.
    pub(super) fn each_table(
        &self,
        table: Table,
        range: AddrRange<Gpa>,
        memory: &impl PhysMemory,
        act: &mut impl FnMut(Spot, Table) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for index in table.indices(range) {
            let spot = self.read(table, index, memory)?;
            if let Target::Table(frame) = self.sptes.target(table.level, spot.spte) {
                let child = table.child(index, frame);
                self.each_table(child, range, memory, act)?;
                act(spot, child)?;
            }
        }
        Ok(())
    }

    /// Calls `act` for each leaf that shares an address with `range`.
    pub(super) fn each_leaf(
        &self,
        table: Table,
        range: AddrRange<Gpa>,
        memory: &impl PhysMemory,
        act: &mut impl FnMut(Spot) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for index in table.indices(range) {
            let spot = self.read(table, index, memory)?;
            match self.sptes.target(table.level, spot.spte) {
                Target::Absent => {}
                Target::Leaf(..) => act(spot)?,
                Target::Table(frame) => self.each_leaf(table.child(index, frame), range, memory, act)?,
            }
        }
        Ok(())
    }

    /// All tables, the root among them, told by walking them; each behind those that it points to.
    pub fn pages(&self, memory: &impl PhysMemory) -> Result<Vec<TdpPage>, Error> {
        let mut pages = Vec::new();
        self.list(self.root(), None, memory, &mut pages)?;
        Ok(pages)
    }

    fn list(
        &self,
        table: Table,
        parent: Option<Hpa>,
        memory: &impl PhysMemory,
        pages: &mut Vec<TdpPage>,
    ) -> Result<(), Error> {
        let mut entries = [0; Table::ENTRIES as usize];
        memory.read_table(table.frame, &mut entries)?;
        let mut used = 0;
        for (index, &spte) in (0..).zip(&entries) {
            used += u16::from(self.sptes.bits.is_present(spte));
            if let Target::Table(frame) = self.sptes.target(table.level, spte) {
                self.list(table.child(index, frame), Some(Hpa(table.frame)), memory, pages)?;
            }
        }
        let ad_disabled = !self.paging.format.has_accessed_dirty();
        let (level, gpa, table) = (table.level, Gpa(table.base), Hpa(table.frame));
        pages.push(TdpPage { level, ad_disabled, gpa, table, parent, used });
        Ok(())
    }

    /// Gives all tables back. The root is gone then, and with it the MMU.
    pub fn free(self, host: &impl HostFrames) -> Result<(), Error> {
        self.free_tree(self.root(), false, host, &mut Gone::default())
    }
}
