//! What KVM tells of its leaves while it makes and takes them, against those that there are in the end; and of faults, against
//! its own count of them.

use std::thread;

use ept::Access;
use ept::live::{Event, Happened, LiveLeaf, LiveTables, LiveVm, Replay, Trace, TraceFinding};
use iced_x86::code_asm::*;
use memory_model::{Gpa, Hpa, PageSize, Pages, RamBlock};
use slot_manager::SlotOp;
use vcpu::kvm::live_kernel;
use vcpu::{Budget, Entry, Exit, HostView};

use crate::guest::{DATA, Guest, NO_SLOT, PLENTY, slot};
use crate::live::{PAGES, ram, touch};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::Events];
    each_leaf_is_one_that_was_installed,
    pages_that_go_and_come_back_are_told_of,
    the_threads_of_all_vcpus_are_heard,
    a_leaf_that_is_not_the_installed_one_is_found,
    a_leaf_that_nobody_has_made_is_found,
    a_leaf_that_outlives_its_page_is_found,
    events_that_nobody_takes_in_time_are_missed,
    a_leaf_that_is_hidden_is_missed;
    &[Need::Live, Need::FaultEvents];
    each_page_that_is_touched_first_is_a_fault_that_is_told,
    faults_that_are_not_told_are_found,
    accesses_to_mmio_are_told_apart,
);

const PAGE: u64 = PageSize::Size4K.bytes();

/// A guest all of whose leaves are told of.
struct Told {
    guest: Guest,
    vm: LiveVm,
    trace: Trace,
}

impl Told {
    /// A guest that has touched its pages.
    fn touched() -> Self {
        let trace = Trace::start().unwrap();
        let guest = Guest::ring3_on(ram(Pages::Small), touch);
        let vm = guest.live();
        let mut told = Self { guest, vm, trace };
        told.run();
        told
    }

