//! Devices in memory: what the VMM is asked, and that nothing is asked twice.

use super::*;
use crate::MmioData;

fn read(gpa: u64, size: u8) -> Exit {
    Exit::MmioRead { gpa: Gpa(gpa), size }
}

fn write(gpa: u64, data: &[u8]) -> Exit {
    Exit::MmioWrite { gpa: Gpa(gpa), data: MmioData::new(data).unwrap() }
}

/// A machine whose code ends in `HLT` in ring 0, with `rax` at `address`.
fn machine(code: &[u8], address: u64) -> Machine {
    Machine::new(0, code).with(Gpr::Rax, address)
}

#[test]
fn a_read_is_answered_and_the_instruction_done_again() {
    let mut machine = machine(&[0x8b, 0x48, 0x04], MMIO); // mov ecx, [rax + 4]
    machine.cpu.regs[Gpr::Rcx] = u64::MAX;
    assert_eq!(machine.run(), read(MMIO + 4, 4));
    assert_eq!(
        (machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rcx], machine.cpu.retired()),
        (CODE, u64::MAX, 0)
    );
    assert_eq!(machine.answer(&[1, 2, 3, 4]), Exit::Halt);
    assert_eq!((machine.cpu.regs[Gpr::Rcx], machine.cpu.retired()), (0x0403_0201, 2));
}

#[test]
fn a_write_is_done_once() {
    let mut machine = machine(&[0x66, 0x89, 0x08], MMIO).with(Gpr::Rcx, 0xabcd); // mov [rax], cx
    assert_eq!(machine.run(), write(MMIO, &[0xcd, 0xab]));
    assert_eq!(machine.cpu.regs.rip, CODE);
    assert_eq!(machine.run(), Exit::Halt);
}

#[test]
fn a_read_modify_write_reads_then_writes() {
    let mut machine = machine(&[0x01, 0x08], MMIO).with(Gpr::Rcx, 1); // add [rax], ecx
    assert_eq!(machine.run(), read(MMIO, 4));
    assert_eq!(machine.answer(&[0xff, 0xff, 0xff, 0xff]), write(MMIO, &[0; 4]));
    // Flags come with the end of the instruction.
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED);
    assert_eq!(machine.run(), Exit::Halt);
    let flags = rflags::CF | rflags::ZF | rflags::PF | rflags::AF;
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | flags);
}

#[test]
fn an_access_across_the_edge_of_a_device_is_taken_apart() {
    // Memory, then the device.
    let mut into = machine(&[0x48, 0x8b, 0x08], MMIO - 3); // mov rcx, [rax]
    into.flat.put(MMIO - 3, &[1, 2, 3]);
    assert_eq!(into.run(), read(MMIO, 5));
    assert_eq!(into.answer(&[4, 5, 6, 7, 8]), Exit::Halt);
    assert_eq!(into.cpu.regs[Gpr::Rcx], 0x0807_0605_0403_0201);
    // The device, then memory.
    let mut out = machine(&[0x48, 0x89, 0x08], BEHIND_MMIO - 2).with(Gpr::Rcx, 0x0807_0605_0403_0201);
    assert_eq!(out.run(), write(BEHIND_MMIO - 2, &[1, 2]));
    assert_eq!(out.flat.word(BEHIND_MMIO), 0);
    assert_eq!(out.run(), Exit::Halt);
    assert_eq!(out.flat.word(BEHIND_MMIO), 0x0807_0605_0403);
}

#[test]
fn a_read_modify_write_across_the_edge_adds_once() {
    let mut machine = machine(&[0x48, 0x01, 0x08], MMIO - 4).with(Gpr::Rcx, 0x0000_0001_0000_0001); // add [rax], rcx
    machine.flat.pages[READ_ONLY as usize >> 12] = Page::Memory;
    machine.flat.put(MMIO - 4, &[5, 0, 0, 0]);
    assert_eq!(machine.run(), read(MMIO, 4));
    assert_eq!(machine.answer(&[7, 0, 0, 0]), write(MMIO, &[8, 0, 0, 0]));
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.flat.memory[MMIO as usize - 4..MMIO as usize], [6, 0, 0, 0]);
}

#[test]
fn no_device_is_asked_if_the_rest_of_the_access_would_fault() {
    let mut machine = machine(&[0x48, 0x89, 0x08], BEHIND_MMIO - 2);
    machine.flat.pages[BEHIND_MMIO as usize >> 12] = Page::ReadOnly;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.regs.rip, machine.cpu.system.cr2), (handler(14) + 1, BEHIND_MMIO));
}

#[test]
fn cmps_reads_two_devices_and_movs_copies_from_one_to_another() {
    let at = |code: &[u8]| Machine::new(0, code).with(Gpr::Rsi, MMIO).with(Gpr::Rdi, MMIO);
    let mut compare = at(&[0xa6]); // cmpsb: the same address, yet two reads
    assert_eq!(compare.run(), read(MMIO, 1));
    assert_eq!(compare.answer(&[1]), read(MMIO, 1));
    assert_eq!(compare.answer(&[2]), Exit::Halt);
    assert_ne!(compare.cpu.regs.rflags & rflags::CF, 0);
    let mut copy = at(&[0xf3, 0xa4]).with(Gpr::Rcx, 2); // rep movsb
    for i in 0..2 {
        assert_eq!(copy.resume(Entry::Resume), Ok(read(MMIO + i, 1)));
        assert_eq!(copy.answer(&[7]), write(MMIO + i, &[7]));
    }
    assert_eq!(copy.run(), Exit::Halt);
    assert_eq!((copy.cpu.regs[Gpr::Rcx], copy.cpu.retired()), (0, 3));
}

