//! What CPUID offers beside the old instructions: BMI, ADX, keys, bases, linear-address masking.

use super::*;
use crate::{cr3, cr4};

/// The registers and flags behind one instruction in ring 0, or the vector of its exception.
fn run(code: &[u8], given: &[(Gpr, u64)]) -> Machine {
    let mut machine = Machine::new(0, code);
    for &(register, value) in given {
        machine.cpu.regs[register] = value;
    }
    machine.step();
    machine
}

#[test]
fn bmi_needs_its_bits_in_cpuid() {
    let pext = [0xc4, 0xe2, 0xe2, 0xf5, 0xc1]; // pext rax, rbx, rcx
    let andn = [0xc4, 0xe2, 0xe0, 0xf2, 0xc1]; // andn rax, rbx, rcx
    let blsi = [0xc4, 0xe2, 0xf8, 0xf3, 0xd9]; // blsi rax, rcx
    let given = [(Gpr::Rbx, 0x1234_5678), (Gpr::Rcx, 0xff00_0f00)];
    assert_eq!(run(&pext, &given).cpu.regs[Gpr::Rax], 0x126);
    assert_eq!(run(&andn, &given).cpu.regs[Gpr::Rax], !0x1234_5678 & 0xff00_0f00);
    assert_eq!(run(&blsi, &given).cpu.regs[Gpr::Rax], 0x100);
    for code in [pext, andn, blsi] {
        let mut machine = Machine::new(0, &code);
        machine.cpu.cpuid.set(7, 0, [0; 4]);
        machine.step();
        assert_eq!(machine.vector(), Some(6));
    }
    // Real mode has no VEX.
    let mut real = Machine::real(&andn);
    real.step();
    assert_eq!(real.vector(), Some(6));
}

#[test]
fn lzcnt_without_its_bit_is_bsr() {
    let mut machine = Machine::new(0, &[0xf3, 0x48, 0x0f, 0xbd, 0xc1]).with(Gpr::Rcx, 0x100);
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax], 55);
    machine.cpu.cpuid.set(0x8000_0001, 0, [0; 4]);
    machine.cpu.regs.rip = CODE;
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax], 8);
}

#[test]
fn crc32_is_castagnoli_s() {
    let mut crc = u64::from(u32::MAX);
    for byte in *b"123456789" {
        let mut machine = Machine::new(0, &[0xf2, 0x0f, 0x38, 0xf0, 0xc1]); // crc32 eax, cl
        machine.cpu.cpuid.set(1, 0, [0, 0, 1 << 20, 0]);
        (machine.cpu.regs[Gpr::Rax], machine.cpu.regs[Gpr::Rcx]) = (crc, byte.into());
        machine.step();
        crc = machine.cpu.regs[Gpr::Rax];
    }
    assert_eq!(!crc as u32, 0xe306_9283);
}

#[test]
fn bases_of_fs_and_gs_are_registers_of_programs_too() {
    let wrfsbase = [0xf3, 0x48, 0x0f, 0xae, 0xd0]; // wrfsbase rax
    let rdfsbase = [0xf3, 0x48, 0x0f, 0xae, 0xc0]; // rdfsbase rax
    let step = |code: &[u8], value, cr4: u64| {
        let mut machine = Machine::new(3, code).with(Gpr::Rax, value);
        machine.cpu.system.cr4 |= cr4;
        machine.cpu.system.fs.base = 0x77;
        machine.step();
        (machine.vector(), machine.cpu.system.fs.base, machine.cpu.regs[Gpr::Rax])
    };
    assert_eq!(step(&wrfsbase, DATA, cr4::FSGSBASE), (None, DATA, DATA));
    assert_eq!(step(&rdfsbase, 0, cr4::FSGSBASE), (None, 0x77, 0x77));
    // Bases may have as many bits as CR4.LA57 could allow.
    assert_eq!(step(&wrfsbase, 1 << 47, cr4::FSGSBASE), (None, 1 << 47, 1 << 47));
    assert_eq!(step(&wrfsbase, 1 << 56, cr4::FSGSBASE).0, Some(13));
    assert_eq!(step(&wrfsbase, DATA, 0).0, Some(6));
}

