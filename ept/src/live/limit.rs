//! Why leaves are no larger than they are.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use std::fs;

use memory_model::{AddrRange, Hva, PageSize};

use super::leaf::LiveLeaf;
use super::leaves::slot_index;
use super::stretches::Stretches;
use super::tables::LiveTables;
use super::vm::LiveSlot;
use crate::access::Rights;
use crate::verify::{HostMap, HostPage};

/// What keeps a leaf from being of the next size: the first of these that holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Limit {
    /// Writes to its slot are logged, page by page.
    DirtyLog,
    /// The slot has only a part of the larger page.
    SlotEdge,
    /// GPA and HVA are not the same below the larger size.
    Alignment,
    /// It stands for a page of this size in the guest's own tables.
    GuestPage,
    /// The process has no larger page there.
    HostPage,
    /// It may be executed, and KVM makes no large leaves of that kind (`nx_huge_pages`).
    NxHugePages,
    /// Nothing of that: it was smaller once, or KVM watches a page near it.
    Other,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DirtyLog => "dirty logging",
            Self::SlotEdge => "slot begins or ends inside",
            Self::Alignment => "GPA and HVA aligned differently",
            Self::GuestPage => "guest's own page size",
            Self::HostPage => "no larger page behind",
            Self::NxHugePages => "nx_huge_pages",
            Self::Other => "could be larger",
        })
    }
}

/// Of leaves of 4K and of 2M: how many each reason keeps small.
pub type Limits = [BTreeMap<Limit, u64>; 2];

impl LiveTables {
    /// Of each of the [`slots`](Self::slots), in their order: what keeps its leaves from being larger.
    pub fn limits(&self, host: &dyn HostMap) -> Vec<Limits> {
        let no_exec = fs::read_to_string("/sys/module/kvm/parameters/nx_huge_pages");
        let no_exec = no_exec.is_ok_and(|value| matches!(value.trim(), "Y" | "1" | "force"));
        let pages = self.leaves().flat_map(|leaf| super::leaves::pages_of(leaf, self.slots()));
        let mut judge = Judge { host: &Stretches::around(host, pages), no_exec, known: None };
        let mut limits = vec![Limits::default(); self.slots().len()];
        for leaf in self.leaves().filter(|leaf| !leaf.nested) {
            let Some(index) = slot_index(&leaf, self.slots()) else { continue };
            let Some(larger) = PageSize::of_level(leaf.size.level() + 1) else { continue };
            let of_size = &mut limits[index][usize::from(leaf.size.level()) - 1];
            *of_size.entry(judge.limit(&leaf, &self.slots()[index], larger)).or_default() += 1;
        }
        limits
    }
}

struct Judge<'a> {
    host: &'a dyn HostMap,
    no_exec: bool,
    /// The last page that the host was asked for, and whether it has it in one piece: leaves come in rows.
    known: Option<(AddrRange<Hva>, bool)>,
}

impl Judge<'_> {
    fn limit(&mut self, leaf: &LiveLeaf, slot: &LiveSlot, larger: PageSize) -> Limit {
        let memslot = slot.memslot;
        let offset = leaf.gpa.page_offset(larger);
        let Some(hva) = memslot.hva_of(leaf.gpa) else { return Limit::SlotEdge };
        let page = AddrRange::page_of(leaf.gpa, larger);
        let all = AddrRange::new(memslot.base, memslot.bytes.into());
        if memslot.log_dirty {
            Limit::DirtyLog
        } else if !all.is_some_and(|all| all.covers(page)) {
            Limit::SlotEdge
        } else if hva.page_offset(larger) != offset {
            Limit::Alignment
        } else if leaf.of_guest_page {
            Limit::GuestPage
        } else if !self.is_one_piece(AddrRange::page_of(hva, larger)) {
            Limit::HostPage
        } else if self.no_exec && leaf.rights.contains(Rights::EXEC) {
            Limit::NxHugePages
        } else {
            Limit::Other
        }
    }

    /// Whether the frames behind a range are in a row, and begin at a multiple of its size.
    fn is_one_piece(&mut self, range: AddrRange<Hva>) -> bool {
        if let Some((_, is_one)) = self.known.filter(|(known, _)| *known == range) {
            return is_one;
        }
        let bytes = range.bytes() as u64;
        let mut pages = [HostPage::UNKNOWN; 512];
        let mut first = None;
        let is_one = (0..bytes).step_by(PageSize::Size2M.bytes() as usize).all(|part| {
            self.host.pages(Hva(range.first().raw() + part), &mut pages);
            (part..).step_by(PageSize::Size4K.bytes() as usize).zip(&pages).all(|(offset, page)| {
                let Some(hpa) = page.hpa() else { return false };
                let base = *first.get_or_insert(hpa.raw());
                base % bytes == 0 && hpa.raw() == base + offset
            })
        });
        self.known = Some((range, is_one));
        is_one
    }
}

