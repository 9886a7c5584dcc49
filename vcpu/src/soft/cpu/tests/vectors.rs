//! Around vectors: who may use them, alignment, faults, MXCSR and the image of all registers. What the instructions
//! make of their operands is compared with a real processor in `tests/native`.

use super::*;
use crate::{cr0, cr4};

const PADDB: [u8; 4] = [0x66, 0x0f, 0xfc, 0xc1]; // paddb xmm0, xmm1
const MOVAPS_LOAD: [u8; 3] = [0x0f, 0x28, 0x00]; // movaps xmm0, [rax]
const MOVAPS_STORE: [u8; 3] = [0x0f, 0x29, 0x00]; // movaps [rax], xmm0
const MOVUPS_STORE: [u8; 3] = [0x0f, 0x11, 0x00]; // movups [rax], xmm0
const MASKMOVDQU: [u8; 4] = [0x66, 0x0f, 0xf7, 0xc1]; // maskmovdqu xmm0, xmm1
const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x10]; // ldmxcsr [rax]
const STMXCSR: [u8; 3] = [0x0f, 0xae, 0x18]; // stmxcsr [rax]
const FXSAVE: [u8; 3] = [0x0f, 0xae, 0x00]; // fxsave [rax]
const FXRSTOR: [u8; 3] = [0x0f, 0xae, 0x08]; // fxrstor [rax]

fn vector_with(code: &[u8], prepare: impl Fn(&mut Cpu)) -> Option<u8> {
    let mut machine = Machine::new(3, code).with(Gpr::Rax, DATA);
    prepare(&mut machine.cpu);
    machine.step();
    machine.vector()
}

#[test]
fn control_registers_and_cpuid_say_who_may_use_vectors() {
    for code in [&PADDB[..], &MOVAPS_STORE, &MASKMOVDQU, &LDMXCSR, &STMXCSR] {
        assert_eq!(vector_with(code, |_| ()), None, "{code:02x?}");
        assert_eq!(vector_with(code, |cpu| cpu.system.cr0 |= cr0::EM | cr0::TS), Some(6), "{code:02x?}");
        assert_eq!(vector_with(code, |cpu| cpu.system.cr4 &= !cr4::OSFXSR), Some(6), "{code:02x?}");
        assert_eq!(vector_with(code, |cpu| cpu.system.cr0 |= cr0::TS), Some(7), "{code:02x?}");
        assert_eq!(vector_with(code, |cpu| cpu.cpuid.set(1, 0, [0; 4])), Some(6), "{code:02x?}");
    }
    for code in [FXSAVE, FXRSTOR] {
        assert_eq!(vector_with(&code, |cpu| cpu.system.cr4 &= !cr4::OSFXSR), None);
        for bit in [cr0::EM, cr0::TS] {
            assert_eq!(vector_with(&code, |cpu| cpu.system.cr0 |= bit), Some(7));
        }
        assert_eq!(vector_with(&code, |cpu| cpu.cpuid.set(1, 0, [0; 4])), Some(6));
    }
}

#[test]
fn a_vector_out_of_its_place_is_a_protection_fault_before_a_page_fault() {
    for code in [&MOVAPS_LOAD[..], &MOVAPS_STORE, &FXSAVE, &FXRSTOR] {
        for (address, vector) in
            [(DATA + 8, Some(13)), (ABSENT + 8, Some(13)), (ABSENT, Some(14)), (DATA, None)]
        {
            let mut machine = Machine::new(3, code).with(Gpr::Rax, address);
            machine.step();
            assert_eq!(machine.vector(), vector, "{code:02x?} {address:#x}");
        }
    }
    for (code, register, place) in [(&MOVUPS_STORE[..], Gpr::Rax, 16), (&MASKMOVDQU, Gpr::Rdi, 8)] {
        let aligned = |offset: u64, flags: u64| {
            vector_with(code, |cpu| {
                cpu.regs[register] = DATA + offset;
                cpu.system.cr0 |= cr0::AM;
                cpu.regs.rflags |= flags;
            })
        };
        assert_eq!(aligned(place / 2, 0), None);
        assert_eq!(aligned(place, rflags::AC), None);
        assert_eq!(aligned(place / 2, rflags::AC), Some(17));
    }
}

#[test]
fn a_store_that_faults_in_its_second_page_changes_nothing() {
    let mut across = Machine::new(3, &MOVUPS_STORE).with(Gpr::Rax, READ_ONLY - 8);
    across.cpu.xmm[0] = u128::MAX;
    across.step();
    assert_eq!((across.vector(), across.flat.word(READ_ONLY - 8)), (Some(14), 0));
    let mut masked = Machine::new(3, &MASKMOVDQU).with(Gpr::Rdi, READ_ONLY - 8);
    (masked.cpu.xmm[0], masked.cpu.xmm[1]) = (u128::MAX, 0x80 << 64 | 0x8080);
    masked.step();
    assert_eq!((masked.vector(), masked.flat.word(READ_ONLY - 8)), (Some(14), 0));
    let mut image = Machine::new(3, &FXSAVE).with(Gpr::Rax, READ_ONLY - 256);
    image.step();
    assert_eq!((image.vector(), image.flat.word(READ_ONLY - 256)), (Some(14), 0));
}

