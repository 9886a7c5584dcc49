//! A guest in one sector, the same 512 bytes for every machine: a boot sector for one with a BIOS, a Multiboot kernel
//! for one that loads kernels. Both ways lead into long mode, with 256 MiB mapped one to one by small pages.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};

use crate::loops::Loop;

/// Where the sector is loaded.
pub const LOAD: u64 = 0x7c00;
/// Where a Multiboot loader enters it.
pub const ENTRY: u64 = LOAD + 0x60;
/// RAM that the guest needs from 0 on.
pub const RAM: u64 = 256 << 20;
/// The port that takes the result: QEMU's isa-debug-exit.
pub const RESULT: u16 = 0xf4;
/// What ends Bochs, if it is written to this port.
const SHUTDOWN: (u32, &[u8]) = (0x8900, b"Shutdown");

const SIZE: usize = 512;
const HEADER: usize = 0x40;
const GDT: usize = 0x1c0;
const GDTR: usize = GDT + 8 * DESCRIPTORS.len();
/// Null, 32-bit code, data, 64-bit code: flat.
const DESCRIPTORS: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_9b00_0000_ffff];
const CODE32: u16 = 8;
const DATA32: i32 = 16;
const CODE64: u16 = 24;

/// The page tables, from the last level to the first, without a gap.
const PT: i32 = 0x10_0000;
const PD: i32 = PT + (RAM >> 12 << 3) as i32;
const PDPT: i32 = PD + 0x1000;
const PML4: i32 = PDPT + 0x1000;
/// What the loops load and store.
const DATA: u64 = 0x20_0000;

/// A sector that repeats a loop, then reports the lowest byte of RAX.
pub fn build(repeat: Loop, times: u64) -> Result<[u8; SIZE], IcedError> {
    let mut sector = [0; SIZE];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        assert!(bytes.len() <= room, "{:#x} bytes at {at:#x}", bytes.len());
        sector[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0, HEADER, &real_mode()?);
    for (index, field) in header().into_iter().enumerate() {
        put(HEADER + 4 * index, 4, &field.to_le_bytes());
    }
    let entry = (ENTRY - LOAD) as usize;
    // The far jump has the same length wherever it leads.
    let after = ENTRY + protected_mode(0)?.len() as u64;
    let mut code = protected_mode(after)?;
    code.extend(long_mode(repeat, times, after)?);
    put(entry, GDT - entry, &code);
    for (index, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put(GDT + 8 * index, 8, &descriptor.to_le_bytes());
    }
    put(GDTR, 2, &(8 * DESCRIPTORS.len() as u16 - 1).to_le_bytes());
    put(GDTR + 2, 4, &(address(GDT) as u32).to_le_bytes());
    put(SIZE - 2, 2, &[0x55, 0xaa]);
    Ok(sector)
}

/// The Multiboot header with its addresses: no ELF file is needed (Multiboot 0.6.96, 3.1.3).
fn header() -> [u32; 8] {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let end = LOAD as u32 + SIZE as u32;
    let checksum = MAGIC.wrapping_add(HAS_ADDRESSES).wrapping_neg();
    let place = address(HEADER) as u32;
    [MAGIC, HAS_ADDRESSES, checksum, place, LOAD as u32, end, end, ENTRY as u32]
}

const fn address(offset: usize) -> u64 {
    LOAD + offset as u64
}

fn real_mode() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    // Line A20, by the system control port.
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.out(0x92, al)?;
    a.lgdt(ptr(address(GDTR)))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1616, CODE32, ENTRY as u32)?)?;
    a.assemble(LOAD)
}

fn protected_mode(next: u64) -> Result<Vec<u8>, IcedError> {
    const PRESENT_WRITABLE: i32 = 3;
    let mut a = CodeAssembler::new(32)?;
    a.lgdt(ptr(address(GDTR)))?;
    a.mov(eax, DATA32)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    // All four levels empty, then a row of entries for the last and for the one above it.
    a.cld()?;
    a.xor(eax, eax)?;
    a.mov(edi, PT)?;
    a.mov(ecx, (PML4 + 0x1000 - PT) / 4)?;
    a.rep().stosd()?;
    for (table, first, end) in [(PT, 0, RAM as i32), (PD, PT, PD)] {
        let mut next = a.create_label();
        a.mov(edi, table)?;
        a.mov(eax, first | PRESENT_WRITABLE)?;
        a.set_label(&mut next)?;
        a.mov(dword_ptr(edi), eax)?;
        a.add(edi, 8)?;
        a.add(eax, 0x1000)?;
        a.cmp(eax, end | PRESENT_WRITABLE)?;
        a.jne(next)?;
    }
    a.mov(dword_ptr(PDPT as u64), PD | PRESENT_WRITABLE)?;
    a.mov(dword_ptr(PML4 as u64), PDPT | PRESENT_WRITABLE)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    // CR4.PAE, EFER.LME, CR0.PG and CR0.PE.
    a.mov(eax, 1 << 5)?;
    a.mov(cr4, eax)?;
    a.mov(ecx, 0xc000_0080_u32 as i32)?;
    a.mov(eax, 1 << 8)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, 0x8000_0001_u32 as i32)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE64, next as u32)?)?;
    a.assemble(ENTRY)
}

fn long_mode(repeat: Loop, times: u64, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in [eax, ebx, edx, esi, r8d] {
        a.xor(register, register)?;
    }
    a.mov(rdi, DATA)?;
    a.mov(rcx, times)?;
    repeat(&mut a)?;
    a.out(i32::from(RESULT), al)?;
    a.mov(edx, SHUTDOWN.0)?;
    for &letter in SHUTDOWN.1 {
        a.mov(al, u32::from(letter))?;
        a.out(dx, al)?;
    }
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.jmp(end)?;
    a.assemble(at)
}
