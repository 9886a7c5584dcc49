//! Far jumps, interrupts and returns in protected mode.

use super::legacy::*;
use super::*;

/// An instruction of seven bytes: opcode, 32-bit offset, selector.
fn far(opcode: u8, selector: u16, offset: u64) -> Vec<u8> {
    [&[opcode], &(offset as u32).to_le_bytes()[..], &selector.to_le_bytes()].concat()
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

#[test]
fn far_jumps_go_to_code_of_the_same_ring() {
    for (ring, selector, ends_in) in [
        (0, RING0_CODE, RING0_CODE),
        (0, CODE16, CODE16),
        // RPL counts less than CPL, and CS always holds CPL.
        (0, CONFORMING | 3, CONFORMING),
        (3, CONFORMING, CONFORMING | 3),
        (3, RING3_CODE & !3, RING3_CODE),
    ] {
        let mut machine = Machine::protected(ring, &far(JMP, selector, CODE + 0x20));
        machine.step();
        let cs = machine.cpu.system.cs;
        assert_eq!((cs.selector, machine.cpu.regs.rip), (ends_in, CODE + 0x20), "{selector:#x}");
        assert_eq!((cs.db, machine.cpu.system.cpl()), (selector != CODE16, ring));
    }
    for (ring, selector, vector, error) in [
        (0, 0, 13, 0),
        (0, RING0_DATA, 13, RING0_DATA),
        (0, RING3_CODE, 13, RING3_CODE & !3),
        (0, RING0_CODE | 1, 13, RING0_CODE),
        (3, RING0_CODE, 13, RING0_CODE),
        (0, 0x88, 13, 0x88),
        (0, LOCAL_TABLE, 13, LOCAL_TABLE),
    ] {
        for opcode in [JMP, CALL] {
            let mut machine = Machine::protected(ring, &far(opcode, selector, CODE));
            machine.step();
            assert_eq!(machine.fault32(), (Some(vector), error.into()), "{selector:#x}");
        }
    }
}

#[test]
fn the_target_must_lie_within_the_limit() {
    let mut machine = Machine::protected(0, &far(JMP, CODE16, 0x1_0000));
    machine.step();
    assert_eq!(machine.fault32(), (Some(13), 0));
}

#[test]
fn gates_and_tasks_are_named_as_missing() {
    for selector in [CALL_GATE, TSS_SELECTOR] {
        let code = far(CALL, selector, 0);
        let mut machine = Machine::protected(0, &code);
        machine.flat.memory[GDT as usize + 0x28 + 5] = 0x89; // no longer busy
        let exit = machine.step();
        assert!(
            matches!(exit, Exit::Unimplemented { rip: CODE, ref bytes, .. } if *bytes == code),
            "{exit:?}"
        );
    }
    let mut machine = Machine::protected(0, &[0xcd, 0x10]);
    machine.flat.put_words(IDT + 8 * 0x10, &[0x8500 << 32 | u64::from(TSS_SELECTOR) << 16]);
    assert!(matches!(machine.step(), Exit::Unimplemented { rip: CODE, .. }));
    // A return to the task before.
    let mut machine = Machine::protected(0, &[0xcf]);
    machine.cpu.regs.rflags |= rflags::NT;
    assert!(matches!(machine.step(), Exit::Unimplemented { .. }));
}

#[test]
fn a_far_call_returns() {
    let mut machine = Machine::protected(0, &far(CALL, CODE16, CODE + 0x40));
    // 16-bit code: o32 retf 8
    machine.flat.put(CODE + 0x40, &[0x66, 0xca, 0x08, 0x00]);
    machine.step();
    assert_eq!([machine.stack32(0), machine.stack32(1)], [CODE as u32 + 7, RING0_CODE.into()]);
    machine.step();
    assert_eq!((machine.cpu.regs.rip, machine.cpu.system.cs.selector), (CODE + 7, RING0_CODE));
    assert_eq!(machine.cpu.regs[Gpr::Rsp], STACK + 8);
}

#[test]
fn retf_to_an_outer_ring_takes_its_stack_and_drops_inner_segments() {
    let mut machine = Machine::protected(0, &[0xca, 0x08, 0x00]).with(Gpr::Rsp, DATA); // retf 8
    let frame = [CODE as u32 + 0x20, RING3_CODE.into(), 1, 2, 0xc800, RING3_DATA.into()];
    let bytes: Vec<_> = frame.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    machine.flat.put(DATA, &bytes);
    machine.cpu.system.fs = segment(RING3_DATA, 3, false);
    machine.step();
    let system = machine.cpu.system;
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 0x20, 0xc808));
    assert_eq!((system.cpl(), system.cs.selector, system.ss.selector), (3, RING3_CODE, RING3_DATA));
    assert_eq!((system.ds.present, system.fs.present), (false, true));
}

