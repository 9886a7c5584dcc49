//! Real mode: segments by shifting, the vector table, 16-bit operands.

use super::*;

#[test]
fn segments_are_sixteen_times_their_selectors() {
    // mov ax, 0xa00; mov ds, ax; mov [4], ax; push ax; pop es; mov bx, es:[4]; hlt
    let code =
        [0xb8, 0x00, 0x0a, 0x8e, 0xd8, 0xa3, 0x04, 0x00, 0x50, 0x07, 0x26, 0x8b, 0x1e, 0x04, 0x00, 0xf4];
    let mut machine = Machine::real(&code);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.system.ds.base, machine.cpu.system.es.selector), (0xa000, 0xa00));
    assert_eq!((machine.flat.word(0xa004) as u16, machine.cpu.regs[Gpr::Rbx]), (0xa00, 0xa00));
    assert_eq!(machine.cpu.regs[Gpr::Rsp], STACK);
}

#[test]
fn an_interrupt_takes_its_vector_from_the_table_and_iret_comes_back() {
    let mut machine = Machine::real(&[0xcd, 0x10, 0xf4]); // int 0x10; hlt
    machine.cpu.regs.rflags |= rflags::IF | rflags::CF;
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.system.cs.selector), (Some(0x10), 0));
    let frame = [machine.stack16(0), machine.stack16(1), machine.stack16(2)];
    assert_eq!(frame, [CODE as u16 + 2, 0, (rflags::FIXED | rflags::IF | rflags::CF) as u16]);
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | rflags::CF);
    machine.flat.put(handler(0x10), &[0xcf]);
    // The upper half of the flags is not in the frame.
    machine.cpu.regs.rflags |= rflags::ID;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 3, STACK));
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | rflags::IF | rflags::CF | rflags::ID);
}

#[test]
fn exceptions_push_no_error_code() {
    let mut machine = Machine::real(&[0xa1, 0xff, 0xff]); // mov ax, [0xffff]: past the limit
    machine.step();
    assert_eq!((machine.vector(), machine.stack16(0)), (Some(13), CODE as u16));
    assert_eq!(machine.cpu.regs[Gpr::Rsp], STACK - 6);
    // push bp across the end of the stack: #SS, whose frame does not fit either.
    assert_eq!(Machine::real(&[0x55]).with(Gpr::Rsp, 1).step(), Exit::Shutdown);
}

#[test]
fn a_table_too_short_for_the_fault_it_causes_shuts_down() {
    let mut machine = Machine::real(&[0x0f, 0x0b]);
    machine.cpu.system.idt.limit = 3;
    assert_eq!(machine.step(), Exit::Shutdown);
}

#[test]
fn the_instruction_pointer_has_sixteen_bits() {
    let mut machine = Machine::real(&[]);
    machine.flat.put(0xcff0, &[0xe9, 0x0d, 0x30]); // jmp near over the end of the segment
    machine.cpu.regs.rip = 0xcff0;
    machine.step();
    assert_eq!(machine.cpu.regs.rip, 0);
    // With an operand size of 32 bits, the target is outside.
    machine.flat.put(0xcff0, &[0x66, 0xe9, 0x0d, 0x30, 0, 0]);
    machine.cpu.regs.rip = 0xcff0;
    machine.step();
    assert_eq!(machine.vector(), Some(13));
}

#[test]
fn far_transfers_change_cs() {
    // call 0x800:0x40; hlt; there: retf 2
    let mut machine = Machine::real(&[0x9a, 0x40, 0x00, 0x00, 0x08, 0xf4]);
    machine.flat.put(CODE + 0x40, &[0xca, 0x02, 0x00]);
    machine.step();
    assert_eq!((machine.cpu.system.cs.base, machine.cpu.regs.rip), (CODE, 0x40));
    assert_eq!([machine.stack16(0), machine.stack16(1)], [CODE as u16 + 5, 0]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.cpu.system.cs.base, machine.cpu.regs[Gpr::Rsp]), (0, STACK + 2));
}

#[test]
fn string_instructions_wrap_in_sixteen_bits() {
    let mut machine = Machine::real(&[0xf3, 0xaa]); // rep stosb
    for (register, value) in [(Gpr::Rax, 7), (Gpr::Rcx, 0x1_0002), (Gpr::Rdi, 0x1_c000)] {
        machine.cpu.regs[register] = value;
    }
    machine.step();
    machine.step();
    let regs = machine.cpu.regs;
    assert_eq!((regs[Gpr::Rcx], regs[Gpr::Rdi], regs.rip), (0x1_0000, 0x1_c002, CODE + 2));
    assert_eq!(machine.flat.word(0xc000), 0x0707);
}

#[test]
fn what_works_on_descriptors_is_an_invalid_opcode() {
    let codes: [&[u8]; 6] = [
        &[0x0f, 0x00, 0xd0], // lldt ax
        &[0x0f, 0x00, 0xd8], // ltr ax
        &[0x0f, 0x00, 0xc0], // sldt ax
        &[0x0f, 0x02, 0xc0], // lar ax, ax
        &[0x0f, 0x00, 0xe0], // verr ax
        &[0x63, 0xc0],       // arpl ax, ax
    ];
    for code in codes {
        let mut machine = Machine::real(code);
        machine.step();
        assert_eq!(machine.vector(), Some(6), "{code:02x?}");
    }
}
