//! Memory that this process may not write, or not reach, behind a slot: the guest's access comes out, changes nothing and has
//! no leaf, and goes on once the memory is back.
#![expect(unsafe_code, reason = "mprotect of memory that a guest uses")]

use ept::Rights;
use ept::live::LiveTables;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, PageSize, Pages, RamBlock};
use vcpu::{Entry, Exit};

use crate::guest::{CODE, DATA, Guest};
use crate::live::{leaf, pagemap, ram};
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    a_write_waits_for_memory_that_may_be_written,
    memory_that_is_taken_from_a_guest_that_has_it_is_gone_at_once,
);

const PAGE: u64 = PageSize::Size4K.bytes();

/// Reads a word of the data, writes one more than it, comes out, and does it again.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rax, qword_ptr(DATA))?;
    a.inc(rax)?;
    a.mov(qword_ptr(DATA), rax)?;
    a.out(0xf4, al)?;
    a.jmp(again)
}

/// What this process may do with the first page of the guest's data.
fn allow(ram: &RamBlock, access: i32) {
    let at = (ram.hva().0 + DATA) as *mut libc::c_void;
    // SAFETY: a page of the block's own mapping, to whose bytes there are no references.
    let changed = unsafe { libc::mprotect(at, PAGE as usize, access) };
    assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
}

/// The guest's tables, which are as they should be.
fn tables(guest: &Guest) -> LiveTables {
    let tables = guest.live().tables().unwrap();
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    tables
}

/// The access comes out at the same instruction, each time that it is tried.
fn assert_faults(guest: &mut Guest) {
    let exit = guest.run(Entry::Resume);
    assert!(matches!(exit, Exit::MemoryFault { gpa: None | Some(Gpa(DATA)) }), "{exit:?}");
    let at = guest.regs().rip;
    assert!((CODE..CODE + 32).contains(&at), "{at:#x}");
    assert!(matches!(guest.run(Entry::Resume), Exit::MemoryFault { .. }));
    assert_eq!(guest.regs().rip, at);
    let writable = leaf(&tables(guest), DATA).is_some_and(|leaf| leaf.rights().contains(Rights::WRITE));
    assert!(!writable, "no leaf lets the guest write there");
}

fn assert_counts(guest: &mut Guest, count: u64) {
    assert!(matches!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    assert_eq!(guest.ram.load_u64(DATA).unwrap(), count);
}

const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn a_write_waits_for_memory_that_may_be_written() {
    let mut guest = Guest::ring3_on(ram(Pages::Small), count);
    guest.ram.write(DATA, &7u64.to_le_bytes()).unwrap();
    allow(&guest.ram, READ);
    assert_faults(&mut guest);
    assert_eq!(guest.ram.load_u64(DATA).unwrap(), 7);
    allow(&guest.ram, WRITE);
    assert_counts(&mut guest, 8);
}

fn memory_that_is_taken_from_a_guest_that_has_it_is_gone_at_once() {
    let mut guest = Guest::ring3_on(ram(Pages::Small), count);
    assert_counts(&mut guest, 1);
    assert!(leaf(&tables(&guest), DATA).is_some());
    for round in [1, 2] {
        allow(&guest.ram, libc::PROT_NONE);
        assert!(leaf(&tables(&guest), DATA).is_none());
        assert_faults(&mut guest);
        allow(&guest.ram, WRITE);
        assert_counts(&mut guest, round + 1);
    }
}
