//! The run loop: budgets, fetching, what is not implemented.

use super::*;
use crate::{Limit, cr0};

#[test]
fn the_budget_of_instructions_is_exact() {
    let mut machine = Machine::new(3, &[0xeb, 0xfe]); // jmp .
    for total in [0, 7, 7 + 5000] {
        let budget = Budget::time(Duration::from_secs(60)).instructions(total - machine.cpu.retired());
        let exit = machine.cpu.run(&mut machine.flat, &Entry::Resume, &budget);
        assert_eq!(exit, Ok(Exit::BudgetExceeded(Limit::Instructions)));
        assert_eq!(machine.cpu.retired(), total);
    }
    let late = Budget::time(Duration::ZERO);
    assert_eq!(
        machine.cpu.run(&mut machine.flat, &Entry::Resume, &late),
        Ok(Exit::BudgetExceeded(Limit::WallClock))
    );
}

#[test]
fn each_iteration_of_a_repeated_instruction_counts() {
    let mut machine = Machine::new(3, &[0xf3, 0xaa]).with(Gpr::Rcx, 3).with(Gpr::Rdi, DATA); // rep stosb
    for rest in [2, 1] {
        machine.step();
        assert_eq!((machine.cpu.regs[Gpr::Rcx], machine.cpu.regs.rip), (rest, CODE));
    }
    machine.step();
    assert_eq!((machine.cpu.regs[Gpr::Rcx], machine.cpu.regs.rip), (0, CODE + 2));
    assert_eq!(machine.cpu.retired(), 3);
}

#[test]
fn a_repeated_instruction_keeps_what_it_did_before_a_fault() {
    let code = [0xf3, 0xaa]; // rep stosb
    let mut machine =
        Machine::new(3, &code).with(Gpr::Rcx, 9).with(Gpr::Rdi, READ_ONLY - 2).with(Gpr::Rax, 7);
    while machine.vector().is_none() {
        machine.step();
    }
    assert_eq!(
        (machine.vector(), machine.cpu.regs[Gpr::Rcx], machine.cpu.regs[Gpr::Rdi]),
        (Some(14), 7, READ_ONLY)
    );
    assert_eq!(machine.stack(1), CODE);
}

#[test]
fn faults_without_end_are_bounded_too() {
    let mut machine = Machine::new(3, &[0x0f, 0x0b]);
    machine.flat.put(handler(6), &[0x48, 0xcf]); // iretq, to the same UD2
    assert_eq!(machine.run(), Exit::BudgetExceeded(Limit::Instructions));
    assert_eq!(machine.cpu.retired(), 500);
}

#[test]
fn the_second_page_is_fetched_only_if_needed() {
    // At the end of memory: one byte fits, three do not.
    for (code, vector) in [(&[0x90][..], None), (&[0x48], Some(14))] {
        let mut machine = Machine::new(0, &[]);
        machine.flat.put(ABSENT - 1, code);
        machine.cpu.regs.rip = ABSENT - 1;
        machine.step();
        assert_eq!(machine.vector(), vector);
        if vector.is_some() {
            assert_eq!((machine.stack(1), machine.cpu.system.cr2), (ABSENT - 1, ABSENT));
        }
    }
    let mut across = Machine::new(0, &[]);
    across.flat.put(CODE + 0xffe, &[0x48, 0xc7, 0xc0, 1, 2, 3, 4]); // mov rax, 0x4030201
    across.cpu.regs.rip = CODE + 0xffe;
    across.step();
    assert_eq!(across.cpu.regs[Gpr::Rax], 0x0403_0201);
}

#[test]
fn an_instruction_of_more_than_fifteen_bytes_is_a_protection_fault() {
    let mut machine = Machine::new(3, &[0x66; 16]);
    machine.step();
    assert_eq!(machine.vector(), Some(13));
}

