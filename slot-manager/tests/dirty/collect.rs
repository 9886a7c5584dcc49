//! The rules of collecting, one by one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_model::{AddressSpace, DirtyClients, Gpa, Hva, RamBlock, RegionTree};
use slot_manager::{
    DirtyLog, DirtyMethod, Errno, KernelMemslots, Reaper, Recorder, SlotError, SlotExecutor, SlotFlags,
    SlotId, SlotLimits, SlotManager, SlotOp,
};

use crate::machine::{Machine, PAGE, PAGES, pages};

const METHODS: [DirtyMethod; 3] = [
    DirtyMethod::Bitmap,
    DirtyMethod::ManualProtect { initially_set: false },
    DirtyMethod::Ring { bytes: 4096 },
];

#[test]
fn d4_any_part_of_a_slot_can_be_collected_and_the_rest_waits() {
    for method in METHODS {
        for first in 0..PAGES {
            for count in [1, 2, 63, 64, 65, PAGES - first] {
                let machine = Machine::new(method);
                assert!((0..PAGES).all(|page| machine.write(page).is_some()));
                let end = PAGES.min(first + count);
                let part = pages(first, end - first);
                let expected: Vec<_> = (first..end).map(|page| machine.hva(page)).collect();
                assert_eq!(machine.collect(part), expected, "{method:?} {part}");
                assert_eq!(machine.collect(part), [], "{method:?} {part}");
                assert_eq!(machine.collect_all().len() as u64, PAGES - (end - first), "{method:?} {part}");
            }
        }
    }
}

#[test]
fn d4_a_page_written_after_it_was_collected_is_dirty_again() {
    for method in METHODS {
        let machine = Machine::new(method);
        for _ in 0..3 {
            machine.write(70);
            assert_eq!(machine.collect(pages(70, 1)), [machine.hva(70)], "{method:?}");
        }
        assert_eq!(machine.collect_all(), []);
    }
}

#[test]
fn d2_a_log_that_starts_full_has_every_page_once() {
    let machine = Machine::new(DirtyMethod::ManualProtect { initially_set: true });
    assert_eq!(machine.collect(pages(0, PAGES)).len() as u64, PAGES);
    machine.write(3);
    assert_eq!(machine.collect(pages(0, PAGES)), [machine.hva(3)]);
}

#[test]
fn d6_how_pages_are_logged_is_chosen_once() {
    for present in METHODS {
        let machine = Machine::new(present);
        for wanted in
            METHODS.into_iter().filter(|&wanted| wanted != present && present != DirtyMethod::Bitmap)
        {
            let error = machine.manager().set_dirty_method(wanted).unwrap_err();
            assert!(matches!(error, SlotError::DirtyMethodFixed { .. }), "{error}");
        }
        machine.manager().set_dirty_method(present).unwrap();
    }
    let mut manager = SlotManager::new(KernelMemslots::new());
    let error = manager.set_dirty_method(DirtyMethod::Ring { bytes: 5000 }).unwrap_err();
    assert_eq!(error.to_string(), "cannot log dirty pages by Ring { bytes: 5000 }: EINVAL");
    manager.set_dirty_method(DirtyMethod::ManualProtect { initially_set: true }).unwrap();
}

#[test]
fn r5_a_slot_is_logged_while_anybody_logs_its_range() {
    let machine = Machine::new(DirtyMethod::Bitmap);
    let log = |clients| machine.space.update(|tree| tree.set_dirty_log(machine.ram, clients)).unwrap();
    let flags = || -> Vec<_> {
        let ops = machine.kernel.take();
        assert!(ops.iter().all(|op| matches!(op, SlotOp::SetFlags { .. })), "{ops:?}");
        ops.iter().map(|op| op.result().unwrap().flags).collect()
    };
    // Another client, or one of two: no call.
    log(DirtyClients::MIGRATION | DirtyClients::VGA);
    log(DirtyClients::VGA);
    assert_eq!(flags(), []);
    // RAM itself and the window on it.
    log(DirtyClients::empty());
    assert_eq!(flags(), [SlotFlags::empty(); 2]);
    assert_eq!(machine.write(1), None);
    log(DirtyClients::VGA);
    assert_eq!(flags(), [SlotFlags::LOG_DIRTY_PAGES; 2]);
    assert_eq!(machine.collect_all(), []);
    // What everything's log asks for counts as well.
    machine.space.start_global_log().unwrap();
    log(DirtyClients::empty());
    assert_eq!(flags(), []);
    machine.space.stop_global_log().unwrap();
    assert_eq!(flags().len(), 2);
}

