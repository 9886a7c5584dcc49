//! Where things lie: the same linear addresses in this process and on the soft CPU.

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// The code that goes into a case and comes back from it. Only this process has it.
pub const ROUTINE: u64 = 0x1f00_0000;
/// What that code loads and saves.
pub const CONTROL: u64 = 0x1f10_0000;

/// Two pages of breakpoints. The instruction under test lies around the boundary between them.
pub const CODE: u64 = 0x1f20_0000;
pub const CODE_SIZE: usize = 2 * PAGE as usize;
/// `INT3`: wherever an instruction leads, it stops there.
pub const BREAKPOINT: u8 = 0xcc;

/// Bytes of data in an arena, half of them on either side of a page boundary.
pub const ARENA: usize = 1024;
/// The pages of the arena that 32-bit addresses reach.
pub const LOW_PAGES: u64 = 0x2000_0000;
pub const LOW: u64 = LOW_PAGES + PAGE - ARENA as u64 / 2;
/// The pages of the arena for 64-bit addresses.
pub const HIGH_PAGES: u64 = 0x1234_5670_0000;
pub const HIGH: u64 = HIGH_PAGES + PAGE - ARENA as u64 / 2;

/// The GS base: the high arena is within reach of a 32-bit displacement.
pub const GS_BASE: u64 = HIGH - 0x4321_0000;

/// The soft CPU's interrupt table: it is never read, being asked for tells the vector.
pub const IDT: u64 = 0xffff_ff00_0000_0000;
