//! Starting a guest: in long mode, with its page tables, its descriptor tables and its first registers; or without
//! paging, by [Multiboot](multiboot::Multiboot), by [PVH](pvh::Pvh) or by [Linux's own protocol](linux::Linux).
//!
//! The boot into long mode keeps the first MiB of guest memory for itself:
//!
//! | guest-physical | what | ring 3 |
//! |---|---|---|
//! | `0x00000` | never mapped: a null pointer faults | - |
//! | `0x01000` | GDT | - |
//! | `0x02000` | IDT | - |
//! | `0x03000` | TSS with an I/O bitmap that allows every port, 12 KiB | - |
//! | `0x06000` | ring-0 stack, 8 KiB | - |
//! | `0x08000` | page tables, 928 KiB | - |
//! | `0xf0000` | the program's stack, 64 KiB | yes |

mod flat;
pub mod linux;
pub mod multiboot;
pub mod pvh;

use ept::{Attributes, FrameAllocator, Kind, Mapper, MaxPhyAddr, MemoryError, PhysMemory, Rights, Sizes};
use memory_model::{AddrRange, FlatView, Gpa, Gva, PageSize};

pub use self::flat::information_page;
use crate::guest_tables::GuestTables;
use crate::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr4, efer, rflags};

/// Guest-physical memory that the boot into long mode keeps for itself: a program is loaded behind it.
pub const RESERVED_BYTES: u64 = 0x10_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const RING0_STACK: u64 = 0x6000;
const RING0_STACK_TOP: u64 = 0x8000;
const TABLES: u64 = 0x8000;
const STACK: u64 = 0xf_0000;

const KERNEL_CODE: u16 = 1 << 3;
const KERNEL_DATA: u16 = 2 << 3;
const USER_DATA: u16 = 3 << 3 | 3;
const USER_CODE: u16 = 4 << 3 | 3;
const TASK: u16 = 5 << 3;

/// Where the I/O bitmap begins in the TSS: behind all else. IOPL 3 does not need it, but a KVM that runs ring 3
/// without giving it IOPL 3 looks here.
const IO_BITMAP: u64 = 0x68;
/// One bit a port, and a last byte of ones (SDM vol. 1, 19.5.2).
const TSS_LIMIT: u64 = IO_BITMAP + 0x2000;

/// Guests are built for a processor that every host has: 4 levels, and physical addresses of 46 bits.
const MAX_PHY_ADDR: MaxPhyAddr = match MaxPhyAddr::new(46) {
    Some(bits) => bits,
    None => panic!("46 is within 32 to 52"),
};

/// The privilege level a program starts at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ring {
    /// Ring 0.
    Kernel,
    /// Ring 3, with IOPL 3 so that it may use ports.
    User,
}

/// A piece of the guest's page tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestMap {
    /// Guest-virtual addresses: whole pages of `page`.
    pub gva: AddrRange<Gva>,
    /// Where they lead.
    pub gpa: Gpa,
    /// The page size.
    pub page: PageSize,
    /// What the entries grant; nothing at all leaves the range unmapped.
    pub rights: Rights,
}

impl GuestMap {
    /// Small pages with the addresses that they have in guest-physical memory, for both rings to read, write and execute.
    pub fn identity(gva: AddrRange<Gva>) -> Self {
        Self { gva, gpa: Gpa(gva.first().0), page: PageSize::Size4K, rights: Rights::RWX | Rights::USER }
    }
}

/// A guest that starts in 64-bit mode.
#[derive(Clone, Debug)]
pub struct LongMode {
    /// The program's first instruction.
    pub entry: u64,
    /// Its privilege level.
    pub ring: Ring,
    /// Exception vectors (below 32) with the addresses of their ring-0 handlers.
    pub handlers: Vec<(u8, u64)>,
    /// The page tables, beyond what the boot maps for itself. Where two overlap, the later one counts.
    pub maps: Vec<GuestMap>,
}

