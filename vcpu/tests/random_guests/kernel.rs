//! The guest's kernel: its descriptor tables, its part of the page tables, its exception handlers, and what memory holds
//! at first.
//!
//! A handler writes vector, error code, RIP and CR2 to the log. If R14 is an entry, the entry gets the value in R13 and
//! the instruction is tried again; else the program goes on at R15.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vcpu::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr4, efer, rflags};

use crate::dice::Dice;
use crate::layout::*;
use crate::program::{SHARED, Setting};

const KERNEL_CODE: u16 = 1 << 3;
pub const USER_DATA: u16 = 3 << 3 | 3;
pub const USER_CODE: u16 = 4 << 3 | 3;
const TASK: u16 = 5 << 3;
/// The kernel's way back from ring 3.
pub const RETURN_VECTOR: u8 = 0x80;
/// Exceptions that push an error code.
const WITH_ERROR_CODE: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];

/// Code that can be called anywhere: eight bytes, of which the first few are executed.
pub fn stub(value: u64) -> [u8; 8] {
    let immediate = (value >> 8) as u8;
    match value % 3 {
        // mov al, imm; ret
        0 => [0xb0, immediate, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90],
        // add ebx, imm; ret
        1 => [0x83, 0xc3, immediate, 0xc3, 0x90, 0x90, 0x90, 0x90],
        // nop; xor rcx, rax; ret
        _ => [0x90, 0x48, 0x31, 0xc1, 0xc3, 0x90, 0x90, 0x90],
    }
}

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Null, kernel code and data, user data and code: flat, present, accessed; a task, which takes two.
pub const GDT_ENTRIES: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8900_0000_0067 | TSS << 16,
    0,
];

pub fn regs() -> Regs {
    let mut regs = Regs { rip: CODE, rflags: rflags::FIXED, ..Regs::default() };
    regs[Gpr::Rsp] = STACK_TOP;
    regs
}

pub fn system(setting: &Setting) -> SystemRegs {
    let flat = Segment { limit: u32::MAX, code_or_data: true, present: true, ..Segment::default() };
    let code = Segment { selector: KERNEL_CODE, kind: 0xb, long: true, ..flat };
    let data = Segment { selector: 2 << 3, kind: 0x3, db: true, ..flat };
    let tr =
        Segment { selector: TASK, base: TSS, limit: 0x67, kind: 0xb, present: true, ..Segment::default() };
    let choice = |chosen, bit| if chosen { bit } else { 0 };
    SystemRegs {
        tr,
        gdt: DescriptorTable { base: GDT, limit: GDT_ENTRIES.len() as u16 * 8 - 1 },
        idt: DescriptorTable { base: IDT, limit: (u16::from(RETURN_VECTOR) + 1) * 16 - 1 },
        cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
        cr3: setting.root(0),
        cr4: cr4::PAE
            | cr4::PGE
            | choice(setting.five_levels, cr4::LA57)
            | choice(setting.smep, cr4::SMEP)
            | choice(setting.smap, cr4::SMAP),
        efer: efer::LME | efer::LMA | choice(setting.no_execute, efer::NXE),
        ..SystemRegs::with_segments(code, data)
    }
}

/// The kernel's part of the tables: what is the same in all address spaces.
pub fn kernel_tables(setting: &Setting) -> impl Iterator<Item = (u64, u64)> + use<> {
    const RW: u64 = 0b011;
    const RWU: u64 = 0b111;
    const LARGE_PAGE: u64 = 1 << 7;
    let table = |number: u64| KERNEL_TABLES + number * PAGE;
    let [pdpt, pd, user, ..] = [0, 1, 2].map(table);
    let mut entries = vec![(pdpt, pd | RWU)];
    // Chunks 0 and 1 at their own addresses, for ring 0.
    for chunk in 0..2 {
        let pd_entry = pd + 8 * chunk;
        if setting.large_kernel {
            entries.push((pd_entry, (chunk * CHUNK) | RW | LARGE_PAGE));
        } else {
            let small = table(3 + chunk);
            entries.push((pd_entry, small | RW));
            entries.extend((0..512).map(|page| (small + 8 * page, (chunk * CHUNK + page * PAGE) | RW)));
        }
    }
    // The program and its stack, for ring 3.
    entries.push((pd + 8 * (USER_BASE / CHUNK), user | RWU));
    entries.push((user + 8 * (USER_STACK / PAGE), USER_STACK | RWU));
    entries.extend(
        (CODE / PAGE..(CODE + CODE_BYTES) / PAGE).map(|page| (user + 8 * page, (page * PAGE) | 0b101)),
    );
    // Each root leads there, and to what all spaces share.
    let pool = setting.pool();
    let shared = pool.iter().find(|table| table.shared && table.level == 3).expect("one of the tables");
    for space in 0..setting.spaces {
        let mut top = pool[space].address;
        if setting.five_levels {
            let fourth = pool[setting.spaces + space].address;
            entries.push((top, fourth | RWU));
            top = fourth;
        }
        entries.push((top, pdpt | RWU));
        entries.push((top + 8 * SHARED, shared.address | RWU));
    }
    entries.into_iter()
}

