//! From real mode to protected, long and 64-bit mode, and back; the registers that select the modes.

use super::legacy::*;
use super::*;
use crate::{cr0, cr4, efer};

#[test]
fn a_kernel_starts_in_real_mode_and_ends_in_64_bit_code() {
    #[rustfmt::skip]
    let real = [
        0x0f, 0x01, 0x16, 0x00, 0xa0, // lgdt [0xa000]
        0x0f, 0x20, 0xc0,             // mov eax, cr0
        0x0c, 0x01,                   // or al, 1
        0x0f, 0x22, 0xc0,             // mov cr0, eax
        0x66, 0xea, 0x00, 0x90, 0, 0, 0x08, 0x00, // jmp far dword 8:0x9000
    ];
    #[rustfmt::skip]
    let protected = [
        0xb8, 0x10, 0, 0, 0, 0x8e, 0xd0,    // mov eax, 0x10; mov ss, eax
        0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0, // mov eax, PAE; mov cr4, eax
        0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, // mov ecx, EFER; rdmsr
        0x0d, 0x00, 0x01, 0, 0, 0x0f, 0x30, // or eax, LME; wrmsr
        0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, // mov eax, cr0; or eax, PG; mov cr0, eax
        0xea, 0x80, 0x90, 0, 0, CODE64 as u8, 0, // jmp far CODE64:0x9080
    ];
    let long = [0x49, 0xff, 0xc7, 0xf4]; // inc r15; hlt
    let mut machine = Machine::real(&real);
    machine.flat.put_words(GDT, &DESCRIPTORS);
    machine.flat.put(0x9000, &protected);
    machine.flat.put(0x9080, &long);
    machine.flat.put(DATA, &[0x87, 0x00, 0x00, 0x10, 0x00, 0x00]);
    assert_eq!(machine.run(), Exit::Halt);
    let system = machine.cpu.system;
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::R15]), (0x9084, 1));
    assert_eq!((system.efer & efer::LMA, system.cs.selector, system.cs.long), (efer::LMA, CODE64, true));
    assert_eq!(machine.flat.invalidated_all, 4);
}

#[test]
fn from_64_bit_code_to_compatibility_mode_and_back() {
    // push 0x08; push target; retfq to 32-bit code, which jumps back.
    let mut machine = Machine::new(0, &[0x6a, 0x30, 0x68, 0x40, 0x80, 0, 0, 0x48, 0xcb]);
    machine.flat.put_words(GDT + 0x30, &[0x00cf_9b00_0000_ffff]);
    machine.cpu.system.gdt.limit = 0x37;
    // inc eax (a REX prefix in 64-bit code); jmp far 8:0x8080
    machine.flat.put(CODE + 0x40, &[0x40, 0xea, 0x80, 0x80, 0, 0, 0x08, 0]);
    machine.cpu.regs[Gpr::Rax] = 0xffff_ffff_ffff;
    for _ in 0..3 {
        machine.step();
    }
    assert_eq!(
        (machine.cpu.regs.rip, machine.cpu.system.cs.long, machine.cpu.system.cs.db),
        (CODE + 0x40, false, true)
    );
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax], 0);
    machine.step();
    assert_eq!((machine.cpu.regs.rip, machine.cpu.system.cs.long), (CODE + 0x80, true));
}

#[test]
fn an_exception_in_compatibility_mode_is_delivered_in_64_bits() {
    let mut machine = Machine::new(3, &[0x0f, 0x0b]);
    (machine.cpu.system.cs.long, machine.cpu.system.cs.db) = (false, true);
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.system.cs.long), (Some(6), true));
    assert_eq!([machine.stack(0), machine.stack(3), machine.stack(4)], [CODE, STACK, RING3_DATA.into()]);
}

#[test]
fn cr0_takes_what_makes_sense() {
    let set = |value: u64, prepare: fn(&mut SystemRegs)| {
        let mut machine = Machine::protected(0, &[0x0f, 0x22, 0xc0]).with(Gpr::Rax, value);
        prepare(&mut machine.cpu.system);
        machine.step();
        let SystemRegs { cr0, efer, .. } = machine.cpu.system;
        machine.vector().is_none().then_some((cr0, efer & efer::LMA != 0))
    };
    let (pe, pg) = (cr0::PE | cr0::ET, cr0::PE | cr0::ET | cr0::PG);
    assert_eq!(set(pe, |_| ()), Some((pe, false)));
    assert_eq!(set(cr0::ET, |_| ()), Some((cr0::ET, false)));
    assert_eq!(set(cr0::ET | cr0::PG, |_| ()), None);
    assert_eq!(set(pe | cr0::NW, |_| ()), None);
    assert_eq!(set(pg, |_| ()), Some((pg, false)));
    assert_eq!(set(pg, |system| system.efer = efer::LME), None);
    assert_eq!(set(pg, |system| (system.efer, system.cr4) = (efer::LME, cr4::PAE)), Some((pg, true)));
    let leave = |system: &mut SystemRegs| {
        (system.cr0, system.efer, system.cr4) = (system.cr0 | cr0::PG, efer::LME | efer::LMA, cr4::PAE);
    };
    assert_eq!(set(pe, leave), Some((pe, false)));
}