#[test]
fn a_fault_after_a_device_was_read_ends_the_instruction() {
    let mut machine = Machine::new(0, &[0xa4]).with(Gpr::Rsi, MMIO).with(Gpr::Rdi, ABSENT); // movsb
    assert_eq!(machine.run(), read(MMIO, 1));
    assert_eq!(machine.answer(&[1]), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, handler(14) + 1);
}

#[test]
fn cmpxchg16b_comes_in_two_halves() {
    let mut machine = machine(&[0x48, 0x0f, 0xc7, 0x0f], 0).with(Gpr::Rdi, MMIO); // cmpxchg16b [rdi]
    assert_eq!(machine.run(), read(MMIO, 8));
    assert_eq!(machine.answer(&[0; 8]), read(MMIO + 8, 8));
    assert_eq!(machine.answer(&[1; 8]), write(MMIO, &[0; 8]));
    assert_eq!(machine.run(), write(MMIO + 8, &[1; 8]));
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs[Gpr::Rdx], 0x0101_0101_0101_0101);
}

#[test]
fn wrong_answers_are_errors_and_the_right_one_still_counts() {
    let mut machine = machine(&[0x8b, 0x08], MMIO); // mov ecx, [rax]
    assert_eq!(machine.resume(Entry::Data(vec![1])), Err(CpuError::UnexpectedData));
    assert_eq!(machine.run(), read(MMIO, 4));
    for data in [vec![], vec![1; 3], vec![1; 99]] {
        let given = data.len();
        assert_eq!(machine.resume(Entry::Data(data)), Err(CpuError::WrongLength { expected: 4, given }));
    }
    assert_eq!(machine.resume(Entry::Resume), Err(CpuError::WrongLength { expected: 4, given: 0 }));
    assert_eq!(machine.answer(&[1, 0, 0, 0]), Exit::Halt);
    assert_eq!(machine.cpu.regs[Gpr::Rcx], 1);
}

#[test]
fn registers_changed_while_a_device_is_asked_start_the_instruction_anew() {
    let mut machine = machine(&[0x8b, 0x08], MMIO); // mov ecx, [rax]
    assert_eq!(machine.run(), read(MMIO, 4));
    machine.cpu.regs[Gpr::Rax] = MMIO + 8;
    assert_eq!(machine.answer(&[1, 0, 0, 0]), read(MMIO + 8, 4));
    assert_eq!(machine.answer(&[2, 0, 0, 0]), Exit::Halt);
    assert_eq!(machine.cpu.regs[Gpr::Rcx], 2);
}

#[test]
fn code_or_tables_in_a_device_are_an_internal_error() {
    let failed = Exit::InternalError { suberror: 1 };
    let mut fetch = Machine::new(0, &[]);
    fetch.cpu.regs.rip = MMIO;
    assert_eq!(fetch.run(), failed);
    let mut table = Machine::new(0, &[0x0f, 0x0b]);
    table.cpu.system.idt.base = MMIO;
    assert_eq!(table.run(), failed);
    assert_eq!(table.cpu.regs.rip, CODE);
}

#[test]
fn a_slot_without_a_host_page_is_a_memory_fault() {
    let mut machine = machine(&[0x8b, 0x08], DATA + 8);
    machine.flat.pages[DATA as usize >> 12] = Page::NoHost;
    assert_eq!(machine.run(), Exit::MemoryFault { gpa: Some(Gpa(DATA + 8)) });
    assert_eq!((machine.cpu.regs.rip, machine.cpu.retired()), (CODE, 0));
    machine.flat.pages[DATA as usize >> 12] = Page::Memory;
    assert_eq!(machine.run(), Exit::Halt);
}

#[test]
fn a_frame_on_a_device_is_pushed_word_by_word() {
    // enter 0, 1: RBP above the device, the frame pointer into it.
    let mut enter = Machine::new(0, &[0xc8, 0, 0, 1]).with(Gpr::Rsp, BEHIND_MMIO + 8).with(Gpr::Rbp, 0x77);
    let pointer = BEHIND_MMIO.to_le_bytes();
    assert_eq!(enter.run(), write(BEHIND_MMIO - 8, &pointer));
    assert_eq!(enter.flat.word(BEHIND_MMIO), 0x77);
    assert_eq!(enter.run(), Exit::Halt);
    let regs = &enter.cpu.regs;
    assert_eq!((regs[Gpr::Rsp], regs[Gpr::Rbp]), (BEHIND_MMIO - 8, BEHIND_MMIO));
}

#[test]
fn no_word_of_a_frame_is_pushed_if_another_would_fault() {
    let mut machine = Machine::new(0, &[0xcc]).with(Gpr::Rsp, MMIO + 16); // int3
    machine.flat.set_gate(14, 0x8e01);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.regs.rip, machine.cpu.system.cr2), (handler(14) + 1, MMIO - 24));
    // The device below the page that can't be written.
    let mut machine = Machine::new(0, &[0xcc]).with(Gpr::Rsp, BEHIND_MMIO + 16);
    machine.flat.pages[BEHIND_MMIO as usize >> 12] = Page::ReadOnly;
    machine.flat.set_gate(14, 0x8e01);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, handler(14) + 1);
}

#[test]
fn the_frame_of_an_exception_cannot_go_to_a_device() {
    let mut machine = Machine::new(0, &[0x0f, 0x0b]).with(Gpr::Rsp, BEHIND_MMIO); // ud2
    for _ in 0..2 {
        assert_eq!(machine.run(), Exit::InternalError { suberror: 1 });
        assert_eq!(machine.cpu.regs.rip, CODE);
    }
}
