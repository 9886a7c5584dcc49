//! What comes out of a KVM guest, and what goes back in.

use std::fs::File;
use std::time::Instant;

use iced_x86::code_asm::*;
use memory_model::{Gpa, RamBlock};
use slot_manager::SlotOp;
use vcpu::{Budget, Entry, Exit, Gpr, Limit, MmioData, VcpuError};

use crate::guest::{CODE, DATA, Guest, NO_SLOT, PLENTY, long_mode, slot, start};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Kvm];
    out_has_its_port_size_and_bytes,
    in_gets_the_answer_in_the_register,
    rep_outs_comes_in_elements,
    rep_ins_fills_memory,
    mmio_writes_have_their_size,
    mmio_reads_get_the_answer,
    a_wide_mmio_write_is_two_exits,
    halt_comes_back_and_goes_on_behind_it,
    a_triple_fault_is_a_shutdown,
    a_slot_with_nothing_behind_it_is_a_memory_fault,
    a_wrong_answer_is_an_error_and_changes_nothing,
    registers_after_out_show_it_done,
    registers_before_an_answer_show_the_read_not_done,
    registers_are_those_that_were_set,
);

fn io_out(port: u16, size: u8, data: &[u8]) -> Exit {
    Exit::IoOut { port, size, data: data.to_vec() }
}

fn mmio_write(gpa: u64, data: &[u8]) -> Exit {
    Exit::MmioWrite { gpa: Gpa(gpa), data: MmioData::new(data).unwrap() }
}

fn out_has_its_port_size_and_bytes() {
    let mut guest = Guest::ring3(|a| {
        a.mov(eax, 0x1122_3344)?;
        a.mov(edx, 0x3f8)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.out(0xf4, al)
    });
    assert_eq!(guest.run(Entry::Resume), io_out(0x3f8, 1, &[0x44]));
    assert_eq!(guest.run(Entry::Resume), io_out(0x3f8, 2, &[0x44, 0x33]));
    assert_eq!(guest.run(Entry::Resume), io_out(0x3f8, 4, &[0x44, 0x33, 0x22, 0x11]));
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0x44]));
}

fn in_gets_the_answer_in_the_register() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rax, -1i64 as u64)?;
        a.mov(edx, 0x60)?;
        a.in_(al, dx)?;
        a.in_(ax, dx)?;
        a.in_(eax, dx)?;
        a.hlt()
    });
    let steps: [(u8, &[u8], u64); 3] = [
        (1, &[0x11], 0xffff_ffff_ffff_ff11),
        (2, &[0x22, 0x33], 0xffff_ffff_ffff_3322),
        (4, &[0x44, 0x55, 0x66, 0x77], 0x7766_5544),
    ];
    let mut entry = Entry::Resume;
    for (size, answer, expected) in steps {
        assert_eq!(guest.run(entry), Exit::IoIn { port: 0x60, size, count: 1 });
        // Answered, but with no time left to go on.
        let over = Budget { deadline: Instant::now(), instructions: u64::MAX };
        let exit = guest.vcpu.run(Entry::Data(answer.to_vec()), &over).unwrap();
        assert_eq!(exit, Exit::BudgetExceeded(Limit::WallClock));
        assert_eq!(guest.regs()[Gpr::Rax], expected);
        entry = Entry::Resume;
    }
}

/// `size` is the element's, however many elements come at once.
fn rep_outs_comes_in_elements() {
    let mut guest = Guest::ring3(|a| {
        a.mov(edx, 0x3f8)?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 5)?;
        a.rep().outsb()?;
        a.mov(ecx, 3)?;
        a.rep().outsw()?;
        a.out(0xf4, al)
    });
    guest.ram.write(DATA, b"helloABCDEF").unwrap();
    let mut bytes = [Vec::new(), Vec::new()];
    loop {
        match guest.run(Entry::Resume) {
            Exit::IoOut { port: 0x3f8, size, data } => {
                assert_eq!(data.len() % usize::from(size), 0);
                bytes[usize::from(size) - 1].extend(data);
            }
            exit => break assert_eq!(exit, io_out(0xf4, 1, &[0])),
        }
    }
    assert_eq!(bytes, [b"hello".to_vec(), b"ABCDEF".to_vec()]);
    assert_eq!(guest.regs()[Gpr::Rsi], DATA + 11);
}

