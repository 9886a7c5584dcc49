//! A mapping broken on purpose must fail the verdict, at the link where it is broken.

mod support;

use ept::{PhysMemory, Used};
use guest_tests::Image;
use harness::{Ending, LinkKind, Machine, Mmu, Outcome, Report, Verdict, judge};
use memory_model::{AddrRange, Gpa, Gva, Hva};
use slot_manager::{DirtyLog, DirtyMethod, Slot, SlotError, SlotExecutor, SlotLimits, SlotOp};
use support::ElfBuilder;
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{HostView, SecondLevelLeaf, Witness};

fn image(name: &str) -> Image {
    let guest = guest_tests::built_in().find(|guest| guest.name == name).expect("a built-in guest");
    Image::parse(guest.elf).expect("a good ELF file")
}

/// Runs a guest on each second level, lets `break_it` loose on the VM, then judges.
fn judged(name: &str, break_it: impl Fn(&SoftVm, &Machine)) -> [Report; 3] {
    let columns =
        [(Mmu::Ept, SecondLevel::EPT), (Mmu::Npt, SecondLevel::NPT), (Mmu::Shadow, SecondLevel::Shadow)];
    columns.map(|(mmu, second_level)| {
        let vm = SoftVm::with(&SoftOptions::of(second_level)).unwrap();
        let mut machine = Machine::build(image(name), Box::new(vm.clone())).unwrap();
        let run = machine.run().unwrap();
        break_it(&vm, &machine);
        judge(name, mmu, &mut machine, run).unwrap()
    })
}

/// The links with something wrong, and what is said of the first.
fn wrong(report: &Report) -> (Vec<LinkKind>, String) {
    let checks = report.chains.iter().flat_map(|chain| &chain.checks);
    let mut links = Vec::new();
    for check in checks {
        if matches!(check.outcome, Outcome::Wrong(_)) && !links.contains(&check.link) {
            links.push(check.link);
        }
    }
    (links, report.reasons.first().cloned().unwrap_or_default())
}

/// The second-level leaf of `gpa`, which the guest maps one to one.
fn leaf(vm: &SoftVm, gpa: Gpa) -> SecondLevelLeaf {
    vm.kernel().leaf(Gva(gpa.0), gpa).expect("the guest touched it")
}

/// Replaces the second-level leaf of `gpa`, which the guest maps one to one, by what `change` makes of it.
fn change_leaf(vm: &SoftVm, gpa: Gpa, change: impl FnOnce(u64) -> u64) {
    let leaf = leaf(vm, gpa);
    let changed = change(leaf.entry);
    assert_ne!(changed, leaf.entry);
    assert_eq!(vm.kernel().host.compare_exchange(leaf.entry_address.0, leaf.entry, changed), Ok(true));
}

const CODE: Gpa = Gpa(0x10_0000);
const PAGE: Gpa = Gpa(0x10_4000);

#[test]
fn nothing_broken_passes() {
    for report in judged("first_touch", |_, _| {}) {
        assert_eq!((report.verdict, wrong(&report).0), (Verdict::Pass, vec![]));
    }
}

#[test]
fn a_wrong_frame_fails_at_the_second_level() {
    for report in judged("first_touch", |vm, _| {
        let (own, other) = (leaf(vm, PAGE).hpa, leaf(vm, Gpa(0x10_5000)).hpa);
        change_leaf(vm, PAGE, |leaf| leaf ^ own.0 ^ other.0);
    }) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.starts_with("page 0x104000, second level, frame: expected 0x"), "{first}");
    }
}

#[test]
fn a_lost_right_fails_at_the_second_level() {
    const WRITE: u64 = 1 << 1;
    for report in judged("first_touch", |vm, _| change_leaf(vm, PAGE, |leaf| leaf & !WRITE)) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.ends_with("the guest did -w-, the entry allows r-x"), "{first}");
    }
}

#[test]
fn a_right_too_many_fails_at_the_second_level() {
    const WRITE: u64 = 1 << 1;
    for report in judged("rom_write", |vm, _| change_leaf(vm, Gpa(0x80_0000), |leaf| leaf | WRITE)) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.contains("read-only memory is not writable"), "{first}");
    }
}

#[test]
fn a_lost_leaf_fails_at_the_second_level() {
    for report in judged("first_touch", |vm, _| change_leaf(vm, PAGE, |_| 0)) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.ends_with("no leaf maps 0x104000"), "{first}");
    }
}

/// Clears the flag of a leaf that says what `says` asks for.
fn clear_flag(vm: &SoftVm, gpa: Gpa, says: fn(Used) -> bool) {
    let Witness::Seen(tables) = vm.tables() else { panic!("a software machine shows its tables") };
    let without = |leaf: u64| {
        (0..64).map(|bit| leaf & !(1 << bit)).find(|&leaf| {
            let used = tables.format.used(leaf);
            used.is_some_and(|used| !says(used))
        })
    };
    change_leaf(vm, gpa, |leaf| without(leaf).expect("the flag is one bit"));
}

#[test]
fn a_lost_dirty_flag_fails_at_the_second_level() {
    for report in judged("first_touch", |vm, _| clear_flag(vm, PAGE, |used| used.written)) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.starts_with("page 0x104000, second level, dirty flag"), "{first}");
    }
}

