//! The registry against a plain list.

use std::ops::Range;

use memory_model::{AddrRange, Gpa, Hva, PageSize, RamBlock};
use proptest::collection::vec;
use proptest::prelude::*;
use slot_manager::{Slot, SlotFlags, SlotId, SlotOp, SlotRecord, SlotRegistry};

/// The least that a registry can keep.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Record {
    id: SlotId,
    gpa: AddrRange<Gpa>,
    hva: Hva,
}

impl SlotRecord for Record {
    fn id(&self) -> SlotId {
        self.id
    }
    fn gpa(&self) -> AddrRange<Gpa> {
        self.gpa
    }
    fn hva(&self) -> Hva {
        self.hva
    }
}

fn any_slot(ids: u32, pages: u64) -> impl Strategy<Value = Record> {
    let gpa = (0..pages, prop_oneof![1..4u64, 1..40u64]);
    let hva = prop_oneof![9 => 0..pages, 1 => Just(u64::MAX >> 12)];
    (0..ids, gpa, hva).prop_map(|(id, (page, pages), hva)| Record {
        id: SlotId(id),
        gpa: AddrRange::new(Gpa(page << 12), u128::from(pages) << 12).unwrap(),
        hva: Hva(hva << 12),
    })
}

/// By number: look-ups by host address have no order.
fn by_id<'a>(slots: impl Iterator<Item = &'a Record>) -> Vec<Record> {
    let mut slots: Vec<_> = slots.copied().collect();
    slots.sort_by_key(|slot| slot.id);
    slots
}

#[derive(Clone, Debug)]
enum Edit {
    Insert(Record),
    Remove(SlotId),
}

fn any_edit(ids: u32, pages: u64) -> impl Strategy<Value = Edit> {
    let remove = (0..ids).prop_map(|id| Edit::Remove(SlotId(id)));
    prop_oneof![3 => any_slot(ids, pages).prop_map(Edit::Insert), 1 => remove]
}

/// Makes the edits in a registry and in a list, and compares what they find.
fn compare(ids: u32, edits: Vec<Edit>, pages: Range<u64>) -> Result<(), TestCaseError> {
    let mut registry = SlotRegistry::default();
    let mut list: Vec<Record> = Vec::new();
    for edit in edits {
        match edit {
            Edit::Insert(slot) => {
                let free = list.iter().all(|other| other.id != slot.id && !other.gpa.overlaps(slot.gpa));
                prop_assert_eq!(registry.insert(slot), free);
                list.extend(free.then_some(slot));
            }
            Edit::Remove(id) => {
                let known = list.iter().position(|slot| slot.id == id).map(|index| list.remove(index));
                prop_assert_eq!(registry.remove(id), known);
            }
        }
    }
    prop_assert_eq!(registry.len(), list.len());
    for id in (0..ids).map(SlotId) {
        prop_assert_eq!(registry.by_id(id), list.iter().find(|slot| slot.id == id));
    }
    list.sort_by_key(|slot| slot.gpa.first());
    prop_assert!(registry.iter().eq(&list));
    for page in pages.clone() {
        let at = Gpa(page << 12);
        prop_assert_eq!(registry.by_gpa(at), list.iter().find(|slot| slot.gpa.contains(at)));
    }
    let bytes = u128::from(pages.end - pages.start) << 12;
    let gpa = AddrRange::new(Gpa(pages.start << 12), bytes).unwrap();
    prop_assert!(registry.overlapping(gpa).eq(list.iter().filter(|slot| slot.gpa.overlaps(gpa))));

    let used: Vec<_> = by_id(list.iter()).iter().map(|slot| slot.id).collect();
    prop_assert!(registry.ids().eq(used.iter().copied()));
    let free = (0..).map(SlotId).filter(|id| !used.contains(id));
    prop_assert!(registry.free_ids().take(20).eq(free.take(20)));

    let showing = |hva| by_id(list.iter().filter(|slot| slot.hva_range().overlaps(hva)));
    let hva = AddrRange::new(Hva(pages.start << 12), bytes).unwrap();
    prop_assert_eq!(by_id(registry.overlapping_hva(hva)), showing(hva));
    for page in pages.chain([u64::MAX >> 12]) {
        let page = AddrRange::page_of(Hva(page << 12), PageSize::Size4K);
        prop_assert_eq!(by_id(registry.by_hva(page.first())), showing(page));
        prop_assert_eq!(by_id(registry.by_hva(page.last())), showing(page));
    }
    Ok(())
}