fn rep_ins_fills_memory() {
    let mut guest = Guest::ring3(|a| {
        a.mov(edx, 0x60)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 4)?;
        a.rep().insw()?;
        a.out(0xf4, al)
    });
    let mut source = 1..;
    let mut entry = Entry::Resume;
    loop {
        match guest.run(entry) {
            Exit::IoIn { port: 0x60, size: 2, count } => {
                entry = Entry::Data(source.by_ref().take(count as usize * 2).collect());
            }
            exit => break assert_eq!(exit, io_out(0xf4, 1, &[0])),
        }
    }
    let mut bytes = [0; 8];
    guest.ram.read(DATA, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
}

fn mmio_writes_have_their_size() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, NO_SLOT)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.out(0xf4, al)
    });
    let bytes = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    for (offset, size) in [(0, 1), (2, 2), (4, 4), (8, 8)] {
        assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + offset, &bytes[..size]));
    }
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0x88]));
}

fn mmio_reads_get_the_answer() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, NO_SLOT)?;
        a.movzx(r8d, byte_ptr(rbx))?;
        a.movzx(r9d, word_ptr(rbx + 2))?;
        a.mov(r10d, dword_ptr(rbx + 4))?;
        a.mov(r11, qword_ptr(rbx + 8))?;
        a.out(0xf4, al)
    });
    let bytes = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    let mut entry = Entry::Resume;
    for (offset, size) in [(0, 1), (2, 2), (4, 4), (8, 8u8)] {
        assert_eq!(guest.run(entry), Exit::MmioRead { gpa: Gpa(NO_SLOT + offset), size });
        entry = Entry::Data(bytes[..size.into()].to_vec());
    }
    assert_eq!(guest.run(entry), io_out(0xf4, 1, &[0]));
    assert_eq!(guest.regs().gpr[8..12], [0x88, 0x7788, 0x5566_7788, 0x1122_3344_5566_7788]);
}

/// Sixteen bytes are two exits of one instruction, whoever looks at registers in between.
fn a_wide_mmio_write_is_two_exits() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, NO_SLOT)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.movq(xmm0, rax)?;
        a.movups(xmmword_ptr(rbx), xmm0)?;
        a.out(0xf4, al)
    });
    let low = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT, &low));
    let inside = guest.regs();
    assert_eq!(guest.regs(), inside);
    assert!(matches!(guest.vcpu.set_regs(&inside), Err(VcpuError::MidInstruction)));
    let answer = guest.vcpu.run(Entry::Data(vec![0; 8]), &Budget::time(PLENTY));
    assert!(matches!(answer, Err(VcpuError::AnswerUnexpected { given: 8 })));
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + 8, &[0; 8]));
    let done = guest.regs();
    guest.vcpu.set_regs(&done).unwrap();
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0x88]));
    assert_eq!(guest.regs().rip, done.rip + 2);
}

fn halt_comes_back_and_goes_on_behind_it() {
    let mut guest = Guest::ring0(|a| {
        a.hlt()?;
        a.out(0xf4, al)
    });
    assert_eq!(guest.run(Entry::Resume), Exit::Halt);
    assert_eq!(guest.regs().rip, CODE + 1);
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0]));
}

fn a_triple_fault_is_a_shutdown() {
    let mut guest = Guest::ring3(|a| a.ud2());
    assert_eq!(guest.run(Entry::Resume), Exit::Shutdown);
}

fn a_slot_with_nothing_behind_it_is_a_memory_fault() {
    const HOLE: u64 = 0x2000_0000;
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, HOLE)?;
        a.mov(byte_ptr(rbx), al)?;
        a.out(0xf4, al)
    });
    let block = RamBlock::memfd("hole", 0x1000).unwrap();
    let file = File::from(block.fd().unwrap().try_clone_to_owned().unwrap());
    guest.slots.execute(&SlotOp::Create(slot(1, HOLE, &block))).unwrap();
    file.set_len(0).unwrap();
    match guest.run(Entry::Resume) {
        Exit::MemoryFault { gpa } => assert!(gpa.is_none_or(|gpa| gpa == Gpa(HOLE)), "{gpa:?}"),
        exit => panic!("{exit:?}"),
    }
    // With something behind it the access is tried again, and done.
    file.set_len(0x1000).unwrap();
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0]));
}

