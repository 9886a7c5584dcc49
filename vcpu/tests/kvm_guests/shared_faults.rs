//! Several vCPUs that fault on the same fresh pages at once: one of them brings the page, and all of them mean it.

use std::sync::Barrier;
use std::thread;

use ept::live::LiveError;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, PageSize, Pages, RamBlock, RamOptions};
use vcpu::{Budget, Entry, Exit, Vm};

use crate::guest::{DATA, Guest, PLENTY, long_mode, start};
use crate::live::{frame, pagemap};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    vcpus_that_fault_together_get_one_page,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const PAGES: u64 = 256;
const VCPUS: u32 = 4;
const TIMES: u32 = 1000;
const ROUNDS: u64 = 20;

/// Adds one to the first word of each page of the data, time and again, and comes out.
fn add(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut same) = (a.create_label(), a.create_label());
    a.mov(esi, DATA as u32)?;
    a.set_label(&mut next)?;
    a.mov(ecx, TIMES)?;
    a.set_label(&mut same)?;
    a.lock().inc(qword_ptr(rsi))?;
    a.dec(ecx)?;
    a.jnz(same)?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (DATA + PAGES * PAGE) as u32)?;
    a.jb(next)?;
    a.out(0xf4, al)
}

fn gpas() -> impl Iterator<Item = u64> {
    (0..PAGES).map(|page| DATA + page * PAGE)
}

fn vcpus_that_fault_together_get_one_page() {
    let options = RamOptions { pages: Pages::Small, ..RamOptions::default() };
    let ram = RamBlock::create("ram", 0x40_0000, options).unwrap();
    let mut guest = Guest::ring3_on(ram, add);
    let vm = guest.live();
    let mut others: Vec<_> = (1..VCPUS).map(|index| guest.vm.create_vcpu(index).unwrap()).collect();
    for vcpu in &mut others {
        vcpu.set_system_regs(&long_mode(3)).unwrap();
    }
    let together = Barrier::new(VCPUS as usize);
    for _ in 0..ROUNDS {
        guest.ram.discard(DATA..DATA + PAGES * PAGE).unwrap();
        match vm.tables() {
            Ok(tables) => assert!(tables.leaves().all(|leaf| leaf.gpa < Gpa(DATA)), "all of them are gone"),
            Err(error) => assert!(matches!(error, LiveError::NoRoot { .. }), "{error}"),
        }
        thread::scope(|scope| {
            for vcpu in others.iter_mut().chain([&mut guest.vcpu]) {
                let together = &together;
                scope.spawn(move || {
                    vcpu.set_regs(&start()).unwrap();
                    together.wait();
                    let exit = vcpu.run(Entry::Resume, &Budget::time(PLENTY)).unwrap();
                    assert_eq!(exit, Exit::IoOut { port: 0xf4, size: 1, data: vec![0] });
                });
            }
        });
        for gpa in gpas() {
            assert_eq!(guest.ram.load_u64(gpa).unwrap(), u64::from(VCPUS * TIMES), "{gpa:#x}");
        }
        let tables = vm.tables().unwrap();
        let report = tables.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        let leaves: Vec<_> = tables.leaves().filter(|leaf| leaf.gpa >= Gpa(DATA)).collect();
        for gpa in gpas() {
            let here: Vec<_> = leaves.iter().filter(|leaf| leaf.gpa == Gpa(gpa)).collect();
            let [leaf] = here[..] else { panic!("{} leaves for {gpa:#x}", here.len()) };
            assert_eq!(Some(leaf.hpa.raw()), frame(&guest.ram, gpa), "{gpa:#x}");
        }
    }
}
