//! From a change of the view to slot operations: pure, so that it can be looked at before it is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use memory_model::{AddrRange, FlatRange, FlatView, Gpa, Hva, PageSize, RamBlock, RegionKind};

use crate::{Slot, SlotError, SlotFlags, SlotId, SlotLimits, SlotOp, SlotRegistry};

/// What is to be done, in order: deletions, moves, creations, changes of flags (rule R8). After each
/// step the guest sees every page as before, as afterwards, or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotPlan {
    /// The operations.
    pub ops: Vec<SlotOp>,
    /// Whether a page that has memory before and after is without it in between, be it inside a single call
    /// that moves a slot onto its own old place: a vCPU that ran meanwhile could take its access for MMIO (rule
    /// R8). Or whether a slot goes that is logged: a vCPU could write after its log was read (rule R9).
    pub needs_pause: bool,
}

/// Plans the way from the slots present to those of `view`.
pub fn plan(present: &SlotRegistry, view: &FlatView, limits: &SlotLimits) -> Result<SlotPlan, SlotError> {
    plan_change(present, &[everything()], view.ranges(), limits)
}

/// All guest addresses.
pub(crate) fn everything() -> AddrRange<Gpa> {
    AddrRange::inclusive(Gpa(0), Gpa(u64::MAX)).expect("0 is not above the last address")
}

/// Plans a change: the slots inside `gone` make room for those of `new`; all others stay untouched.
///
/// `new` is ascending and without overlap, as a [`MemoryListener`](memory_model::MemoryListener) hears it. Guest addresses of `new` that are not in
/// `gone` must have no slot.
pub fn plan_change<'a>(
    present: &SlotRegistry,
    gone: &[AddrRange<Gpa>],
    new: impl IntoIterator<Item = &'a FlatRange>,
    limits: &SlotLimits,
) -> Result<SlotPlan, SlotError> {
    let old = gone.iter().flat_map(|range| present.overlapping(*range));
    let old: BTreeMap<Gpa, &Slot> = old.map(|slot| (slot.gpa.first(), slot)).collect();
    let new = slots_for(new, limits, present.len() - old.len())?;
    let Difference { mut deletes, mut creates, flags } = Difference::between(old, new);
    let overlap = any_overlap(&deletes, &creates);
    let moves = pair_moves(present, &mut deletes, &mut creates);
    let logged = deletes.iter().any(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES));
    let needs_pause = overlap || logged;
    number(present, &deletes, &mut creates);
    let ops = deletes.into_iter().cloned().map(SlotOp::Delete);
    let ops = ops.chain(moves).chain(creates.into_iter().map(SlotOp::Create)).chain(flags);
    Ok(SlotPlan { ops: ops.collect(), needs_pause })
}

/// The part of a range that can have a slot.
struct Piece<'a> {
    range: &'a FlatRange,
    block: &'a Arc<RamBlock>,
    pages: AddrRange<Gpa>,
    hva: Hva,
    flags: SlotFlags,
}

impl<'a> Piece<'a> {
    /// The whole pages of a RAM range (rules R1, R4). The rest of it has no slot: an access there exits, and
    /// the VMM does it.
    fn of(range: &'a FlatRange, limits: &SlotLimits) -> Result<Option<Self>, SlotError> {
        let pages = range.range.pages_within(PageSize::Size4K);
        let (Some(block), Some(pages)) = (range.ram(), pages) else { return Ok(None) };
        let (rom_device, traps) = match range.kind {
            RegionKind::RomDevice { .. } => (true, !range.romd),
            _ => (false, false),
        };
        let readonly = range.readonly || rom_device;
        let Some(hva) = range.hva(pages.first()).filter(|_| !traps && (limits.readonly || !readonly)) else {
            return Ok(None);
        };
        if !hva.is_aligned(PageSize::Size4K) {
            let (region, gpa) = (range.name.to_string(), pages.first());
            return Err(SlotError::Misaligned { region, range: range.range, gpa, hva });
        }
        let flags = [
            (readonly, SlotFlags::READONLY, "read-only"),
            (!range.dirty_mask.is_empty(), SlotFlags::LOG_DIRTY_PAGES, "logged"),
        ];
        let set = flags.iter().filter(|(holds, ..)| *holds);
        let flags = match (block.guest_memfd(), set.clone().next()) {
            (None, _) => set.map(|&(_, flag, _)| flag).collect(),
            (Some(_), None) => SlotFlags::GUEST_MEMFD,
            (Some(_), Some(&(_, _, wanted))) => {
                let region = range.name.to_string();
                return Err(SlotError::Private { region, range: range.range, wanted });
            }
        };
        Ok(Some(Self { range, block, pages, hva, flags }))
    }

    fn slot_count(&self, max_bytes: u64) -> u64 {
        // A quotient by a page at least, so it fits.
        self.pages.bytes().div_ceil(max_bytes.into()) as u64
    }