/// What the kernel has in tables that are edited.
pub fn upper_tables(setting: &Setting) -> impl Iterator<Item = (u64, u64)> + use<> {
    kernel_tables(setting).filter(|&(entry, _)| entry >= TABLES)
}

/// What data and stubs hold at first. Chunk 1 holds the same as chunk 0, so that the host can merge pages of them.
pub fn data(seed: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let rom = SLOTS[2];
    let page = move |offset: u64| {
        let mut dice = Dice::new(!seed ^ (offset % CHUNK));
        let code = offset % CHUNK == STUBS || (rom.offset..rom.offset + rom.bytes).contains(&offset);
        let word = |_| if code { stub(dice.roll()) } else { dice.roll().to_le_bytes() };
        (offset, (0..PAGE / 8).flat_map(word).collect())
    };
    let hot = (0..2).flat_map(|chunk| HOT.map(|page| chunk * CHUNK + page * PAGE));
    let small = (0..4).map(|page| 2 * CHUNK + page * PAGE);
    hot.chain(small).map(page)
}

/// Exception handlers, and the interrupt by which ring 3 ends: code and IDT.
pub fn handlers() -> Result<[(u64, Vec<u8>); 2], IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut common, mut skip) = (a.create_label(), a.create_label());
    let mut entries = Vec::new();
    for vector in 0..32u8 {
        let mut entry = a.create_label();
        a.set_label(&mut entry)?;
        if !WITH_ERROR_CODE.contains(&vector) {
            a.push(0)?;
        }
        a.push(i32::from(vector))?;
        a.jmp(common)?;
        entries.push((u64::from(vector), entry));
    }
    a.set_label(&mut common)?;
    a.push(rax)?;
    a.push(rbx)?;
    // The stack: RBX, RAX, vector, error code, RIP.
    a.mov(rbx, qword_ptr(LOG_NEXT))?;
    for (offset, word) in [(0, 16), (8, 24), (16, 32)] {
        a.mov(rax, qword_ptr(rsp + word))?;
        a.mov(qword_ptr(rbx + offset), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 24), rax)?;
    a.add(ebx, 32)?;
    a.and(ebx, FAULT_LOG_BYTES as i32 - 1)?;
    a.or(ebx, FAULT_LOG as i32)?;
    a.mov(qword_ptr(LOG_NEXT), rbx)?;
    a.test(r14, r14)?;
    a.jz(skip)?;
    a.mov(qword_ptr(r14), r13)?;
    a.invlpg(byte_ptr(rax))?;
    a.xor(r14d, r14d)?;
    let mut back = a.create_label();
    a.jmp(back)?;
    a.set_label(&mut skip)?;
    a.mov(qword_ptr(rsp + 32), r15)?;
    a.set_label(&mut back)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    let mut software = a.create_label();
    a.set_label(&mut software)?;
    a.mov(rsp, STACK_TOP)?;
    a.jmp(qword_ptr(BACK))?;
    entries.push((RETURN_VECTOR.into(), software));

    let code = a.assemble_options(HANDLERS, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut idt = vec![0; 16 * (usize::from(RETURN_VECTOR) + 1)];
    for (vector, label) in entries {
        let handler = code.label_ip(&label)?;
        // Interrupt gates; ring 3 may use the last one itself.
        let kind = if vector == u64::from(RETURN_VECTOR) { 0xee00 } else { 0x8e00 };
        let gate = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 32 | handler >> 16 << 48;
        idt[16 * vector as usize..][..8].copy_from_slice(&gate.to_le_bytes());
    }
    Ok([(HANDLERS, code.inner.code_buffer), (IDT, idt)])
}
