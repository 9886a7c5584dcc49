//! Instructions that 64-bit mode does not have, or that look different in 16- and 32-bit code.

use super::legacy::*;
use super::*;

/// EAX and flags behind one instruction of 32-bit code.
fn with_eax(code: &[u8], eax: u64, flags: u64) -> (u64, u64) {
    let mut machine = Machine::protected(3, code).with(Gpr::Rax, eax);
    machine.cpu.regs.rflags |= flags;
    machine.step();
    assert_eq!(machine.vector(), None);
    (machine.cpu.regs[Gpr::Rax], machine.cpu.regs.rflags & !rflags::FIXED)
}

#[test]
fn decimal_digits() {
    let carry = rflags::CF | rflags::AF;
    let (add, subtract) = (|code| with_eax(code, 0x9b, 0), |code| with_eax(code, 0x39, carry));
    // DAA: 0x9b is 101; DAS: 0x39 less a borrow from both digits.
    assert_eq!(add(&[0x27]), (0x01, carry));
    assert_eq!(subtract(&[0x2f]).0, 0xd3);
    // The low digit's borrow alone sets CF.
    assert_eq!(with_eax(&[0x2f], 0x03, rflags::AF), (0xfd, carry | rflags::SF));
    // AAA, AAS.
    assert_eq!(with_eax(&[0x37], 0x020b, 0).0, 0x0301);
    assert_eq!(with_eax(&[0x37], 0x0209, 0), (0x0209, rflags::PF));
    assert_eq!(with_eax(&[0x3f], 0x020b, 0).0, 0x0105);
    // AAM, AAD.
    assert_eq!(with_eax(&[0xd4, 0x0a], 0x63, 0).0, 0x0909);
    assert_eq!(with_eax(&[0xd5, 0x0a], 0x0909, 0).0, 0x63);
    let mut zero = Machine::protected(3, &[0xd4, 0x00]);
    zero.step();
    assert_eq!(zero.vector(), Some(0));
}

#[test]
fn all_registers_at_once() {
    let mut machine = Machine::protected(0, &[0x60, 0x61]); // pushad; popad
    for (index, register) in machine.cpu.regs.gpr.iter_mut().enumerate().take(8) {
        *register = if index == Gpr::Rsp as usize { STACK } else { 0x1111_1111 * index as u64 };
    }
    let before = machine.cpu.regs;
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rsp], STACK - 32);
    let pushed = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| machine.stack32(i));
    assert_eq!([pushed[7], pushed[3], pushed[0]], [0, STACK as u32, 0x7777_7777]);
    machine.cpu.regs.gpr[..4].fill(0);
    // The word of the stack pointer is passed over.
    machine.flat.put(STACK - 20, &[0; 4]);
    machine.step();
    assert_eq!(machine.cpu.regs.gpr, before.gpr);
    // 16-bit forms.
    let mut words = Machine::protected(0, &[0x66, 0x60]);
    words.step();
    assert_eq!(words.cpu.regs[Gpr::Rsp], STACK - 16);
}

#[test]
fn enter_nests_frames() {
    // enter 16, 2, with the outer frame's pointer below EBP
    let mut machine = Machine::protected(0, &[0xc8, 0x10, 0x00, 0x02]).with(Gpr::Rbp, DATA + 0x100);
    machine.flat.put(DATA + 0xfc, &0x55u32.to_le_bytes());
    machine.step();
    let frame = STACK - 4;
    assert_eq!((machine.cpu.regs[Gpr::Rbp], machine.cpu.regs[Gpr::Rsp]), (frame, frame - 8 - 16));
    let words = [0, 1, 2].map(|i| machine.flat.word(frame - 4 * i) as u32);
    assert_eq!(words, [DATA as u32 + 0x100, 0x55, frame as u32]);
    machine.flat.put(CODE + 4, &[0xc9]); // leave
    machine.step();
    assert_eq!((machine.cpu.regs[Gpr::Rbp], machine.cpu.regs[Gpr::Rsp]), (DATA + 0x100, STACK));
}

