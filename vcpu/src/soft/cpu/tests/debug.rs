//! Debug registers, breakpoints and single steps.

use super::*;
use crate::cr4;
use crate::soft::cpu::debug::{dr6, dr7};

/// DR7 with breakpoint 0 on, for a condition and a length as they are encoded.
fn enable(condition: u64, length: u64) -> u64 {
    dr7::FIXED | 1 | condition << 16 | length << 18
}

fn watching(code: &[u8], address: u64, control: u64) -> Machine {
    let mut machine = Machine::new(0, code).with(Gpr::Rax, DATA);
    machine.cpu.debug.address[0] = address;
    machine.cpu.debug.dr7 = control;
    machine
}

#[test]
fn a_breakpoint_on_code_comes_before_it_and_rf_holds_it_back() {
    let mut machine = watching(&[0x90, 0x90, 0xf4], CODE + 1, enable(0, 0));
    machine.step();
    assert_eq!(machine.cpu.regs.rip, CODE + 1);
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(1), CODE + 1));
    assert_eq!((machine.cpu.debug.dr6, machine.stack(2) & rflags::RF), (dr6::FIXED | 1, 0));
    assert_eq!(machine.cpu.retired(), 1);
    // The handler sets RF in the frame: or dword [rsp + 18], 1; iretq
    machine.flat.put(handler(1), &[0x83, 0x4c, 0x24, 0x12, 0x01, 0x48, 0xcf]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, CODE + 3);
}

#[test]
fn a_breakpoint_on_data_comes_behind_the_access() {
    let store = &[0x89, 0x08][..]; // mov [rax], ecx
    let load = &[0x8b, 0x08][..];
    for (code, address, control, hit) in [
        (store, DATA, enable(1, 0), true),
        (load, DATA, enable(1, 0), false),
        (store, DATA, enable(3, 0), true),
        (load, DATA, enable(3, 0), true),
        (load, DATA + 3, enable(3, 0), true),
        (load, DATA + 4, enable(3, 0), false),
        // Lengths are aligned: 4 bytes at DATA - 1 are those at DATA - 4, 8 are those at DATA - 8.
        (load, DATA - 1, enable(3, 3), false),
        (load, DATA + 7, enable(3, 2), true),
        (load, DATA, dr7::FIXED | 3 << 16, false),
        (load, DATA, enable(2, 0), false),
    ] {
        let mut machine = watching(code, address, control);
        machine.step();
        assert_eq!(machine.vector() == Some(1), hit, "{address:#x} {control:#x}");
        if hit {
            assert_eq!((machine.stack(0), machine.cpu.debug.dr6), (CODE + 2, dr6::FIXED | 1));
            assert_eq!(machine.cpu.retired(), 1);
        }
    }
}

#[test]
fn a_breakpoint_on_a_port_needs_de() {
    for (control, hit) in [(0, false), (cr4::DE, true)] {
        let mut machine = watching(&[0xe6, 0x80], 0x80, enable(2, 0)); // out 0x80, al
        machine.cpu.system.cr4 |= control;
        assert!(matches!(machine.step(), Exit::IoOut { port: 0x80, .. }));
        assert_eq!(machine.vector() == Some(1), hit);
    }
}

#[test]
fn each_iteration_of_a_repeated_instruction_may_hit() {
    let mut machine = watching(&[0xf3, 0xaa], DATA + 1, enable(1, 0)).with(Gpr::Rdi, DATA).with(Gpr::Rcx, 3);
    machine.step();
    assert_eq!(machine.vector(), None);
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0), machine.cpu.regs[Gpr::Rcx]), (Some(1), CODE, 1));
}

#[test]
fn general_detect_guards_the_registers() {
    let mut machine = watching(&[0x0f, 0x21, 0xf8], 0, dr7::FIXED | dr7::GD); // mov rax, dr7
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(1), CODE));
    assert_eq!((machine.cpu.debug.dr6, machine.cpu.debug.dr7), (dr6::FIXED | dr6::BD, dr7::FIXED));
}

#[test]
fn the_registers_keep_what_they_may_hold() {
    let set = |code: &[u8], value: u64, cr4: u64| {
        let mut machine = Machine::new(0, code).with(Gpr::Rax, value);
        machine.cpu.system.cr4 |= cr4;
        machine.step();
        (machine.vector(), machine.cpu.debug.clone())
    };
    let (dr0, dr4, dr6, dr7) =
        ([0x0f, 0x23, 0xc0], [0x0f, 0x23, 0xe0], [0x0f, 0x23, 0xf0], [0x0f, 0x23, 0xf8]);
    assert_eq!(set(&dr0, 1 << 60, 0).1.address[0], 1 << 60);
    assert_eq!(set(&dr6, 0xffff_ffff, 0).1.dr6, 0xffff_eff0 & !0x1000 | 0xe00f);
    assert_eq!(set(&dr7, 0, 0).1.dr7, dr7::FIXED);
    assert_eq!([set(&dr6, 1 << 32, 0).0, set(&dr7, 1 << 32, 0).0], [Some(13); 2]);
    assert_eq!(set(&dr4, 1, 0).1.dr6 & 0xf, 1);
    assert_eq!(set(&dr4, 1, cr4::DE).0, Some(6));
    let mut ring3 = Machine::new(3, &dr0);
    ring3.step();
    assert_eq!(ring3.vector(), Some(13));
}

#[test]
fn no_trap_comes_between_a_load_of_ss_and_the_next_instruction() {
    let mut machine = Machine::new(0, &[0x8e, 0xd0, 0x90]).with(Gpr::Rax, RING0_DATA.into()); // mov ss, ax; nop
    machine.cpu.regs.rflags |= rflags::TF;
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs.rip), (None, CODE + 2));
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(1), CODE + 3));
    assert_eq!(machine.cpu.debug.dr6, dr6::FIXED | dr6::BS);
}

#[test]
fn breakpoints_of_a_load_of_ss_come_behind_the_next_instruction() {
    // mov ss, [rax]; then nop, int 3, or icebp
    for (next, first, second) in [(0x90, Some(1), None), (0xcc, Some(1), Some(3)), (0xf1, Some(1), None)] {
        let mut machine = watching(&[0x8e, 0x10, next], DATA, enable(3, 0));
        machine.flat.put(DATA, &RING0_DATA.to_le_bytes());
        machine.step();
        assert_eq!(machine.vector(), None);
        machine.step();
        assert_eq!(machine.vector(), first, "{next:#x}");
        let interrupted = (0..32).find(|&vector| handler(vector) == machine.stack(0));
        assert_eq!(interrupted, second, "{next:#x}");
    }
}

#[test]
fn a_breakpoint_on_the_instruction_behind_a_load_of_ss_is_none() {
    // mov ss, ax; nop; nop
    for (address, steps, hit) in [(CODE + 2, 2, None), (CODE + 3, 3, Some(1))] {
        let mut machine =
            watching(&[0x8e, 0xd0, 0x90, 0x90], address, enable(0, 0)).with(Gpr::Rax, RING0_DATA.into());
        (0..steps).for_each(|_| drop(machine.step()));
        assert_eq!(machine.vector(), hit, "{address:#x}");
    }
}
