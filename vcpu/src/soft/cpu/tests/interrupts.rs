//! Interrupts between instructions: when they are taken, and what holds them back.

use super::*;
use crate::soft::cpu::debug::dr6;

const X2APIC_SELF: u32 = 0x83f;
/// The vector that most tests use.
const VECTOR: u8 = 0x40;

/// Ring 0 with IF set, and an APIC in x2APIC mode.
fn machine(code: &[u8]) -> Machine {
    let mut machine = Machine::new(0, code);
    let mut irqchip = Irqchip::new();
    irqchip.add_processor();
    machine.flat.irqchip = Some(irqchip);
    machine.cpu.cpuid.add_apic(0, true);
    machine.cpu.regs.rflags |= rflags::IF;
    machine.set_msr(0x1b, 0xfee0_0d00);
    machine.set_msr(0x80f, 0x1ff);
    for vector in 32..128 {
        machine.flat.set_gate(vector, 0x8e00);
    }
    machine
}

impl Machine {
    fn interrupts(&mut self) -> Interrupts<'_> {
        self.flat.interrupts(0).unwrap()
    }

    fn set_msr(&mut self, msr: u32, value: u64) {
        self.interrupts().write_msr(msr, value, u64::MAX, true).unwrap().unwrap();
    }

    /// The processor sends itself an interrupt.
    fn interrupt(&mut self, vector: u8) {
        self.set_msr(X2APIC_SELF, vector.into());
    }

    fn nmi(&mut self) {
        self.set_msr(0x830, 4 << 8);
    }

    /// How many steps pass until a handler is entered, and which.
    fn steps_to_handler(&mut self) -> (u32, u8) {
        for steps in 1..20 {
            self.step();
            if let Some(vector) = self.vector() {
                return (steps, vector);
            }
        }
        panic!("no handler");
    }
}

#[test]
fn an_interrupt_comes_before_the_next_instruction() {
    let mut machine = machine(&[0x90]);
    machine.interrupt(VECTOR);
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.retired()), (Some(VECTOR), 0));
    assert_eq!((machine.stack(0), machine.stack(2)), (CODE, rflags::FIXED | rflags::IF));
    assert_eq!(machine.cpu.regs.rflags & rflags::IF, 0);
}

#[test]
fn if_and_cr8_hold_interrupts_back() {
    let mut machine = machine(&[0x90, 0x90, 0xfb, 0x90, 0x90]); // nop; nop; sti; nop; nop
    machine.cpu.regs.rflags &= !rflags::IF;
    machine.interrupt(VECTOR);
    assert_eq!(machine.steps_to_handler(), (5, VECTOR));
    // mov cr8, rax; nop; mov cr8, rbx; nop
    let mut machine =
        super::interrupts::machine(&[0x44, 0x0f, 0x22, 0xc0, 0x90, 0x44, 0x0f, 0x22, 0xc3, 0x90])
            .with(Gpr::Rax, 4)
            .with(Gpr::Rbx, 3);
    machine.step();
    machine.interrupt(VECTOR);
    assert_eq!(machine.interrupts().read_msr(0x808), Some(Ok(0x40)));
    assert_eq!(machine.steps_to_handler(), (3, VECTOR));
    // Written in the APIC, it is CR8 too.
    let mut machine = super::interrupts::machine(&[0x0f, 0x30]).with(Gpr::Rcx, 0x808).with(Gpr::Rax, 0x50); // wrmsr
    machine.step();
    assert_eq!(machine.cpu.system.cr8, 5);
}

#[test]
fn sti_and_loads_of_ss_shadow_one_instruction() {
    const STI: u8 = 0xfb;
    const CLI: u8 = 0xfa;
    const NOP: u8 = 0x90;
    for (code, flag, steps) in [
        // The handler is entered at that step: after the instruction behind STI.
        (&[STI, NOP, NOP][..], 0, Some(3)),
        (&[STI, STI, NOP], 0, Some(3)),
        (&[STI, CLI, NOP], 0, None),
        // IF was set already: no shadow.
        (&[STI, NOP, NOP], rflags::IF, Some(1)),
        // mov ss, ax
        (&[STI, 0x8e, 0xd0, NOP, NOP], 0, Some(4)),
        (&[STI, 0x8e, 0xd0, 0x8e, 0xd0, NOP], 0, Some(4)),
    ] {
        let mut machine = machine(code).with(Gpr::Rax, RING0_DATA.into());
        machine.cpu.regs.rflags = rflags::FIXED | flag;
        machine.interrupt(VECTOR);
        let entered = (1..=code.len() as u32).find(|_| {
            machine.step();
            machine.vector().is_some()
        });
        assert_eq!(entered, steps, "{code:x?}");
    }
    for code in [&[STI, NOP, NOP][..], &[0x8e, 0xd0, NOP, NOP]] {
        let mut machine = machine(code).with(Gpr::Rax, RING0_DATA.into());
        machine.cpu.regs.rflags &= !rflags::IF;
        machine.step();
        machine.nmi();
        assert_eq!(machine.steps_to_handler(), (2, 2), "{code:x?}");
    }
}