    /// Its slots, as long as may be (rule R3), not yet numbered.
    fn slots(&self, max_bytes: u64) -> impl Iterator<Item = Slot> {
        (0..self.slot_count(max_bytes)).filter_map(move |index| {
            let start = index * max_bytes;
            let rest = self.pages.from_addr(self.pages.first().checked_add(start)?)?;
            Some(Slot {
                id: SlotId::default(),
                gpa: AddrRange::new(rest.first(), rest.bytes().min(max_bytes.into()))?,
                hva: self.hva.checked_add(start)?,
                flags: self.flags,
                name: self.range.name.clone(),
                block: self.block.clone(),
            })
        })
    }
}

/// The slots that `ranges` need, ascending, not yet numbered. `others` slots stay besides.
fn slots_for<'a>(
    ranges: impl IntoIterator<Item = &'a FlatRange>,
    limits: &SlotLimits,
    others: usize,
) -> Result<Vec<Slot>, SlotError> {
    let page = PageSize::Size4K.bytes();
    let max_bytes = limits.max_bytes.max(page) & !(page - 1);
    let mut pieces = Vec::new();
    for range in ranges {
        pieces.extend(Piece::of(range, limits)?);
    }
    // Counted before a single one is made: a huge region and a small maximum would make very many.
    let mut needed = others as u64;
    let mut unfit = None;
    for piece in &pieces {
        needed = needed.saturating_add(piece.slot_count(max_bytes));
        if needed > limits.count.into() {
            unfit.get_or_insert(piece.range);
        }
    }
    match unfit {
        Some(FlatRange { name, range, .. }) => {
            let region = name.to_string();
            Err(SlotError::OutOfSlots { region, range: *range, needed, limit: limits.count })
        }
        None => Ok(pieces.iter().flat_map(|piece| piece.slots(max_bytes)).collect()),
    }
}

/// What tells two sets of slots apart. Slots in both, equal but for their number, do not show up.
struct Difference<'a> {
    deletes: Vec<&'a Slot>,
    creates: Vec<Slot>,
    flags: Vec<SlotOp>,
}

impl<'a> Difference<'a> {
    fn between(mut old: BTreeMap<Gpa, &'a Slot>, new: Vec<Slot>) -> Self {
        let (mut creates, mut flags) = (Vec::new(), Vec::new());
        for slot in new {
            let twin = old.get(&slot.gpa.first()).filter(|old| old.same_memory(&slot));
            match twin.map(|old| old.flags ^ slot.flags) {
                // Nothing else can change during a slot's life (rule R6).
                Some(changed) if SlotFlags::LOG_DIRTY_PAGES.contains(changed) => {
                    let kept = old.remove(&slot.gpa.first());
                    let logged = kept.filter(|_| !changed.is_empty()).cloned();
                    flags.extend(logged.map(|old| SlotOp::SetFlags { slot: old, flags: slot.flags }));
                }
                _ => creates.push(slot),
            }
        }
        Self { deletes: old.into_values().collect(), creates, flags }
    }
}

/// Whether a slot of `one` shares a page with one of `two`; both ascend and overlap only each other.
fn any_overlap(one: &[&Slot], two: &[Slot]) -> bool {
    let mut others = two.iter().peekable();
    one.iter().any(|slot| {
        while others.next_if(|other| other.gpa.last() < slot.gpa.first()).is_some() {}
        others.peek().is_some_and(|other| other.gpa.overlaps(slot.gpa))
    })
}

/// Makes a move of each deletion and creation of the same memory, if the new place is free as things are.
/// One call does for two, and the dirty bitmap is kept. A private half cannot move.
fn pair_moves(present: &SlotRegistry, deletes: &mut Vec<&Slot>, creates: &mut Vec<Slot>) -> Vec<SlotOp> {
    let mut sources: BTreeMap<(Hva, SlotFlags), Vec<&Slot>> = BTreeMap::new();
    for slot in deletes.iter().filter(|slot| !slot.flags.contains(SlotFlags::GUEST_MEMFD)) {
        sources.entry((slot.hva, slot.flags)).or_default().push(slot);
    }
    let mut moves = Vec::new();
    creates.retain(|new| {
        let Some(candidates) = sources.get_mut(&(new.hva, new.flags)) else { return true };
        let fits = |old: &&Slot| {
            old.same_memory(new) && present.overlapping(new.gpa).all(|other| other.id == old.id)
        };
        let Some(index) = candidates.iter().position(fits) else { return true };
        moves.push(SlotOp::Move { slot: candidates.remove(index).clone(), to: new.gpa });
        false
    });
    let moved: BTreeSet<SlotId> = moves.iter().map(|op| op.slot().id).collect();
    deletes.retain(|slot| !moved.contains(&slot.id));
    moves
}

/// Gives each new slot the lowest free number (rule R2).
fn number(present: &SlotRegistry, deletes: &[&Slot], creates: &mut [Slot]) {
    let freed: BTreeSet<SlotId> = deletes.iter().map(|slot| slot.id).collect();
    let (mut freed, mut free) = (freed.into_iter().peekable(), present.free_ids().peekable());
    for slot in creates {
        let lowest = match (freed.peek(), free.peek()) {
            (Some(first), Some(other)) if first > other => free.next(),
            (Some(_), _) => freed.next(),
            (None, _) => free.next(),
        };
        slot.id = lowest.expect("there are more numbers than slots");
    }
}
