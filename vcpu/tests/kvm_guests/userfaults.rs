//! Guest pages that a thread of the VMM brings one by one, the way live migration does: KVM asks for each page once, and
//! what it maps is the page that was brought.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ept::Rights;
use ept::live::{LiveTables, LiveVm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Hva, PageSize, Pages, RamBlock, RamOptions};
use vcpu::{Entry, Exit, Gpr};

use crate::guest::{DATA, Guest};
use crate::live::{frame, leaf, pagemap};
use crate::uffd::{Mode, Uffd};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::Userfaults(Mode::Missing)];
    each_missing_page_is_asked_for_once_and_mapped,
    a_page_that_is_taken_away_is_asked_for_again;
    &[Need::Live, Need::Userfaults(Mode::WriteProtect)];
    the_first_write_to_a_protected_page_is_told_before_it_is_done;
    &[Need::Live, Need::Userfaults(Mode::Minor)];
    a_page_that_its_file_has_is_mapped_once_it_is_ready,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const PAGES: u64 = 256;

/// Adds one to the first word of each page of the data and all of these words to RAX, comes out, and does it again.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.xor(eax, eax)?;
    a.mov(esi, DATA as u32)?;
    a.set_label(&mut next)?;
    a.inc(qword_ptr(rsi))?;
    a.add(rax, qword_ptr(rsi))?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (DATA + PAGES * PAGE) as u32)?;
    a.jb(next)?;
    a.out(0xf4, al)?;
    a.jmp(again)
}

/// A guest with such memory, its view in the kernel, and its data watched.
fn watched(ram: Arc<RamBlock>, mode: Mode) -> (Guest, LiveVm, Uffd) {
    let guest = Guest::ring3_on(ram, count);
    let vm = guest.live();
    let uffd = Uffd::watch(data(&guest.ram), PAGES * PAGE, mode).unwrap();
    (guest, vm, uffd)
}

fn small_pages() -> Arc<RamBlock> {
    let options = RamOptions { pages: Pages::Small, ..RamOptions::default() };
    RamBlock::create("ram", 0x40_0000, options).unwrap()
}

fn data(ram: &RamBlock) -> Hva {
    Hva(ram.hva().0 + DATA)
}

fn gpas() -> impl Iterator<Item = u64> {
    (0..PAGES).map(|page| DATA + page * PAGE)
}

/// All pages of the data, in the order in which the guest goes through them.
fn pages(ram: &RamBlock) -> Vec<Hva> {
    gpas().map(|gpa| Hva(ram.hva().0 + gpa)).collect()
}

/// Runs the guest once through its data: the sum that it finds.
fn run(guest: &mut Guest) -> u64 {
    assert!(matches!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    guest.regs()[Gpr::Rax]
}

/// Each page has a leaf with the process's frame, which may be written; and nothing else is wrong.
fn assert_mapped(tables: &LiveTables, ram: &RamBlock) {
    for gpa in gpas() {
        let leaf = leaf(tables, gpa).unwrap_or_else(|| panic!("no leaf maps {gpa:#x}"));
        assert_eq!(Some(leaf.address), frame(ram, gpa), "{gpa:#x}");
        assert!(leaf.rights().contains(Rights::WRITE), "{gpa:#x}");
    }
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
}

fn each_missing_page_is_asked_for_once_and_mapped() {
    let (mut guest, vm, uffd) = watched(small_pages(), Mode::Missing);
    let (ram, expected) = (guest.ram.clone(), pages(&guest.ram));
    let bring = |page: Hva| {
        let mut bytes = [0; PAGE as usize];
        bytes[..8].copy_from_slice(&ram.offset_of(page).unwrap().to_le_bytes());
        uffd.copy(page, &bytes)
    };
    let (sum, faults) = uffd.serving(bring, || run(&mut guest));
    assert_eq!(faults, expected);
    assert_eq!(sum, gpas().map(|gpa| gpa + 1).sum::<u64>());
    assert_mapped(&vm.tables().unwrap(), &guest.ram);
    let (_, faults) = uffd.serving(|_| unreachable!("all pages are there"), || run(&mut guest));
    assert_eq!(faults, []);
}

fn a_page_that_is_taken_away_is_asked_for_again() {
    let (mut guest, vm, uffd) = watched(small_pages(), Mode::Missing);
    let bring = |page| uffd.copy(page, &[0; PAGE as usize]);
    assert_eq!(uffd.serving(bring, || run(&mut guest)).0, PAGES);
    guest.ram.discard(DATA + PAGE..DATA + 9 * PAGE).unwrap();
    let tables = vm.tables().unwrap();
    assert!(gpas().skip(1).take(8).all(|gpa| leaf(&tables, gpa).is_none()));
    let (sum, faults) = uffd.serving(bring, || run(&mut guest));
    assert_eq!(faults, pages(&guest.ram)[1..9]);
    assert_eq!(sum, 2 * PAGES - 8);
    assert_mapped(&vm.tables().unwrap(), &guest.ram);
}

fn the_first_write_to_a_protected_page_is_told_before_it_is_done() {
    let (mut guest, vm, uffd) = watched(small_pages(), Mode::WriteProtect);
    assert_eq!(run(&mut guest), PAGES);
    uffd.protect(data(&guest.ram), PAGES * PAGE, true).unwrap();
    let tables = vm.tables().unwrap();
    for gpa in gpas() {
        let leaf = leaf(&tables, gpa);
        assert!(leaf.is_none_or(|leaf| !leaf.rights().contains(Rights::WRITE)), "{gpa:#x}");
    }
    let (ram, expected) = (guest.ram.clone(), pages(&guest.ram));
    let release = |page| {
        assert_eq!(ram.load_u64(ram.offset_of(page).unwrap()).unwrap(), 1, "written already");
        uffd.protect(page, PAGE, false)
    };
    let (sum, faults) = uffd.serving(release, || run(&mut guest));
    assert_eq!((sum, faults), (2 * PAGES, expected));
    assert_mapped(&vm.tables().unwrap(), &guest.ram);
}

fn a_page_that_its_file_has_is_mapped_once_it_is_ready() {
    let ram = RamBlock::memfd("ram", 0x40_0000).unwrap();
    let (mut guest, vm, uffd) = watched(ram.clone(), Mode::Minor);
    let file = std::fs::File::from(ram.fd().unwrap().try_clone_to_owned().unwrap());
    for gpa in gpas() {
        file.write_all_at(&0u64.to_le_bytes(), gpa).unwrap();
    }
    // The file changes until its page is let go.
    let ready = |page| {
        let offset = ram.offset_of(page).unwrap();
        file.write_all_at(&offset.to_le_bytes(), offset)?;
        uffd.map(page)
    };
    let (sum, faults) = uffd.serving(ready, || run(&mut guest));
    assert_eq!((sum, faults), (gpas().map(|gpa| gpa + 1).sum::<u64>(), pages(&ram)));
    assert_mapped(&vm.tables().unwrap(), &ram);
}
