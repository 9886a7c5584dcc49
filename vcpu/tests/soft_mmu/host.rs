//! What the host does to memory under a guest, and what the guest sees of it: nothing, or a memory fault.

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use memory_model::{AddrRange, Gpa, PageSize, Pages, RegionTree};
use vcpu::soft::SecondLevel;
use vcpu::soft::host::{Host, MmuNotifier, Protection};
use vcpu::{Budget, Entry, Exit, Limit, Vm};

use crate::machine::*;

/// Something that happens to two pages from an address on, the second's bytes the first's.
type Event = fn(&Machine, &Host, &mut dyn MmuNotifier);

fn pair(machine: &Machine) -> AddrRange<memory_model::Hva> {
    machine.pages(DATA, 2)
}

/// Those that the guest does not notice.
const UNSEEN: [(&str, Event); 6] = [
    ("swap-out", |machine, host, notifier| assert_eq!(host.swap_out(pair(machine), notifier), 2)),
    ("migration", |machine, host, notifier| assert_eq!(host.migrate(pair(machine), notifier), 2)),
    ("merge", |machine, host, notifier| {
        assert!(host.merge(machine.hva(DATA), machine.hva(DATA + PAGE), notifier));
    }),
    ("merge and migration", |machine, host, notifier| {
        assert!(host.merge(machine.hva(DATA), machine.hva(DATA + PAGE), notifier));
        assert_eq!(host.migrate(pair(machine), notifier), 1);
    }),
    ("merge and break", |machine, host, notifier| {
        assert!(host.merge(machine.hva(DATA), machine.hva(DATA + PAGE), notifier));
        host.break_cow(machine.hva(DATA), notifier).unwrap();
    }),
    ("protection that is taken back", |machine, host, notifier| {
        host.protect(pair(machine), Protection::None, notifier);
        host.protect(pair(machine), Protection::ReadWrite, notifier);
    }),
];

#[test]
fn n1_a_guest_does_not_notice_that_its_pages_change_frames() {
    for options in columns() {
        for (name, event) in UNSEEN {
            let mut machine = Machine::new(&options);
            machine.writes(DATA, 7);
            machine.writes(DATA + PAGE, 7);
            machine.vm.kernel().host_event(|host, notifier| event(&machine, host, notifier));
            machine.assert_clean();
            assert_eq!(machine.reads(DATA), 7, "{name}, {options:?}");
            machine.assert_clean();
            // A merged page gets a frame of its own.
            machine.writes(DATA, 8);
            machine.assert_clean();
            assert_eq!((machine.reads(DATA), machine.reads(DATA + PAGE)), (8, 7), "{name}, {options:?}");
            assert_eq!(machine.block.load_u64(DATA).unwrap(), 8, "{name}, {options:?}");
            machine.assert_clean();
        }
    }
}

#[test]
fn discarded_pages_are_zero() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.writes(DATA, 7);
        machine
            .vm
            .kernel()
            .host_event(|host, notifier| host.discard(machine.pages(DATA, 1), notifier))
            .unwrap();
        machine.assert_clean();
        assert_eq!(machine.reads(DATA), 0, "{options:?}");
    }
}

#[test]
fn pages_that_the_host_does_not_let_the_guest_reach_are_memory_faults_and_the_guest_can_go_on() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.writes(DATA, 7);
        let protect = |machine: &Machine, protection| {
            let pages = machine.pages(DATA, 1);
            machine.vm.kernel().host_event(|host, notifier| host.protect(pages, protection, notifier));
            machine.assert_clean();
        };
        let fault = Exit::MemoryFault { gpa: Some(Gpa(DATA)) };
        protect(&machine, Protection::ReadOnly);
        assert_eq!(machine.reads(DATA), 7, "{options:?}");
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(qword_ptr(rbx), rbx)
        });
        assert_eq!(machine.run(), fault, "{options:?}");
        assert_eq!(machine.run(), fault, "{options:?}: RIP has not moved");
        protect(&machine, Protection::None);
        assert_eq!(machine.run(), fault, "{options:?}");
        protect(&machine, Protection::ReadWrite);
        assert!(matches!(machine.run(), Exit::IoOut { .. }), "{options:?}");
        assert_eq!(machine.reads(DATA), DATA, "{options:?}");
        machine.vm.kernel().host_event(|host, notifier| assert!(host.poison(machine.hva(DATA), notifier)));
        machine.assert_clean();
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        assert_eq!(machine.run(), fault, "{options:?}: the frame is broken");
    }
}

