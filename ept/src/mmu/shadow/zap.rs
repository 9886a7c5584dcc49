//! Taking mappings back: slots that go, host pages that move, pages whose writes are to be logged, tables over the limit.

use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa};

use super::Shadow;
use super::fault::PATH_TABLES;
use super::page::PageId;
use super::role::PageRole;
use crate::error::Error;
use crate::mmu::{HostFrames, Zapped};

/// How many tables are made free at once (`KVM_REFILL_PAGES`), so far as the limit allows it.
const REFILL: usize = 25;

impl Shadow {
    /// Takes away every leaf that maps a page of `range`, and every shadow of a guest table in it: for a slot that is
    /// deleted or moved (rule Z3), and for a host invalidation (rule N1). That of tables is more than KVM does on an
    /// invalidation: it holds even if the host puts other contents there.
    pub fn zap(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<Zapped, Error> {
        let mut zapped = Zapped::default();
        for at in self.rmap.leaves_in(range) {
            self.drop_spte(at, host)?;
            zapped.leaves += 1;
        }
        let gfns = range.first().page_number()..=range.last().page_number();
        let tables: Vec<_> = self.pages.shadowing(gfns).collect();
        for id in tables {
            // One may have gone with another.
            if self.pages.contains(id) && !self.pages[id].invalid {
                self.zap_page(id, host)?;
                zapped.tables += 1;
            }
        }
        Ok(zapped)
    }

    /// Takes all shadow pages out of use; roots are made anew on the next fault (`kvm_mmu_zap_all_fast`, rule Z3).
    pub fn zap_all(&mut self, host: &impl HostFrames) -> Result<(), Error> {
        while let Some(id) = self.pages.oldest() {
            self.zap_page(id, host)?;
        }
        Ok(())
    }

    /// Takes W from every leaf that maps a page of `range`, so that the next write to each page faults and is logged
    /// (rule D1). A large leaf gives way to small ones then.
    pub fn write_protect(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<Zapped, Error> {
        let mut zapped = Zapped::default();
        for at in self.rmap.leaves_in(range) {
            zapped.leaves += u64::from(self.take_write(at, 0, host)?);
        }
        Ok(zapped)
    }

    /// The log of a slot is switched: on, large leaves of its range go and small ones lose W (rule D1); off, the pieces of
    /// large guest pages go, so that they come back large (rule D2).
    pub fn set_logging(
        &mut self,
        range: AddrRange<Gpa>,
        on: bool,
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        let mut zapped = Zapped::default();
        for at in self.rmap.leaves_in(range) {
            let PageRole { level, direct, .. } = self.pages[at.page].role;
            let goes = if on { level > 1 } else { direct && level == 1 };
            if goes {
                self.drop_spte(at, host)?;
                zapped.leaves += 1;
            } else if on {
                zapped.leaves += u64::from(self.take_write(at, 0, host)?);
            }
        }
        Ok(zapped)
    }

    /// The start of an invalidation by the host: nothing of `range` is installed until its end, and what is mapped goes
    /// (rule N1).
    pub fn invalidate_begin(
        &mut self,
        range: AddrRange<Gpa>,
        host: &impl HostFrames,
    ) -> Result<Zapped, Error> {
        self.invalidations.begin(range);
        self.zap(range, host)
    }

    /// Its end.
    pub fn invalidate_end(&mut self) {
        self.invalidations.end();
    }

    /// Whether any page of `range` was accessed since the last time (`kvm_age_gfn`, rule D3). TLBs are not flushed for it.
    pub fn age(&mut self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<bool, Error> {
        let mut young = false;
        for at in self.rmap.leaves_in(range) {
            young |= self.sptes.is_young(self.change(at, host, |spte| self.sptes.aged(spte))?);
        }
        Ok(young)
    }

    /// The same, without forgetting it (`kvm_test_age_gfn`).
    pub fn test_age(&self, range: AddrRange<Gpa>, host: &impl HostFrames) -> Result<bool, Error> {
        for at in self.rmap.leaves_in(range) {
            if self.sptes.is_young(host.read_entry(self.pages[at.page].entry_address(at.index))?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Zaps the oldest pages if fewer than `needed` may still be made (`make_mmu_pages_available`, rule K5). Roots in use
    /// stay, even if they are more than the limit.
    pub(super) fn make_room(&mut self, needed: usize, host: &impl HostFrames) -> Result<(), Error> {
        let limit = self.options.max_tables;
        if self.pages.len() + needed <= limit {
            return Ok(());
        }
        let free = REFILL.min(limit / 2).max(needed);
        let surplus = (self.pages.len() + free).saturating_sub(limit);
        self.recycle(surplus, host)
    }

    /// Zaps that many pages, oldest first.
    fn recycle(&mut self, count: usize, host: &impl HostFrames) -> Result<(), Error> {
        let unused = |id: &PageId| self.pages[*id].root_count == 0;
        let oldest: Vec<_> = self.pages.oldest_first().filter(unused).take(count).collect();
        for id in oldest {
            if self.pages.contains(id) {
                self.zap_page(id, host)?;
                self.stats.mmu_recycled += 1;
            }
        }
        Ok(())
    }

    /// Gives all tables back. Contexts are of no use then.
    pub fn free(mut self, host: &impl HostFrames) {
        for id in self.pages.ids() {
            self.free_page(id, host);
        }
    }
}

/// The least that a limit on tables leaves: what one fault needs.
pub(super) const LEAST_TABLES: usize = PATH_TABLES as usize;
