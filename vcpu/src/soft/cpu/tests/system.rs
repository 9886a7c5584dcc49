//! Control registers, tables, MSRs, segments.

use super::*;
use crate::{cr0, cr4};

fn halted(machine: &mut Machine) -> bool {
    machine.run() == Exit::Halt && (CODE..DATA).contains(&machine.cpu.regs.rip)
}

#[test]
fn halt_stops_behind_itself() {
    let mut machine = Machine::new(0, &[0xf4]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, CODE + 1);
}

#[test]
fn privileged_instructions_fault_in_ring_3() {
    let codes: [&[u8]; 10] = [
        &[0xf4],             // hlt
        &[0x0f, 0x20, 0xd8], // mov rax, cr3
        &[0x0f, 0x22, 0xd8], // mov cr3, rax
        &[0x0f, 0x01, 0x10], // lgdt [rax]
        &[0x0f, 0x00, 0xd8], // ltr ax
        &[0x0f, 0x01, 0x38], // invlpg [rax]
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x01, 0xf8], // swapgs
        &[0x0f, 0x09],       // wbinvd
    ];
    for code in codes {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, DATA);
        machine.step();
        assert_eq!((machine.vector(), machine.stack(0)), (Some(13), 0), "{code:02x?}");
    }
}

#[test]
fn control_registers_take_legal_values_and_translations_are_dropped() {
    const TO_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
    const TO_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
    const TO_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
    let (cr0, cr4) = (0x8001_0033, 0x620);
    for (code, value, legal) in [
        (TO_CR0, cr0 | cr0::AM, true),
        (TO_CR0, cr0 & !cr0::PG, false),
        (TO_CR0, cr0 & !cr0::PE, false),
        (TO_CR0, cr0 | cr0::NW, false),
        (TO_CR0, cr0 | cr0::NW | cr0::CD, true),
        (TO_CR0, cr0 | 1 << 32, false),
        (TO_CR3, 0x5018 | crate::cr3::LAM_U48, true),
        (TO_CR3, 0x5018, true),
        (TO_CR3, 1 << 46, false),
        (TO_CR4, cr4 | cr4::SMEP | cr4::PGE, true),
        (TO_CR4, cr4 & !cr4::PAE, false),
        (TO_CR4, cr4 | cr4::LA57, false),
        (TO_CR4, cr4 | 1 << 30, false),
    ] {
        let mut machine = Machine::new(0, code).with(Gpr::Rax, value);
        let before = machine.cpu.system;
        machine.step();
        let after = machine.cpu.system;
        if legal {
            let written = [after.cr0, after.cr3, after.cr4].contains(&value);
            assert_eq!(
                (machine.vector(), written, machine.flat.invalidated_all),
                (None, true, 1),
                "{value:#x}"
            );
        } else {
            let same = (before.cr0, before.cr3, before.cr4) == (after.cr0, after.cr3, after.cr4);
            assert_eq!(
                (machine.vector(), same, machine.flat.invalidated_all),
                (Some(13), true, 0),
                "{value:#x}"
            );
        }
    }
}

#[test]
fn invlpg_names_its_page() {
    let mut machine = Machine::new(0, &[0x0f, 0x01, 0x38]).with(Gpr::Rax, DATA + 5);
    assert!(halted(&mut machine));
    assert_eq!((machine.flat.invalidated_pages, machine.flat.invalidated_all), (vec![Gva(DATA + 5)], 0));
}

