//! The rules of transactions and listeners, one test each, numbered as the rules are: exact transcripts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use memory_model::{
    AddrRange, AddressSpace, DirtyClients, DirtySync, Eventfd, FlatEventfd, FlatRange, Gpa, Hva, MemoryError,
    MemoryListener, RamBlock, Refusal, RegionId, RegionTree,
};

type Transcript = Arc<Mutex<Vec<String>>>;

/// Writes down what it hears, with its name in front.
struct Recorder {
    name: &'static str,
    heard: Transcript,
    nops: bool,
    sync: DirtySync,
    refuses_commit: bool,
    refuses_start: bool,
    /// Asked in every callback: what a reader sees.
    look: Option<Box<dyn Fn() -> String + Send>>,
}

impl Recorder {
    fn new(name: &'static str, heard: &Transcript) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            name,
            heard: heard.clone(),
            nops: true,
            sync: DirtySync::Ranges,
            refuses_commit: false,
            refuses_start: false,
            look: None,
        }))
    }

    fn hear(&self, what: &str) {
        let look = self.look.as_ref().map_or(String::new(), |look| format!(" [{}]", look()));
        self.heard.lock().unwrap().push(format!("{} {what}{look}", self.name));
    }
}

impl MemoryListener for Recorder {
    fn name(&self) -> &str {
        self.name
    }
    fn wants_nops(&self) -> bool {
        self.nops
    }
    fn begin(&mut self) {
        self.hear("begin");
    }
    fn region_del(&mut self, range: &FlatRange) {
        self.hear(&format!("del {}", range.name));
    }
    fn region_nop(&mut self, range: &FlatRange) {
        self.hear(&format!("nop {}", range.name));
    }
    fn region_add(&mut self, range: &FlatRange) {
        self.hear(&format!("add {}", range.name));
    }
    fn commit(&mut self) -> Result<(), Refusal> {
        self.hear("commit");
        if self.refuses_commit { Err("no".into()) } else { Ok(()) }
    }
    fn abort(&mut self) {
        self.hear("abort");
    }
    fn log_start(&mut self, range: &FlatRange, old: DirtyClients, new: DirtyClients) {
        self.hear(&format!("log_start {} {:#x}->{:#x}", range.name, old.bits(), new.bits()));
    }
    fn log_stop(&mut self, range: &FlatRange, old: DirtyClients, new: DirtyClients) {
        self.hear(&format!("log_stop {} {:#x}->{:#x}", range.name, old.bits(), new.bits()));
    }
    fn dirty_sync(&self) -> DirtySync {
        self.sync
    }
    fn log_sync(&mut self, range: &FlatRange) {
        self.hear(&format!("log_sync {}", range.name));
    }
    fn log_sync_global(&mut self, last_stage: bool) {
        self.hear(&format!("log_sync_global {last_stage}"));
    }
    fn log_clear(&mut self, part: &FlatRange) {
        self.hear(&format!("log_clear {} {}@{:#x}", part.name, part.range, part.offset));
    }
    fn log_global_start(&mut self) -> Result<(), Refusal> {
        self.hear("global_start");
        if self.refuses_start { Err("no".into()) } else { Ok(()) }
    }
    fn log_global_stop(&mut self) {
        self.hear("global_stop");
    }
    fn eventfd_add(&mut self, eventfd: &FlatEventfd) {
        self.hear(&format!("eventfd_add {} fd {}", eventfd.range, eventfd.fd));
    }
    fn eventfd_del(&mut self, eventfd: &FlatEventfd) {
        self.hear(&format!("eventfd_del {} fd {}", eventfd.range, eventfd.fd));
    }
    fn coalesced_add(&mut self, range: AddrRange<Gpa>) {
        self.hear(&format!("coalesced_add {range}"));
    }
    fn coalesced_del(&mut self, range: AddrRange<Gpa>) {
        self.hear(&format!("coalesced_del {range}"));
    }
    fn flush_coalesced(&mut self) {
        self.hear("flush");
    }
}

/// A space with the regions a, b and c of 0x1000 bytes at 0x1000, 0x2000 and 0x3000.
struct Fixture {
    space: Arc<AddressSpace>,
    a: RegionId,
    b: RegionId,
    c: RegionId,
    heard: Transcript,
}

