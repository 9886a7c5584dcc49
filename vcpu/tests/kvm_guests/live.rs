//! KVM's own tables after a guest has run, read from the kernel and compared with what the guest did. Where the kernel's
//! memory cannot be read each test says so and checks nothing.

use std::sync::Arc;

use ept::live::{LeafFinding, LiveError, LiveRoot, LiveTables, LiveVm, Pagemap, SecondLevel};
use ept::verify::{HostMap, HostPage, Invariant};
use ept::{Access, Flags, Leaf, translate};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, Hpa, Hva, PageSize, Pages, RamBlock, RamOptions};
use slot_manager::{Slot, SlotFlags, SlotOp};
use vcpu::kvm::live_kernel;
use vcpu::{Budget, Entry, Exit};

use crate::guest::{CODE, DATA, Guest, PLENTY, slot};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    each_touched_page_has_a_leaf_with_the_frame_that_the_process_has,
    a_check_finds_nothing_and_counts_as_kvm_does,
    leaves_go_with_what_is_behind_them,
    a_running_guest_is_read_as_one_that_stands_still,
    slots_are_those_that_were_set,
    a_process_shows_all_of_its_vms,
    a_file_of_something_else_is_no_vm,
    a_wrong_frame_is_found,
    memory_that_is_elsewhere_is_found,
    a_hidden_leaf_is_found;
    &[Need::Live, Need::HugePages];
    huge_pages_of_both_sides_make_huge_leaves,
);

const PAGE: u64 = PageSize::Size4K.bytes();
pub const PAGES: u64 = 256;

/// Writes its own address to each page of the data, and comes out.
pub fn touch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.mov(esi, DATA as u32)?;
    a.set_label(&mut next)?;
    a.mov(qword_ptr(rsi), rsi)?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (DATA + PAGES * PAGE) as u32)?;
    a.jb(next)?;
    a.out(0xf4, al)
}

/// The same without end.
fn touch_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(esi, DATA as u32)?;
    a.set_label(&mut next)?;
    a.mov(qword_ptr(rsi), rsi)?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (DATA + PAGES * PAGE) as u32)?;
    a.jb(next)?;
    a.jmp(again)
}

/// Memory for a guest, in pages of that kind.
pub fn ram(pages: Pages) -> Arc<RamBlock> {
    RamBlock::create("ram", 0x40_0000, RamOptions { pages, ..RamOptions::default() }).unwrap()
}

/// A guest that has touched its pages, which are small ones, and the kernel's view of it.
fn touched() -> (Guest, LiveVm) {
    let mut guest = Guest::ring3_on(ram(Pages::Small), touch);
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, size: 1, data: vec![0] });
    let vm = guest.live();
    (guest, vm)
}

pub fn pagemap() -> Pagemap {
    Pagemap::of_this_process().unwrap()
}

/// Where KVM's tables have an address that the guest maps one to one, so that it is linear and guest-physical.
pub fn leaf(tables: &LiveTables, address: u64) -> Option<Leaf> {
    let root: &LiveRoot = tables.root_of(0).expect("vCPU 0 has run");
    let access = match tables.second_level() {
        SecondLevel::Shadow => Access::READ,
        SecondLevel::Ept | SecondLevel::Npt => Access::READ.by_user(),
    };
    translate(tables, &root.paging, address, access, Flags::Keep).ok()
}

/// The frame that this process has there, if any.
pub fn frame(ram: &RamBlock, gpa: u64) -> Option<u64> {
    pagemap().page(Hva(ram.hva().0 + gpa)).unwrap().hpa().map(Hpa::raw)
}

fn each_touched_page_has_a_leaf_with_the_frame_that_the_process_has() {
    let (guest, vm) = touched();
    let tables = vm.tables().unwrap();
    for gpa in (DATA..).step_by(PAGE as usize).take(PAGES as usize) {
        let leaf = leaf(&tables, gpa).unwrap_or_else(|| panic!("no leaf maps {gpa:#x}"));
        assert_eq!(Some(leaf.address), frame(&guest.ram, gpa), "{gpa:#x}");
        assert!(leaf.rights().contains(ept::Rights::WRITE), "{gpa:#x}");
    }
    let code = leaf(&tables, CODE).expect("the guest's code is mapped");
    assert!(code.rights().contains(ept::Rights::EXEC));
    assert_eq!(leaf(&tables, DATA + PAGES * PAGE), None, "a page that nobody has touched");
}

fn a_check_finds_nothing_and_counts_as_kvm_does() {
    let (guest, vm) = touched();
    let tables = vm.tables().unwrap();
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.leaves, tables.counted());
    assert!(report.leaves[0] >= PAGES, "{report}");
    assert_eq!((report.frames, report.unknown, report.nested), (report.leaves[0], 0, 0));
    assert_eq!(report.trees.coverage.leaves[0], report.leaves, "all of them lie below roots in use");
    assert!(tables.leaves().all(|leaf| guest.ram.size() > leaf.gpa.raw()));
}