#[test]
fn nmis_come_first_and_wait_for_iret() {
    let mut machine = machine(&[0x90]);
    machine.flat.put(handler(2), &[0x90, 0x48, 0xcf]); // nop; iretq
    machine.interrupt(VECTOR);
    machine.nmi();
    machine.step();
    assert_eq!(machine.vector(), Some(2));
    machine.nmi();
    assert_eq!(machine.steps_to_handler(), (3, 2), "nop, iretq, the next NMI");
    assert_eq!(machine.steps_to_handler(), (3, VECTOR));
    assert_eq!(machine.cpu.retired(), 4);
}

#[test]
fn a_trap_comes_before_an_interrupt() {
    let mut machine = machine(&[0x90, 0x90]);
    machine.cpu.regs.rflags |= rflags::TF;
    machine.cpu.regs.rflags &= !rflags::IF;
    machine.step();
    machine.flat.put(handler(1), &[0x48, 0xcf]);
    machine.nmi();
    assert_eq!((machine.vector(), machine.cpu.debug.dr6), (Some(1), dr6::FIXED | dr6::BS));
    // The NMI finds the handler of the trap.
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(2), handler(1)));
}

#[test]
fn hlt_sleeps_until_an_interrupt_and_leaps_to_a_timer() {
    let mut machine = machine(&[0xf4, 0x90]);
    assert_eq!([machine.run(), machine.run()], [Exit::Halt, Exit::Halt]);
    assert_eq!((machine.cpu.regs.rip, machine.cpu.retired()), (CODE + 1, 1));
    machine.set_msr(0x832, VECTOR.into());
    machine.set_msr(0x83e, 0xb);
    machine.set_msr(0x838, 1_000_000);
    machine.step();
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(VECTOR), CODE + 1));
    assert_eq!((machine.cpu.clock, machine.cpu.retired()), (1_000_002, 1));
    // An NMI wakes without IF; a masked interrupt does not.
    let mut machine = super::interrupts::machine(&[0xf4]);
    machine.cpu.regs.rflags &= !rflags::IF;
    machine.interrupt(VECTOR);
    assert_eq!(machine.run(), Exit::Halt);
    machine.nmi();
    machine.step();
    assert_eq!(machine.vector(), Some(2));
}

#[test]
fn a_single_step_ends_hlt() {
    let mut machine = machine(&[0xf4, 0x90]);
    machine.cpu.regs.rflags |= rflags::TF;
    assert_eq!(machine.step(), Exit::BudgetExceeded(crate::Limit::Instructions));
    assert_eq!((machine.vector(), machine.stack(0)), (Some(1), CODE + 1));
    machine.flat.put(handler(1), &[0x90]);
    machine.step();
    assert_eq!(machine.cpu.regs.rip, handler(1) + 1);
}

#[test]
fn a_repeated_instruction_is_interrupted_between_iterations() {
    let mut machine = machine(&[0xf3, 0xaa]).with(Gpr::Rdi, DATA).with(Gpr::Rcx, 3); // rep stosb
    machine.step();
    machine.interrupt(VECTOR);
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0), machine.cpu.regs[Gpr::Rcx]), (Some(VECTOR), CODE, 2));
    assert_eq!(machine.stack(2) & rflags::RF, rflags::RF);
    machine.flat.put(handler(VECTOR), &[0x48, 0xcf]);
    for _ in 0..3 {
        machine.step();
    }
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rcx]), (CODE + 2, 0));
}

#[test]
fn an_instruction_that_waits_for_a_device_is_not_interrupted() {
    let mut machine = machine(&[0x8b, 0x08, 0x90]).with(Gpr::Rax, MMIO); // mov ecx, [rax]; nop
    assert!(matches!(machine.step(), Exit::MmioRead { .. }));
    machine.interrupt(VECTOR);
    machine.answer(&[1, 2, 3, 4]);
    assert_eq!((machine.stack(0), machine.cpu.regs[Gpr::Rcx]), (CODE + 2, 0x0403_0201));
}

#[test]
fn an_interrupt_is_no_reason_for_a_double_fault() {
    // Lines 0 and 5 of the 8259s have the vectors of #DF and #GP: it is how they come that counts.
    for line in [0, 5] {
        let mut machine = machine(&[0x90]);
        let vector = 8 + line;
        machine.flat.set_gate(vector, 0x0e00);
        machine.flat.irqchip.as_mut().unwrap().set_line(line, true);
        machine.step();
        let code = u64::from(vector) << 3 | 0b11;
        assert_eq!((machine.vector(), machine.stack(0)), (Some(11), code), "{vector:#x}");
    }
}