#[test]
fn a_device_is_asked_for_a_vector_in_two_parts() {
    let mut load = Machine::new(3, &MOVAPS_LOAD).with(Gpr::Rax, MMIO);
    assert_eq!(load.step(), Exit::MmioRead { gpa: Gpa(MMIO), size: 8 });
    assert_eq!(load.answer(&[0x11; 8]), Exit::MmioRead { gpa: Gpa(MMIO + 8), size: 8 });
    assert_eq!(load.answer(&[0x22; 8]), Exit::Halt);
    assert_eq!(load.cpu.xmm[0], 0x2222_2222_2222_2222_1111_1111_1111_1111);
}

#[test]
fn mxcsr_has_no_reserved_bits() {
    let mut machine = Machine::new(3, &[STMXCSR, LDMXCSR, STMXCSR, LDMXCSR].concat()).with(Gpr::Rax, DATA);
    machine.step();
    assert_eq!(machine.flat.word(DATA), 0x1f80);
    machine.flat.put_words(DATA, &[0xffc0]);
    machine.step();
    machine.flat.put_words(DATA, &[0]);
    machine.step();
    assert_eq!(machine.flat.word(DATA), 0xffc0);
    machine.flat.put_words(DATA, &[1 << 16]);
    machine.step();
    assert_eq!(machine.vector(), Some(13));
    let mut image = Machine::new(3, &FXRSTOR).with(Gpr::Rax, DATA);
    image.cpu.xmm[0] = 5;
    image.flat.put_words(DATA + 24, &[1 << 16]);
    image.step();
    assert_eq!((image.vector(), image.cpu.xmm[0]), (Some(13), 5));
}

#[test]
fn the_image_brings_every_register_back() {
    let mut machine = Machine::new(3, &[FXSAVE, FXRSTOR].concat()).with(Gpr::Rax, DATA);
    let registers = std::array::from_fn(|i| u128::MAX / (i as u128 + 1));
    machine.cpu.xmm = registers;
    machine.flat.put_words(DATA + 160 + 256, &[7]);
    machine.step();
    assert_eq!(machine.flat.word(DATA), 0x37f);
    assert_eq!(machine.flat.word(DATA + 24), 0xffff << 32 | 0x1f80);
    assert_eq!(machine.flat.word(DATA + 160 + 16), registers[1] as u64);
    assert_eq!(machine.flat.word(DATA + 160 + 256), 7);
    machine.cpu.xmm = [0; 16];
    machine.flat.put_words(DATA, &[0x27f]);
    machine.flat.put_words(DATA + 24, &[0x9fc0]);
    machine.step();
    assert_eq!(machine.cpu.xmm, registers);
    assert_eq!((machine.cpu.x87_control, machine.cpu.mxcsr), (0x27f, 0x9fc0));
}

#[test]
fn an_image_with_registers_of_the_x87_is_not_taken_for_one_without() {
    let restore = |control_status_tags: u64| {
        let mut machine = Machine::new(3, &FXRSTOR).with(Gpr::Rax, DATA);
        machine.cpu.xmm[0] = 5;
        machine.flat.put_words(DATA, &[control_status_tags]);
        let exit = machine.step();
        (matches!(exit, Exit::Unimplemented { rip: CODE, .. }), machine.cpu.xmm[0])
    };
    assert_eq!([0x37f, 1 << 16 | 0x37f, 1 << 32 | 0x37f].map(restore), [(false, 0), (true, 5), (true, 5)]);
}

#[test]
fn outside_64_bit_mode_there_are_eight_registers() {
    // fxsave [bx]; movaps xmm1, [bx + 160]
    let mut real = Machine::real(&[0x0f, 0xae, 0x07, 0x0f, 0x28, 0x8f, 160, 0]);
    real.cpu.system.cr4 |= cr4::OSFXSR;
    real.cpu.regs[Gpr::Rbx] = DATA;
    real.cpu.xmm = [u128::MAX; 16];
    real.cpu.xmm[0] = 5;
    real.step();
    assert_eq!((real.flat.word(DATA + 160 + 7 * 16), real.flat.word(DATA + 160 + 8 * 16)), (u64::MAX, 0));
    real.step();
    assert_eq!(real.cpu.xmm[1], 5);
}

#[test]
fn cr4_takes_the_bits_of_vectors_if_cpuid_has_them() {
    let set = |features: u32| {
        let mut machine = Machine::new(0, &[0x0f, 0x22, 0xe0]); // mov cr4, rax
        machine.cpu.regs[Gpr::Rax] = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        machine.cpu.cpuid.set(1, 0, [0, 0, 0, features]);
        machine.step();
        machine.vector()
    };
    let (pae, fxsr, sse) = (1 << 6, 1 << 24, 1 << 25);
    assert_eq!([pae | fxsr | sse, pae | fxsr, pae | sse].map(set), [None, Some(13), Some(13)]);
}
