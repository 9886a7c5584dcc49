//! Taking mappings back: slots that go, host pages that move, pages whose writes are to be logged.

use memory_model::{AddrRange, Gpa};

use super::HostFrames;
use super::shadow_page::ShadowPage;
use super::spte::Target;
use super::tdp::Tdp;
use crate::error::Error;

/// What a zap or a write protection has changed. Unless that is nothing, processors must be flushed before the
/// guest goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Zapped {
    /// Leaves changed or taken away.
    pub leaves: u64,
    /// Tables freed because they became empty.
    pub tables: u64,
}

impl Tdp {
    /// Takes away every leaf that shares an address with `range` (a large one as a whole), and frees the tables that
    /// become empty: for a slot that is deleted or moved (rule Z3), and for a host invalidation (rule N1).
    pub fn zap(&mut self, range: AddrRange<Gpa>, frames: &impl HostFrames) -> Result<Zapped, Error> {
        self.change(range, frames, &|_, _, _| 0)
    }

    /// Takes W from every leaf that shares an address with `range`, so that the next write to each page faults and is
    /// logged (rule D1). A large leaf is split by that fault.
    pub fn write_protect(
        &mut self,
        range: AddrRange<Gpa>,
        frames: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        self.change(range, frames, &|tdp, level, spte| tdp.maker.write_protected(level, spte))
    }

    /// The start of an invalidation by the host: nothing of `range` is installed until its end, and what is mapped goes
    /// (rule N1).
    pub fn invalidate_begin(
        &mut self,
        range: AddrRange<Gpa>,
        frames: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        self.invalidations.begin(range);
        self.zap(range, frames)
    }

    /// Its end.
    pub fn invalidate_end(&mut self) {
        self.invalidations.end();
    }

    fn change<F: HostFrames>(
        &mut self,
        range: AddrRange<Gpa>,
        frames: &F,
        new: &impl Fn(&Self, u8, u64) -> u64,
    ) -> Result<Zapped, Error> {
        let mut zapped = Zapped::default();
        let root = self.page(self.paging.root);
        self.change_table(root, range, frames, new, &mut zapped)?;
        Ok(zapped)
    }

    fn change_table<F: HostFrames>(
        &mut self,
        page: ShadowPage,
        range: AddrRange<Gpa>,
        frames: &F,
        new: &impl Fn(&Self, u8, u64) -> u64,
        zapped: &mut Zapped,
    ) -> Result<(), Error> {
        let level = page.role.level;
        let format = self.paging.format;
        let span = AddrRange::new(page.gpa, 512 << format.shift(level));
        let Some(within) = span.and_then(|span| span.intersection(range)) else { return Ok(()) };
        for index in format.index(level, within.first().raw())..=format.index(level, within.last().raw()) {
            let entry = frames.read_entry(page.entry_address(index))?;
            match self.maker.target(level, entry) {
                Target::Absent => {}
                Target::Leaf(..) => zapped.leaves += self.change_leaf(&page, index, frames, new)?,
                Target::Table(child) => {
                    self.change_table(self.page(child), range, frames, new, zapped)?;
                    if self.page(child).used == 0 {
                        self.unlink(&page, index, child, frames)?;
                        zapped.tables += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Changes one leaf, again if hardware sets a flag meanwhile; returns how many leaves differ now.
    fn change_leaf<F: HostFrames>(
        &mut self,
        page: &ShadowPage,
        index: u16,
        frames: &F,
        new: &impl Fn(&Self, u8, u64) -> u64,
    ) -> Result<u64, Error> {
        loop {
            let old = frames.read_entry(page.entry_address(index))?;
            let new = new(self, page.role.level, old);
            if new == old || self.set_spte(page, index, old, new, frames)? {
                return Ok(u64::from(new != old));
            }
        }
    }

    /// Takes an empty table away from entry `index`.
    fn unlink<F: HostFrames>(
        &mut self,
        page: &ShadowPage,
        index: u16,
        child: u64,
        frames: &F,
    ) -> Result<(), Error> {
        while let old = frames.read_entry(page.entry_address(index))?
            && !self.set_spte(page, index, old, 0, frames)?
        {}
        self.free_tree(child, frames)
    }
}