#[test]
fn the_8259s_are_reached_through_ports_and_the_real_mode_table() {
    // out 0x21, al; in al, 0x21
    let mut machine = machine(&[0xe6, 0x21, 0x30, 0xc0, 0xe4, 0x21]).with(Gpr::Rax, 0xfe);
    for _ in 0..3 {
        machine.step();
    }
    assert_eq!(machine.cpu.regs[Gpr::Rax], 0xfe);
    let mut machine = super::interrupts::machine(&[0x90]);
    machine.cpu.system.cr0 = 0x30;
    machine.cpu.system.efer = 0;
    machine.cpu.system.idt = DescriptorTable { base: 0, limit: 0x3ff };
    for segment in [&mut machine.cpu.system.cs, &mut machine.cpu.system.ss] {
        *segment = Segment { limit: 0xffff, base: 0, long: false, db: false, ..*segment };
    }
    machine.flat.put(8 * 4, &[0x34, 0x12, 0x00, 0x07]);
    machine.flat.irqchip.as_mut().unwrap().set_line(0, true);
    machine.step();
    let system = &machine.cpu.system;
    assert_eq!((system.cs.selector, system.cs.base, machine.cpu.regs.rip), (0x700, 0x7000, 0x1234));
}

#[test]
fn init_resets_and_sipi_starts_in_real_mode() {
    let mut machine = machine(&[0x90]);
    machine.flat.irqchip.as_mut().unwrap().add_processor();
    // INIT to itself: the bootstrap processor starts at the reset vector.
    machine.cpu.system.cr0 |= crate::cr0::CD;
    machine.cpu.debug.dr7 |= 1;
    machine.set_msr(0x830, 5 << 8 | 1 << 14);
    machine.step();
    let system = &machine.cpu.system;
    assert_eq!((system.cs.selector, system.cs.base, machine.cpu.regs.rip), (0xf000, 0xffff_0000, 0xfff0));
    assert_eq!((system.cr0, system.cr4, system.efer), (crate::cr0::CD | crate::cr0::ET, 0, 0));
    assert_eq!((machine.cpu.regs.rflags, machine.cpu.regs[Gpr::Rdx]), (2, 0x600));
    assert_eq!((machine.cpu.debug.dr7, machine.flat.invalidated_all), (0x400, 1));
}

#[test]
fn cpuid_shows_whether_the_apic_is_on() {
    let mut machine = machine(&[0x0f, 0xa2]).with(Gpr::Rax, 1);
    let off = {
        let mut machine = machine.clone();
        machine.set_msr(0x1b, 0xfee0_0100);
        machine.step();
        machine.cpu.regs[Gpr::Rdx]
    };
    machine.step();
    assert_eq!((machine.cpu.regs[Gpr::Rdx] >> 9 & 1, off >> 9 & 1), (1, 0));
    assert_eq!(machine.cpu.regs[Gpr::Rcx] >> 21 & 0b1001, 0b1001);
}

#[test]
fn a_deadline_is_a_value_of_the_tsc() {
    // wrmsr (IA32_TSC_DEADLINE); mov ecx, ebx; rdmsr; wrmsr (IA32_TIME_STAMP_COUNTER)
    let code = [0x0f, 0x30, 0x0f, 0x32, 0x89, 0xd9, 0x89, 0xf0, 0x0f, 0x30];
    let mut machine =
        machine(&code).with(Gpr::Rcx, 0x6e0).with(Gpr::Rax, 500).with(Gpr::Rbx, 0x10).with(Gpr::Rsi, 400);
    machine.set_msr(0x832, 2 << 17 | u64::from(VECTOR));
    machine.step();
    machine.step();
    assert_eq!((machine.cpu.regs[Gpr::Rax], machine.interrupts().deadline()), (500, Some(500)));
    for _ in 0..3 {
        machine.step();
    }
    // The TSC was 400 at the time 4: a hundred more.
    assert_eq!(machine.interrupts().deadline(), Some(104));
}

#[test]
fn hypercalls_send_interrupts() {
    // vmcall
    let mut machine =
        machine(&[0x0f, 0x01, 0xc1]).with(Gpr::Rax, 10).with(Gpr::Rbx, 1).with(Gpr::Rsi, VECTOR.into());
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax], 1);
    machine.step();
    assert_eq!(machine.vector(), Some(VECTOR));
    let mut machine = super::interrupts::machine(&[0x0f, 0x01, 0xd9]).with(Gpr::Rax, 1); // vmmcall
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax] as i64, -1000);
    let mut plain = Machine::new(0, &[0x0f, 0x01, 0xc1]);
    plain.step();
    assert_eq!(plain.vector(), Some(6));
}
