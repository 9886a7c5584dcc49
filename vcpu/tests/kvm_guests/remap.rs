//! Memory that is given away or replaced under a guest that writes it: from then on no leaf has an old frame, and no
//! write goes there.
#![expect(unsafe_code, reason = "mmap over memory that a guest uses")]

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use ept::live::{LiveError, LiveTables, LiveVm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, Hpa, PageSize, Pages, RamBlock, RamOptions};
use vcpu::{Budget, Entry, Exit};

use crate::guest::{DATA, Guest, PLENTY};
use crate::live::{frame, leaf, pagemap};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    a_guest_that_loses_pages_while_it_writes_gets_new_ones,
    once_other_memory_is_there_nothing_reaches_the_old,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE;
/// Where the guest counts its rounds.
const ROUND: u64 = DATA - PAGE;
const CHANGES: usize = 100;

/// Writes the number of the round, twice in one word, to each page of the data, without end.
fn write_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.xor(ecx, ecx)?;
    a.set_label(&mut again)?;
    a.inc(ecx)?;
    a.mov(eax, ecx)?;
    a.shl(rax, 32)?;
    a.or(rax, rcx)?;
    a.mov(esi, DATA as u32)?;
    a.set_label(&mut next)?;
    a.mov(qword_ptr(rsi), rax)?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (DATA + BYTES) as u32)?;
    a.jb(next)?;
    a.mov(qword_ptr(ROUND), rcx)?;
    a.jmp(again)
}

fn small_pages() -> Arc<RamBlock> {
    let options = RamOptions { pages: Pages::Small, ..RamOptions::default() };
    RamBlock::create("ram", 0x40_0000, options).unwrap()
}

/// `memory` takes the place of the guest's data in this process.
fn put_over_data(ram: &RamBlock, memory: &RamBlock) {
    assert!(DATA + memory.size() <= ram.size());
    let (at, fd) = ((ram.hva().0 + DATA) as *mut libc::c_void, memory.fd().unwrap().as_raw_fd());
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: this replaces a part of the block's own mapping, to whose bytes there are no references; the block
    // unmaps all of its addresses in the end, whatever is there.
    let mapped = unsafe { libc::mmap(at, memory.size() as usize, access, flags, fd, 0) };
    assert_eq!(mapped, at, "{}", std::io::Error::last_os_error());
}

/// The first words of a block's pages.
fn words(memory: &RamBlock, from: u64) -> Vec<u64> {
    (0..PAGES).map(|page| memory.load_u64(from + page * PAGE).unwrap()).collect()
}

fn is_whole(word: &u64) -> bool {
    *word >> 32 == *word & 0xffff_ffff
}

/// Reads the tables of a guest that runs, as soon as they stand still for long enough.
fn tables(vm: &LiveVm) -> LiveTables {
    loop {
        match vm.tables() {
            Ok(tables) => return tables,
            Err(LiveError::Changing { .. } | LiveError::NoRoot { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Has the guest run while `act` changes its memory; `act` gets a wait for two more rounds of the guest.
fn while_it_writes(guest: &mut Guest, act: impl FnOnce(&RamBlock, &dyn Fn())) {
    let (kick, budget, ram) = (guest.vcpu.kick(), Budget::time(PLENTY), guest.ram.clone());
    thread::scope(|scope| {
        let running = scope.spawn(|| guest.vcpu.run(Entry::Resume, &budget).unwrap());
        let rounds = || {
            let before = ram.load_u64(ROUND).unwrap();
            while ram.load_u64(ROUND).unwrap() < before + 2 {
                assert!(!running.is_finished(), "the guest came out");
                thread::yield_now();
            }
        };
        rounds();
        act(&ram, &rounds);
        kick.kick();
        assert_eq!(running.join().unwrap(), Exit::Kicked);
    });
}

fn a_guest_that_loses_pages_while_it_writes_gets_new_ones() {
    let mut guest = Guest::ring3_on(small_pages(), write_for_ever);
    let vm = guest.live();
    while_it_writes(&mut guest, |ram, rounds| {
        for _ in 0..CHANGES {
            let before = ram.load_u64(ROUND).unwrap() as u32;
            ram.discard(DATA..DATA + BYTES).unwrap();
            let now = words(ram, DATA);
            assert!(now.iter().all(is_whole), "torn: {now:x?}");
            assert!(now.iter().all(|&word| word == 0 || word as u32 > before), "old: {now:x?}");
            rounds();
            assert!(
                words(ram, DATA).iter().all(|&word| word as u32 > before),
                "the guest has been everywhere"
            );
        }
    });
    let tables = vm.tables().unwrap();
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    for gpa in (DATA..DATA + BYTES).step_by(PAGE as usize) {
        assert_eq!(leaf(&tables, gpa).map(|leaf| leaf.address), frame(&guest.ram, gpa), "{gpa:#x}");
    }
}

fn once_other_memory_is_there_nothing_reaches_the_old() {
    let mut guest = Guest::ring3_on(small_pages(), write_for_ever);
    let vm = guest.live();
    // Their files keep the frames, so that nobody else gets one of them.
    let memories = ["one", "other"].map(|name| RamBlock::memfd(name, BYTES).unwrap());
    let frames = memories.each_ref().map(|memory| {
        memory.write(0, &vec![0; BYTES as usize]).unwrap();
        let frames = (0..BYTES).step_by(PAGE as usize).map(|at| Hpa(frame(memory, at).unwrap()));
        frames.collect::<HashSet<_>>()
    });
    let of_data = |tables: &LiveTables| {
        let leaves = tables.leaves().filter(|leaf| (Gpa(DATA)..Gpa(DATA + BYTES)).contains(&leaf.gpa));
        leaves.map(|leaf| leaf.hpa).collect::<HashSet<_>>()
    };
    while_it_writes(&mut guest, |ram, rounds| {
        put_over_data(ram, &memories[0]);
        rounds();
        for change in 1..CHANGES {
            let (old, new) = (&memories[(change + 1) % 2], &memories[change % 2]);
            put_over_data(ram, new);
            let left = words(old, 0);
            assert!(left.iter().all(is_whole), "torn: {left:x?}");
            assert!(of_data(&tables(&vm)).is_disjoint(&frames[(change + 1) % 2]), "an old frame");
            rounds();
            assert_eq!(words(old, 0), left, "a write has gone to memory that is not the guest's");
            assert_eq!(of_data(&tables(&vm)), frames[change % 2], "change {change}");
        }
    });
    let report = vm.tables().unwrap().check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
}
