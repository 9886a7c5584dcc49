//! Delivery, error codes, double and triple faults, and `IRETQ`.

use super::*;

const UD2: &[u8] = &[0x0f, 0x0b];
const INT_0X10: &[u8] = &[0xcd, 0x10];
const IRETQ: &[u8] = &[0x48, 0xcf];
/// mov [rax], ecx
const STORE: &[u8] = &[0x89, 0x08];

#[test]
fn a_fault_in_ring_3_switches_to_the_stack_of_the_tss() {
    let mut machine = Machine::new(3, UD2).with(Gpr::Rsp, 0xcff3);
    machine.cpu.regs.rflags |= rflags::IF | rflags::NT | rflags::CF;
    machine.step();
    assert_eq!(machine.vector(), Some(6));
    assert_eq!(machine.cpu.regs[Gpr::Rsp], STACK0 - 40);
    let flags = rflags::FIXED | rflags::IF | rflags::NT | rflags::CF | rflags::RF;
    let frame = [0, 1, 2, 3, 4].map(|i| machine.stack(i));
    assert_eq!(frame, [CODE, RING3_CODE.into(), flags, 0xcff3, RING3_DATA.into()]);
    // IF, NT and RF are clear in the handler; SS is null.
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | rflags::CF);
    let SystemRegs { cs, ss, .. } = machine.cpu.system;
    assert_eq!((cs.selector, cs.dpl, ss.selector, ss.dpl, ss.present), (RING0_CODE, 0, 0, 0, false));
    assert_eq!(machine.cpu.retired(), 0);
}

#[test]
fn a_fault_in_ring_0_aligns_the_stack_it_is_on() {
    let mut machine = Machine::new(0, UD2).with(Gpr::Rsp, 0xcffb);
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rsp]), (Some(6), 0xcff0 - 40));
    assert_eq!((machine.stack(3), machine.stack(4)), (0xcffb, RING0_DATA.into()));
}

#[test]
fn a_page_fault_gives_the_address_and_the_error_code() {
    for (ring, address, code) in
        [(3, ABSENT + 5, 6), (0, ABSENT, 2), (3, READ_ONLY, 7), (3, GDT, 7), (3, 0xcffe, 7)]
    {
        let mut machine = Machine::new(ring, STORE).with(Gpr::Rax, address);
        machine.step();
        assert_eq!(
            (machine.vector(), machine.stack(0), machine.stack(1)),
            (Some(14), code, CODE),
            "{address:#x}"
        );
        // An access that crosses into the page fails at its first byte there.
        assert_eq!(machine.cpu.system.cr2, address.max(address.next_multiple_of(4) & !0xfff));
    }
}

#[test]
fn an_address_that_is_not_canonical_is_a_protection_or_a_stack_fault() {
    const POP: &[u8] = &[0x58];
    for (code, vector) in [(STORE, 13), (POP, 12)] {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, 1 << 47).with(Gpr::Rsp, 1 << 47);
        machine.step();
        assert_eq!((machine.vector(), machine.stack(0)), (Some(vector), 0));
    }
}

#[test]
fn gates_decide_on_if_and_on_the_stack() {
    for (attributes, interrupts, rsp) in
        [(0xee00, 0, STACK0 - 40), (0xef00, rflags::IF, STACK0 - 40), (0xee01, 0, STACK_IST - 40)]
    {
        let mut machine = Machine::new(3, INT_0X10);
        machine.flat.set_gate(0x10, attributes);
        machine.cpu.regs.rflags |= rflags::IF;
        machine.step();
        assert_eq!(machine.vector(), Some(0x10));
        assert_eq!((machine.cpu.regs.rflags & rflags::IF, machine.cpu.regs[Gpr::Rsp]), (interrupts, rsp));
        // RIP is past the instruction, and RF is clear.
        assert_eq!((machine.stack(0), machine.stack(2)), (CODE + 2, rflags::FIXED | rflags::IF));
        assert_eq!(machine.cpu.retired(), 1);
    }
}

#[test]
fn a_bad_gate_raises_what_names_the_vector() {
    // DPL too low, not present, not a gate.
    for (attributes, vector) in [(0x8e00, 13), (0x6e00, 11), (0xe200, 13)] {
        let mut machine = Machine::new(3, INT_0X10);
        machine.flat.set_gate(0x10, attributes);
        machine.step();
        assert_eq!(
            (machine.vector(), machine.stack(0), machine.stack(1)),
            (Some(vector), 0x10 << 3 | 2, CODE)
        );
    }
}

#[test]
fn faults_while_delivering_follow_the_table_of_double_faults() {
    let fault = |broken: &[u8], code: &[u8], register| {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, register);
        for &vector in broken {
            machine.flat.set_gate(vector, 0x0e00);
        }
        let exit = machine.step();
        (machine.vector(), exit, machine)
    };
    // #UD is benign: #NP takes its place, with EXT set.
    let (vector, _, machine) = fault(&[6], UD2, 0);
    assert_eq!((vector, machine.stack(0)), (Some(11), 6 << 3 | 2 | 1));
    // #GP, then #NP; #PF, then #NP.
    for (broken, address) in [(13, 1 << 47), (14, ABSENT)] {
        let (vector, _, machine) = fault(&[broken], STORE, address);
        assert_eq!((vector, machine.stack(0), machine.stack(1)), (Some(8), 0, CODE));
    }
    // Nothing works any more: the registers are the culprit's.
    let (_, exit, machine) = fault(&[8, 13], STORE, 1 << 47);
    assert_eq!((exit, machine.cpu.regs.rip), (Exit::Shutdown, CODE));
    assert_eq!((machine.cpu.regs[Gpr::Rax], machine.cpu.system.cpl()), (1 << 47, 3));
}

