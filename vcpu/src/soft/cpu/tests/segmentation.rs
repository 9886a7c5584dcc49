//! Segments in protected mode: limits, rights and privilege.

use super::legacy::*;
use super::*;

/// mov ds, ax
const TO_DS: &[u8] = &[0x8e, 0xd8];
/// mov ss, ax
const TO_SS: &[u8] = &[0x8e, 0xd0];
/// mov es, ax; mov ecx, es:[ebx]
const READ_ES: &[u8] = &[0x8e, 0xc0, 0x26, 0x8b, 0x0b];
/// mov es, ax; mov es:[ebx], ecx
const WRITE_ES: &[u8] = &[0x8e, 0xc0, 0x26, 0x89, 0x0b];

/// Two instructions with a selector in AX and an offset in EBX.
fn access(ring: u8, code: &[u8], selector: u16, offset: u64) -> Machine {
    let mut machine = Machine::protected(ring, code).with(Gpr::Rax, selector.into()).with(Gpr::Rbx, offset);
    machine.step();
    machine.step();
    machine
}

#[test]
fn limits_hold_to_the_byte() {
    for (selector, offset, vector) in [
        (SMALL, 0, None),
        (SMALL, 12, None),
        (SMALL, 13, Some(13)),
        (SMALL, 0xffff_ffff, Some(13)),
        (EXPAND_DOWN, 0xbfff, Some(13)),
        (EXPAND_DOWN, 0xc000, None),
        (EXPAND_DOWN, 0, Some(13)),
    ] {
        for code in [READ_ES, WRITE_ES] {
            let machine = access(0, code, selector, offset);
            assert_eq!(machine.vector(), vector, "{selector:#x}:{offset:#x}");
        }
    }
}

#[test]
fn rights_hold_for_reads_and_writes() {
    for (selector, read, write) in [
        (RING0_DATA, None, None),
        (READ_ONLY_DATA, None, Some(13)),
        (RING0_CODE, None, Some(13)),
        // Null: loaded, but of no use.
        (0, Some(13), Some(13)),
        (3, Some(13), Some(13)),
    ] {
        let at = DATA;
        assert_eq!(access(0, READ_ES, selector, at).vector(), read, "{selector:#x}");
        assert_eq!(access(0, WRITE_ES, selector, at).vector(), write, "{selector:#x}");
    }
}

#[test]
fn execute_only_code_is_not_data() {
    for (kind, vector) in [(0x9, Some(13)), (0xb, None)] {
        let mut machine = Machine::protected(0, &[0x2e, 0x8b, 0x0b]).with(Gpr::Rbx, DATA); // mov ecx, cs:[ebx]
        machine.cpu.system.cs.kind = kind;
        machine.step();
        assert_eq!(machine.vector(), vector);
    }
}

#[test]
fn the_stack_segment_has_its_own_exception() {
    // mov ecx, [ebp + 0] with SS the small segment
    let mut machine = Machine::protected(0, &[0x8b, 0x4d, 0x00]).with(Gpr::Rbp, 13);
    machine.cpu.system.ss = Segment { base: DATA, limit: 15, ..machine.cpu.system.ss };
    machine.cpu.system.tr.limit = 0;
    machine.set_gate32(12, 0x8e00);
    // Its frame does not fit either, nor that of the double fault.
    assert_eq!((machine.step(), machine.cpu.regs.rip), (Exit::Shutdown, CODE));
    let mut machine = Machine::protected(0, &[0x0f, 0x0b]);
    machine.cpu.system.ss.limit = STACK as u32 - 2;
    assert_eq!(machine.step(), Exit::Shutdown);
    let mut machine = Machine::protected(0, &[0x8b, 0x4d, 0x00]).with(Gpr::Rbp, 0xffff_fffe);
    machine.step();
    assert_eq!(machine.fault32(), (Some(12), 0));
}

#[test]
fn segment_registers_check_what_they_load() {
    let code = |selector: u16| u32::from(selector & !3);
    for (ring, instruction, selector, fault) in [
        (0, TO_DS, RING3_DATA, None),
        (3, TO_DS, RING0_DATA, Some((13, code(RING0_DATA)))),
        (0, TO_DS, RING0_DATA | 3, Some((13, code(RING0_DATA)))),
        (3, TO_DS, CONFORMING | 3, None),
        (0, TO_DS, EXECUTE_ONLY, Some((13, code(EXECUTE_ONLY)))),
        (0, TO_DS, ABSENT_DATA, Some((11, code(ABSENT_DATA)))),
        (0, TO_DS, TSS_SELECTOR, Some((13, code(TSS_SELECTOR)))),
        (0, TO_DS, 0x88, Some((13, 0x88))),
        (0, TO_DS, 0x04, Some((13, 0x04))),
        (0, TO_SS, READ_ONLY_DATA, Some((13, code(READ_ONLY_DATA)))),
        (0, TO_SS, ABSENT_DATA, Some((12, code(ABSENT_DATA)))),
        (0, TO_SS, 0, Some((13, 0))),
        (0, TO_SS, RING0_CODE, Some((13, code(RING0_CODE)))),
        (3, TO_SS, RING0_DATA, Some((13, code(RING0_DATA)))),
    ] {
        let mut machine = Machine::protected(ring, instruction).with(Gpr::Rax, selector.into());
        machine.step();
        match fault {
            None => assert_eq!(machine.cpu.regs.rip, CODE + 2, "{selector:#x}"),
            Some((vector, error)) => assert_eq!(machine.fault32(), (Some(vector), error), "{selector:#x}"),
        }
    }
}