fn fixture() -> Fixture {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let [a, b, c] = [("a", 0x1000), ("b", 0x2000), ("c", 0x3000)].map(|(name, at)| {
        let block = RamBlock::foreign(name, Hva(at << 20), 0x1000).unwrap();
        let id = tree.ram(name, block).unwrap();
        tree.add(tree.root(), at, id).unwrap();
        id
    });
    let space = Arc::new(AddressSpace::new("memory", tree).unwrap());
    Fixture { space, a, b, c, heard: Transcript::default() }
}

impl Fixture {
    /// Registers a recorder, and forgets what it heard of that.
    fn listen(&self, name: &'static str, priority: i32) -> Arc<Mutex<Recorder>> {
        let recorder = Recorder::new(name, &self.heard);
        self.space.register_with_priority(recorder.clone(), priority).unwrap();
        self.heard();
        recorder
    }

    fn update(&self, edit: impl FnOnce(&mut RegionTree) -> Result<(), MemoryError>) {
        self.space.update(edit).unwrap();
    }

    /// What was heard since the last time, but for the flush that opens every transaction.
    fn heard(&self) -> Vec<String> {
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        heard.into_iter().filter(|line| !line.contains(" flush")).collect()
    }
}

#[test]
fn r20_many_edits_give_one_begin_and_one_commit_after_a_flush() {
    let f = fixture();
    f.listen("l", 0);
    f.update(|tree| {
        tree.set_enabled(f.a, false)?;
        tree.transaction(|tree| tree.set_enabled(f.b, false))?;
        tree.set_offset(f.c, 0x4000)
    });
    let all = std::mem::take(&mut *f.heard.lock().unwrap());
    assert_eq!(all, ["l flush", "l begin", "l del a", "l del b", "l del c", "l add c", "l commit"]);
}

#[test]
fn r20_an_update_inside_an_update_is_an_error_and_no_deadlock() {
    let f = fixture();
    let inner = f.space.update(|tree| {
        tree.set_enabled(f.a, false)?;
        f.space.update(|tree| tree.set_enabled(f.b, false))
    });
    assert_eq!(inner.unwrap_err().to_string(), "memory: an update inside an update");
    assert_eq!(f.space.view().len(), 3, "the outer one failed with it");
    assert!(matches!(f.space.update(|_| f.space.with_tree(|_| ())), Err(MemoryError::NestedUpdate { .. })));

    let (recorder, space) = (f.listen("l", 0), f.space.clone());
    let b = f.b;
    recorder.lock().unwrap().look =
        Some(Box::new(move || space.update(|tree| tree.set_enabled(b, false)).unwrap_err().to_string()));
    f.update(|tree| tree.remove(f.a));
    assert!(f.heard().iter().all(|line| line.ends_with("[memory: an update inside an update]")));
    recorder.lock().unwrap().look = None;
    f.update(|tree| tree.remove(f.b));
}

#[test]
fn r20_an_error_or_a_panic_leaves_the_old_view_in_force() {
    let f = fixture();
    f.listen("l", 0);
    let before = f.space.view();
    let failed = f.space.update(|tree| {
        tree.remove(f.a)?;
        tree.remove(f.a)
    });
    assert!(matches!(failed, Err(MemoryError::NotPlaced { .. })));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        f.space.update(|tree| -> Result<(), MemoryError> {
            tree.remove(f.a)?;
            std::panic::resume_unwind(Box::new("edit"))
        })
    }));
    assert!(panicked.is_err());
    assert!(Arc::ptr_eq(&before, &f.space.view()) && f.heard().is_empty());
    assert!(f.space.with_tree(|tree| tree.get(f.a).unwrap().container().is_some()).unwrap());
    f.update(|tree| tree.remove(f.a));
    assert_eq!(f.heard(), ["l begin", "l del a", "l nop b", "l nop c", "l commit"]);
}

