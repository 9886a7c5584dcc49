//! Each leaf of a VM against its slots and its process's pages.

use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use super::leaf::LiveLeaf;
use super::reading::SwitcherEntry;
use super::tables::LiveTables;
use super::vm::LiveSlot;
use crate::access::Rights;
use crate::mmu::Memslot;
use crate::verify::{HostMap, HostPage};

/// Something wrong with a leaf, by KVM's own account of what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeafFinding {
    /// It lies in no slot.
    #[error("{0}: outside all slots")]
    NoSlot(LiveLeaf),
    /// It reaches out of its slot.
    #[error("{leaf}: its slot has only {slot} of it")]
    Straddles {
        /// The leaf.
        leaf: LiveLeaf,
        /// The slot's addresses.
        slot: AddrRange<Gpa>,
    },
    /// It may be written, the slot may not.
    #[error("{0}: writable in a read-only slot")]
    ReadonlySlot(LiveLeaf),
    /// Its frame is not the one behind the slot.
    #[error("{leaf}: {at} is at {seen}, the process has {expected} there")]
    Frame {
        /// The leaf.
        leaf: LiveLeaf,
        /// The first page that is wrong.
        at: Gpa,
        /// Where the leaf has it.
        seen: Hpa,
        /// What the process has there.
        expected: HostPage,
    },
    /// KVM counts another number of leaves.
    #[error("{seen} leaves of {size}, KVM counts {counted}")]
    Count {
        /// Their size.
        size: PageSize,
        /// How many there are.
        seen: u64,
        /// How many KVM counts.
        counted: u64,
    },
    /// There are more leaves than the faults that KVM has fixed can have made.
    #[error("{leaves} leaves, and KVM has fixed {fixed} faults, which make at most {} each", MOST_PER_FAULT)]
    Faults {
        /// How many leaves there are.
        leaves: u64,
        /// How many faults KVM has fixed (`pf_fixed`).
        fixed: u64,
    },
    /// The host's own part of a root is open to the guest.
    #[error("entry {:#x}, number {} of root {}, is the host's own and grants USER", .0.entry, .0.index, .0.table)]
    SwitcherOpen(SwitcherEntry),
}

/// Leaves that a fault makes in a shadow table: that of the address, and those around it whose pages are at hand (rule
/// H4).
pub(super) const MOST_PER_FAULT: u64 = 8;

/// What was seen of all leaves.
#[derive(Default, Debug)]
pub(super) struct Leaves {
    pub findings: Vec<LeafFinding>,
    /// Leaves of 4K, 2M and 1G.
    pub leaves: [u64; 3],
    /// Frames compared, and those of which the host tells nothing.
    pub frames: u64,
    pub unknown: u64,
    pub nested: u64,
}

/// The number of the slot that a leaf begins in, among those.
pub(super) fn slot_index(leaf: &LiveLeaf, slots: &[LiveSlot]) -> Option<usize> {
    let space = u8::from(leaf.smm);
    let after = slots.partition_point(|slot| (slot.space, slot.memslot.base) <= (space, leaf.gpa));
    let index = after.checked_sub(1)?;
    slots[index].memslot.hva_of(leaf.gpa).filter(|_| slots[index].space == space)?;
    Some(index)
}

/// That slot, and where the leaf lies in the process.
fn slot_of(leaf: &LiveLeaf, slots: &[LiveSlot]) -> Option<(Memslot, Hva)> {
    let memslot = slots[slot_index(leaf, slots)?].memslot;
    Some((memslot, memslot.hva_of(leaf.gpa)?))
}

/// A page of the process's in each 2 MiB of a leaf.
pub(super) fn pages_of(leaf: LiveLeaf, slots: &[LiveSlot]) -> impl Iterator<Item = Hva> + use<> {
    let first = slot_of(&leaf, slots).filter(|_| !leaf.nested).map(|(_, hva)| hva);
    let offsets = (0..leaf.size.bytes()).step_by(PageSize::Size2M.bytes() as usize);
    first
        .into_iter()
        .flat_map(move |first| offsets.clone().filter_map(move |offset| first.checked_add(offset)))
}

impl Leaves {
    pub fn of(tables: &LiveTables, host: &dyn HostMap) -> Self {
        let (mut seen, mut pages) = (Self::default(), [HostPage::UNKNOWN; 512]);
        for leaf in tables.leaves() {
            seen.leaves[usize::from(leaf.size.level()) - 1] += 1;
            match leaf.nested {
                true => seen.nested += 1,
                false => seen.check(&leaf, tables.slots(), host, &mut pages),
            }
        }
        seen
    }

