//! Loops of guest code for measuring a processor.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Assembles a loop that runs RCX times.
pub type Loop = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The loops by name, and the instructions of one time.
pub const LOOPS: [(&str, Loop, u32); 2] =
    [("arithmetic", arithmetic, 9), ("load and store, 1 MiB", memory, 7)];

/// Sums, shifts, a product and a carry, each of which waits for one before it.
fn arithmetic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.add(rax, rdx)?;
    a.xor(rax, 0x1234)?;
    a.lea(rbx, rax + rcx * 4)?;
    a.shl(rbx, 3)?;
    a.sub(esi, ebx)?;
    a.imul_2(rdi, rax)?;
    a.adc(r8, rdi)?;
    a.dec(rcx)?;
    a.jnz(top)
}

/// A load and a store in each cache line of 1 MiB in turn, from RDI on.
fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rdi + rbx))?;
    a.add(rax, rcx)?;
    a.mov(qword_ptr(rdi + rbx), rax)?;
    a.add(rbx, 64)?;
    a.and(rbx, 0xf_ffff)?;
    a.dec(rcx)?;
    a.jnz(top)
}