#[test]
fn what_is_missing_is_named_and_nothing_changes() {
    let codes: [(&[u8], &str); 3] =
        [(&[0xf2, 0x0f, 0x58, 0xc1], "addsd"), (&[0xd9, 0xc0], "fld"), (&[0x0f, 0xfc, 0xc1], "paddb mm")];
    for (code, name) in codes {
        let mut machine = Machine::new(0, code);
        let before = machine.cpu.regs;
        match machine.run() {
            Exit::Unimplemented { rip: CODE, bytes, instruction } => {
                assert_eq!(bytes, code);
                assert!(instruction.starts_with(name), "{instruction}")
            }
            exit => panic!("{exit:?}"),
        }
        assert_eq!((machine.cpu.regs, machine.cpu.retired()), (before, 0));
    }
}

#[test]
fn what_cpuid_does_not_offer_is_an_invalid_opcode() {
    let codes: [&[u8]; 8] = [
        &[0xc5, 0xf8, 0x77],             // vzeroupper
        &[0x0f, 0xc7, 0xf0],             // rdrand eax
        &[0x0f, 0x01, 0xc1],             // vmcall
        &[0x0f, 0xae, 0x20],             // xsave [rax]
        &[0x0f, 0xaa],                   // rsm
        &[0x0f, 0x01, 0xd0],             // xgetbv
        &[0xf2, 0x0f, 0x38, 0xf0, 0xc0], // crc32 eax, al
        &[0x0f, 0x38, 0xc8, 0xc0],       // sha1nexte xmm0, xmm0
    ];
    for code in codes {
        let mut machine = Machine::new(0, code);
        machine.step();
        assert_eq!(machine.vector(), Some(6), "{code:02x?}");
    }
}

#[test]
fn floating_point_asks_cr0_first() {
    let vector = |code: &[u8], cr0: u64, cr4: u64| {
        let mut machine = Machine::new(0, code);
        machine.cpu.system.cr0 |= cr0;
        machine.cpu.system.cr4 = cr4;
        machine.step();
        machine.vector()
    };
    let (fld, movaps, wait) = (&[0xd9, 0xc0][..], &[0x0f, 0x28, 0xc1][..], &[0x9b][..]);
    assert_eq!([vector(fld, cr0::TS, 0x620), vector(fld, cr0::EM, 0x620)], [Some(7); 2]);
    assert_eq!([vector(movaps, cr0::TS, 0x620), vector(movaps, cr0::EM, 0x620)], [Some(7), Some(6)]);
    assert_eq!(vector(movaps, 0, 0x20), Some(6));
    assert_eq!([vector(wait, cr0::TS, 0x620), vector(wait, 0, 0x620)], [Some(7), None]);
}

#[test]
fn branches_to_addresses_that_are_not_canonical_fault_at_the_branch() {
    let codes: [&[u8]; 3] = [&[0xff, 0xe0], &[0xff, 0xd0], &[0xc3]]; // jmp rax; call rax; ret
    for code in codes {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, 1 << 47).with(Gpr::Rsp, DATA);
        machine.flat.put_words(DATA, &[1 << 47]);
        machine.step();
        assert_eq!((machine.vector(), machine.stack(0), machine.stack(1)), (Some(13), 0, CODE), "{code:x?}");
        assert_eq!((machine.stack(4), machine.flat.word(DATA)), (DATA, 1 << 47));
    }
}

#[test]
fn indirect_calls_go_through_memory_and_return() {
    // call [rax]; hlt; ...; at CODE + 0x20: ret 8
    let mut machine = Machine::new(0, &[0xff, 0x10]).with(Gpr::Rax, DATA);
    machine.flat.put(CODE + 0x20, &[0xc2, 0x08, 0x00]);
    machine.flat.put_words(DATA, &[CODE + 0x20]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 3, STACK + 8));
}

#[test]
fn code_that_changes_itself_is_seen() {
    // mov byte [rip], 0xf4; nop, which is now hlt
    let mut machine = Machine::new(0, &[0xc6, 0x05, 0, 0, 0, 0, 0xf4, 0x90, 0x0f, 0x0b]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, CODE + 8);
}