#[test]
fn msrs_keep_what_they_may_hold() {
    let write = |index: u64, value: u64| {
        // wrmsr; rdmsr
        let mut machine = Machine::new(0, &[0x0f, 0x30, 0x0f, 0x32]);
        let given = [(Gpr::Rcx, index), (Gpr::Rax, value & 0xffff_ffff), (Gpr::Rdx, value >> 32)];
        for (register, value) in given {
            machine.cpu.regs[register] = value;
        }
        halted(&mut machine).then(|| machine.cpu.regs[Gpr::Rdx] << 32 | machine.cpu.regs[Gpr::Rax])
    };
    let (efer, fs, gs, kernel_gs) = (0xc000_0080, 0xc000_0100, 0xc000_0101, 0xc000_0102);
    assert_eq!(write(efer, 0x501), Some(0x501));
    assert_eq!(write(efer, 0x001), None); // LME
    assert_eq!(write(efer, 0x8000_0500), None);
    for base in [fs, gs, kernel_gs] {
        assert_eq!(write(base, 0xffff_8000_0000_1234), Some(0xffff_8000_0000_1234));
        assert_eq!(write(base, 1 << 56), None);
    }
    assert_eq!(write(0x277, 0x0706_0504_0100_0706), Some(0x0706_0504_0100_0706));
    assert_eq!(write(0x277, 2), None);
    // The TSC goes on by one while it is written.
    assert_eq!(write(0x10, 1000), Some(1001));
    assert_eq!(write(0x12345, 0), None);
}

#[test]
fn swapgs_changes_the_base_of_gs_operands() {
    // swapgs; mov eax, gs:[0]
    let mut machine = Machine::new(0, &[0x0f, 0x01, 0xf8, 0x65, 0x8b, 0x04, 0x25, 0, 0, 0, 0]);
    machine.cpu.msrs.kernel_gs_base = DATA;
    machine.flat.put(DATA, &[0x11, 0x22, 0x33, 0x44]);
    assert!(halted(&mut machine));
    assert_eq!(machine.cpu.regs[Gpr::Rax], 0x4433_2211);
}

#[test]
fn tables_are_loaded_and_stored() {
    // lidt [rax]; sidt [rax + 16]
    let mut machine = Machine::new(0, &[0x0f, 0x01, 0x18, 0x0f, 0x01, 0x48, 0x10]).with(Gpr::Rax, DATA);
    machine.flat.put(DATA, &[0xff, 0x07, 0x00, 0x20, 0, 0, 0, 0x80, 0xff, 0xff]);
    assert!(halted(&mut machine));
    assert_eq!(machine.cpu.system.idt, DescriptorTable { base: 0xffff_8000_0000_2000, limit: 0x7ff });
    let at = |offset: u64| &machine.flat.memory[(DATA + offset) as usize..][..10];
    assert_eq!(at(0), at(16));
}

#[test]
fn ltr_marks_the_descriptor_busy() {
    const LTR: &[u8] = &[0x0f, 0x00, 0xd8];
    let mut machine = Machine::new(0, LTR).with(Gpr::Rax, TSS_SELECTOR.into());
    machine.step();
    assert_eq!((machine.vector(), machine.stack(0)), (Some(13), TSS_SELECTOR.into()));
    let mut machine = Machine::new(0, LTR).with(Gpr::Rax, TSS_SELECTOR.into());
    machine.flat.memory[GDT as usize + 0x28 + 5] = 0x89;
    machine.flat.put(GDT + 0x30, &0xffff_8000u32.to_le_bytes());
    assert!(halted(&mut machine));
    let tr = machine.cpu.system.tr;
    assert_eq!((tr.base, tr.limit, tr.kind), (0xffff_8000_0000_3000, 0x67, 0xb));
    assert_eq!(machine.flat.memory[GDT as usize + 0x28 + 5], 0x8b);
}