#[test]
fn r9_a_slot_that_goes_leaves_its_pages() {
    for method in METHODS {
        let machine = Machine::new(method);
        machine.write(9);
        machine.write(60);
        machine.space.update(|tree| tree.set_enabled(machine.ram, false)).unwrap();
        // The number is another slot's by now, and its log begins anew.
        let dirty = machine.manager().collect_dirty(pages(0x9000, 1)).unwrap();
        let gone = dirty.slots().iter().find(|pages| pages.slot().gpa.first() == Gpa(0)).unwrap();
        assert!(gone.pages().eq([Gpa(9 * PAGE), Gpa(60 * PAGE)]), "{method:?}");
        assert!(gone.runs().eq([pages(9, 1), pages(60, 1)]), "{method:?}");
        assert_eq!(machine.collect_all(), []);
    }
}

#[test]
fn d5_a_reaper_makes_room_in_the_rings_and_what_it_finds_waits() {
    let machine = Machine::new(DirtyMethod::Ring { bytes: 4096 });
    let ring = machine.kernel.with_inner(|kernel| kernel.dirty_ring(0).unwrap().clone());
    let reaper = Reaper::spawn(machine.manager.clone(), Duration::from_micros(50));
    let entries = u64::from(ring.len());
    for page in 0..4 * entries {
        let gpa = Gpa(page % PAGES * PAGE);
        while !machine.kernel.with_inner(|kernel| kernel.mark_page_dirty(Some(0), 0, gpa)) {
            std::thread::yield_now();
        }
    }
    drop(reaper);
    assert_eq!(machine.collect_all().len() as u64, PAGES);
    assert!(ring.is_empty());
}

/// A kernel that does not clear the log of this slot.
struct Unclearable(KernelMemslots, Option<SlotId>);

impl SlotExecutor for Unclearable {
    fn limits(&self) -> SlotLimits {
        self.0.limits()
    }
    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        self.0.execute(op)
    }
    fn dirty_method(&self) -> DirtyMethod {
        self.0.dirty_method()
    }
    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        act(self);
    }
}

impl DirtyLog for Unclearable {
    fn set_dirty_method(&mut self, wanted: DirtyMethod) -> Result<(), SlotError> {
        let mut answer = Ok(());
        self.0.with_log(&mut |log| answer = log.set_dirty_method(wanted));
        answer
    }
    fn get_dirty_log(&mut self, slot: SlotId, bitmap: &mut Vec<u64>) -> Result<(), Errno> {
        bitmap.resize(1, 0);
        self.0.get_dirty_log(slot.0, bitmap)
    }
    fn clear_dirty_log(
        &mut self,
        slot: SlotId,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        match self.1 {
            Some(unclearable) if unclearable == slot => Err(Errno::EFAULT),
            _ => self.0.clear_dirty_log(slot.0, first_page, num_pages, bitmap),
        }
    }
    fn reap_dirty_rings(&mut self, _found: &mut dyn FnMut(SlotId, u64)) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
}

#[test]
fn d4_what_a_failed_collection_has_read_is_in_the_next_one() {
    let kernel = Recorder::new(Unclearable(KernelMemslots::new(), Some(SlotId(1))));
    let manager = Arc::new(Mutex::new(SlotManager::new(kernel.clone())));
    let method = DirtyMethod::ManualProtect { initially_set: false };
    manager.lock().unwrap().set_dirty_method(method).unwrap();
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    for (name, at) in [("low", 0), ("high", 0x10)] {
        let ram = tree.ram(name, RamBlock::foreign(name, Hva(0x7f00_0000_0000), 8 * PAGE).unwrap()).unwrap();
        tree.set_dirty_log(ram, DirtyClients::MIGRATION).unwrap();
        tree.add(tree.root(), at * PAGE, ram).unwrap();
    }
    let space = AddressSpace::new("memory", tree).unwrap();
    space.register(manager.clone()).unwrap();
    let written = [Gpa(2 * PAGE), Gpa(3 * PAGE), Gpa(0x11 * PAGE)];
    kernel.with_inner(|kernel| {
        assert!(written.iter().all(|gpa| kernel.0.mark_page_dirty(None, 0, *gpa)));
    });
    let mut manager = manager.lock().unwrap();
    // The pages of the first slot are cleared in the kernel by then; those of one are asked for, or all.
    for range in [pages(2, 0x10), pages(0, 0x100)] {
        let error = manager.collect_dirty(range).unwrap_err();
        assert!(
            matches!(&error, SlotError::DirtyLog { slot, errno: Errno::EFAULT } if slot.id.0 == 1),
            "{error}"
        );
    }
    kernel.with_inner_mut(|kernel| kernel.1 = None);
    assert!(manager.collect_all_dirty().unwrap().pages().eq(written));
    assert!(manager.collect_all_dirty().unwrap().is_empty());
}