    fn run(&mut self) {
        self.guest.vcpu.set_regs(&crate::guest::start()).unwrap();
        assert!(matches!(self.guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    }

    fn replay(&mut self, tables: &LiveTables) -> Replay {
        let lost = self.trace.lost().unwrap();
        tables.replay(self.trace.events(), lost)
    }

    /// As all is: nothing wrong, nothing lost, nothing that nobody has told of.
    fn assert_told(&mut self) -> Replay {
        let tables = self.vm.tables().unwrap();
        let replay = self.replay(&tables);
        assert!(replay.is_clean(), "{replay}");
        assert_eq!((replay.lost, replay.unexplained), (0, 0), "{replay}");
        assert_eq!(replay.agree, tables.leaves().count() as u64);
        assert_eq!(replay.agree, tables.counted().iter().sum::<u64>(), "and as many as KVM counts");
        replay
    }
}

/// The leaf of the guest's first page of data.
fn first(tables: &LiveTables) -> LiveLeaf {
    tables.leaves().find(|leaf| leaf.gpa == Gpa(DATA)).expect("it was touched")
}

fn each_leaf_is_one_that_was_installed() {
    let mut told = Told::touched();
    let replay = told.assert_told();
    assert!(replay.agree >= PAGES && replay.installs >= PAGES, "{replay}");
    let gfns = (DATA / PAGE..).take(PAGES as usize);
    for gfn in gfns {
        let is_there =
            |what: &Happened| matches!(what, Happened::Installed { gfn: of, level: 1, .. } if *of == gfn);
        assert!(told.trace.events().iter().any(|event| is_there(&event.what)), "{gfn:#x}");
    }
}

fn pages_that_go_and_come_back_are_told_of() {
    let mut told = Told::touched();
    let before = told.assert_told();
    told.guest.ram.discard(DATA..DATA + 8 * PAGE).unwrap();
    let without = told.assert_told();
    assert_eq!((without.agree, without.gone), (before.agree - 8, before.gone + 8));
    told.run();
    let after = told.assert_told();
    assert_eq!((after.agree, after.installs), (before.agree, before.installs + 8));
    let ram = slot(0, 0, &told.guest.ram);
    told.guest.slots.execute(&SlotOp::Delete(ram)).unwrap();
    assert_eq!(told.assert_told().agree, 0);
}

fn the_threads_of_all_vcpus_are_heard() {
    let mut told = Told::touched();
    told.guest.ram.discard(DATA..DATA + PAGES * PAGE).unwrap();
    thread::scope(|scope| {
        let vcpu = &mut told.guest.vcpu;
        scope.spawn(move || {
            vcpu.set_regs(&crate::guest::start()).unwrap();
            vcpu.run(Entry::Resume, &Budget::time(PLENTY)).unwrap()
        });
    });
    told.assert_told();
    let threads: std::collections::HashSet<u32> =
        told.trace.events().iter().map(|event| event.thread).collect();
    assert_eq!(threads.len(), 2);
}

fn a_leaf_that_is_not_the_installed_one_is_found() {
    let mut told = Told::touched();
    let mut tables = told.vm.tables().unwrap();
    let lie = first(&tables);
    assert!(tables.overwrite(lie.entry_address, lie.entry ^ PAGE));
    let found = told.replay(&tables).findings;
    let [TraceFinding::OtherInstalled { leaf, gpa, hpa, .. }] = found[..] else { panic!("{found:?}") };
    assert_eq!((leaf.hpa, gpa, hpa), (Hpa(lie.hpa.raw() ^ PAGE), lie.gpa, lie.hpa));
}

fn a_leaf_that_nobody_has_made_is_found() {
    let mut told = Told::touched();
    let mut tables = told.vm.tables().unwrap();
    let lie = first(&tables);
    // Its neighbour maps the page before the data, which the guest has not touched.
    let before = Hpa(lie.entry_address.raw() ^ 0x800);
    assert!(tables.overwrite(before, lie.entry));
    let found = told.replay(&tables).findings;
    let [TraceFinding::NeverInstalled(leaf)] = found[..] else { panic!("{found:?}") };
    assert_eq!(leaf.entry_address, before);
}

fn a_leaf_that_outlives_its_page_is_found() {
    let mut told = Told::touched();
    let lie = first(&told.vm.tables().unwrap());
    told.guest.ram.discard(DATA..DATA + PAGE).unwrap();
    let mut tables = told.vm.tables().unwrap();
    assert!(tables.overwrite(lie.entry_address, lie.entry));
    let found = told.replay(&tables).findings;
    let [TraceFinding::Stale { leaf, unmapped: Some(range) }] = found[..] else { panic!("{found:?}") };
    assert_eq!((leaf.gpa, range.bytes()), (Gpa(DATA), u128::from(PAGE)));
}

fn events_that_nobody_takes_in_time_are_missed() {
    let mut told = Told::touched();
    // A ring for each processor has room for some 32,000.
    for _ in 0..100_000 / PAGES {
        told.guest.ram.discard(DATA..DATA + PAGES * PAGE).unwrap();
        told.run();
    }
    let tables = told.vm.tables().unwrap();
    let replay = told.replay(&tables);
    assert!(replay.lost > 0 && replay.is_clean() && replay.agree == 0, "{replay}");
    assert!(replay.to_string().contains("events are lost"), "{replay}");
}

fn a_leaf_that_is_hidden_is_missed() {
    let mut told = Told::touched();
    let mut tables = told.vm.tables().unwrap();
    let lie = first(&tables);
    assert!(tables.overwrite(lie.entry_address, 0));
    let replay = told.replay(&tables);
    assert_eq!((replay.findings.len(), replay.unexplained), (0, 1), "{replay}");
}

/// What the guest did, by address: pages of it at the same guest-physical and linear addresses.
fn faults(told: &mut Told) -> Vec<(u64, Access)> {
    let second_level = live_kernel().unwrap().second_level();
    let fault = |event: &Event| match event.what {
        Happened::Faulted(fault) => Some((fault.address & !(PAGE - 1), fault.access(second_level))),
        _ => None,
    };
    told.trace.events().iter().filter_map(fault).collect()
}

fn each_page_that_is_touched_first_is_a_fault_that_is_told() {
    let mut told = Told::touched();
    let replay = told.assert_told();
    assert_eq!(replay.faults, replay.faults_counted);
    assert_eq!(replay.faults, told.guest.vm.violations());
    let faults = faults(&mut told);
    for page in (DATA..).step_by(PAGE as usize).take(PAGES as usize) {
        let of_page: Vec<_> = faults.iter().filter(|(address, _)| *address == page).collect();
        assert_eq!(of_page, [&(page, Access::WRITE)]);
    }
}

fn faults_that_are_not_told_are_found() {
    let mut told = Told::touched();
    let tables = told.vm.tables().unwrap();
    let mut events = told.trace.events().to_vec();
    let at = events.iter().position(|event| matches!(event.what, Happened::Faulted(_))).unwrap();
    events.remove(at);
    let replay = tables.replay(&events, 0);
    let counted = told.guest.vm.violations().unwrap();
    assert_eq!(replay.findings, [TraceFinding::Faults { told: counted - 1, counted }]);
}

fn accesses_to_mmio_are_told_apart() {
    let mut trace = Trace::start().unwrap();
    let mut guest = Guest::ring3(|a| {
        for _ in 0..3 {
            a.mov(dword_ptr(NO_SLOT as u32), 1)?;
        }
        a.out(0xf4, al)
    });
    let mut access = |guest: &mut Guest| {
        assert!(matches!(guest.run(Entry::Resume), Exit::MmioWrite { gpa: Gpa(NO_SLOT), .. }));
        let tables = guest.live().tables().unwrap();
        let replay = tables.replay(trace.events(), 0);
        assert!(replay.is_clean(), "{replay}");
        let is_stale = |event: &Event| event.what == Happened::MmioChecked { stale: true };
        (replay.faults, trace.events().iter().filter(|event| is_stale(event)).count())
    };
    let (first, _) = access(&mut guest);
    let (second, stale) = access(&mut guest);
    assert_eq!(stale, 0);
    // Where KVM makes entries for MMIO, the first of them answers.
    let answers = second == first;
    let far = RamBlock::anonymous("far", PAGE).unwrap();
    guest.slots.execute(&SlotOp::Create(slot(1, 1 << 32, &far))).unwrap();
    let (third, stale) = access(&mut guest);
    assert!(third > second, "another generation of slots");
    assert_eq!(stale, usize::from(answers));
}
