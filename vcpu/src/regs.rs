//! The architectural state of an x86-64 processor, as plain values.

use std::fmt;

/// General purpose registers, in the order of their encoding, with RIP and RFLAGS.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 .. R15: indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// Names for the indexes of [`Regs::gpr`]: the register numbers of instruction encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl std::ops::Index<Gpr> for Regs {
    type Output = u64;
    fn index(&self, reg: Gpr) -> &u64 {
        &self.gpr[reg as usize]
    }
}

impl std::ops::IndexMut<Gpr> for Regs {
    fn index_mut(&mut self, reg: Gpr) -> &mut u64 {
        &mut self.gpr[reg as usize]
    }
}

impl fmt::Display for Regs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15",
        ];
        writeln!(f, "rip={:016x} rflags={:08x}", self.rip, self.rflags)?;
        for (row, names) in self.gpr.chunks(4).zip(NAMES.chunks(4)) {
            let cells: Vec<_> =
                names.iter().zip(row).map(|(name, value)| format!("{name:>3}={value:016x}")).collect();
            writeln!(f, "{}", cells.join(" "))?;
        }
        Ok(())
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Descriptor type, four bits (SDM vol. 3A, 3.4.5.1 and 3.5).
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Code or data (S = 1) rather than a system segment.
    pub code_or_data: bool,
    /// 64-bit code segment (L).
    pub long: bool,
    /// 32-bit default size (D/B).
    pub db: bool,
    /// Present (P); an unusable register has this clear.
    pub present: bool,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Last valid byte offset.
    pub limit: u16,
}

/// Control, segment and table registers: what `KVM_SET_SREGS` sets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct SystemRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
}

impl SystemRegs {
    /// With `code` in CS, `data` in all other segment registers, and everything else zero.
    pub fn with_segments(code: Segment, data: Segment) -> Self {
        Self { cs: code, ds: data, es: data, fs: data, gs: data, ss: data, ..Self::default() }
    }

    /// The guest's paging as these registers select it; `None` with paging off.
    pub fn paging(&self, processor: ept::Processor) -> Result<Option<ept::Paging>, ept::Error> {
        let Self { cr0, cr3, cr4, efer, .. } = *self;
        let cr3 = cr3 & !(cr3::LAM_U57 | cr3::LAM_U48);
        ept::Paging::from_registers(&ept::Registers { cr0, cr3, cr4, efer, ..Default::default() }, processor)
    }

    /// Current privilege level: the DPL of SS, as hardware keeps it.
    pub const fn cpl(&self) -> u8 {
        self.ss.dpl
    }
}

/// Bits of RFLAGS.
#[expect(missing_docs, reason = "the names are the flags'")]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
}

/// Bits of CR0.
#[expect(missing_docs, reason = "the names are the bits'")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR3 that are no part of an address.
pub mod cr3 {
    /// LAM57 for user addresses.
    pub const LAM_U57: u64 = 1 << 61;
    /// LAM48 for user addresses.
    pub const LAM_U48: u64 = 1 << 62;
    /// Of a source of `MOV` only: keep the translations of the new PCID.
    pub const NO_FLUSH: u64 = 1 << 63;
}

/// Bits of CR4.
#[expect(missing_docs, reason = "the names are the bits'")]
pub mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const PKS: u64 = 1 << 24;
    pub const LAM_SUP: u64 = 1 << 28;
}

/// Bits of EFER.
#[expect(missing_docs, reason = "the names are the bits'")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}