#[test]
fn a_page_fault_after_a_protection_fault_is_no_double_fault() {
    let mut machine = Machine::new(3, STORE).with(Gpr::Rax, 1 << 47);
    machine.flat.set_gate(13, 0x8e01);
    machine.flat.put(TSS + 36, &(ABSENT + 0x1000).to_le_bytes());
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(14), 2));
    assert_eq!(machine.cpu.system.cr2, ABSENT + 0x1000 - 48);
}

#[test]
fn cr2_is_the_last_address_even_if_a_double_fault_comes_of_it() {
    let mut machine = Machine::new(3, STORE).with(Gpr::Rax, ABSENT);
    machine.flat.set_gate(14, 0x8e01);
    machine.flat.put(TSS + 36, &(ABSENT + 0x1000).to_le_bytes());
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.system.cr2), (Some(8), ABSENT + 0x1000 - 48));
}

#[test]
fn a_stack_outside_the_tss_is_an_invalid_tss() {
    let mut machine = Machine::new(3, UD2);
    machine.cpu.system.tr.limit = 10;
    // #TS needs a stack too: #DF does, then nothing is left.
    assert_eq!(machine.step(), Exit::Shutdown);
    machine.flat.set_gate(8, 0x8e00);
    let mut machine = Machine::new(0, UD2);
    machine.cpu.system.tr.limit = 10;
    machine.flat.set_gate(6, 0x8e01);
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(10), u64::from(TSS_SELECTOR) | 1));
}

/// A machine in ring 0 about to execute `IRETQ`.
fn returning(cs: u16, ss: u16, flags: u64, rip: u64) -> Machine {
    let mut machine = Machine::new(0, IRETQ).with(Gpr::Rsp, DATA);
    machine.flat.put_words(DATA, &[rip, cs.into(), flags, 0xc800, ss.into()]);
    machine
}

#[test]
fn iretq_returns_to_ring_3_and_drops_what_ring_3_may_not_have() {
    let mut machine = returning(RING3_CODE, RING3_DATA, !(1 << 17), CODE + 0x10);
    machine.cpu.system.fs = segment(RING3_DATA, 3, false);
    machine.step();
    let system = machine.cpu.system;
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 0x10, 0xc800));
    assert_eq!((system.cs.selector, system.ss.selector, system.cpl()), (RING3_CODE, RING3_DATA, 3));
    assert_eq!((system.ds.selector, system.es.present, system.fs.selector), (0, false, RING3_DATA));
    let all = 0x0024_7fd7;
    assert_eq!(machine.cpu.regs.rflags & !rflags::RF, all & !rflags::RF);
}

#[test]
fn iretq_in_ring_3_keeps_if_and_iopl() {
    let mut machine = returning(RING3_CODE, RING3_DATA, rflags::IOPL | rflags::CF, CODE);
    let mut ring3 = Machine::new(3, IRETQ).with(Gpr::Rsp, DATA);
    ring3.flat = machine.flat.clone();
    ring3.cpu.regs.rflags |= rflags::IF;
    machine.step();
    ring3.step();
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | rflags::IOPL | rflags::CF);
    assert_eq!(ring3.cpu.regs.rflags, rflags::FIXED | rflags::IF | rflags::CF);
}

#[test]
fn iretq_refuses_bad_frames_and_changes_nothing() {
    let gp = |selector: u16| (13, u64::from(selector & !3));
    for (cs, ss, rip, (vector, code)) in [
        (0, RING0_DATA, CODE, gp(0)),
        (RING0_DATA, RING0_DATA, CODE, gp(RING0_DATA)),
        (RING0_CODE | 3, RING3_DATA, CODE, gp(RING0_CODE)),
        (0x38, RING0_DATA, CODE, gp(0x38)),
        (RING3_CODE, RING0_DATA, CODE, gp(RING0_DATA)),
        (RING3_CODE, 3, CODE, gp(0)),
        (RING3_CODE, RING3_DATA, 1 << 47, gp(0)),
    ] {
        let mut machine = returning(cs, ss, 2, rip);
        machine.step();
        assert_eq!(
            (machine.vector(), machine.stack(0), machine.stack(1)),
            (Some(vector), code, CODE),
            "{cs:#x}"
        );
        assert_eq!((machine.stack(4), machine.cpu.system.cpl()), (DATA, 0));
    }
}

#[test]
fn a_single_step_comes_after_the_instruction() {
    let mut machine = Machine::new(3, &[0x90, 0x90]);
    machine.cpu.regs.rflags |= rflags::TF;
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(1), CODE + 1));
    assert_eq!(machine.stack(2), rflags::FIXED | rflags::TF);
    assert_eq!(machine.cpu.retired(), 1);
}

#[test]
fn a_handler_returns_to_the_instruction_that_faulted() {
    // The handler makes the page there: here, it moves the pointer.
    const MOVE_POINTER: &[u8] = &[0x48, 0x81, 0xe8, 0x00, 0x60, 0, 0, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf];
    let mut machine = Machine::new(3, &[0x89, 0x08, 0xf4]).with(Gpr::Rax, ABSENT).with(Gpr::Rcx, 0x1234);
    machine.flat.put(handler(14), MOVE_POINTER);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.vector(), machine.flat.word(DATA)), (None, 0x1234));
}