/// Why a guest cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The boot's own memory is not RAM.
    #[error("the boot needs RAM at 0x0-0xfffff: {source}")]
    NoMemory {
        /// Where there is none.
        source: MemoryError,
    },
    /// The guest's page tables cannot be built.
    #[error("guest page tables: {gva} cannot be mapped: {source}")]
    Map {
        /// The pages.
        gva: AddrRange<Gva>,
        /// Why not. `OutOfTables`: the maps need more than 928 KiB of tables.
        source: ept::Error,
    },
    /// A page for what the guest is told is not RAM.
    #[error("the boot information needs RAM at {page}: {source}")]
    NoInformation {
        /// The page.
        page: AddrRange<Gpa>,
        /// Where there is none.
        source: MemoryError,
    },
    /// There is no room for the command line.
    #[error("the command line has {size:#x} bytes, at most {most:#x} fit")]
    CommandLine {
        /// Its size.
        size: usize,
        /// The most there is room for.
        most: usize,
    },
    /// There is no room for the memory map.
    #[error("the memory map has {count} ranges of RAM, at most {most} fit")]
    MemoryMap {
        /// How many there are.
        count: usize,
        /// The most there is room for.
        most: usize,
    },
    /// A file is no bzImage, or one that cannot be started.
    #[error("not a bzImage to start: {why}")]
    NotBzImage {
        /// What is wrong.
        why: String,
    },
    /// The kernel, unpacked, would not lie in RAM.
    #[error("the kernel takes {kernel}: no RAM at {gpa}")]
    KernelOutsideMemory {
        /// What it is loaded to and unpacks itself to.
        kernel: AddrRange<Gpa>,
        /// The first byte that is not RAM.
        gpa: Gpa,
    },
    /// There is no RAM for the initial RAM disk.
    #[error("the initial RAM disk has {size:#x} bytes: no RAM for it {}", place(.within))]
    NoRoomForInitrd {
        /// Its size.
        size: u64,
        /// Where it may lie; nowhere, if the kernel ends behind the last address for it.
        within: Option<AddrRange<Gpa>>,
    },
    /// A part of what is loaded could not be copied into memory.
    #[error("loading to {place}: {source}")]
    Load {
        /// Where it was to lie.
        place: AddrRange<Gpa>,
        /// Why not.
        source: vm_memory::GuestMemoryError,
    },
    /// An exception vector that the IDT does not have.
    #[error("exception vector {vector} is not below 32")]
    Vector {
        /// The vector.
        vector: u8,
    },
}

fn place(within: &Option<AddrRange<Gpa>>) -> String {
    within.map_or_else(|| "behind the kernel".to_owned(), |within| format!("at {within}"))
}

impl LongMode {
    /// Writes all tables into guest memory; gives the registers to start with.
    pub fn install(&self, view: &FlatView) -> Result<(Regs, SystemRegs), BootError> {
        let mut memory = BootMemory { guest: GuestTables(view), next_table: TABLES };
        self.descriptor_tables(&memory)?;
        let root = self.page_tables(&mut memory)?;
        Ok((self.regs(), self.system_regs(root)))
    }

    fn page_tables(&self, memory: &mut BootMemory<'_>) -> Result<u64, BootError> {
        let root = memory.allocate_table().ok_or(MemoryError::Absent { address: TABLES });
        let root = root.map_err(|source| BootError::NoMemory { source })?;
        let paging = self.system_regs(root).paging(ept::Processor::new(MAX_PHY_ADDR));
        let paging = paging.ok().flatten().expect("the boot turns paging on, with tables below 1 MiB");
        let mut mapper = Mapper::new(memory, paging);
        let own = |first, last, rights| {
            let gva = AddrRange::inclusive(Gva(first), Gva(last)).expect("written in order");
            GuestMap { rights, ..GuestMap::identity(gva) }
        };
        let boot =
            [own(GDT, STACK - 1, Rights::RWX), own(STACK, RESERVED_BYTES - 1, Rights::RWX | Rights::USER)];
        for map in boot.iter().chain(&self.maps) {
            map_pages(&mut mapper, map).map_err(|source| BootError::Map { gva: map.gva, source })?;
        }
        Ok(root)
    }