#[cfg(test)]
mod tests {
    use memory_model::{Gpa, Hpa};

    use super::*;
    use crate::mmu::Memslot;

    const LARGE: PageSize = PageSize::Size2M;
    const HVA: u64 = 0x7f00_0000_0000;

    /// Frames in a row, but for one page.
    struct Host {
        first: u64,
        lacks: u64,
    }

    impl HostMap for Host {
        fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
            for (at, to) in (hva.raw() - HVA..).step_by(0x1000).zip(pages) {
                *to = if at == self.lacks { HostPage::ABSENT } else { HostPage::at(Hpa(self.first + at)) };
            }
        }
    }

    fn limit(host: &Host, no_exec: bool, change: impl FnOnce(&mut LiveLeaf, &mut LiveSlot)) -> Limit {
        let (base, hva) = (Gpa(0x40_0000), Hva(HVA));
        let memslot = Memslot { base, bytes: 0x40_0000, hva, readonly: false, log_dirty: false };
        let mut slot = LiveSlot { id: 0, space: 0, memslot, private: false };
        let mut leaf = LiveLeaf {
            gpa: Gpa(0x60_3000),
            size: PageSize::Size4K,
            hpa: Hpa(0),
            rights: Rights::RWX,
            entry_address: Hpa(0),
            entry: 0,
            smm: false,
            nested: false,
            of_guest_page: false,
        };
        change(&mut leaf, &mut slot);
        Judge { host, no_exec, known: None }.limit(&leaf, &slot, LARGE)
    }

    #[test]
    fn the_first_reason_that_holds_is_told() {
        let huge = Host { first: 0x8000_0000, lacks: 0 };
        assert_eq!(limit(&huge, false, |_, _| ()), Limit::Other);
        assert_eq!(limit(&huge, true, |_, _| ()), Limit::NxHugePages);
        assert_eq!(limit(&huge, true, |leaf, _| leaf.rights = Rights::READ), Limit::Other);
        assert_eq!(limit(&huge, false, |_, slot| slot.memslot.log_dirty = true), Limit::DirtyLog);
        assert_eq!(limit(&huge, false, |_, slot| slot.memslot.bytes -= 0x1000), Limit::SlotEdge);
        assert_eq!(limit(&huge, false, |_, slot| slot.memslot.hva = Hva(HVA + 0x1000)), Limit::Alignment);
        assert_eq!(limit(&huge, true, |leaf, _| leaf.of_guest_page = true), Limit::GuestPage);
    }

    #[test]
    fn a_page_is_in_one_piece_if_all_of_its_frames_are() {
        let is_host = |first, lacks| limit(&Host { first, lacks }, false, |_, _| ()) == Limit::HostPage;
        assert!(!is_host(0x8000_0000, 0), "a page of the other half");
        assert!(is_host(0x8000_0000, 0x3f_f000), "its last page is not there");
        assert!(is_host(0x8000_1000, 0), "frames that do not begin at a multiple");
    }
}