#[test]
fn lmsw_sets_pe_and_never_clears_it() {
    let lmsw = |cr0, value| {
        let mut machine = Machine::real(&[0x0f, 0x01, 0xf0]).with(Gpr::Rax, value); // lmsw ax
        machine.cpu.system.cr0 = cr0;
        machine.step();
        machine.cpu.system.cr0
    };
    assert_eq!(lmsw(cr0::ET, 0xfff3), cr0::ET | cr0::PE | cr0::MP);
    assert_eq!(lmsw(cr0::ET | cr0::PE | cr0::TS, 0), cr0::ET | cr0::PE);
}

#[test]
fn cr4_takes_what_cpuid_offers() {
    let set = |value: u64, prepare: fn(&mut Cpu)| {
        let mut machine = Machine::new(0, &[0x0f, 0x22, 0xe0]).with(Gpr::Rax, value);
        prepare(&mut machine.cpu);
        machine.step();
        machine.vector().is_none()
    };
    let features =
        cr4::UMIP | cr4::FSGSBASE | cr4::SMEP | cr4::SMAP | cr4::PKE | cr4::PKS | cr4::LAM_SUP | cr4::DE;
    assert!(set(cr4::PAE | features, |_| ()));
    assert!(!set(cr4::PAE | cr4::OSXSAVE, |_| ()));
    assert!(!set(cr4::PAE | cr4::UMIP, |cpu| cpu.cpuid.set(7, 0, [1, 0, 0, 0])));
    assert!(set(cr4::PAE | cr4::PCIDE, |_| ()));
    assert!(!set(cr4::PAE | cr4::PCIDE, |cpu| cpu.system.cr3 |= 1));
}

#[test]
fn cr3_keeps_its_tags_and_drops_the_wish_not_to_flush() {
    let set = |value: u64, cr4| {
        let mut machine = Machine::new(0, &[0x0f, 0x22, 0xd8]).with(Gpr::Rax, value);
        machine.cpu.system.cr4 |= cr4;
        machine.step();
        machine.vector().is_none().then_some(machine.cpu.system.cr3)
    };
    assert_eq!(set(0x5001 | 1 << 63, cr4::PCIDE), Some(0x5001));
    assert_eq!(set(0x5000 | 1 << 63, 0), None);
    assert_eq!(set(0x5000 | 3 << 61, 0), Some(0x5000 | 3 << 61));
    assert_eq!(set(1 << 60, 0), None);
}

#[test]
fn pae_paging_loads_its_pointers_with_cr3() {
    let load = |pdpte: u64| {
        let mut machine = Machine::protected(0, &[0x0f, 0x22, 0xd8]).with(Gpr::Rax, DATA + 0x20); // mov cr3, eax
        (machine.cpu.system.cr0, machine.cpu.system.cr4) = (0x8000_0011, cr4::PAE);
        machine.flat.put_words(DATA + 0x20, &[0x1001, pdpte, 0, 0x2001]);
        machine.step();
        (machine.vector(), machine.cpu.paging().pdptes, machine.cpu.system.cr3)
    };
    assert_eq!(load(0x3001), (None, [0x1001, 0x3001, 0, 0x2001], DATA + 0x20));
    // Reserved bits count only in pointers that are present.
    assert_eq!(load(0x3006).0, None);
    assert_eq!(load(0x3003), (Some(13), [0; 4], 0x1000));
    assert_eq!(load(1 << 46 | 1).0, Some(13));
}

#[test]
fn cr8_has_four_bits() {
    let mut machine = Machine::new(0, &[0x44, 0x0f, 0x22, 0xc0, 0x44, 0x0f, 0x20, 0xc1]).with(Gpr::Rax, 9);
    machine.step();
    machine.step();
    assert_eq!((machine.cpu.system.cr8, machine.cpu.regs[Gpr::Rcx]), (9, 9));
    let mut machine = Machine::new(0, &[0x44, 0x0f, 0x22, 0xc0]).with(Gpr::Rax, 16);
    machine.step();
    assert_eq!(machine.vector(), Some(13));
}