    fn descriptor_tables(&self, memory: &BootMemory<'_>) -> Result<(), BootError> {
        let write =
            |address, value| memory.write(address, value).map_err(|source| BootError::NoMemory { source });
        for frame in (GDT..RING0_STACK).step_by(PageSize::Size4K.bytes() as usize) {
            memory.guest.zero(frame).map_err(|source| BootError::NoMemory { source })?;
        }
        let task = 0x8900 << 32 | (TSS & 0xff_ffff) << 16 | TSS_LIMIT;
        // Null, kernel code and data, user data and code: flat, present, accessed; the task takes two.
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            task,
            0,
        ];
        for (index, descriptor) in gdt.into_iter().enumerate() {
            write(GDT + 8 * index as u64, descriptor)?;
        }
        // RSP0 is at offset 4 of the TSS: the two words around it.
        write(TSS, RING0_STACK_TOP << 32)?;
        write(TSS + 8, RING0_STACK_TOP >> 32)?;
        write(TSS + 0x60, IO_BITMAP << 48)?;
        write(TSS + TSS_LIMIT, 0xff)?;
        for &(vector, handler) in &self.handlers {
            if vector >= 32 {
                return Err(BootError::Vector { vector });
            }
            // A 64-bit interrupt gate, present, DPL 0 (SDM vol. 3A, figure 6-8).
            let gate = handler & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | 0x8e00 << 32
                | (handler >> 16 & 0xffff) << 48;
            write(IDT + 16 * u64::from(vector), gate)?;
            write(IDT + 16 * u64::from(vector) + 8, handler >> 32)?;
        }
        Ok(())
    }

    fn regs(&self) -> Regs {
        let iopl = if self.ring == Ring::User { rflags::IOPL } else { 0 };
        let mut regs = Regs { rip: self.entry, rflags: rflags::FIXED | iopl, ..Regs::default() };
        regs[Gpr::Rsp] = RESERVED_BYTES;
        regs
    }

    fn system_regs(&self, root: u64) -> SystemRegs {
        let (code, data, dpl) = match self.ring {
            Ring::Kernel => (KERNEL_CODE, KERNEL_DATA, 0),
            Ring::User => (USER_CODE, USER_DATA, 3),
        };
        let flat = Segment { limit: u32::MAX, dpl, code_or_data: true, present: true, ..Segment::default() };
        let code = Segment { selector: code, kind: 0xb, long: true, ..flat };
        let data = Segment { selector: data, kind: 0x3, db: true, ..flat };
        SystemRegs {
            tr: Segment {
                selector: TASK,
                base: TSS,
                limit: TSS_LIMIT as u32,
                kind: 0xb,
                present: true,
                ..Segment::default()
            },
            gdt: DescriptorTable { base: GDT, limit: 7 * 8 - 1 },
            idt: DescriptorTable { base: IDT, limit: 32 * 16 - 1 },
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
            cr3: root,
            cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
            efer: efer::LME | efer::LMA | efer::NXE,
            ..SystemRegs::with_segments(code, data)
        }
    }
}

/// Maps pages, over what is there.
fn map_pages(mapper: &mut Mapper<'_, BootMemory<'_>>, map: &GuestMap) -> Result<(), ept::Error> {
    let map_all = |mapper: &mut Mapper<'_, _>| {
        let attributes = Attributes::ram(Kind::Ia32e, map.rights);
        mapper.map_range(map.gva, map.gpa.0, Sizes::Only(map.page), attributes)
    };
    if !map.rights.is_empty() {
        match map_all(mapper) {
            Err(ept::Error::Overlap { .. }) => {}
            done => return done,
        }
    }
    // The guest does not run yet: nothing can be stale.
    let _ = mapper.unmap_range(map.gva)?;
    if map.rights.is_empty() { Ok(()) } else { map_all(mapper) }
}

/// Guest memory with an allocator for page tables.
struct BootMemory<'a> {
    guest: GuestTables<'a>,
    next_table: u64,
}

impl BootMemory<'_> {
    fn write(&self, address: u64, value: u64) -> Result<(), MemoryError> {
        while !self.compare_exchange(address, self.read_entry(address)?, value)? {}
        Ok(())
    }
}

impl PhysMemory for BootMemory<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.guest.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.guest.compare_exchange(address, current, new)
    }
}

impl FrameAllocator for BootMemory<'_> {
    fn allocate_table(&mut self) -> Option<u64> {
        let table = self.next_table;
        self.next_table = (table < STACK).then_some(table + PageSize::Size4K.bytes())?;
        // A guest that is booted again finds the tables of the last time there.
        self.guest.zero(table).ok()?;
        Some(table)
    }

    /// Tables that become empty while maps replace each other are not used again.
    fn free_table(&mut self, _frame: u64) {}
}
