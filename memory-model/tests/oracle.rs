//! Random trees and edits, judged address by address by a model that shares no code with the renderer
//! (rule R15).

mod model;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use memory_model::{
    AddrRange, AddressSpace, DirtyClients, FlatEventfd, FlatRange, FlatView, Gpa, MemoryError,
    MemoryListener, RegionId, RegionTree,
};
use model::drive::{Bytes, Pair, UNIVERSE};
use model::{Model, Seen};
use proptest::collection::vec;
use proptest::prelude::*;

fn edits(most: usize) -> impl Strategy<Value = Vec<Bytes>> {
    vec(any::<Bytes>(), 1..most)
}

/// Where the edited container sits: at the bottom of the 64-bit space, or at its very top.
fn base() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX - (UNIVERSE - 1))]
}

/// The view is what the model sees at every single address, range by range (rules R15, R16, R17).
fn check_view(view: &FlatView, model: &Model, ids: &[RegionId], root: usize, base: u64) {
    let expected = model.ranges(root, base, base.saturating_add(UNIVERSE - 1));
    let as_seen = |range: &FlatRange| {
        let seen = Seen {
            node: ids.iter().position(|&id| id == range.region).unwrap(),
            offset: range.offset,
            readonly: range.readonly,
            nonvolatile: range.nonvolatile,
            unmergeable: range.unmergeable,
            romd: range.romd,
            mask: range.dirty_mask,
            way: Vec::new(),
        };
        (range.range.first().0, range.range.last().0, seen)
    };
    let expected: Vec<_> =
        expected.into_iter().map(|(first, last, seen)| (first, last, Seen { way: vec![], ..seen })).collect();
    let found: Vec<_> = view.ranges().map(as_seen).collect();
    assert_eq!(found, expected);
    assert_eq!(view.len(), expected.len());
    for at in base..=base.saturating_add(UNIVERSE - 1) {
        let found = view.find(Gpa(at)).map(|range| (range.region, range.region_offset(Gpa(at)).unwrap()));
        assert_eq!(found, model.seen(root, at).map(|seen| (ids[seen.node], seen.offset)), "at {at:#x}");
    }
}

/// A listener that keeps the view that it was told.
#[derive(Default)]
struct Mirror {
    ranges: Vec<FlatRange>,
    eventfds: BTreeSet<FlatEventfd>,
    coalesced: BTreeSet<AddrRange<Gpa>>,
}

impl Mirror {
    fn position(&self, range: &FlatRange) -> Option<usize> {
        self.ranges.iter().position(|known| known.same_as(range))
    }

    fn check(&self, view: &FlatView) {
        let mut told: Vec<_> =
            self.ranges.iter().map(|range| (range.to_string(), range.dirty_mask)).collect();
        told.sort();
        let shown: Vec<_> = view.ranges().map(|range| (range.to_string(), range.dirty_mask)).collect();
        assert_eq!(told, shown);
    }
}

