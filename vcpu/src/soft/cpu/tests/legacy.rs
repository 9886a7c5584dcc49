//! The machine of the other tests in real mode, and in protected mode with 16- and 32-bit segments.

use super::*;

pub const CODE16: u16 = 0x30;
/// Data above 0xbfff alone.
pub const EXPAND_DOWN: u16 = 0x38;
pub const READ_ONLY_DATA: u16 = 0x40;
pub const CONFORMING: u16 = 0x48;
pub const ABSENT_DATA: u16 = 0x50;
pub const LOCAL_TABLE: u16 = 0x58;
pub const CODE64: u16 = 0x60;
pub const CALL_GATE: u16 = 0x68;
/// Ring 0 data whose base is `DATA` and whose limit is 15.
pub const SMALL: u16 = 0x70;
/// A 16-bit stack of ring 0, from `DATA` on.
pub const STACK16: u16 = 0x78;
pub const EXECUTE_ONLY: u16 = 0x80;
const GDT_LIMIT: u16 = 0x87;
/// Where the local table is: one segment of ring 3, with base `DATA`.
const LDT: u64 = 0x1800;

#[rustfmt::skip]
pub const DESCRIPTORS: [u64; 17] = [
    0,
    0x00cf_9b00_0000_ffff, // 08: code, ring 0
    0x00cf_9300_0000_ffff, // 10: data, ring 0
    0x00cf_f300_0000_ffff, // 18: data, ring 3
    0x00cf_fb00_0000_ffff, // 20: code, ring 3
    0x0000_8b00_0000_0067 | TSS << 16,
    0x0000_9b00_0000_ffff,
    0x0040_9700_0000_bfff,
    0x00cf_9100_0000_ffff,
    0x00cf_9f00_0000_ffff,
    0x00cf_1300_0000_ffff,
    0x0000_8200_0000_0007 | LDT << 16,
    0x00af_9b00_0000_ffff,
    0x0000_8c00_0008_0000,
    0x0040_9300_0000_000f | DATA << 16,
    0x0000_9300_0000_ffff | DATA << 16,
    0x00cf_9900_0000_ffff,
];

impl Machine {
    /// Runs 16-bit code in real mode.
    pub fn real(code: &[u8]) -> Self {
        let mut machine = Self::new(0, code);
        let data = Segment { limit: 0xffff, ..segment(0, 3, false) };
        let data = Segment { db: false, ..data };
        let system = &mut machine.cpu.system;
        *system = SystemRegs {
            cs: Segment { kind: 0xb, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            idt: DescriptorTable { base: 0, limit: 0x3ff },
            cr0: 0x10,
            ..SystemRegs::default()
        };
        for vector in 0..32 {
            machine.flat.put(4 * u64::from(vector), &(handler(vector) as u32).to_le_bytes());
        }
        machine
    }

    /// Runs 32-bit code in protected mode, without paging.
    pub fn protected(ring: u8, code: &[u8]) -> Self {
        let mut machine = Self::new(ring, code);
        machine.flat.put_words(GDT, &DESCRIPTORS);
        machine.flat.put_words(LDT, &[0x0040_f300_0000_0fff | DATA << 16]);
        machine.flat.put(TSS + 4, &(STACK0 as u32).to_le_bytes());
        machine.flat.put(TSS + 8, &RING0_DATA.to_le_bytes());
        for vector in 0..32 {
            machine.set_gate32(vector, 0x8e00);
        }
        let system = &mut machine.cpu.system;
        (system.cr0, system.cr4, system.efer) = (0x11, 0, 0);
        (system.cs.long, system.cs.db) = (false, true);
        system.gdt.limit = GDT_LIMIT;
        system.idt.limit = 0xff;
        machine
    }

    /// A 32-bit gate to the handler of `vector`, with bits 32 to 47 of its descriptor.
    pub fn set_gate32(&mut self, vector: u8, attributes: u64) {
        let gate = handler(vector) | u64::from(RING0_CODE) << 16 | attributes << 32;
        self.flat.put_words(IDT + 8 * u64::from(vector), &[gate]);
    }

    /// The 32-bit word `index` of the stack.
    pub fn stack32(&self, index: u64) -> u32 {
        self.flat.word(self.cpu.system.ss.base + self.cpu.regs[Gpr::Rsp] + 4 * index) as u32
    }

    /// The 16-bit word `index` of the stack.
    pub fn stack16(&self, index: u64) -> u16 {
        self.flat.word(self.cpu.system.ss.base + self.cpu.regs[Gpr::Rsp] + 2 * index) as u16
    }

    /// The exception whose handler is about to run, and its error code.
    pub fn fault32(&self) -> (Option<u8>, u32) {
        (self.vector(), self.stack32(0))
    }
}
