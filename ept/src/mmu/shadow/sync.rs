//! Shadows that may be older than the guest's tables, and how they catch up (rule H1).
//!
//! Hardware lets a guest change a table without telling anyone until it flushes. So may a shadow of a level-1 table:
//! while it is unsync the guest writes the table without a fault, and the shadow catches up when the guest flushes.

use memory_model::{Gpa, PageSize};

use super::Shadow;
use super::context::ShadowContext;
use super::memory::GuestMemory;
use super::page::{Held, PageId, SpteRef};
use super::role::GuestMode;
use crate::access::Rights;
use crate::error::Error;
use crate::format::{Entry, Format, Kind};
use crate::mmu::{HostFrames, Memslots};
use crate::phys::PhysMemory;

/// What a guest's level-1 entry says now.
pub(super) struct GuestPage {
    pub gfn: u64,
    pub access: Rights,
    pub key: u64,
}

impl Shadow {
    /// INVLPG, or INVPCID of one address (`kvm_mmu_invlpg`). The processor flushes its own TLB. Previous roots need
    /// nothing here: [`load`](Self::load) syncs a root when it comes back.
    pub fn invlpg<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        gva: u64,
        slots: &S,
        host: &H,
    ) -> Result<(), Error> {
        let memory = GuestMemory::new(slots, host);
        let mut id = context.root();
        loop {
            let page = &self.pages[id];
            let at = SpteRef { page: id, index: self.sptes.format.index(page.role.level, gva) };
            if page.unsync {
                let address = self.guest_entry_address(at);
                return match self.read_guest_entry(at, address, &memory) {
                    entry if self.is_current(at, entry, host)? => Ok(()),
                    _ => self.drop_spte(at, host),
                };
            }
            match page.held(at.index) {
                Held::Table(child) if page.has_unsync_children() => id = child,
                _ => return Ok(()),
            }
        }
    }

    /// Any flush of more than one address: INVPCID of the other kinds, a change of CR4.PGE (`kvm_mmu_sync_roots`).
    pub fn sync_roots<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        slots: &S,
        host: &H,
    ) -> Result<(), Error> {
        self.sync_children(context.root(), &GuestMemory::new(slots, host))
    }

    /// Marks the entry and what is above it: something below is unsync (`mark_unsync`).
    pub(super) fn mark_unsync(&mut self, at: SpteRef) {
        let page = &mut self.pages[at.page];
        let marked = page.has_unsync_children();
        page.mark_unsync_child(at.index, true);
        if !marked {
            self.mark_parents_unsync(at.page);
        }
    }

    pub(super) fn mark_parents_unsync(&mut self, id: PageId) {
        for nth in 0..self.pages[id].parents.len() {
            self.mark_unsync(self.pages[id].parents[nth]);
        }
    }

    /// Everything below a page catches up (`mmu_sync_children`).
    pub(super) fn sync_children<S: Memslots, H: HostFrames>(
        &mut self,
        id: PageId,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<(), Error> {
        while let Some(index) = self.pages[id].take_unsync_child() {
            let Held::Table(child) = self.pages[id].held(index) else { continue };
            if self.pages[child].unsync {
                self.sync_page(child, memory)?;
            } else {
                self.sync_children(child, memory)?;
            }
        }
        Ok(())
    }

    /// The page catches up, and the guest's next write to its table faults again (`kvm_unlink_unsync_page`).
    fn sync_page<S: Memslots, H: HostFrames>(
        &mut self,
        id: PageId,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<(), Error> {
        let page = &mut self.pages[id];
        page.unsync = false;
        self.stats.mmu_unsync -= 1;
        let gfn = page.gfn;
        // First: what is written from now on is told.
        self.protect(gfn, memory.host())?;
        self.refresh(id, memory)
    }

    /// Drops the leaves of a level-1 page that are no longer what the guest's table says (`sync_page`).
    pub(super) fn refresh<S: Memslots, H: HostFrames>(
        &mut self,
        id: PageId,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<(), Error> {
        let mut guest = [0; 512];
        let first = self.guest_entry_address(SpteRef { page: id, index: 0 });
        // A table that cannot be read maps nothing.
        if memory.read_table(Gpa(first).align_down(PageSize::Size4K).raw(), &mut guest).is_err() {
            guest = [0; 512];
        }
        let mut from = 0;
        while let Some(index) = self.pages[id].next_in_use(from) {
            let at = SpteRef { page: id, index };
            let address = self.guest_entry_address(at);
            let both = guest[(Gpa(address).page_offset(PageSize::Size4K) / 8) as usize];
            let entry = self.guest_entry_of(at, address, both);
            if !self.is_current(at, entry, memory.host())? {
                self.drop_spte(at, memory.host())?;
            }
            from = index + 1;
        }
        Ok(())
    }

    /// What the guest's entry behind an entry of a level-1 page maps, if it was used before.
    pub(super) fn guest_page<S: Memslots, H: HostFrames>(
        &self,
        at: SpteRef,
        memory: &GuestMemory<'_, S, H>,
    ) -> Option<GuestPage> {
        let entry = self.read_guest_entry(at, self.guest_entry_address(at), memory);
        self.mode_of(at.page)?.page_of(entry, self.pages[at.page].role.access)
    }

    /// Guest-physical address of the guest's entry behind an entry of a level-1 page.
    fn guest_entry_address(&self, at: SpteRef) -> u64 {
        let page = &self.pages[at.page];
        let width = self.mode_of(at.page).map_or(8, |mode| mode.format.entry_bytes().into());
        (page.gfn << 12) + (u64::from(page.role.quadrant) * 512 + u64::from(at.index)) * width
    }

    fn read_guest_entry<S: Memslots, H: HostFrames>(
        &self,
        at: SpteRef,
        address: u64,
        memory: &GuestMemory<'_, S, H>,
    ) -> u64 {
        self.guest_entry_of(at, address, memory.read_entry(address & !7).unwrap_or(0))
    }

    /// The entry at `address`, of the eight bytes around it.
    fn guest_entry_of(&self, at: SpteRef, address: u64, both: u64) -> u64 {
        match self.mode_of(at.page) {
            Some(mode) if mode.has_4_byte_gpte() => both >> ((address & 4) * 8) & u64::from(u32::MAX),
            _ => both,
        }
    }

    fn mode_of(&self, id: PageId) -> Option<&GuestMode> {
        self.modes.get(self.pages[id].role.mode)
    }

    /// Whether a leaf of a level-1 page grants no more than the guest's entry does now (`FNAME(sync_spte)`).
    fn is_current(&self, at: SpteRef, entry: u64, host: &impl HostFrames) -> Result<bool, Error> {
        let page = &self.pages[at.page];
        let Held::Leaf { gfn, access } = page.held(at.index) else { return Ok(true) };
        let Some(now) = self.mode_of(at.page).and_then(|mode| mode.page_of(entry, page.role.access)) else {
            return Ok(false);
        };
        let key = host.read_entry(page.entry_address(at.index))? & Format::PROTECTION_KEY;
        // Without U a leaf grants a supervisor what SMEP and SMAP would refuse.
        let same_user = !(access ^ now.access).contains(Rights::USER);
        Ok(gfn == now.gfn && same_user && now.access.contains(access) && key == now.key)
    }
}

impl GuestMode {
    /// What a level-1 entry maps below pointers that grant `pointers`; nothing if it lacks A, so that its first use
    /// faults and sets it.
    fn page_of(&self, entry: u64, pointers: Rights) -> Option<GuestPage> {
        let format = &self.format;
        let Entry::Leaf(frame, _) = format.decode(1, entry) else { return None };
        if format.marked(entry, false, false) != entry {
            return None;
        }
        let mut access = pointers & self.access(format.mergeable(entry));
        if !format.is_dirty(entry) {
            access -= Rights::WRITE;
        }
        Some(GuestPage { gfn: frame >> 12, access, key: self.key_of(entry) })
    }

    /// The protection key of a leaf, in its place. It counts only with CR4.PKE or CR4.PKS, but one shadow serves
    /// processors with and without.
    pub fn key_of(&self, entry: u64) -> u64 {
        match self.format.kind() {
            Kind::Ia32e => entry & Format::PROTECTION_KEY,
            _ => 0,
        }
    }
}
