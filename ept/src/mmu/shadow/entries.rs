//! Single entries: linked, set and taken away, with everything that knows of them kept in step.

use memory_model::{Hpa, PageSize};

use super::Shadow;
use super::memory::GuestMemory;
use super::page::{Held, PageId, SpteRef};
use super::role::PageRole;
use crate::access::Rights;
use crate::error::Error;
use crate::format::Kind;
use crate::mmu::spte::{SpteMaker, Writable};
use crate::mmu::{HostFrames, Memslots, SpteBits};

/// The software bits of shadow entries.
pub(super) const BITS: SpteBits = SpteBits::of(Kind::Ia32e);

/// A leaf to be made (`make_spte`).
#[derive(Clone, Copy, Debug)]
pub(super) struct NewLeaf {
    /// Page number of the guest's page.
    pub gfn: u64,
    pub hpa: Hpa,
    pub size: PageSize,
    /// What the guest's tables grant.
    pub access: Rights,
    /// The protection key, in its place in the entry.
    pub key: u64,
    /// The host may write the page.
    pub host_writable: bool,
    /// The MMU may set W without asking anyone (rule S1).
    pub mmu_writable: bool,
    /// W.
    pub writable: bool,
    /// A: for an access that is under way. Without, hardware sets it at the first (rule S4).
    pub used: bool,
}

impl NewLeaf {
    #[inline]
    fn spte(&self, sptes: &SpteMaker) -> Result<u64, Error> {
        let writable = match self {
            Self { writable: true, .. } => Writable::Yes,
            Self { mmu_writable: true, .. } => Writable::AfterLogging,
            Self { host_writable: true, .. } => Writable::NotInGuest,
            _ => Writable::NotInHost,
        };
        let mut spte = sptes.leaf(self.size, self.hpa, writable)? | self.key;
        if !self.access.contains(Rights::EXEC) {
            spte = sptes.without_exec(spte);
        }
        if !self.access.contains(Rights::USER) {
            spte = sptes.without_user(spte);
        }
        if !self.used {
            spte = sptes.aged(spte);
        }
        Ok(spte)
    }
}

impl Shadow {
    /// Changes an entry as `new` says, whatever flags hardware sets in it meanwhile; returns what it was.
    pub(super) fn change(
        &self,
        at: SpteRef,
        host: &impl HostFrames,
        new: impl Fn(u64) -> u64,
    ) -> Result<u64, Error> {
        let address = self.pages[at.page].entry_address(at.index);
        loop {
            let old = host.read_entry(address)?;
            if old == new(old) || host.compare_exchange(address, old, new(old))? {
                return Ok(old);
            }
        }
    }

    /// Takes W from a leaf, and `more`; whether that changed anything.
    pub(super) fn take_write(
        &mut self,
        at: SpteRef,
        more: u64,
        host: &impl HostFrames,
    ) -> Result<bool, Error> {
        let old = self.change(at, host, |spte| self.sptes.write_protected(spte) & !more)?;
        let written = self.sptes.write_protected(old) != old;
        // Rule D4 leaves the flush to the caller of a write protection for the log; it is counted all the same.
        self.flushes += u64::from(written);
        Ok(written)
    }