/// Rule R27: every range deleted was there, every range added was not.
impl MemoryListener for Mirror {
    fn name(&self) -> &str {
        "mirror"
    }
    fn wants_nops(&self) -> bool {
        self.ranges.len().is_multiple_of(2)
    }
    fn region_del(&mut self, range: &FlatRange) {
        let position = self.position(range).expect("a range that goes was there");
        self.ranges.swap_remove(position);
    }
    fn region_nop(&mut self, range: &FlatRange) {
        assert!(self.position(range).is_some(), "a range that stays was there");
    }
    fn region_add(&mut self, range: &FlatRange) {
        assert!(self.ranges.iter().all(|known| !known.range.overlaps(range.range)));
        self.ranges.push(range.clone());
    }
    fn eventfd_add(&mut self, eventfd: &FlatEventfd) {
        assert!(self.eventfds.insert(*eventfd));
    }
    fn eventfd_del(&mut self, eventfd: &FlatEventfd) {
        assert!(self.eventfds.remove(eventfd));
    }
    fn coalesced_add(&mut self, range: AddrRange<Gpa>) {
        assert!(self.coalesced.insert(range));
    }
    fn coalesced_del(&mut self, range: AddrRange<Gpa>) {
        assert!(self.coalesced.remove(&range));
    }
    fn log_start(&mut self, range: &FlatRange, old: DirtyClients, new: DirtyClients) {
        let position = self.position(range).unwrap();
        if !old.is_empty() {
            assert_eq!(self.ranges[position].dirty_mask, old);
        }
        self.ranges[position].dirty_mask = new;
    }
    fn log_stop(&mut self, range: &FlatRange, _old: DirtyClients, new: DirtyClients) {
        let position = self.position(range).unwrap();
        self.ranges[position].dirty_mask = new;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn r15_r16_r17_a_render_is_what_the_rules_say_at_every_address(edits in edits(40), base in base()) {
        let (mut pair, mut tree) = Pair::new(base);
        for bytes in edits {
            pair.edit(&mut tree, bytes);
        }
        check_view(&FlatView::render(&tree).unwrap(), &pair.model, &pair.ids, 0, base);
        let inner = FlatView::render_from(&tree, pair.ids[1]).unwrap();
        check_view(&inner, &pair.model, &pair.ids, 1, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several spaces over one tree, random transactions, some of which fail or panic: after each, every
    /// view is what the model sees, what a full render gives, and what its listeners were told.
    #[test]
    fn r20_r27_incremental_equals_full_batched_equals_unbatched_late_equals_early(
        first in edits(20),
        transactions in vec((edits(6), any::<u8>()), 1..12),
        base in base(),
    ) {
        let (mut pair, mut tree) = Pair::new(base);
        for bytes in first {
            pair.edit(&mut tree, bytes);
        }
        let system = AddressSpace::new("system", tree.clone()).unwrap();
        // Its own pair: a creation that was taken back shifts the ids.
        let (mut slow, single) = (pair.clone(), AddressSpace::new("single", tree).unwrap());
        let inner = system.sibling("inner", pair.ids[1]).unwrap();
        let early = [Arc::new(Mutex::new(Mirror::default())), Arc::new(Mutex::new(Mirror::default()))];
        system.register(early[0].clone()).unwrap();
        inner.register(early[1].clone()).unwrap();
        for (edits, fate) in transactions {
            let before = (system.view(), inner.view());
            let mut next = pair.clone();
            let edit_all = |tree: &mut RegionTree| {
                edits.iter().for_each(|&bytes| next.edit(tree, bytes));
                match fate % 8 {
                    0 => Err(MemoryError::NoSuchRegion(pair.ids[0])),
                    1 => std::panic::resume_unwind(Box::new("edit")),
                    _ => Ok(()),
                }
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| system.update(edit_all)));
            if matches!(outcome, Ok(Ok(()))) {
                // The same edits, each in a transaction of its own.
                for &bytes in &edits {
                    single.update(|tree| { slow.edit(tree, bytes); Ok::<_, MemoryError>(()) }).unwrap();
                }
                pair = next;
                prop_assert!(single.view().ranges().map(ToString::to_string).eq(system.view().ranges().map(ToString::to_string)));
            } else {
                prop_assert!(Arc::ptr_eq(&before.0, &system.view()) && Arc::ptr_eq(&before.1, &inner.view()));
            }
            check_view(&system.view(), &pair.model, &pair.ids, 0, base);
            check_view(&inner.view(), &pair.model, &pair.ids, 1, 0);
            let full = system.with_tree(|tree| FlatView::render(tree).unwrap()).unwrap();
            prop_assert!(full.same_as(&system.view()));
            early[0].lock().unwrap().check(&system.view());
            early[1].lock().unwrap().check(&inner.view());
            // A space of its own looks for eventfds everywhere; the old ones look where something changed.
            let (fresh, anew) = (Arc::new(Mutex::new(Mirror::default())), inner.sibling("anew", pair.ids[1]).unwrap());
            anew.register(fresh.clone()).unwrap();
            let (known, fresh) = (early[1].lock().unwrap(), fresh.lock().unwrap());
            prop_assert_eq!(&known.eventfds, &fresh.eventfds);
            prop_assert_eq!(&known.coalesced, &fresh.coalesced);
        }
        let late = Arc::new(Mutex::new(Mirror::default()));
        system.register(late.clone()).unwrap();
        late.lock().unwrap().check(&system.view());
        system.unregister(&late).unwrap();
        let late = late.lock().unwrap();
        prop_assert!(late.ranges.is_empty() && late.eventfds.is_empty() && late.coalesced.is_empty());
    }
}