#[test]
fn far_pointers_load_two_registers() {
    for (code, name) in [
        (&[0xc4, 0x03][..], "es"),
        (&[0xc5, 0x03], "ds"),
        (&[0x0f, 0xb2, 0x03], "ss"),
        (&[0x0f, 0xb4, 0x03], "fs"),
        (&[0x0f, 0xb5, 0x03], "gs"),
    ] {
        let mut machine = Machine::protected(0, code).with(Gpr::Rbx, DATA);
        machine.flat.put_words(DATA, &[u64::from(SMALL) << 32 | 0x1234_5678]);
        machine.step();
        let system = &machine.cpu.system;
        let segments =
            [("es", system.es), ("ds", system.ds), ("ss", system.ss), ("fs", system.fs), ("gs", system.gs)];
        for (other, segment) in segments {
            assert_eq!(segment.selector == SMALL, other == name, "{name} {other}");
        }
        assert_eq!(machine.cpu.regs[Gpr::Rax], 0x1234_5678);
    }
    let mut fault = Machine::protected(0, &[0xc4, 0x03]).with(Gpr::Rbx, DATA).with(Gpr::Rax, 7);
    fault.flat.put_words(DATA, &[0x88 << 32 | 0x1234_5678]);
    fault.step();
    assert_eq!((fault.fault32(), fault.cpu.regs[Gpr::Rax]), ((Some(13), 0x88), 7));
}

#[test]
fn near_branches_of_16_bits_cut_the_pointer() {
    // o16 call +2, in 32-bit code
    let mut machine = Machine::protected(0, &[0x66, 0xe8, 0x02, 0x00]);
    machine.step();
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 6, STACK - 2));
    assert_eq!(machine.stack16(0), CODE as u16 + 4);
    machine.flat.put(CODE + 6, &[0x66, 0xc3]); // o16 ret
    machine.step();
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]), (CODE + 4, STACK));
}

#[test]
fn loops_count_in_the_size_of_addresses() {
    for (code, count, left) in
        [(&[0xe2, 0x10][..], 0x1_0001, 0x1_0000), (&[0x67, 0xe2, 0x10], 0x1_0001, 0x1_0000)]
    {
        let mut machine = Machine::protected(0, code).with(Gpr::Rcx, count);
        machine.step();
        let taken = machine.cpu.regs.rip > CODE + 3;
        assert_eq!((machine.cpu.regs[Gpr::Rcx], taken), (left, code[0] == 0xe2), "{code:02x?}");
    }
    let mut jcxz = Machine::protected(0, &[0x67, 0xe3, 0x10]).with(Gpr::Rcx, 0x1_0000);
    jcxz.step();
    assert_eq!(jcxz.cpu.regs.rip, CODE + 0x13);
}

#[test]
fn addresses_of_16_bits_wrap() {
    // mov ecx, [bx + si + 2] in 32-bit code
    let mut machine = Machine::protected(0, &[0x67, 0x8b, 0x48, 0x02]);
    (machine.cpu.regs[Gpr::Rbx], machine.cpu.regs[Gpr::Rsi]) = (0x1_ffff, DATA - 1);
    machine.flat.put(DATA, &0x1122_3344u32.to_le_bytes());
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rcx], 0x1122_3344);
}

#[test]
fn tables_have_32_bits_of_base_and_the_16_bit_forms_load_24() {
    for (code, base) in [(&[0x0f, 0x01, 0x10][..], 0x1122_3344), (&[0x66, 0x0f, 0x01, 0x10], 0x22_3344)] {
        let mut machine = Machine::protected(0, code).with(Gpr::Rax, DATA); // lgdt [eax]
        machine.flat.put(DATA, &[0x37, 0x00, 0x44, 0x33, 0x22, 0x11]);
        machine.step();
        assert_eq!(machine.cpu.system.gdt, DescriptorTable { base, limit: 0x37 });
    }
    let mut store = Machine::protected(0, &[0x0f, 0x01, 0x00]).with(Gpr::Rax, DATA);
    store.flat.put_words(DATA, &[u64::MAX]);
    store.step();
    assert_eq!(store.flat.word(DATA), 0xffff_0000_1000_0087);
}

#[test]
fn flags_of_16_and_32_bits() {
    let mut machine = Machine::protected(0, &[0x9c, 0x66, 0x9d]); // pushfd; popfw
    machine.cpu.regs.rflags |= rflags::ID | rflags::CF;
    machine.step();
    assert_eq!(machine.stack32(0), (rflags::FIXED | rflags::ID | rflags::CF) as u32);
    machine.flat.put(machine.cpu.regs[Gpr::Rsp], &0xffff_0000u32.to_le_bytes());
    machine.step();
    // The upper half stays.
    assert_eq!(machine.cpu.regs.rflags, rflags::FIXED | rflags::ID);
}