    /// The page of that role for that guest page: an old one, or an empty new one (`kvm_mmu_get_shadow_page`).
    pub(super) fn get_page<S: Memslots, H: HostFrames>(
        &mut self,
        role: PageRole,
        gfn: u64,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<PageId, Error> {
        let host = memory.host();
        if let Some(found) = self.pages.find(role, gfn) {
            // The guest needs no flush to make an entry present: what is linked now must be as the guest's is now.
            match role.level {
                1 if self.pages[found].unsync => self.refresh(found, memory)?,
                1 => {}
                _ => self.sync_children(found, memory)?,
            }
            return Ok(found);
        }
        self.new_page(role, gfn, host)
    }

    /// An empty page. A guest table that it shadows is tracked from now on.
    pub(super) fn new_page(
        &mut self,
        role: PageRole,
        gfn: u64,
        host: &impl HostFrames,
    ) -> Result<PageId, Error> {
        let table = host.allocate_table().ok_or(Error::OutOfTables)?;
        if let Err(refused) = self.sptes.format.table(table) {
            host.free_table(table);
            return Err(refused);
        }
        let id = self.pages.insert(role, gfn, table);
        if role.shadows_table() {
            self.track(gfn, role.level, host)?;
        }
        Ok(id)
    }

    /// Links a page at an absent entry (`link_shadow_page`).
    pub(super) fn link(&mut self, at: SpteRef, child: PageId, host: &impl HostFrames) -> Result<(), Error> {
        let table = self.sptes.table(self.pages[child].table)?;
        self.change(at, host, |_| table)?;
        self.pages[at.page].hold(at.index, Held::Table(child));
        self.pages[child].parents.push(at);
        if self.pages[child].unsync || self.pages[child].has_unsync_children() {
            self.mark_unsync(at);
        }
        Ok(())
    }

    /// Puts a leaf into an entry that holds no table; whether the entry differs from before (`mmu_set_spte`).
    pub(super) fn set_leaf(
        &mut self,
        at: SpteRef,
        leaf: &NewLeaf,
        host: &impl HostFrames,
    ) -> Result<bool, Error> {
        let spte = leaf.spte(&self.sptes)?;
        let held = Held::Leaf { gfn: leaf.gfn, access: leaf.access };
        let address = self.pages[at.page].entry_address(at.index);
        // An entry of zero holds nothing. To ask the page as well would cost a cache miss.
        let mut absent = host.read_entry(address)? == 0;
        if !absent && matches!(self.pages[at.page].held(at.index), Held::Leaf { gfn, .. } if gfn != leaf.gfn)
        {
            self.drop_spte(at, host)?;
            absent = true;
        }
        if absent {
            // Hardware sets no flags in it, so that nobody else writes it.
            host.write_entries(address, &[spte])?;
            let level = leaf.size.level();
            self.pages[at.page].hold_first(at.index, held);
            self.rmap.add(level, leaf.gfn, at);
            self.leaves[usize::from(level - 1)] += 1;
            return Ok(true);
        }
        let old = self.change(at, host, |_| spte)?;
        self.pages[at.page].hold(at.index, held);
        let flags = self.sptes.format.flags(true, true);
        self.flushes += u64::from(takes_rights(old & !flags, spte & !flags));
        Ok((old ^ spte) & !flags != 0)
    }

    /// Takes a leaf away (`drop_spte`).
    pub(super) fn drop_spte(&mut self, at: SpteRef, host: &impl HostFrames) -> Result<(), Error> {
        let Held::Leaf { gfn, .. } = self.pages[at.page].held(at.index) else { return Ok(()) };
        self.change(at, host, |_| 0)?;
        let level = self.pages[at.page].role.level;
        self.pages[at.page].hold(at.index, Held::Absent);
        self.rmap.remove(level, gfn, at);
        self.leaves[usize::from(level - 1)] -= 1;
        self.flushes += 1;
        Ok(())
    }

    /// Takes a pointer to a table away; returns the table, which may be without parents now (`drop_parent_pte`).
    pub(super) fn unlink(&mut self, at: SpteRef, host: &impl HostFrames) -> Result<Option<PageId>, Error> {
        let Held::Table(child) = self.pages[at.page].held(at.index) else { return Ok(None) };
        self.change(at, host, |_| 0)?;
        let page = &mut self.pages[at.page];
        page.hold(at.index, Held::Absent);
        page.mark_unsync_child(at.index, false);
        self.pages[child].parents.retain(|&parent| parent != at);
        self.flushes += 1;
        Ok(Some(child))
    }

    /// Takes away what an entry holds, and a table below that is of no more use (`mmu_page_zap_pte`).
    pub(super) fn zap_entry(&mut self, at: SpteRef, host: &impl HostFrames) -> Result<(), Error> {
        self.drop_spte(at, host)?;
        if let Some(child) = self.unlink(at, host)? {
            let page = &self.pages[child];
            if page.parents.is_empty() && page.root_count == 0 && !page.role.outlives_parents() {
                self.zap_page(child, host)?;
            }
        }
        Ok(())
    }

    /// Takes a page out of use: what it holds, and what points to it (`kvm_mmu_prepare_zap_page`). Its table is freed
    /// unless it is some processor's root.
    pub(super) fn zap_page(&mut self, id: PageId, host: &impl HostFrames) -> Result<(), Error> {
        while let Some(&parent) = self.pages[id].parents.first() {
            self.unlink(parent, host)?;
        }
        self.pages.forget(id);
        let mut from = 0;
        while let Some(index) = self.pages[id].next_in_use(from) {
            self.zap_entry(SpteRef { page: id, index }, host)?;
            from = index + 1;
        }
        let page = &mut self.pages[id];
        self.stats.mmu_unsync -= u64::from(page.unsync);
        self.stats.mmu_shadow_zapped += 1;
        page.unsync = false;
        page.invalid = true;
        if page.root_count == 0 {
            self.free_page(id, host);
        }
        Ok(())
    }

    pub(super) fn free_page(&mut self, id: PageId, host: &impl HostFrames) {
        host.free_table(self.pages[id].table);
        self.pages.remove(id);
    }
}

/// Whether a leaf lost something that a processor may still remember.
fn takes_rights(old: u64, new: u64) -> bool {
    old != 0 && old != new
}
