//! Conversion between private and shared memory (rule R10).

use memory_model::{AddrRange, Gpa, PageSize, Refusal};

use super::SlotManager;
use crate::{Side, Slot, SlotError, SlotExecutor, SlotFlags};

impl<E: SlotExecutor> SlotManager<E> {
    /// Puts the pages of `range` on one side of their slots, and gives what they leave on the other back to the host
    /// (QEMU's `kvm_convert_memory`): what the guest had there is lost. Huge pages of the shared side are kept. They
    /// come from a pool that was filled for them, and a small page cannot be given back out of one.
    ///
    /// The range is whole pages, all of slots with a `guest_memfd`, else nothing is changed. Nothing is changed either
    /// if the kernel refuses. After that there is no way back, for what is discarded does not return: if a discard
    /// fails, the others are still made, and [`SlotError::NotDiscarded`] says what is left.
    ///
    /// Pages that are on that side already stay as they are; the other side is discarded once more.
    pub fn convert(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        if range.pages_within(PageSize::Size4K) != Some(range) {
            return Err(SlotError::PartOfPage { range, side });
        }
        let Self { registry, executor, .. } = self;
        let mut parts = Vec::new();
        let mut left = Some(range);
        for slot in registry.overlapping(range) {
            let part = slot.gpa.intersection(range).expect("it overlaps");
            if let Some(hole) = left.and_then(|left| before(left, part)) {
                return Err(SlotError::NoSlot { range, side, hole });
            }
            if !slot.flags.contains(SlotFlags::GUEST_MEMFD) {
                return Err(SlotError::NoPrivateHalf { range, side, slot: slot.clone() });
            }
            left = behind(range, part);
            parts.push((slot, part));
        }
        if let Some(hole) = left {
            return Err(SlotError::NoSlot { range, side, hole });
        }
        executor.set_side(range, side)?;
        let discards = parts
            .into_iter()
            .map(|(slot, part)| discard(executor, slot, part, side.other(), slot.block.page_size()));
        let kept: Vec<_> = discards.filter_map(Result::err).collect();
        if kept.is_empty() { Ok(()) } else { Err(SlotError::NotDiscarded { range, side, kept }) }
    }
}

/// Gives one side of `part`, pages of `slot`, back to the host, unless they are huge: `size` is the block's.
fn discard(
    executor: &mut impl SlotExecutor,
    slot: &Slot,
    part: AddrRange<Gpa>,
    side: Side,
    size: PageSize,
) -> Result<(), SlotError> {
    let answer: Result<(), Refusal> = match side {
        Side::Shared if size != PageSize::Size4K => Ok(()),
        Side::Shared => {
            let part = slot.block_part(part).expect("a slot lies in its block");
            slot.block.discard(part).map_err(Into::into)
        }
        Side::Private => executor.punch_hole(slot, part).map_err(Into::into),
    };
    answer.map_err(|cause| SlotError::Discard { slot: slot.clone(), part, side, cause })
}

/// What of `range` lies before `part`.
fn before(range: AddrRange<Gpa>, part: AddrRange<Gpa>) -> Option<AddrRange<Gpa>> {
    let last = part.first().0.checked_sub(1)?;
    AddrRange::inclusive(range.first(), Gpa(last))
}

/// What of `range` lies behind `part`.
fn behind(range: AddrRange<Gpa>, part: AddrRange<Gpa>) -> Option<AddrRange<Gpa>> {
    range.from_addr(part.last().checked_add(1)?)
}

#[cfg(test)]
mod tests {
    use memory_model::RamBlock;

    use super::*;
    use crate::{KernelMemslots, SlotId};

    /// Hosts without a pool of huge pages have no such block, so one of small pages stands for it.
    #[test]
    fn r10_the_shared_side_of_a_block_of_huge_pages_is_kept() {
        let block = RamBlock::memfd("ram", 0x4000).unwrap();
        block.write(0, &[7; 0x4000]).unwrap();
        let slot = Slot {
            id: SlotId(0),
            gpa: AddrRange::new(Gpa(0), 0x4000).unwrap(),
            hva: block.hva(),
            flags: SlotFlags::GUEST_MEMFD,
            name: "ram".into(),
            block: block.clone(),
        };
        let byte = |offset| {
            let mut seen = [0];
            block.read(offset, &mut seen).unwrap();
            seen[0]
        };
        let part = AddrRange::new(Gpa(0x1000), 0x2000).unwrap();
        let leave = |size| discard(&mut KernelMemslots::new(), &slot, part, Side::Shared, size).unwrap();
        for size in [PageSize::Size2M, PageSize::Size1G] {
            leave(size);
            assert_eq!([0, 0x1000, 0x2fff, 0x3000].map(byte), [7; 4], "{size}");
        }
        leave(PageSize::Size4K);
        assert_eq!([0xfff, 0x1000, 0x2fff, 0x3000].map(byte), [7, 0, 0, 7]);
    }
}