#[test]
fn the_local_table_has_segments_of_its_own() {
    // lldt ax; mov es, bx; mov ecx, es:[0]
    let code = [0x0f, 0x00, 0xd0, 0x8e, 0xc3, 0x26, 0x8b, 0x0d, 0, 0, 0, 0, 0xf4];
    let mut machine = Machine::protected(0, &code).with(Gpr::Rax, LOCAL_TABLE.into()).with(Gpr::Rbx, 4);
    machine.flat.put_words(DATA, &[0x1234_5678]);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.vector(), machine.cpu.regs[Gpr::Rcx]), (None, 0x1234_5678));
    assert_eq!(machine.cpu.system.ldt.limit, 7);
    let mut wrong = Machine::protected(0, &code).with(Gpr::Rax, RING0_DATA.into());
    wrong.step();
    assert_eq!(wrong.fault32(), (Some(13), RING0_DATA.into()));
}

#[test]
fn code_ends_at_the_limit_of_cs() {
    let mut machine = Machine::protected(0, &[0x90, 0xb8, 1, 2, 3, 4]); // nop; mov eax, imm32
    machine.cpu.system.cs.limit = CODE as u32 + 4;
    machine.step();
    assert_eq!(machine.cpu.regs.rip, CODE + 1);
    machine.step();
    assert_eq!((machine.cpu.regs.rip, machine.vector()), (handler(13), Some(13)));
    assert_eq!(machine.stack32(1), CODE as u32 + 1);
}

#[test]
fn the_base_of_a_segment_is_added_and_wraps() {
    let mut machine = Machine::protected(0, &[0x64, 0x8b, 0x0b]).with(Gpr::Rbx, 0x2000); // mov ecx, fs:[ebx]
    machine.cpu.system.fs.base = DATA.wrapping_sub(0x2000) | 0xffff_0000_0000_0000;
    machine.flat.put_words(DATA, &[0x55]);
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rcx], 0x55);
    let mut machine = Machine::protected(0, &[0x64, 0x8b, 0x0b]).with(Gpr::Rbx, 0xffff_f000);
    machine.cpu.system.fs.base = DATA + 0x1000;
    machine.flat.put_words(DATA, &[0x66]);
    machine.step();
    assert_eq!(machine.cpu.regs[Gpr::Rcx], 0x66);
}

#[test]
fn the_width_of_the_stack_pointer_is_that_of_ss() {
    // mov ss, ax; push ebx
    let mut machine = Machine::protected(0, &[0x8e, 0xd0, 0x53]);
    for (register, value) in [(Gpr::Rax, STACK16.into()), (Gpr::Rbx, 0x1234_5678), (Gpr::Rsp, 0x7777_0000)] {
        machine.cpu.regs[register] = value;
    }
    machine.step();
    machine.cpu.system.ss.base = 0;
    machine.flat.pages[0xf] = Page::Memory;
    machine.step();
    // SP alone went from 0 to 0xfffc.
    assert_eq!((machine.cpu.regs[Gpr::Rsp], machine.flat.word(0xfff8) >> 32), (0x7777_fffc, 0x1234_5678));
    // The four bytes at 0xfffe would not fit; nor would a frame there.
    (machine.cpu.regs.rip, machine.cpu.regs[Gpr::Rsp]) = (CODE + 2, 0x7777_0002);
    assert_eq!(machine.step(), Exit::Shutdown);
}

#[test]
fn questions_about_selectors_are_answered_in_zf() {
    let ask = |ring, code: &[u8], selector: u16| {
        let mut machine = Machine::protected(ring, code).with(Gpr::Rax, selector.into()).with(Gpr::Rbx, 7);
        machine.step();
        assert_eq!(machine.vector(), None);
        (machine.cpu.regs.rflags & rflags::ZF != 0).then_some(machine.cpu.regs[Gpr::Rbx])
    };
    let (lar, lsl) = (&[0x0f, 0x02, 0xd8][..], &[0x0f, 0x03, 0xd8][..]); // lar ebx, eax; lsl ebx, eax
    assert_eq!(ask(0, lar, RING0_DATA), Some(0x00cf_9300 & 0x00f0_ff00));
    assert_eq!(ask(3, lar, RING0_DATA), None);
    assert_eq!(ask(3, lar, CONFORMING), Some(0x00c0_9f00));
    assert_eq!(ask(0, lar, CALL_GATE), Some(0x8c00));
    assert_eq!([ask(0, lar, 0), ask(0, lar, 0x100)], [None; 2]);
    assert_eq!(ask(0, lsl, RING0_DATA), Some(0xffff_ffff));
    assert_eq!(ask(0, lsl, TSS_SELECTOR), Some(0x67));
    assert_eq!(ask(0, lsl, CALL_GATE), None);
    let (verr, verw) = (&[0x0f, 0x00, 0xe0][..], &[0x0f, 0x00, 0xe8][..]);
    let known = |code, selector| ask(0, code, selector).is_some();
    assert_eq!([known(verr, RING0_CODE), known(verr, EXECUTE_ONLY)], [true, false]);
    assert_eq!(
        [known(verw, RING0_DATA), known(verw, READ_ONLY_DATA), known(verw, RING0_CODE)],
        [true, false, false]
    );
    assert_eq!(ask(3, verr, RING0_DATA), None);
}

#[test]
fn arpl_lifts_the_rpl() {
    for (selector, rpl, result, zf) in [(0x10, 3, 0x13, true), (0x13, 1, 0x13, false)] {
        let mut machine = Machine::protected(3, &[0x63, 0xd8]).with(Gpr::Rax, selector).with(Gpr::Rbx, rpl);
        machine.step();
        assert_eq!(machine.cpu.regs[Gpr::Rax], result);
        assert_eq!(machine.cpu.regs.rflags & rflags::ZF != 0, zf);
    }
}