#[test]
fn segment_registers_load_null_and_valid_selectors() {
    let load = |ring, code: &[u8], selector: u16| {
        let mut machine = Machine::new(ring, code).with(Gpr::Rax, selector.into());
        machine.flat.memory[GDT as usize + 0x18 + 5] = 0xf2;
        machine.step();
        machine
    };
    const TO_DS: &[u8] = &[0x8e, 0xd8];
    const TO_SS: &[u8] = &[0x8e, 0xd0];
    let machine = load(3, TO_DS, RING3_DATA);
    assert_eq!((machine.cpu.system.ds, machine.vector()), (segment(RING3_DATA, 3, false), None));
    // The descriptor is marked accessed.
    assert_eq!(machine.flat.memory[GDT as usize + 0x18 + 5], 0xf3);
    assert_eq!(load(3, TO_DS, 3).cpu.system.ds, Segment { selector: 3, ..Segment::default() });
    for (ring, code, selector) in [
        (3, TO_DS, RING0_DATA),
        (3, TO_DS, 0x40),
        (3, TO_DS, RING3_DATA | 4),
        (3, TO_SS, RING0_DATA),
        (0, TO_SS, RING3_DATA),
    ] {
        let machine = load(ring, code, selector);
        assert_eq!(
            (machine.vector(), machine.stack(0)),
            (Some(13), u64::from(selector & !3)),
            "{selector:#x}"
        );
    }
    assert_eq!(load(0, TO_SS, 0).cpu.system.cpl(), 0);
    assert_eq!(load(3, TO_SS, 3).vector(), Some(13));
}

#[test]
fn cpuid_names_the_cpu_and_tells_nothing_it_lacks() {
    let cpuid = |leaf: u64| {
        let mut machine = Machine::new(3, &[0x0f, 0xa2]).with(Gpr::Rax, leaf);
        machine.step();
        [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| machine.cpu.regs[register] as u32)
    };
    let [_, b, c, d] = cpuid(0);
    assert_eq!([b, d, c].map(u32::to_le_bytes).concat(), b"memvirt soft");
    let [_, _, ecx, edx] = cpuid(1);
    // FPU, MMX, FXSR, SSE, SSE2; SSE3, AVX.
    assert_eq!((edx & (1 | 0xf << 23), ecx & (1 | 1 << 28)), (1 | 7 << 24, 0));
    assert_eq!(cpuid(0x1234), [0; 4]);
}

#[test]
fn flags_of_ring_3_keep_if_and_iopl_without_the_right_to_change_them() {
    // popfq of all ones but TF, NT
    let pop = |ring, iopl| {
        let mut machine = Machine::new(ring, &[0x9d]).with(Gpr::Rsp, DATA);
        machine.flat.put_words(DATA, &[!(rflags::TF | rflags::NT)]);
        machine.cpu.regs.rflags |= iopl;
        machine.step();
        machine.cpu.regs.rflags & (rflags::IF | rflags::IOPL | rflags::AC | rflags::RF)
    };
    assert_eq!(pop(0, 0), rflags::IF | rflags::IOPL | rflags::AC);
    assert_eq!(pop(3, 0), rflags::AC);
    assert_eq!(pop(3, rflags::IOPL), rflags::IF | rflags::IOPL | rflags::AC);
    for (code, value) in [(0xfa, 0), (0xfb, rflags::IF)] {
        let mut denied = Machine::new(3, &[code]);
        denied.step();
        assert_eq!(denied.vector(), Some(13));
        let mut allowed = Machine::new(0, &[code]);
        allowed.step();
        assert_eq!((allowed.vector(), allowed.cpu.regs.rflags & rflags::IF), (None, value));
    }
}

#[test]
fn alignment_is_checked_where_both_bits_ask_for_it() {
    let load = |ring, am, ac| {
        let mut machine = Machine::new(ring, &[0x8b, 0x08]).with(Gpr::Rax, DATA + 2); // mov ecx, [rax]
        machine.cpu.system.cr0 |= am;
        machine.cpu.regs.rflags |= ac;
        machine.step();
        machine.vector()
    };
    assert_eq!(load(3, cr0::AM, rflags::AC), Some(17));
    assert_eq!([load(0, cr0::AM, rflags::AC), load(3, 0, rflags::AC), load(3, cr0::AM, 0)], [None; 3]);
}
