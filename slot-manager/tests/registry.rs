//! The registry against a plain list.

use memory_model::{AddrRange, Gpa, Hva, RamBlock};
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

fn any_slot() -> impl Strategy<Value = Record> {
    let gpa = (0..40u64, prop_oneof![1..4u64, 1..40u64]);
    let hva = prop_oneof![9 => 0..40u64, 1 => Just(u64::MAX >> 12)];
    (0..10u32, gpa, hva).prop_map(|(id, (page, pages), hva)| Record {
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

fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![3 => any_slot().prop_map(Edit::Insert), 1 => (0..10u32).prop_map(|id| Edit::Remove(SlotId(id)))]
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
    fn look_ups_find_what_a_list_holds(edits in vec(any_edit(), 1..40), from in 0..60u64, pages in 1..60u64) {
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
        for id in (0..10).map(SlotId) {
            prop_assert_eq!(registry.by_id(id), list.iter().find(|slot| slot.id == id));
        }
        list.sort_by_key(|slot| slot.gpa.first());
        prop_assert!(registry.iter().eq(&list));
        let gpa = AddrRange::new(Gpa(from << 12), u128::from(pages) << 12).unwrap();
        prop_assert!(registry.overlapping(gpa).eq(list.iter().filter(|slot| slot.gpa.overlaps(gpa))));
        prop_assert_eq!(registry.by_gpa(gpa.last()), list.iter().find(|slot| slot.gpa.contains(gpa.last())));

        let used: Vec<_> = by_id(list.iter()).iter().map(|slot| slot.id).collect();
        prop_assert!(registry.ids().eq(used.iter().copied()));
        let free = (0..).map(SlotId).filter(|id| !used.contains(id));
        prop_assert!(registry.free_ids().take(20).eq(free.take(20)));

        let hva = AddrRange::new(Hva(from << 12), u128::from(pages) << 12).unwrap();
        let showing = |hva| by_id(list.iter().filter(|slot| slot.hva_range().overlaps(hva)));
        prop_assert_eq!(by_id(registry.overlapping_hva(hva)), showing(hva));
        let top = AddrRange::page_of(Hva(u64::MAX), memory_model::PageSize::Size4K);
        prop_assert_eq!(by_id(registry.by_hva(Hva(u64::MAX))), showing(top));
    }
}