#[test]
fn r20_a_panic_of_a_listener_leaves_tree_and_view_in_step() {
    let f = fixture();
    let recorder = f.listen("l", 0);
    let in_step = |f: &Fixture| {
        let full = f.space.with_tree(|tree| memory_model::FlatView::render(tree).unwrap()).unwrap();
        full.same_as(&f.space.view())
    };
    for (ranges_seen, left) in [(3, 3), (2, 2)] {
        // Panics before the new view is published, or after.
        let space = f.space.clone();
        recorder.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).look = Some(Box::new(move || {
            assert_ne!(space.view().len(), ranges_seen);
            String::new()
        }));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            f.space.update(|tree| {
                tree.add_eventfd(f.b, Eventfd { offset: 0, size: 1, data: None, fd: 1 })?;
                tree.remove(f.a)
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(f.space.view().len(), left);
        assert!(in_step(&f));
    }
}

#[test]
fn r21_a_change_of_eventfds_alone_needs_no_begin_and_commit() {
    let f = fixture();
    f.listen("l", 0);
    let eventfd = Eventfd { offset: 0x10, size: 4, data: Some(1), fd: 7 };
    f.update(|tree| tree.add_eventfd(f.b, eventfd));
    assert_eq!(f.heard(), ["l eventfd_add 0x2010-0x2013 fd 7"]);
    f.update(|tree| tree.del_eventfd(f.b, eventfd));
    assert_eq!(f.heard(), ["l eventfd_del 0x2010-0x2013 fd 7"]);
    f.update(|tree| tree.add_eventfd(f.b, eventfd).and_then(|()| tree.del_eventfd(f.b, eventfd)));
    assert!(f.heard().is_empty());
    f.update(|tree| tree.add_coalesced(f.b, 0x100, 0x10));
    assert_eq!(f.heard(), ["l coalesced_add 0x2100-0x210f"]);
    let outside = Eventfd { offset: 0xffe, ..eventfd };
    let error = f.space.update(|tree| tree.add_eventfd(f.b, outside)).unwrap_err();
    assert_eq!(error.to_string(), "region b: an eventfd of 4 bytes at offset 0xffe is outside the region");
    assert!(f.space.update(|tree| tree.del_eventfd(f.b, eventfd)).is_err());
    assert!(f.space.update(|tree| tree.add_eventfd(f.b, Eventfd { size: 3, ..eventfd })).is_err());
}

#[test]
fn r22_one_space_after_the_other_and_an_unchanged_one_hears_nothing() {
    let f = fixture();
    let other = f.space.update(|tree| tree.container("other", 0x1_0000)).unwrap();
    let alias = f.space.update(|tree| {
        let alias = tree.alias("alias", f.a, 0, 0x1000)?;
        tree.add(other, 0x500, alias).map(|()| alias)
    });
    let sibling = f.space.sibling("sibling", other).unwrap();
    f.listen("m", 0);
    sibling.register(Recorder::new("s", &f.heard)).unwrap();
    f.heard();
    f.update(|tree| tree.set_enabled(f.a, false));
    let expected = ["m begin", "s begin", "m del a", "m nop b", "m nop c", "s del a", "m commit", "s commit"];
    assert_eq!(f.heard(), expected);
    f.update(|tree| tree.set_enabled(f.b, false));
    assert_eq!(f.heard(), ["m begin", "m del b", "m nop c", "m commit"]);
    sibling.update(|tree| tree.set_enabled(f.a, true).and_then(|()| tree.remove(alias.unwrap()))).unwrap();
    assert_eq!(f.heard(), ["m begin", "m add a", "m nop c", "m commit"]);
    f.update(|tree| tree.set_enabled(f.a, true));
    assert!(f.heard().is_empty(), "an equal value");
    drop(sibling);
    f.update(|tree| tree.destroy(other));
}

#[test]
fn r23_first_what_goes_then_what_stays_or_comes_each_ascending() {
    let f = fixture();
    f.update(|tree| {
        tree.add_coalesced(f.a, 0, 0x10)?;
        tree.add_coalesced(f.c, 0x20, 0x10)
    });
    f.listen("l", 0);
    f.update(|tree| {
        tree.set_readonly(f.c, true)?;
        tree.set_dirty_log(f.b, DirtyClients::VGA)?;
        tree.remove(f.a)
    });
    let expected = [
        "l begin",
        "l coalesced_del 0x1000-0x100f",
        "l del a",
        "l coalesced_del 0x3020-0x302f",
        "l del c",
        "l nop b",
        "l log_start b 0x0->0x1",
        "l add c",
        "l coalesced_add 0x3020-0x302f",
        "l commit",
    ];
    assert_eq!(f.heard(), expected);
    f.update(|tree| tree.set_dirty_log(f.b, DirtyClients::CODE));
    let expected =
        ["l begin", "l nop b", "l log_start b 0x1->0x2", "l log_stop b 0x1->0x2", "l nop c", "l commit"];
    assert_eq!(f.heard(), expected);
}

#[test]
fn r23_a_listener_that_wants_no_nops_hears_of_the_change_alone() {
    let f = fixture();
    f.listen("l", 0).lock().unwrap().nops = false;
    f.update(|tree| tree.set_enabled(f.b, false));
    assert_eq!(f.heard(), ["l begin", "l del b", "l commit"]);
}

#[test]
fn r24_low_priority_is_first_where_something_comes_and_last_where_it_goes() {
    let f = fixture();
    f.update(|tree| tree.remove(f.a).and_then(|()| tree.remove(f.c)));
    f.listen("two", 10);
    f.listen("one", -10);
    f.listen("also-two", 10);
    f.update(|tree| {
        tree.remove(f.b)?;
        tree.add(tree.root(), 0x8000, f.c)
    });
    let expected = [
        "one begin",
        "two begin",
        "also-two begin",
        "also-two del b",
        "two del b",
        "one del b",
        "one add c",
        "two add c",
        "also-two add c",
        "one commit",
        "two commit",
        "also-two commit",
    ];
    assert_eq!(f.heard(), expected);
    f.update(|tree| tree.set_dirty_log(f.c, DirtyClients::VGA));
    f.heard();
    f.update(|tree| tree.set_dirty_log(f.c, DirtyClients::empty()));
    let stops: Vec<_> = f.heard().into_iter().filter(|line| line.contains("stop")).collect();
    assert_eq!(stops, ["also-two log_stop c 0x1->0x0", "two log_stop c 0x1->0x0", "one log_stop c 0x1->0x0"]);
}

#[test]
fn r25_other_loggers_are_no_other_range_but_other_rights_are() {
    let f = fixture();
    f.listen("l", 0).lock().unwrap().nops = false;
    f.update(|tree| tree.set_dirty_log(f.a, DirtyClients::VGA));
    assert_eq!(f.heard(), ["l begin", "l log_start a 0x0->0x1", "l commit"]);
    f.update(|tree| tree.set_dirty_log(f.a, DirtyClients::empty()));
    assert_eq!(f.heard(), ["l begin", "l log_stop a 0x1->0x0", "l commit"]);
    for set in [RegionTree::set_readonly, RegionTree::set_nonvolatile, RegionTree::set_unmergeable] {
        f.update(|tree| set(tree, f.a, true));
        assert_eq!(f.heard(), ["l begin", "l del a", "l add a", "l commit"]);
    }
}

#[test]
fn r26_callbacks_see_the_old_view_and_those_of_eventfds_the_new_one() {
    let f = fixture();
    let recorder = f.listen("l", 0);
    let space = f.space.clone();
    let mut reader = f.space.reader();
    recorder.lock().unwrap().look = Some(Box::new(move || format!("{} ranges", space.view().len())));
    f.update(|tree| {
        tree.add_eventfd(f.b, Eventfd { offset: 0, size: 0, data: None, fd: 3 })?;
        tree.remove(f.a)
    });
    let expected = [
        "l begin [3 ranges]",
        "l del a [3 ranges]",
        "l nop b [3 ranges]",
        "l nop c [3 ranges]",
        "l commit [3 ranges]",
        "l eventfd_add 0x2000-0x2000 fd 3 [2 ranges]",
    ];
    assert_eq!(f.heard(), expected);
    assert_eq!(reader.view().len(), 2);
}

#[test]
fn r27_a_change_told_is_a_change_made() {
    // The oracle's listener does this for random changes; here two views without a space.
    let f = fixture();
    let old = f.space.view();
    f.update(|tree| tree.set_offset(f.a, 0x9000));
    let mut recorder = Recorder::new("l", &f.heard);
    let recorder = Arc::get_mut(&mut recorder).unwrap().get_mut().unwrap();
    old.announce_change(&f.space.view(), recorder).unwrap();
    assert_eq!(f.heard(), ["l begin", "l del a", "l nop b", "l nop c", "l add a", "l commit"]);
    old.announce_change(&old, recorder).unwrap();
    assert!(f.heard().is_empty(), "an equal view reaches no listener");
}

#[test]
fn r28_an_eventfd_shows_once_and_only_while_all_of_it_can_be_seen() {
    let f = fixture();
    f.update(|tree| tree.add_eventfd(f.b, Eventfd { offset: 0x7fe, size: 4, data: None, fd: 5 }));
    f.listen("l", 0).lock().unwrap().nops = false;
    let eventfds =
        |f: &Fixture| -> Vec<_> { f.heard().into_iter().filter(|line| line.contains("eventfd")).collect() };
    // A cover that splits the region beside it changes nothing ...
    let cover = f.space.update(|tree| {
        let cover = tree.reservation("cover", 0x10)?;
        tree.add_with_priority(tree.root(), 0x2400, cover, 1).map(|()| cover)
    });
    let cover = cover.unwrap();
    assert!(eventfds(&f).is_empty());
    // ... one that hides a byte of it hides it, ...
    f.update(|tree| tree.set_offset(cover, 0x2801));
    assert_eq!(eventfds(&f), ["l eventfd_del 0x27fe-0x2801 fd 5"]);
    // ... and it comes back whole.
    f.update(|tree| tree.set_offset(cover, 0x2802));
    assert_eq!(eventfds(&f), ["l eventfd_add 0x27fe-0x2801 fd 5"]);
    // A seam of rights inside it hides nothing; each place where it is seen counts.
    f.update(|tree| {
        let half = tree.alias("half", f.b, 0x800, 0x800)?;
        tree.set_readonly(half, true)?;
        tree.add_with_priority(tree.root(), 0x2800, half, 2)
    });
    assert!(eventfds(&f).is_empty());
    f.update(|tree| {
        let twin = tree.alias("twin", f.b, 0, 0x1000)?;
        tree.add(tree.root(), 0x2_0000, twin)
    });
    assert_eq!(eventfds(&f), ["l eventfd_add 0x207fe-0x20801 fd 5"]);
}

#[test]
fn r29_a_late_listener_hears_all_that_an_early_one_did() {
    let f = fixture();
    f.update(|tree| {
        tree.set_dirty_log(f.a, DirtyClients::VGA)?;
        tree.add_coalesced(f.b, 0, 8)?;
        tree.add_eventfd(f.c, Eventfd { offset: 0, size: 2, data: None, fd: 9 })
    });
    f.space.start_global_log().unwrap();
    f.space.register(Recorder::new("late", &f.heard)).unwrap();
    let expected = [
        "late begin",
        "late global_start",
        "late add a",
        "late log_start a 0x0->0x5",
        "late add b",
        "late coalesced_add 0x2000-0x2007",
        "late log_start b 0x0->0x4",
        "late add c",
        "late log_start c 0x0->0x4",
        "late commit",
        "late eventfd_add 0x3000-0x3001 fd 9",
    ];
    assert_eq!(f.heard(), expected);
}

#[test]
fn r29_a_listener_that_refuses_what_there_is_is_not_registered() {
    let f = fixture();
    let recorder = Recorder::new("late", &f.heard);
    recorder.lock().unwrap().refuses_commit = true;
    let error = f.space.register(recorder).unwrap_err();
    assert_eq!(error.to_string(), "late refused the new view");
    f.heard();
    f.update(|tree| tree.remove(f.a));
    assert!(f.heard().is_empty());
}

#[test]
fn r30_an_unregistered_listener_ends_empty() {
    let f = fixture();
    f.update(|tree| {
        tree.set_dirty_log(f.a, DirtyClients::VGA)?;
        tree.add_coalesced(f.b, 0, 8)?;
        tree.add_eventfd(f.c, Eventfd { offset: 0, size: 2, data: None, fd: 9 })
    });
    let recorder = f.listen("l", 0);
    f.space.unregister(&recorder).unwrap();
    let expected = [
        "l begin",
        "l log_stop a 0x1->0x0",
        "l del a",
        "l coalesced_del 0x2000-0x2007",
        "l del b",
        "l del c",
        "l commit",
        "l eventfd_del 0x3000-0x3001 fd 9",
    ];
    assert_eq!(f.heard(), expected);
    f.space.unregister(&recorder).unwrap();
    f.update(|tree| tree.remove(f.a));
    assert!(f.heard().is_empty());
}

#[test]
fn r31_a_global_start_that_fails_is_rolled_back() {
    let f = fixture();
    f.listen("one", 1);
    f.listen("two", 2);
    let three = f.listen("three", 3);
    three.lock().unwrap().refuses_start = true;
    let error = f.space.start_global_log().unwrap_err();
    assert_eq!(error.to_string(), "three refused to log all memory");
    let expected =
        ["one global_start", "two global_start", "three global_start", "two global_stop", "one global_stop"];
    assert_eq!(f.heard(), expected);
    assert!(!f.space.with_tree(RegionTree::global_log).unwrap());
    assert!(f.space.view().ranges().all(|range| range.dirty_mask.is_empty()));

    three.lock().unwrap().refuses_start = false;
    three.lock().unwrap().nops = false;
    f.space.unregister(&f.listen("gone", 0)).unwrap();
    f.heard();
    f.space.start_global_log().unwrap();
    let heard = f.heard();
    assert_eq!(heard[..3], ["one global_start", "two global_start", "three global_start"]);
    assert!(heard.contains(&"three log_start a 0x0->0x4".to_string()));
    f.space.start_global_log().unwrap();
    assert!(f.heard().is_empty(), "it is on");
    f.space.stop_global_log().unwrap();
    let heard = f.heard();
    assert_eq!(heard[heard.len() - 3..], ["three global_stop", "two global_stop", "one global_stop"]);
    assert!(heard.contains(&"one log_stop c 0x4->0x0".to_string()));
}

#[test]
fn r31_a_refused_commit_takes_the_global_start_back() {
    let f = fixture();
    let l = f.listen("l", 0);
    l.lock().unwrap().refuses_commit = true;
    assert!(f.space.start_global_log().is_err());
    assert_eq!(f.heard().last().unwrap(), "l global_stop");
    assert!(!f.space.with_tree(RegionTree::global_log).unwrap());
}

#[test]
fn r32_dirty_bits_are_synchronised_by_ranges_or_at_once() {
    let f = fixture();
    f.update(|tree| tree.set_dirty_log(f.b, DirtyClients::VGA));
    f.listen("ranges", 0);
    f.listen("global", 0).lock().unwrap().sync = DirtySync::Global;
    f.listen("none", 0).lock().unwrap().sync = DirtySync::None;
    f.space.sync_dirty_log(true).unwrap();
    assert_eq!(f.heard(), ["ranges log_sync b", "global log_sync_global true"]);
}

#[test]
fn r32_a_clear_is_told_for_the_part_wherever_it_is_seen() {
    let f = fixture();
    f.listen("l", 0);
    f.update(|tree| {
        let alias = tree.alias("alias", f.b, 0x800, 0x800)?;
        tree.add(tree.root(), 0x9000, alias)
    });
    f.heard();
    f.space.clear_dirty_log(f.b, 0x400, 0x800).unwrap();
    assert_eq!(f.heard(), ["l log_clear b 0x2400-0x2bff@0x400", "l log_clear b 0x9000-0x93ff@0x800"]);
    let error = f.space.clear_dirty_log(f.b, 0xfff, 2).unwrap_err();
    assert_eq!(error.to_string(), "region b: no 0x2 bytes at offset 0xfff");
}

#[test]
fn r32_a_stop_waits_until_the_guest_runs() {
    let f = fixture();
    f.listen("l", 0).lock().unwrap().nops = false;
    f.space.start_global_log().unwrap();
    f.space.set_running(false).unwrap();
    f.heard();
    f.space.stop_global_log().unwrap();
    assert!(f.heard().is_empty() && f.space.with_tree(RegionTree::global_log).unwrap());
    f.space.set_running(true).unwrap();
    assert_eq!(f.heard().last().unwrap(), "l global_stop");
    f.space.set_running(true).unwrap();
    assert!(f.heard().is_empty());
    // A start that comes first lets the stop happen, and starts anew.
    f.space.start_global_log().unwrap();
    f.space.set_running(false).unwrap();
    f.space.stop_global_log().unwrap();
    f.heard();
    f.space.start_global_log().unwrap();
    let heard = f.heard();
    let global: Vec<_> = heard.iter().filter(|line| line.contains("global")).collect();
    assert_eq!(global, ["l global_stop", "l global_start"]);
    f.space.set_running(true).unwrap();
    assert!(f.heard().is_empty(), "the stop is done with");
}

#[test]
fn a_refused_view_is_never_seen_and_everybody_stands_where_he_stood() {
    let f = fixture();
    f.listen("one", 1);
    let two = f.listen("two", 2);
    f.listen("three", 3);
    two.lock().unwrap().refuses_commit = true;
    let before = f.space.view();
    let error = f.space.update(|tree| tree.set_offset(f.a, 0x8000)).unwrap_err();
    assert_eq!(error.to_string(), "two refused the new view");
    assert!(Arc::ptr_eq(&before, &f.space.view()));
    assert_eq!(f.space.with_tree(|tree| tree.get(f.a).unwrap().offset()).unwrap(), 0x1000);
    let heard = f.heard();
    let after: Vec<_> = heard.iter().skip_while(|line| *line != "two commit").skip(1).collect();
    let expected =
        ["three abort", "one begin", "one del a", "one add a", "one nop b", "one nop c", "one commit"];
    assert_eq!(after, expected);
    assert_eq!(heard.iter().filter(|line| *line == "three commit").count(), 0);
}
