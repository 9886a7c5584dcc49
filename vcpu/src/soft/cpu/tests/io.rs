//! Ports.

use super::*;

#[test]
fn out_is_over_when_the_vmm_hears_of_it() {
    for (code, size, data) in [
        (&[0xee][..], 1, vec![0x44]),
        (&[0x66, 0xef], 2, vec![0x44, 0x33]),
        (&[0xef], 4, vec![0x44, 0x33, 0x22, 0x11]),
    ] {
        let mut machine = Machine::new(0, code).with(Gpr::Rax, 0x1122_3344).with(Gpr::Rdx, 0xffff_03f8);
        assert_eq!(machine.run(), Exit::IoOut { port: 0x3f8, size, data });
        assert_eq!((machine.cpu.regs.rip, machine.cpu.retired()), (CODE + code.len() as u64, 1));
        assert_eq!(machine.run(), Exit::Halt);
    }
}

#[test]
fn in_is_over_when_the_vmm_has_answered() {
    let mut machine = Machine::new(0, &[0xe5, 0x60]).with(Gpr::Rax, u64::MAX); // in eax, 0x60
    assert_eq!(machine.run(), Exit::IoIn { port: 0x60, size: 4, count: 1 });
    assert_eq!((machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rax]), (CODE, u64::MAX));
    assert_eq!(machine.answer(&[1, 2, 3, 4]), Exit::Halt);
    assert_eq!(machine.cpu.regs[Gpr::Rax], 0x0403_0201);
}

#[test]
fn string_io_goes_element_by_element() {
    let mut out = Machine::new(0, &[0xf3, 0x6e]).with(Gpr::Rcx, 2).with(Gpr::Rsi, DATA).with(Gpr::Rdx, 0x80);
    out.flat.put(DATA, &[7, 8]);
    assert_eq!(out.run(), Exit::IoOut { port: 0x80, size: 1, data: vec![7] });
    assert_eq!(out.cpu.regs.rip, CODE);
    assert_eq!(out.run(), Exit::IoOut { port: 0x80, size: 1, data: vec![8] });
    assert_eq!(out.cpu.regs.rip, CODE + 2);
    let mut input =
        Machine::new(0, &[0xf3, 0x66, 0x6d]).with(Gpr::Rcx, 2).with(Gpr::Rdi, DATA).with(Gpr::Rdx, 0x80);
    let asked = Exit::IoIn { port: 0x80, size: 2, count: 1 };
    assert_eq!(input.run(), asked);
    assert_eq!(input.answer(&[1, 2]), asked);
    assert_eq!(input.answer(&[3, 4]), Exit::Halt);
    assert_eq!((input.flat.word(DATA), input.cpu.regs[Gpr::Rdi]), (0x0403_0201, DATA + 4));
}

#[test]
fn ins_asks_no_port_if_its_destination_faults() {
    let mut machine = Machine::new(0, &[0x6c]).with(Gpr::Rdi, READ_ONLY);
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(14), 3));
}

#[test]
fn ring_3_needs_iopl_or_the_bitmap() {
    let out = |prepare: &dyn Fn(&mut Machine)| {
        let mut machine = Machine::new(3, &[0x66, 0xef]).with(Gpr::Rdx, 0x47); // out dx, ax: ports 0x47 and 0x48
        prepare(&mut machine);
        let allowed = matches!(machine.step(), Exit::IoOut { .. });
        assert_eq!((allowed, machine.vector()), (allowed, if allowed { None } else { Some(13) }));
        allowed
    };
    let bitmap = |machine: &mut Machine, bytes: &[u8]| {
        machine.flat.put(TSS + 0x66, &0x68u16.to_le_bytes());
        machine.flat.put(TSS + 0x68, bytes);
        machine.cpu.system.tr.limit = 0x67 + bytes.len() as u32;
    };
    assert!(!out(&|_| ()));
    assert!(out(&|machine| machine.cpu.regs.rflags |= rflags::IOPL));
    assert!(out(&|machine| bitmap(machine, &[0; 16])));
    assert!(!out(&|machine| bitmap(machine, &[0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0])));
    assert!(!out(&|machine| bitmap(machine, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])));
    // The second of the two bytes lies past the limit.
    assert!(!out(&|machine| bitmap(machine, &[0; 9])));
}