fn leaves_go_with_what_is_behind_them() {
    let (mut guest, vm) = touched();
    guest.ram.discard(DATA..DATA + 8 * PAGE).unwrap();
    let tables = vm.tables().unwrap();
    for page in 0..PAGES {
        assert_eq!(leaf(&tables, DATA + page * PAGE).is_some(), page >= 8, "page {page}");
    }
    assert!(tables.check(&pagemap()).unwrap().is_clean());
    let ram = slot(0, 0, &guest.ram);
    guest.slots.execute(&SlotOp::Delete(ram)).unwrap();
    let tables = vm.tables().unwrap();
    assert_eq!((tables.leaves().count(), tables.counted(), tables.slots()), (0, [0; 3], &[][..]));
}

fn huge_pages_of_both_sides_make_huge_leaves() {
    let mut guest = Guest::ring3_on(ram(Pages::Thp), touch);
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, size: 1, data: vec![0] });
    let vm = guest.live();
    let tables = vm.tables().unwrap();
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(leaf(&tables, DATA).unwrap().size, PageSize::Size2M);
    assert_eq!(report.frames, report.leaves[0] + 512 * report.leaves[1]);
}

fn a_running_guest_is_read_as_one_that_stands_still() {
    let mut guest = Guest::ring3_on(ram(Pages::Small), touch_for_ever);
    let vm = guest.live();
    let kick = guest.vcpu.kick();
    let budget = Budget::time(PLENTY);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| guest.vcpu.run(Entry::Resume, &budget).unwrap());
        // Until it has been everywhere nothing keeps its tables as they are.
        let all = loop {
            match vm.tables() {
                Ok(tables) if tables.counted()[0] > PAGES => break tables,
                Ok(_) | Err(LiveError::Changing { .. } | LiveError::NoRoot { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(!running.is_finished());
        };
        let report = all.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        kick.kick();
        assert_eq!(running.join().unwrap(), Exit::Kicked);
    });
}

fn slots_are_those_that_were_set() {
    let (mut guest, vm) = touched();
    let rom = RamBlock::anonymous("rom", 0x3000).unwrap();
    let set = [
        Slot { flags: SlotFlags::READONLY, ..slot(7, 0x80_0000, &rom) },
        Slot { flags: SlotFlags::LOG_DIRTY_PAGES, ..slot(3, 0x60_0000, &rom) },
    ];
    for slot in &set {
        guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
    }
    let of = |slot: &ept::live::LiveSlot| {
        let memslot = slot.memslot;
        (slot.id, memslot.base, memslot.bytes, memslot.hva, memslot.readonly, memslot.log_dirty)
    };
    let expected = [
        (0, Gpa(0), guest.ram.size(), Hva(guest.ram.hva().0), false, false),
        (3, Gpa(0x60_0000), 0x3000, Hva(rom.hva().0), false, true),
        (7, Gpa(0x80_0000), 0x3000, Hva(rom.hva().0), true, false),
    ];
    assert_eq!(vm.slots().unwrap().iter().map(of).collect::<Vec<_>>(), expected);
}

fn a_process_shows_all_of_its_vms() {
    let (_guest, vm) = touched();
    let (_other, _) = touched();
    let all = LiveVm::of_process(live_kernel().unwrap(), std::process::id()).unwrap();
    assert!(all.len() >= 2);
    let slots = vm.slots().unwrap();
    assert!(all.iter().any(|other| other.slots().is_ok_and(|found| found == slots)));
}

fn a_file_of_something_else_is_no_vm() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(LiveVm::of_fd(live_kernel().unwrap(), &file).unwrap().is_none());
}

fn a_wrong_frame_is_found() {
    let (_guest, vm) = touched();
    let mut tables = vm.tables().unwrap();
    let lie = tables.leaves().find(|leaf| leaf.gpa == Gpa(DATA)).unwrap();
    assert!(tables.overwrite(lie.entry_address, lie.entry ^ PAGE));
    let report = tables.check(&pagemap()).unwrap();
    let [LeafFinding::Frame { at, seen, expected, .. }] = report.findings[..] else { panic!("{report}") };
    assert_eq!((at, seen, expected.hpa()), (Gpa(DATA), Hpa(lie.hpa.raw() ^ PAGE), Some(lie.hpa)));
    let invariant = match tables.second_level() {
        SecondLevel::Shadow => Invariant::Shadow,
        SecondLevel::Ept | SecondLevel::Npt => Invariant::Frame,
    };
    assert_eq!(report.trees.count(invariant), 1, "{report}");
}

fn memory_that_is_elsewhere_is_found() {
    struct Shifted(Pagemap);
    impl HostMap for Shifted {
        fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
            self.0.pages(Hva(hva.raw() + PAGE), pages);
        }
    }
    let (_guest, vm) = touched();
    let report = vm.tables().unwrap().check(&Shifted(pagemap())).unwrap();
    assert_eq!(report.findings.len() as u64, report.leaves[0], "each leaf is wrong: {report}");
}

fn a_hidden_leaf_is_found() {
    let (_guest, vm) = touched();
    let mut tables = vm.tables().unwrap();
    let counted = tables.counted()[0];
    let hidden = tables.leaves().next().unwrap();
    assert!(tables.overwrite(hidden.entry_address, 0));
    let report = tables.check(&pagemap()).unwrap();
    let expected = LeafFinding::Count { size: PageSize::Size4K, seen: counted - 1, counted };
    assert_eq!(report.findings, [expected]);
    assert!(!tables.overwrite(Hpa(!0xfff), 0), "no table is there");
}