#[test]
fn large_pages_of_the_host_split_and_come_back() {
    for options in columns() {
        let mut machine = Machine::with_pages(&options, Pages::Thp);
        let large = DATA + 0x20_0000;
        // A shadow's pages are no larger than the guest's own (rule L4).
        let largest = match options.second_level {
            SecondLevel::Shadow => PageSize::Size4K,
            _ => PageSize::Size2M,
        };
        machine.writes(large, 7);
        let size = |machine: &Machine| match machine.vm.kernel().leaf(memory_model::Gva(large), Gpa(large)) {
            Some(leaf) => leaf.size,
            None => panic!("{options:?}: not mapped"),
        };
        assert_eq!(size(&machine), largest, "{options:?}");
        let range = machine.pages(large, 512);
        machine.vm.kernel().host_event(|host, notifier| host.split(range, notifier));
        machine.assert_clean();
        assert_eq!(machine.reads(large), 7);
        assert_eq!(size(&machine), PageSize::Size4K, "{options:?}");
        let collapsed = machine.vm.kernel().host_event(|host, notifier| host.collapse(range, notifier));
        assert_eq!(collapsed, 1, "{options:?}");
        machine.assert_clean();
        assert_eq!(machine.reads(large), 7);
        assert_eq!(size(&machine), largest, "{options:?}");
        machine.assert_clean();
    }
}

#[test]
fn n2_a_page_that_is_being_invalidated_waits_and_the_guest_can_be_stopped_meanwhile() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.writes(DATA, 7);
        let range = machine.pages(DATA, 1);
        let start = |_: &Host, notifier: &mut dyn MmuNotifier| notifier.invalidate_range_start(range);
        machine.vm.kernel().host_event(start);
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        let soon = Budget { deadline: Instant::now() + Duration::from_millis(20), instructions: u64::MAX };
        let exit = machine.vcpu.run(Entry::Resume, &soon).unwrap();
        assert_eq!(exit, Exit::BudgetExceeded(Limit::WallClock), "{options:?}");
        // While the guest runs, the host comes to the end.
        let vm = machine.vm.clone();
        let exit = std::thread::scope(|scope| {
            let running = scope.spawn(|| machine.run());
            vm.kernel().host_event(|_, notifier| notifier.invalidate_range_end(range));
            running.join().unwrap()
        });
        assert!(matches!(exit, Exit::IoOut { .. }), "{options:?}: {exit:?}");
        assert_eq!(machine.vcpu.regs().unwrap()[vcpu::Gpr::Rax], 7, "{options:?}");
    }
}

#[test]
fn d3_a_page_is_young_when_it_was_accessed_since_it_was_last_asked_about() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let page = AddrRange::page_of(Gpa(DATA), PageSize::Size4K);
        machine.writes(DATA, 7);
        assert!(machine.vm.kernel().age(page).unwrap(), "{options:?}");
        assert!(!machine.vm.kernel().test_age(page).unwrap(), "{options:?}");
        assert_eq!(machine.reads(DATA), 7);
        assert!(machine.vm.kernel().test_age(page).unwrap(), "{options:?}: processors were not flushed");
        assert!(machine.vm.kernel().age(page).unwrap(), "{options:?}");
        assert!(!machine.vm.kernel().age(page).unwrap(), "{options:?}");
        machine.assert_clean();
    }
}

#[test]
fn z4_a_page_that_the_guest_sees_twice_goes_at_both_addresses() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        // The page after the guest's memory is the first of its data again.
        let again = BYTES;
        let alias = |tree: &mut RegionTree| {
            let alias = tree.alias("again", machine.ram, DATA, PAGE.into())?;
            tree.add(tree.root(), again, alias)
        };
        machine.space.update(alias).unwrap();
        let entry = machine.pte(DATA + PAGE);
        machine.writes(entry, again | 0x67);
        machine.writes(DATA, 7);
        assert_eq!(machine.reads(DATA + PAGE), 7, "{options:?}");
        let pages = machine.pages(DATA, 1);
        machine.vm.kernel().host_event(|host, notifier| assert_eq!(host.migrate(pages, notifier), 1));
        machine.assert_clean();
        assert_eq!((machine.reads(DATA), machine.reads(DATA + PAGE)), (7, 7), "{options:?}");
        machine.assert_clean();
    }
}

#[test]
fn each_vcpu_hears_of_it() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let (regs, system) = (machine.vcpu.regs().unwrap(), machine.vcpu.system_regs().unwrap());
        let mut other = machine.vm.create_vcpu(1).unwrap();
        other.set_regs(&regs).unwrap();
        other.set_system_regs(&system).unwrap();
        machine.writes(DATA, 7);
        for _ in 0..3 {
            assert_eq!(machine.reads(DATA), 7, "{options:?}");
            std::mem::swap(&mut machine.vcpu, &mut other);
            assert_eq!(machine.reads(DATA), 7, "{options:?}");
            let pages = machine.pages(DATA, 1);
            machine.vm.kernel().host_event(|host, notifier| host.migrate(pages, notifier));
            machine.assert_clean();
        }
    }
}