#[test]
fn a_lost_accessed_flag_fails_at_the_second_level() {
    for report in judged("read_before_write", |vm, _| clear_flag(vm, PAGE, |used| used.accessed)) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![LinkKind::SecondLevel]), "{first}");
        assert!(first.starts_with("page 0x104000, second level, accessed flag"), "{first}");
    }
}

#[test]
fn a_wrong_entry_that_no_page_of_the_manifest_needs_fails_the_verification_of_all_tables() {
    for report in judged("first_touch", |vm, _| {
        let (own, other) = (leaf(vm, CODE).hpa, leaf(vm, PAGE).hpa);
        change_leaf(vm, CODE, |leaf| leaf ^ own.0 ^ other.0);
    }) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![]), "{first}");
        assert!(first.starts_with("all second-level tables: guest 0, root 0, G"), "{first}");
        assert!(first.contains(" 0x100000 is at 0x"), "{first}");
    }
}

#[test]
fn a_processor_that_was_not_flushed_fails_the_verification() {
    for report in judged("first_touch", |vm, _| {
        // The end of the guest's program is in its processor's cache.
        change_leaf(vm, CODE, |_| 0);
    }) {
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links), (Verdict::Fail, vec![]), "{first}");
        let stale =
            report.reasons.iter().any(|reason| reason.contains("vCPU 0 remembers GVA 0x100000 at 0x"));
        assert!(stale, "{:?}", report.reasons);
    }
}

#[test]
fn a_changed_guest_entry_fails_at_the_guests_tables() {
    for report in judged("first_touch", |_, machine| {
        let view = machine.view();
        let tables = vcpu::GuestTables(&view);
        // The identity map's entry of that page, where the boot puts the first page table of the guest.
        let at = (0x8..0xf0)
            .map(|page| (page << 12) + (PAGE.0 >> 12) * 8)
            .find(|&at| tables.read_entry(at).unwrap() & !0xfff == PAGE.0);
        let (at, entry) =
            at.map(|at| (at, tables.read_entry(at).unwrap())).expect("the guest's tables map it");
        assert_eq!(tables.compare_exchange(at, entry, entry + 0x1000), Ok(true));
    }) {
        let (links, first) = wrong(&report);
        assert_eq!(report.verdict, Verdict::Fail);
        assert_eq!(links[0], LinkKind::GvaToGpa, "{first}");
        assert!(first.ends_with("guest-physical address: expected 0x104000, found 0x105000"), "{first}");
    }
}

/// Sets the slot of `region` to an address a page too high, as a VMM with an off-by-one would.
struct OffByOnePage {
    inner: Box<dyn SlotExecutor>,
    region: &'static str,
}

impl SlotExecutor for OffByOnePage {
    fn limits(&self) -> SlotLimits {
        self.inner.limits()
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        const PAGE: u128 = 0x1000;
        match op {
            SlotOp::Create(slot) if &*slot.name == self.region => {
                // Shorter by that page, so that the slot still ends with its block.
                let gpa =
                    AddrRange::new(slot.gpa.first(), slot.gpa.bytes() - PAGE).expect("two pages or more");
                let hva = Hva(slot.hva.0 + PAGE as u64);
                self.inner.execute(&SlotOp::Create(Slot { gpa, hva, ..slot.clone() }))
            }
            op => self.inner.execute(op),
        }
    }

    fn dirty_method(&self) -> DirtyMethod {
        self.inner.dirty_method()
    }

    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        self.inner.with_log(act);
    }
}

#[test]
fn a_wrong_slot_address_fails_between_gpa_and_hva() {
    // mov edi, 0x2000000; mov [rdi], rdi; mov al, 0x10; out 0xf4, al
    let code = [0xbf, 0, 0, 0, 2, 0x48, 0x89, 0x3f, 0xb0, 0x10, 0xe6, 0xf4];
    let manifest = "
        [[region]]
        name = 'extra'
        kind = 'ram'
        gpa = 0x2000000
        size = '16K'
        [[expect.pages]]
        at = 0x2000000
        access = 'w'
        holds = 'gva'
    ";
    let image = Image::parse(ElfBuilder::new(&code).manifest(manifest).build()).unwrap();
    for mmu in Mmu::ALL {
        if let Some(why) = mmu.unavailable() {
            println!("not checked on {mmu}: {why}");
            continue;
        }
        let vm = mmu.create_vm(&image).unwrap();
        let executor = Box::new(OffByOnePage { inner: vm.slots(), region: "extra" });
        let mut machine = Machine::build_with_slots(image.clone(), vm, executor).unwrap();
        let run = machine.run().unwrap();
        assert_eq!(run.ending, Ending::Reported(0x10), "the guest notices nothing");
        let report = judge("off_by_one", mmu, &mut machine, run).unwrap();
        let (links, first) = wrong(&report);
        assert_eq!((report.verdict, links[0]), (Verdict::Fail, LinkKind::GpaToHva), "{mmu}: {first}");
        let says = |what| report.reasons.iter().any(|reason| reason.contains(what));
        assert!(says("content"), "{mmu}: {:?}", report.reasons);
        if mmu != Mmu::Kvm || vcpu::kvm::live_kernel().is_ok() {
            assert!(says("kernel's slot agrees with the flat view"), "{mmu}: {:?}", report.reasons);
        }
    }
}