#[test]
fn keys_reach_the_paging_of_every_access() {
    let wrpkru = [0x0f, 0x01, 0xef];
    let mut machine = Machine::new(3, &wrpkru).with(Gpr::Rax, 0xc);
    machine.cpu.system.cr4 |= cr4::PKE;
    machine.step();
    assert_eq!((machine.cpu.paging().keys.pkru, machine.flat.invalidated_all), (0xc, 1));
    machine.flat.put(CODE + 3, &[0x0f, 0x01, 0xee]); // rdpkru
    machine.cpu.regs[Gpr::Rax] = 0;
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rax], 0xc);
    for (rdx, cr4, vector) in [(1, cr4::PKE, 13), (0, 0, 6)] {
        let mut machine = Machine::new(3, &wrpkru).with(Gpr::Rdx, rdx);
        machine.cpu.system.cr4 |= cr4;
        machine.step();
        assert_eq!(machine.vector(), Some(vector));
    }
    let mut pkrs = Machine::new(0, &[0x0f, 0x30]).with(Gpr::Rcx, 0x6e1).with(Gpr::Rax, 0x30); // wrmsr
    pkrs.step();
    assert_eq!((pkrs.cpu.paging().keys.pkrs, pkrs.flat.invalidated_all), (0x30, 1));
}

#[test]
fn umip_keeps_tables_from_programs() {
    let codes: [&[u8]; 5] = [
        &[0x0f, 0x01, 0x00], // sgdt [rax]
        &[0x0f, 0x01, 0x08], // sidt [rax]
        &[0x0f, 0x00, 0xc0], // sldt eax
        &[0x0f, 0x00, 0xc8], // str eax
        &[0x0f, 0x01, 0xe0], // smsw eax
    ];
    for code in codes {
        for (ring, cr4, vector) in [(3, cr4::UMIP, Some(13)), (0, cr4::UMIP, None), (3, 0, None)] {
            let mut machine = Machine::new(ring, code).with(Gpr::Rax, DATA);
            machine.cpu.system.cr4 |= cr4;
            machine.step();
            assert_eq!(machine.vector(), vector, "{code:02x?}");
        }
    }
}

#[test]
fn metadata_in_addresses_is_masked_where_it_is_asked_for() {
    const LOAD: &[u8] = &[0x8b, 0x08]; // mov ecx, [rax]
    let load = |address: u64, cr3: u64, cr4: u64| {
        let mut machine = Machine::new(0, LOAD).with(Gpr::Rax, address);
        machine.cpu.system.cr3 |= cr3;
        machine.cpu.system.cr4 |= cr4;
        machine.flat.put(DATA, &[1, 2, 3, 4]);
        machine.step();
        machine.vector()
    };
    let (in_48, in_57) = (DATA | 0x7fff << 48, DATA | 0x3f << 57);
    assert_eq!(load(in_48, 0, 0), Some(13));
    assert_eq!([load(in_48, cr3::LAM_U48, 0), load(in_57, cr3::LAM_U48, 0)], [None; 2]);
    assert_eq!([load(in_57, cr3::LAM_U57, 0), load(in_48, cr3::LAM_U57, 0)], [None, Some(13)]);
    // Bit 63 is never metadata: a user mask does not touch the upper half.
    assert_eq!(load(DATA | 1 << 63, cr3::LAM_U48, 0), Some(13));
    // Nor does the sign of what is left make a user address one of the upper half.
    assert_eq!(load(1 << 47, cr3::LAM_U48, 0), Some(13));
    // The upper half of this memory is not there, but its address is right.
    let upper = 0xffff_8000_0000_0000 & !(0x7 << 60) | 1 << 63;
    assert_eq!([load(upper, 0, 0), load(upper, 0, cr4::LAM_SUP)], [Some(13), Some(14)]);
    // A pointer to code has none.
    let mut jump = Machine::new(0, &[0xff, 0xe0]).with(Gpr::Rax, in_48);
    jump.cpu.system.cr3 |= cr3::LAM_U48;
    jump.step();
    assert_eq!(jump.vector(), Some(13));
}