fn a_wrong_answer_is_an_error_and_changes_nothing() {
    let mut guest = Guest::ring3(|a| {
        a.mov(edx, 0x60)?;
        a.in_(eax, dx)?;
        a.mov(rbx, NO_SLOT)?;
        a.mov(cx, word_ptr(rbx))?;
        a.out(0xf4, al)
    });
    let wrong = |guest: &mut Guest, entry| guest.vcpu.run(entry, &Budget::time(PLENTY)).unwrap_err();

    let error = wrong(&mut guest, Entry::Data(vec![1]));
    assert!(matches!(error, VcpuError::AnswerUnexpected { given: 1 }), "{error}");
    assert_eq!(guest.run(Entry::Resume), Exit::IoIn { port: 0x60, size: 4, count: 1 });

    let error = wrong(&mut guest, Entry::Resume);
    assert!(matches!(error, VcpuError::AnswerMissing { needed: 4 }), "{error}");
    for given in [0, 3, 5, 0x10_0000] {
        let error = wrong(&mut guest, Entry::Data(vec![0xff; given]));
        assert!(matches!(error, VcpuError::AnswerLength { needed: 4, given: g } if g == given), "{error}");
    }
    let read = Exit::MmioRead { gpa: Gpa(NO_SLOT), size: 2 };
    assert_eq!(guest.run(Entry::Data(vec![1, 2, 3, 4])), read);

    let error = wrong(&mut guest, Entry::Data(vec![0; 9]));
    assert!(matches!(error, VcpuError::AnswerLength { needed: 2, given: 9 }), "{error}");
    assert_eq!(guest.run(Entry::Data(vec![5, 6])), io_out(0xf4, 1, &[1]));
    let error = wrong(&mut guest, Entry::Data(vec![1]));
    assert!(matches!(error, VcpuError::AnswerUnexpected { given: 1 }), "{error}");
    assert_eq!((guest.regs()[Gpr::Rax], guest.regs()[Gpr::Rcx]), (0x0403_0201, 0x0605));
}

fn registers_after_out_show_it_done() {
    let mut guest = Guest::ring3(|a| {
        a.out(0xf4, al)?;
        a.out(0xf5, al)?;
        a.out(0xf6, al)
    });
    // OUT imm8, AL has two bytes.
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0]));
    assert_eq!(guest.regs().rip, CODE + 2);
    assert_eq!(guest.run(Entry::Resume), io_out(0xf5, 1, &[0]));
    assert_eq!(guest.vcpu.system_regs().unwrap().cs, long_mode(3).cs);
    // Set while the second OUT is not finished: the new RIP must not be moved by that.
    guest.vcpu.set_regs(&start()).unwrap();
    assert_eq!(guest.run(Entry::Resume), io_out(0xf4, 1, &[0]));
    assert_eq!(guest.run(Entry::Resume), io_out(0xf5, 1, &[0]));
    assert_eq!(guest.run(Entry::Resume), io_out(0xf6, 1, &[0]));
}

fn registers_before_an_answer_show_the_read_not_done() {
    let mut guest = Guest::ring3(|a| {
        a.in_(al, 0x60)?;
        a.out(0xf4, al)
    });
    assert_eq!(guest.run(Entry::Resume), Exit::IoIn { port: 0x60, size: 1, count: 1 });
    assert_eq!(guest.regs().rip, CODE);
    assert!(matches!(guest.vcpu.set_regs(&start()), Err(VcpuError::MidInstruction)));
    assert!(matches!(guest.vcpu.set_system_regs(&long_mode(3)), Err(VcpuError::MidInstruction)));
    assert_eq!(guest.run(Entry::Data(vec![7])), io_out(0xf4, 1, &[7]));
}

fn registers_are_those_that_were_set() {
    let mut guest = Guest::ring3(|a| a.hlt());
    let mut regs = start();
    for (index, gpr) in regs.gpr.iter_mut().enumerate() {
        *gpr = 0x0101_0101_0101_0101 * (index as u64 + 1);
    }
    guest.vcpu.set_regs(&regs).unwrap();
    assert_eq!(guest.regs(), regs);
    let mut system = long_mode(3);
    system.cr2 = 0x1234_5000;
    system.fs.base = 0x7000;
    guest.vcpu.set_system_regs(&system).unwrap();
    assert_eq!(guest.vcpu.system_regs().unwrap(), system);
}
