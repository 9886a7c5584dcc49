//! `SYSCALL`, `SYSENTER` and the ways back.

use super::*;
use crate::efer;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETD: &[u8] = &[0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

/// Flat segments as the GDT of a kernel has them for these instructions.
fn machine(ring: u8, code: &[u8]) -> Machine {
    let mut machine = Machine::new(ring, code);
    machine.cpu.system.efer |= efer::SCE;
    machine.cpu.msrs.star = 0x001b_0008_0000_0000;
    machine.cpu.msrs.lstar = CODE + 0x100;
    machine.cpu.msrs.fmask = rflags::IF | rflags::TF | rflags::DF;
    machine.cpu.msrs.sysenter_cs = 0x08;
    (machine.cpu.msrs.sysenter_eip, machine.cpu.msrs.sysenter_esp) = (CODE + 0x200, STACK0);
    machine
}

#[test]
fn syscall_saves_where_it_was_and_masks_flags() {
    let mut machine = machine(3, SYSCALL);
    machine.cpu.regs.rflags |= rflags::IF | rflags::DF | rflags::CF;
    let flags = machine.cpu.regs.rflags;
    machine.step();
    let (regs, system) = (machine.cpu.regs, machine.cpu.system);
    assert_eq!((regs.rip, regs[Gpr::Rcx], regs[Gpr::R11]), (CODE + 0x100, CODE + 2, flags));
    assert_eq!(regs.rflags, rflags::FIXED | rflags::CF);
    assert_eq!((system.cs.selector, system.ss.selector, system.cpl(), system.cs.long), (0x08, 0x10, 0, true));
    assert_eq!(regs[Gpr::Rsp], STACK);
}

#[test]
fn sysret_goes_to_either_size_of_ring_3() {
    let flags = rflags::IF | rflags::CF | rflags::RF | rflags::VM;
    for (code, rip, selector, long) in
        [(SYSRETQ, 0x7fff_0000_8000, 0x2b, true), (SYSRETD, 0x8000, 0x1b, false)]
    {
        let mut machine = machine(0, code).with(Gpr::Rcx, 0x7fff_0000_8000).with(Gpr::R11, flags);
        machine.step();
        let (regs, system) = (machine.cpu.regs, machine.cpu.system);
        assert_eq!((regs.rip, regs.rflags), (rip, rflags::FIXED | rflags::IF | rflags::CF));
        assert_eq!((system.cs.selector, system.cs.long, system.cs.db), (selector, long, !long));
        assert_eq!((system.ss.selector, system.cpl()), (0x23, 3));
    }
}

#[test]
fn sysret_needs_ring_0_and_a_canonical_address() {
    let mut in_ring_3 = machine(3, SYSRETQ);
    in_ring_3.step();
    assert_eq!(in_ring_3.vector(), Some(13));
    let mut far = machine(0, SYSRETQ).with(Gpr::Rcx, 1 << 47);
    far.step();
    assert_eq!((far.vector(), far.cpu.system.cpl(), far.stack(1)), (Some(13), 0, CODE));
}

#[test]
fn without_sce_or_outside_64_bit_mode_there_is_no_syscall() {
    for code in [SYSCALL, SYSRETQ] {
        let mut machine = machine(0, code);
        machine.cpu.system.efer &= !efer::SCE;
        machine.step();
        assert_eq!(machine.vector(), Some(6));
    }
    let mut machine = Machine::protected(3, SYSCALL);
    machine.cpu.system.efer = efer::SCE;
    machine.cpu.cpuid.set(
        0,
        0,
        [7, u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ntel"), u32::from_le_bytes(*b"ineI")],
    );
    machine.step();
    assert_eq!(machine.vector(), Some(6));
}

#[test]
fn syscall_in_32_bit_code_has_targets_of_its_own() {
    let mut compatible = machine(3, SYSCALL);
    (compatible.cpu.system.cs.long, compatible.cpu.system.cs.db) = (false, true);
    compatible.cpu.msrs.cstar = CODE + 0x80;
    compatible.step();
    assert_eq!((compatible.cpu.regs.rip, compatible.cpu.system.cs.long), (CODE + 0x80, true));
    let mut legacy = Machine::protected(3, SYSCALL);
    legacy.cpu.system.efer = efer::SCE;
    legacy.cpu.regs.rflags |= rflags::IF;
    legacy.cpu.msrs.star = 0x001b_0008_0000_0000 | (CODE + 0x40);
    legacy.step();
    let system = legacy.cpu.system;
    assert_eq!(
        (legacy.cpu.regs.rip, legacy.cpu.regs[Gpr::Rcx], legacy.cpu.regs.rflags),
        (CODE + 0x40, CODE + 2, 2)
    );
    assert_eq!((system.cs.selector, system.cs.long, system.cs.db, system.cpl()), (0x08, false, true, 0));
}

#[test]
fn sysenter_and_sysexit() {
    let mut enter = machine(3, SYSENTER);
    enter.cpu.regs.rflags |= rflags::IF;
    enter.step();
    let (regs, system) = (enter.cpu.regs, enter.cpu.system);
    assert_eq!((regs.rip, regs[Gpr::Rsp], regs.rflags), (CODE + 0x200, STACK0, rflags::FIXED));
    assert_eq!((system.cs.selector, system.ss.selector, system.cpl()), (0x08, 0x10, 0));
    let mut exit = machine(0, SYSEXITQ).with(Gpr::Rdx, CODE).with(Gpr::Rcx, STACK);
    exit.step();
    let system = exit.cpu.system;
    assert_eq!((exit.cpu.regs.rip, exit.cpu.regs[Gpr::Rsp]), (CODE, STACK));
    assert_eq!((system.cs.selector, system.ss.selector, system.cpl(), system.cs.long), (0x2b, 0x33, 3, true));
    let mut null = machine(3, SYSENTER);
    null.cpu.msrs.sysenter_cs = 3;
    null.step();
    assert_eq!((null.vector(), null.stack(0)), (Some(13), 0));
    let mut outer = machine(3, SYSEXITQ);
    outer.step();
    assert_eq!(outer.vector(), Some(13));
}

#[test]
fn sysenter_in_32_bit_code_goes_to_32_bit_code() {
    let mut machine = Machine::protected(3, SYSENTER);
    machine.cpu.msrs.sysenter_cs = 0x08;
    (machine.cpu.msrs.sysenter_eip, machine.cpu.msrs.sysenter_esp) = (1 << 32 | CODE, STACK0);
    machine.step();
    let system = machine.cpu.system;
    assert_eq!((machine.cpu.regs.rip, system.cs.long, system.cs.db, system.cpl()), (CODE, false, true, 0));
}

#[test]
fn a_system_call_is_traced_as_its_handler_is() {
    for (fmask, traced) in [(rflags::TF, false), (0, true)] {
        let mut machine = machine(3, SYSCALL);
        machine.cpu.msrs.fmask = fmask;
        machine.cpu.regs.rflags |= rflags::TF;
        machine.step();
        assert_eq!(machine.vector() == Some(1), traced);
    }
}