#[test]
fn an_interrupt_in_ring_3_switches_to_the_stack_of_the_tss() {
    let mut machine = Machine::protected(3, &[0x0f, 0x0b]).with(Gpr::Rsp, 0xcff3);
    machine.cpu.regs.rflags |= rflags::IF;
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rsp]), (Some(6), STACK0 - 20));
    let flags = (rflags::FIXED | rflags::IF | rflags::RF) as u32;
    let frame = [0, 1, 2, 3, 4].map(|i| machine.stack32(i));
    assert_eq!(frame, [CODE as u32, RING3_CODE.into(), flags, 0xcff3, RING3_DATA.into()]);
    assert_eq!((machine.cpu.system.ss.selector, machine.cpu.system.cpl()), (RING0_DATA, 0));
    // And back.
    machine.flat.put(handler(6), &[0xcf]);
    machine.step();
    assert_eq!(
        (machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp], machine.cpu.system.cpl()),
        (CODE, 0xcff3, 3)
    );
    assert_eq!(machine.cpu.regs.rflags & rflags::IF, rflags::IF);
}

#[test]
fn an_interrupt_in_ring_0_stays_on_its_stack() {
    let mut machine = Machine::protected(0, &[0xcd, 0x10]);
    machine.set_gate32(0x10, 0x8f00);
    machine.cpu.regs.rflags |= rflags::IF;
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rsp]), (Some(0x10), STACK - 12));
    assert_eq!(machine.cpu.regs.rflags & rflags::IF, rflags::IF);
}

#[test]
fn a_gate_of_16_bits_pushes_16_bits() {
    let mut machine = Machine::protected(0, &[0xcd, 0x10]);
    machine.set_gate32(0x10, 0x8600);
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rsp]), (Some(0x10), STACK - 6));
    assert_eq!([machine.stack16(0), machine.stack16(1)], [CODE as u16 + 2, RING0_CODE]);
}

#[test]
fn a_bad_stack_in_the_tss_is_an_invalid_tss() {
    for (ss0, expected) in [
        (0, (10, 1)),
        (RING3_DATA, (10, u32::from(RING3_DATA & !3) | 1)),
        (READ_ONLY_DATA, (10, u32::from(READ_ONLY_DATA) | 1)),
        (ABSENT_DATA, (12, u32::from(ABSENT_DATA) | 1)),
    ] {
        let mut machine = Machine::protected(3, &[0x0f, 0x0b]);
        machine.flat.put(TSS + 8, &ss0.to_le_bytes());
        // The handlers of what follows are conforming: they need no new stack.
        for vector in [10, 12] {
            let gate = handler(vector) | u64::from(CONFORMING) << 16 | 0xee00 << 32;
            machine.flat.put_words(IDT + 8 * u64::from(vector), &[gate]);
        }
        machine.step();
        assert_eq!((machine.vector(), machine.stack32(0)), (Some(expected.0), expected.1), "{ss0:#x}");
    }
}

#[test]
fn faults_while_delivering_follow_the_table_of_double_faults() {
    // #UD is benign: #NP takes its place. #GP and then #NP are a double fault.
    let mut machine = Machine::protected(0, &[0x0f, 0x0b]);
    machine.set_gate32(6, 0x0e00);
    machine.step();
    assert_eq!(machine.fault32(), (Some(11), 6 << 3 | 2 | 1));
    let mut machine = Machine::protected(0, &[0x8e, 0xd8]).with(Gpr::Rax, 0x88);
    machine.set_gate32(13, 0x0e00);
    machine.step();
    assert_eq!(machine.fault32(), (Some(8), 0));
    machine.set_gate32(8, 0x0e00);
    machine.cpu.regs.rip = CODE;
    assert_eq!(machine.step(), Exit::Shutdown);
}

#[test]
fn into_and_icebp_and_bound() {
    for (code, flags, vector, rip) in [
        (&[0xce][..], rflags::OF, Some(4), CODE + 1),
        (&[0xce], 0, None, CODE + 1),
        (&[0xf1], 0, Some(1), CODE + 1),
        (&[0xcc], 0, Some(3), CODE + 1),
    ] {
        let mut machine = Machine::protected(0, code);
        machine.cpu.regs.rflags |= flags;
        machine.step();
        assert_eq!(machine.vector(), vector, "{code:02x?}");
        let back = if vector.is_some() { machine.stack32(0).into() } else { machine.cpu.regs.rip };
        assert_eq!(back, rip);
    }
    for (index, vector) in [(-5i32, None), (9, None), (10, Some(5)), (-6, Some(5))] {
        let mut machine = Machine::protected(0, &[0x62, 0x03]); // bound eax, [ebx]
        (machine.cpu.regs[Gpr::Rax], machine.cpu.regs[Gpr::Rbx]) = (index as u32 as u64, DATA);
        machine.flat.put(DATA, &[(-5i32).to_le_bytes(), 9i32.to_le_bytes()].concat());
        machine.step();
        assert_eq!(machine.vector(), vector, "{index}");
    }
}

#[test]
fn virtual_8086_mode_is_missing() {
    let mut machine = Machine::protected(0, &[0xcf]).with(Gpr::Rsp, DATA);
    machine.flat.put_words(DATA, &[CODE | u64::from(RING3_CODE) << 32, rflags::VM]);
    assert!(matches!(machine.step(), Exit::Unimplemented { .. }));
}
