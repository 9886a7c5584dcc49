//! The MMU's tables: linked, split and freed, with the counters kept in step.

use memory_model::{Gpa, Hpa};

use super::HostFrames;
use super::shadow_page::{PageRole, ShadowPage};
use super::spte::Target;
use super::tdp::Tdp;
use crate::error::Error;

impl Tdp {
    /// What is known about a table of this MMU.
    pub(super) fn page(&self, table: u64) -> ShadowPage {
        *self.pages.get(&table).expect("each linked table has its ShadowPage")
    }

    /// A new, empty table; not linked yet.
    pub(super) fn allocate(
        &mut self,
        level: u8,
        gpa: Gpa,
        parent: Option<Hpa>,
        frames: &impl HostFrames,
    ) -> Result<u64, Error> {
        let table = frames.allocate_table().ok_or(Error::OutOfTables)?;
        if let Err(refused) = self.maker.table(table) {
            frames.free_table(table);
            return Err(refused);
        }
        let ad_disabled = !self.paging.format.has_accessed_dirty();
        let role = PageRole { level, direct: true, ad_disabled };
        self.pages.insert(table, ShadowPage { role, gpa, table: Hpa(table), parent, used: 0 });
        Ok(table)
    }

    /// Links an empty table at entry `index`; `None` if the entry is no longer `old`.
    pub(super) fn link(
        &mut self,
        page: &ShadowPage,
        index: u16,
        old: u64,
        frames: &impl HostFrames,
    ) -> Result<Option<u64>, Error> {
        let child = self.allocate(page.role.level - 1, page.gpa_of(index), Some(page.table), frames)?;
        self.hang(page, index, old, child, frames)
    }

    /// Replaces the large leaf at entry `index` by a table of smaller ones that map the same; `None` if hardware has
    /// set a flag in it meanwhile.
    pub(super) fn split(
        &mut self,
        page: &ShadowPage,
        index: u16,
        old: u64,
        frames: &impl HostFrames,
    ) -> Result<Option<u64>, Error> {
        let level = page.role.level;
        let table = self.allocate(level - 1, page.gpa_of(index), Some(page.table), frames)?;
        let child = self.page(table);
        for piece in 0..512 {
            let spte = self.paging.format.split(level, old, piece);
            if let Err(error) = self.set_spte(&child, piece, 0, spte, frames) {
                self.free_tree(table, frames)?;
                return Err(error);
            }
        }
        self.hang(page, index, old, table, frames)
    }

    /// Puts `child` into entry `index`, or frees it again.
    fn hang(
        &mut self,
        page: &ShadowPage,
        index: u16,
        old: u64,
        child: u64,
        frames: &impl HostFrames,
    ) -> Result<Option<u64>, Error> {
        let spte = self.maker.table(child)?;
        match self.set_spte(page, index, old, spte, frames) {
            Ok(true) => Ok(Some(child)),
            failed => {
                self.free_tree(child, frames)?;
                failed.map(|_| None)
            }
        }
    }

    /// Exchanges one entry and keeps the counters in step; `false` if it is no longer `old`.
    pub(super) fn set_spte(
        &mut self,
        page: &ShadowPage,
        index: u16,
        old: u64,
        new: u64,
        frames: &impl HostFrames,
    ) -> Result<bool, Error> {
        if !frames.compare_exchange(page.entry_address(index), old, new)? {
            return Ok(false);
        }
        let level = page.role.level;
        if let Target::Leaf(_, size) = self.maker.target(level, old) {
            *self.stats.pages(size) -= 1;
        }
        if let Target::Leaf(_, size) = self.maker.target(level, new) {
            *self.stats.pages(size) += 1;
        }
        if let Some(page) = self.pages.get_mut(&page.table.raw()) {
            page.used -= u16::from(self.maker.bits.is_present(old));
            page.used += u16::from(self.maker.bits.is_present(new));
        }
        Ok(true)
    }

    /// Frees a table that is no longer linked, and all below it.
    pub(super) fn free_tree(&mut self, table: u64, frames: &impl HostFrames) -> Result<(), Error> {
        let page = self.page(table);
        for index in 0..512 {
            match self.maker.target(page.role.level, frames.read_entry(page.entry_address(index))?) {
                Target::Absent => {}
                Target::Table(child) => self.free_tree(child, frames)?,
                Target::Leaf(_, size) => *self.stats.pages(size) -= 1,
            }
        }
        self.pages.remove(&table);
        frames.free_table(table);
        Ok(())
    }

    /// Gives all tables back. The root is gone then, and with it the MMU.
    pub fn free(mut self, frames: &impl HostFrames) -> Result<(), Error> {
        self.free_tree(self.paging.root, frames)
    }
}
