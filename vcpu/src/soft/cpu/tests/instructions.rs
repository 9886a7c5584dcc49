//! Corners of single instructions. The bulk is compared with a real processor in `tests/soft_vs_kvm`.

use super::*;

/// Runs one instruction in ring 3 with these registers.
fn after(code: &[u8], registers: &[(Gpr, u64)], prepare: impl Fn(&mut Machine)) -> Machine {
    let mut machine = Machine::new(3, code);
    for &(register, value) in registers {
        machine.cpu.regs[register] = value;
    }
    prepare(&mut machine);
    machine.step();
    assert_eq!(machine.vector(), None, "{code:02x?}");
    machine
}

#[test]
fn pop_computes_its_destination_with_the_new_stack_pointer() {
    // pop [rsp + 8]
    let machine =
        after(&[0x8f, 0x44, 0x24, 0x08], &[(Gpr::Rsp, DATA)], |machine| machine.flat.put_words(DATA, &[7]));
    assert_eq!((machine.flat.word(DATA + 16), machine.cpu.regs[Gpr::Rsp]), (7, DATA + 8));
    let popped = after(&[0x5c], &[(Gpr::Rsp, DATA)], |machine| machine.flat.put_words(DATA, &[0x77])); // pop rsp
    assert_eq!(popped.cpu.regs[Gpr::Rsp], 0x77);
    let pushed = after(&[0x54], &[(Gpr::Rsp, DATA + 8)], |_| ()); // push rsp
    assert_eq!(pushed.flat.word(DATA), DATA + 8);
}

#[test]
fn inc_and_dec_keep_the_carry() {
    for code in [[0xff, 0xc0], [0xff, 0xc8]] {
        let machine = after(&code, &[(Gpr::Rax, 5)], |machine| machine.cpu.regs.rflags |= rflags::CF);
        assert_ne!(machine.cpu.regs.rflags & rflags::CF, 0);
    }
}

#[test]
fn a_bit_offset_reaches_down_from_the_operand() {
    // bts dword [rax], ecx with -1: the top bit of the dword below
    let machine = after(&[0x0f, 0xab, 0x08], &[(Gpr::Rax, DATA + 8), (Gpr::Rcx, u64::MAX)], |_| ());
    assert_eq!(machine.flat.word(DATA), 1 << 63);
}

#[test]
fn a_cmpxchg_that_fails_leaves_the_upper_half_of_its_register() {
    let machine = after(&[0x0f, 0xb1, 0xcb], &[(Gpr::Rax, u64::MAX), (Gpr::Rbx, 5 << 32 | 1)], |_| ());
    assert_eq!((machine.cpu.regs[Gpr::Rax], machine.cpu.regs[Gpr::Rbx]), (1, 5 << 32 | 1));
}

#[test]
fn writes_to_parts_of_registers() {
    let start = [(Gpr::Rax, 0x1122_3344_5566_7788), (Gpr::Rcx, 0xaaaa_bbbb_cccc_ddee)];
    for (code, expected) in [
        (&[0x88, 0xc8][..], 0x1122_3344_5566_77ee), // mov al, cl
        (&[0x88, 0xcc], 0x1122_3344_5566_ee88),     // mov ah, cl
        (&[0x66, 0x89, 0xc8], 0x1122_3344_5566_ddee),
        (&[0x89, 0xc8], 0xcccc_ddee),
    ] {
        assert_eq!(after(code, &start, |_| ()).cpu.regs[Gpr::Rax], expected, "{code:02x?}");
    }
}

#[test]
fn a_read_modify_write_faults_as_a_write() {
    for code in [&[0x01, 0x08][..], &[0x0f, 0xb1, 0x08], &[0x87, 0x08], &[0xd1, 0x20], &[0x0f, 0xab, 0x08]] {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, READ_ONLY);
        machine.step();
        assert_eq!((machine.vector(), machine.stack(0)), (Some(14), 7), "{code:02x?}");
    }
}
