//! Where everything lies in a random guest's memory.
//!
//! Guest-physical memory is looked at in chunks of 2 MiB, so that a large page maps a chunk:
//!
//! | chunk | what |
//! |---|---|
//! | 0 | RAM: the kernel's own pages, its tables, the program, tables that are edited, data |
//! | 1 | RAM: data, and on some guests tables that are edited |
//! | 2 | small slots at `0x500000`: three read-only pages, two that alias pages of chunk 0, a spare one; holes |
//! | 3, ... | nothing: accesses are MMIO |
//!
//! Data is touched at the pages [`HOT`] of a chunk alone: whatever size a page has, an access through it meets data, a
//! device or nothing, and never the kernel.

/// Bytes of a small page, of a table, and of a frame.
pub const PAGE: u64 = 0x1000;
/// Bytes of a 2 MiB page.
pub const CHUNK: u64 = 0x20_0000;

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
/// Where the fault handler writes its next record.
pub const LOG_NEXT: u64 = 0x4000;
/// Where the kernel goes on after `INT 0x80`.
pub const BACK: u64 = 0x4008;
pub const STACK_TOP: u64 = 0x7000;
pub const USER_STACK: u64 = 0x7000;
pub const HANDLERS: u64 = 0x8000;
/// Records of 32 bytes: vector, error code, RIP, CR2. It is a ring.
pub const FAULT_LOG: u64 = 0xa000;
pub const FAULT_LOG_BYTES: u64 = 0x2000;
/// Tables that map the kernel; nobody edits them.
pub const KERNEL_TABLES: u64 = 0x1_0000;
/// Tables that are edited.
pub const TABLES: u64 = 0x2_0000;
pub const CODE: u64 = 0x5_0000;
pub const CODE_BYTES: u64 = 0x2_0000;
/// Tables that are edited, in a slot with data.
pub const FAR_TABLES: u64 = CHUNK + 0x8_0000;

/// Kernel addresses are guest-physical ones; the program's pages and the user's stack are at this distance once more,
/// for ring 3.
pub const USER_BASE: u64 = 2 * CHUNK;

/// The pages of a chunk that data is in: the first and the last, so that accesses cross from one chunk to the next, and
/// some that lie side by side.
pub const HOT: [u64; 8] = [0, 0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x1ff];

/// The page of chunk 0 that holds [stubs](crate::kernel::stub), besides the read-only slot.
pub const STUBS: u64 = 0x10_5000;
/// The read-only slot.
pub const ROM: u64 = 0x50_0000;

/// A memory slot.
#[derive(Clone, Copy, Debug)]
pub struct SlotPlace {
    pub name: &'static str,
    pub gpa: u64,
    pub bytes: u64,
    /// Where its bytes lie in RAM.
    pub offset: u64,
    pub readonly: bool,
}

impl SlotPlace {
    pub const fn holds(&self, gpa: u64) -> bool {
        gpa >= self.gpa && gpa - self.gpa < self.bytes
    }
}

/// The slots, by number.
pub const SLOTS: [SlotPlace; 5] = [
    SlotPlace { name: "low", gpa: 0, bytes: CHUNK, offset: 0, readonly: false },
    SlotPlace { name: "large", gpa: CHUNK, bytes: CHUNK, offset: CHUNK, readonly: false },
    SlotPlace { name: "rom", gpa: ROM, bytes: 3 * PAGE, offset: 2 * CHUNK, readonly: true },
    SlotPlace { name: "alias", gpa: ROM + 3 * PAGE, bytes: 2 * PAGE, offset: 0x10_1000, readonly: false },
    SlotPlace {
        name: "spare",
        gpa: ROM + 5 * PAGE,
        bytes: PAGE,
        offset: 2 * CHUNK + 3 * PAGE,
        readonly: false,
    },
];
pub const LARGE: usize = 1;
pub const ALIAS: usize = 3;
pub const SPARE: usize = 4;

/// Bytes of RAM behind all slots.
pub const RAM_BYTES: u64 = 2 * CHUNK + 4 * PAGE;

/// Whether a store to `gpa` harms neither the kernel, nor a table, nor code.
pub fn may_be_stored_to(gpa: u64) -> bool {
    let hot = HOT.contains(&(gpa % CHUNK / PAGE));
    gpa >= 2 * CHUNK || hot && gpa / PAGE != STUBS / PAGE
}

/// Whether what lies at `gpa` may be executed.
pub fn is_code(gpa: u64) -> bool {
    gpa / PAGE == STUBS / PAGE || SLOTS[2].holds(gpa)
}