    /// One leaf; `pages` is room for what the host has behind it.
    fn check(
        &mut self,
        leaf: &LiveLeaf,
        slots: &[LiveSlot],
        host: &dyn HostMap,
        pages: &mut [HostPage; 512],
    ) {
        let Some((slot, hva)) = slot_of(leaf, slots) else {
            return self.findings.push(LeafFinding::NoSlot(*leaf));
        };
        let last = leaf.gpa.checked_add(leaf.size.bytes() - 1);
        if last.and_then(|last| slot.hva_of(last)).is_none() {
            let slot = AddrRange::new(slot.base, slot.bytes.into());
            return self.findings.extend(slot.map(|slot| LeafFinding::Straddles { leaf: *leaf, slot }));
        }
        if slot.readonly && leaf.rights.contains(Rights::WRITE) {
            self.findings.push(LeafFinding::ReadonlySlot(*leaf));
        }
        let frames = leaf.size.bytes() >> 12;
        for first in (0..frames).step_by(pages.len()) {
            let pages = &mut pages[..(frames - first).min(512) as usize];
            host.pages(Hva(hva.raw() + (first << 12)), pages);
            for (page, &expected) in (first..).zip(pages.iter()) {
                let seen = Hpa(leaf.hpa.raw() + (page << 12));
                if expected == HostPage::UNKNOWN {
                    self.unknown += 1;
                    continue;
                }
                self.frames += 1;
                if expected.hpa() != Some(seen) {
                    let at = Gpa(leaf.gpa.raw() + (page << 12));
                    return self.findings.push(LeafFinding::Frame { leaf: *leaf, at, seen, expected });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::mmu::Memslot;
    use crate::verify::HostPages;

    const HVA: Hva = Hva(0x7f00_0000_0000);

    fn slot(space: u8, base: u64, bytes: u64, readonly: bool) -> LiveSlot {
        LiveSlot {
            id: 0,
            space,
            memslot: Memslot { base: Gpa(base), bytes, hva: HVA, readonly, log_dirty: false },
            private: false,
        }
    }

    fn leaf(gpa: u64, size: PageSize, hpa: u64) -> LiveLeaf {
        LiveLeaf {
            gpa: Gpa(gpa),
            size,
            hpa: Hpa(hpa),
            rights: Rights::RWX,
            entry_address: Hpa(0x5000),
            entry: hpa | 0x7,
            smm: false,
            nested: false,
            of_guest_page: false,
        }
    }

    fn found(leaf: LiveLeaf, slots: &[LiveSlot], pages: &[HostPage]) -> (Vec<LeafFinding>, u64, u64) {
        let mut leaves = Leaves::default();
        leaves.check(&leaf, slots, &HostPages { hva: HVA, pages }, &mut [HostPage::UNKNOWN; 512]);
        (leaves.findings, leaves.frames, leaves.unknown)
    }

    const SMALL: PageSize = PageSize::Size4K;
    const LARGE: PageSize = PageSize::Size2M;

    #[test]
    fn a_leaf_lies_in_a_slot_of_its_address_space() {
        let page = [HostPage::at(Hpa(0x9000))];
        let slots = [slot(0, 0x1000, 0x1000, false), slot(1, 0x3000, 0x1000, false)];
        assert_eq!(found(leaf(0x1000, SMALL, 0x9000), &slots, &page), (vec![], 1, 0));
        for gpa in [0, 0x2000, 0x3000, 0x4000] {
            let outside = leaf(gpa, SMALL, 0x9000);
            assert_eq!(found(outside, &slots, &page).0, [LeafFinding::NoSlot(outside)]);
        }
        let smm = |gpa| LiveLeaf { smm: true, ..leaf(gpa, SMALL, 0x9000) };
        assert_eq!(found(smm(0x3000), &slots, &page).0, []);
        assert_eq!(found(smm(0x1000), &slots, &page).0, [LeafFinding::NoSlot(smm(0x1000))]);
    }

    #[test]
    fn a_large_leaf_is_compared_frame_by_frame() {
        let mut pages: Vec<_> = (0..512).map(|page| HostPage::at(Hpa(0x40_0000 + (page << 12)))).collect();
        let (large, slots) = (leaf(0, LARGE, 0x40_0000), [slot(0, 0, 0x20_0000, false)]);
        assert_eq!(found(large, &slots, &pages), (vec![], 512, 0));
        pages[2] = HostPage::UNKNOWN;
        assert_eq!(found(large, &slots, &pages), (vec![], 511, 1));
        pages[511] = HostPage::ABSENT;
        let wrong = LeafFinding::Frame {
            leaf: large,
            at: Gpa(0x1f_f000),
            seen: Hpa(0x5f_f000),
            expected: HostPage::ABSENT,
        };
        assert_eq!(found(large, &slots, &pages).0, [wrong]);
        let short = [slot(0, 0, 0x1f_f000, false)];
        let range = AddrRange::inclusive(Gpa(0), Gpa(0x1f_efff)).unwrap();
        assert_eq!(found(large, &short, &pages).0, [LeafFinding::Straddles { leaf: large, slot: range }]);
    }

    #[test]
    fn only_a_readonly_slot_minds_a_writable_leaf() {
        let (page, slots) = ([HostPage::at(Hpa(0x9000))], [slot(0, 0, 0x1000, true)]);
        let writable = leaf(0, SMALL, 0x9000);
        let readable = LiveLeaf { rights: Rights::READ, ..writable };
        assert_eq!(found(writable, &slots, &page).0, [LeafFinding::ReadonlySlot(writable)]);
        assert_eq!(found(readable, &slots, &page).0, []);
    }
}