#[test]
fn what_cannot_have_happened_is_not_noted() {
    let block = RamBlock::foreign("ram", Hva(0x70_0000), 0x2000).unwrap();
    let place = |gpa| AddrRange::new(Gpa(gpa), 0x2000).unwrap();
    let slot = |id, gpa| {
        let (hva, flags, name, block) = (block.hva(), SlotFlags::empty(), "ram".into(), block.clone());
        Slot { id: SlotId(id), gpa: place(gpa), hva, flags, name, block }
    };
    let (one, two) = (slot(0, 0x1000), slot(1, 0x5000));
    let mut registry = SlotRegistry::default();
    assert!(registry.apply(&SlotOp::Create(one.clone())) && registry.apply(&SlotOp::Create(two.clone())));
    let logged = Slot { flags: SlotFlags::LOG_DIRTY_PAGES, ..one.clone() };
    for op in [
        SlotOp::Create(slot(0, 0x9000)),
        SlotOp::Create(slot(2, 0x2000)),
        SlotOp::Delete(slot(2, 0x9000)),
        SlotOp::Delete(logged.clone()),
        SlotOp::Move { slot: one.clone(), to: place(0x4000) },
        SlotOp::SetFlags { slot: logged, flags: SlotFlags::empty() },
    ] {
        assert!(!registry.apply(&op), "{op}");
        assert!(registry.iter().eq([&one, &two]), "{op}");
    }
    assert!(registry.apply(&SlotOp::Move { slot: one.clone(), to: place(0x2000) }));
    assert_eq!(registry.by_gpa(Gpa(0x3fff)), Some(&Slot { gpa: place(0x2000), ..one }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn look_ups_find_what_a_list_holds(
        edits in vec(any_edit(10, 40), 1..40), from in 0..60u64, pages in 1..60u64,
    ) {
        compare(10, edits, from..from + pages)?;
    }

    #[test]
    fn look_ups_among_many_find_what_a_list_holds(
        edits in vec(any_edit(300, 2000), 1..600), from in 0..2000u64, pages in 1..100u64,
    ) {
        compare(300, edits, from..from + pages)?;
    }
}

/// In an order that fills it from the front, from the back, or from within, and emptied again.
#[test]
fn a_full_registry_keeps_all() {
    let slot = |index: u64| Record {
        id: SlotId(index as u32),
        gpa: AddrRange::new(Gpa(index * 0x3000), 0x2000).unwrap(),
        hva: Hva(index / 2 * 0x1000),
    };
    let count = 2000;
    let orders: [&dyn Fn(u64) -> u64; 3] =
        [&|index| index, &|index| count - 1 - index, &|index| index * 1009 % count];
    for order in orders {
        let mut registry = SlotRegistry::default();
        for index in (0..count).map(order) {
            assert!(registry.insert(slot(index)) && !registry.insert(slot(index)));
        }
        assert!(registry.iter().copied().eq((0..count).map(slot)));
        assert_eq!(registry.by_gpa(Gpa(u64::MAX)), None);
        for index in (0..count).map(order) {
            assert_eq!(registry.by_gpa(Gpa(index * 0x3000 + 0x1fff)), Some(&slot(index)));
            assert_eq!(registry.by_gpa(Gpa(index * 0x3000 + 0x2000)), None);
            let mut shown = by_id(registry.by_hva(Hva(index / 2 * 0x1000))).into_iter();
            assert!(shown.any(|other| other == slot(index)));
            assert_eq!(registry.remove(SlotId(index as u32)), Some(slot(index)));
        }
        assert!(registry.is_empty() && registry.free_ids().take(2).eq([SlotId(0), SlotId(1)]));
    }
}