#[test]
fn invpcid_checks_its_descriptor() {
    let invpcid = |kind: u64, words: [u64; 2], cr4: u64| {
        let mut machine = Machine::new(0, &[0x66, 0x0f, 0x38, 0x82, 0x08]); // invpcid rcx, [rax]
        (machine.cpu.regs[Gpr::Rax], machine.cpu.regs[Gpr::Rcx]) = (DATA, kind);
        machine.cpu.system.cr4 |= cr4;
        machine.cpu.system.cr3 |= if cr4 == 0 { 0 } else { 5 };
        machine.flat.put_words(DATA, &words);
        machine.step();
        let flushed = (machine.flat.invalidated_pages.len(), machine.flat.invalidated_all);
        machine.vector().map_or(Ok(flushed), Err)
    };
    assert_eq!(invpcid(0, [5, DATA], cr4::PCIDE), Ok((1, 0)));
    assert_eq!(invpcid(0, [0, DATA], 0), Ok((1, 0)));
    assert_eq!(invpcid(2, [0, 0], 0), Ok((0, 1)));
    assert_eq!(invpcid(0, [0, 1 << 56], 0), Err(13));
    assert_eq!(invpcid(1, [7, 0], 0), Err(13));
    assert_eq!(invpcid(1, [1 << 12, 0], cr4::PCIDE), Err(13));
    assert_eq!(invpcid(4, [0, 0], 0), Err(13));
}

#[test]
fn rdtscp_and_rdpid_tell_tsc_aux() {
    let mut machine = Machine::new(3, &[0x0f, 0x01, 0xf9, 0xf3, 0x0f, 0xc7, 0xfb]); // rdtscp; rdpid rbx
    machine.cpu.msrs.tsc_aux = 0x55;
    machine.step();
    machine.step();
    assert_eq!((machine.cpu.regs[Gpr::Rcx], machine.cpu.regs[Gpr::Rbx]), (0x55, 0x55));
    let mut tsd = Machine::new(3, &[0x0f, 0x01, 0xf9]);
    tsd.cpu.system.cr4 |= cr4::TSD;
    tsd.step();
    assert_eq!(tsd.vector(), Some(13));
}

#[test]
fn xcr0_is_there_if_cpuid_has_xsave() {
    let mut machine = Machine::new(0, &[0x0f, 0x22, 0xe3, 0x0f, 0x01, 0xd1, 0x0f, 0x01, 0xd0]); // mov cr4, rbx; xsetbv; xgetbv
    machine.cpu.cpuid.set(1, 0, [0x600, 0, 1 << 26, 1 << 6]);
    machine.cpu.cpuid.set(0xd, 0, [3, 0, 0, 0]);
    for (register, value) in [(Gpr::Rbx, cr4::PAE | cr4::OSXSAVE), (Gpr::Rax, 3)] {
        machine.cpu.regs[register] = value;
    }
    machine.step();
    machine.step();
    machine.cpu.regs[Gpr::Rax] = 0;
    machine.step();
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rax]), (None, 3));
    assert_eq!(machine.cpu.cpuid.execute(1, 0, &machine.cpu.system)[2] >> 27 & 1, 1);
    machine.cpu.regs.rip = CODE + 3;
    machine.cpu.regs[Gpr::Rax] = 4;
    machine.step();
    assert_eq!(machine.vector(), Some(13));
}

#[test]
fn monitor_and_mwait_do_not_wait() {
    let monitor_mwait = [0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9, 0xf4];
    let mut machine = Machine::new(0, &monitor_mwait).with(Gpr::Rax, DATA);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.regs.rip, CODE + 7);
    let mut ring3 = Machine::new(3, &monitor_mwait);
    ring3.step();
    assert_eq!(ring3.vector(), Some(6));
}

#[test]
fn the_table_of_cpuid_can_be_set() {
    let mut machine = Machine::new(3, &[0x0f, 0xa2]).with(Gpr::Rax, 0x4000_0000).with(Gpr::Rcx, 9);
    machine.cpu.cpuid.set(0x4000_0000, 0, [1, 2, 3, 4]);
    machine.step();
    assert_eq!(
        [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| machine.cpu.regs[register]),
        [1, 2, 3, 4]
    );
    assert_eq!(machine.cpu.cpuid.get(7, 9), [0; 4]);
}

#[test]
fn the_x87_is_there_as_far_as_programs_probe_it() {
    // fninit; fnstcw [rax]; fnstsw [rax + 2]; fnstsw ax
    let mut machine =
        Machine::new(3, &[0xdb, 0xe3, 0xd9, 0x38, 0xdd, 0x78, 0x02, 0xdf, 0xe0]).with(Gpr::Rax, DATA);
    machine.flat.put_words(DATA, &[u64::MAX]);
    for _ in 0..4 {
        machine.step();
    }
    assert_eq!((machine.flat.word(DATA) as u32, machine.cpu.regs[Gpr::Rax]), (0x37f, DATA & !0xffff));
}
