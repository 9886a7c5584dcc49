//! Leaves that no fault has asked for yet (`pte_prefetch`, rule H4).

use memory_model::{AddrRange, Gpa, Hva, PageSize};

use super::Shadow;
use super::entries::NewLeaf;
use super::memory::GuestMemory;
use super::page::{Held, SpteRef};
use super::sync::GuestPage;
use crate::access::Rights;
use crate::error::Error;
use crate::mmu::{HostFrames, Memslots};

/// Entries of an aligned group (`PTE_PREFETCH_NUM`).
const GROUP: u16 = 8;

impl Shadow {
    /// Sets the other leaves of the group around `at`, where a fault has just set one of 4 KiB: those that are absent, that the
    /// guest has used before, and whose page the host has there already. `hva` and `key` are those of the leaf.
    pub(super) fn prefetch<S: Memslots, H: HostFrames>(
        &mut self,
        at: SpteRef,
        hva: Hva,
        key: u64,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<(), Error> {
        // It is there now: a host that says no cannot tell.
        if memory.host().present_frame(hva, false).is_none() {
            return Ok(());
        }
        let first = at.index & !(GROUP - 1);
        for index in first..first + GROUP {
            let at = SpteRef { page: at.page, index };
            if self.pages[at.page].held(index) == Held::Absent
                && let Some(page) = self.wanted(at, key, memory)
                && let Some(leaf) = self.leaf_ahead(page, memory)
            {
                self.set_leaf(at, &leaf, memory.host())?;
            }
        }
        Ok(())
    }

    /// What the guest has behind an entry.
    fn wanted<S: Memslots, H: HostFrames>(
        &self,
        at: SpteRef,
        key: u64,
        memory: &GuestMemory<'_, S, H>,
    ) -> Option<GuestPage> {
        let page = &self.pages[at.page];
        if page.role.direct {
            // A piece of the same large page.
            return Some(GuestPage { gfn: page.gfn + u64::from(at.index), access: page.role.access, key });
        }
        self.guest_page(at, memory)
    }

    /// The leaf for a page that is at hand. Nothing is done for it: no page is faulted in, no table goes unsync, and no
    /// write escapes a log.
    fn leaf_ahead<S: Memslots, H: HostFrames>(
        &mut self,
        page: GuestPage,
        memory: &GuestMemory<'_, S, H>,
    ) -> Option<NewLeaf> {
        let gpa = Gpa(page.gfn << PageSize::Size4K.shift());
        let (slot, hva) = memory.slot(gpa)?;
        let writes = page.access.contains(Rights::WRITE);
        let in_motion = AddrRange::page_of(gpa, PageSize::Size4K);
        if writes && (slot.log_dirty || slot.readonly)
            || self.invalidations.retry(self.invalidations.seq(), in_motion)
        {
            return None;
        }
        let frame = memory.host().present_frame(hva, writes)?;
        let writable = writes && frame.writable && self.try_to_unsync(page.gfn, false);
        Some(NewLeaf {
            gfn: page.gfn,
            hpa: frame.hpa,
            size: PageSize::Size4K,
            access: page.access,
            key: page.key,
            host_writable: frame.writable,
            mmu_writable: writable,
            writable,
            used: false,
        })
    }
}
