//! Why a root or a change of a table was refused.

use memory_model::{AddrRange, Gpa, Hpa, PageSize};

use crate::access::Rights;
use crate::format::{Kind, Misconfiguration};
use crate::phys::MemoryError;

/// Why a root pointer, an entry or a change of a table was refused. A refused change has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Rule E1: the memory type of an EPTP is neither UC nor WB, or the processor lacks it.
    #[error("EPTP {eptp:#x} asks for memory type {memory_type}")]
    EptpMemoryType {
        /// The whole EPTP.
        eptp: u64,
        /// Bits 2:0.
        memory_type: u8,
    },
    /// Rule E2: the processor has no EPT of that many levels.
    #[error("EPTP {eptp:#x} asks for {levels} levels")]
    EptpLevels {
        /// The whole EPTP.
        eptp: u64,
        /// Bits 5:3, plus one.
        levels: u8,
    },
    /// Rule E3: accessed and dirty flags asked of a processor without them.
    #[error("EPTP {eptp:#x} asks for accessed and dirty flags")]
    EptpAccessedDirty {
        /// The whole EPTP.
        eptp: u64,
    },
    /// Rule E3, and MOV to CR3: reserved bits are set.
    #[error("root pointer {root:#x} has reserved bits {bits:#x} set")]
    RootReservedBits {
        /// The whole EPTP or CR3.
        root: u64,
        /// The bits that must be zero.
        bits: u64,
    },
    /// The control registers select no paging mode: paging without protection, or long mode without PAE.
    #[error("no paging mode has CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x}")]
    PagingMode {
        /// CR0.
        cr0: u64,
        /// CR4.
        cr4: u64,
        /// EFER.
        efer: u64,
    },
    /// Rule I2: reserved bits are set in a page-directory pointer of PAE paging.
    #[error("page-directory pointer {index} is {pdpte:#x}, with reserved bits {bits:#x} set")]
    PdpteReservedBits {
        /// Which, 0 to 3.
        index: u8,
        /// Its value.
        pdpte: u64,
        /// The bits that must be zero.
        bits: u64,
    },
    /// An address is not a multiple of the page size.
    #[error("{address:#x} does not start a {size} page")]
    Misaligned {
        /// The input or output address.
        address: u64,
        /// The page size asked for.
        size: PageSize,
    },
    /// The input address is not canonical, or wider than the table translates.
    #[error("{address:#x} is outside what a {levels}-level table translates")]
    InputRange {
        /// The input address.
        address: u64,
        /// Levels of the table.
        levels: u8,
    },
    /// The output address, or that of a table, is wider than MAXPHYADDR.
    #[error("{address:#x} is wider than {bits} physical address bits")]
    OutputRange {
        /// The output address.
        address: u64,
        /// MAXPHYADDR.
        bits: u8,
    },
    /// The format has no leaf of that size.
    #[error("no {size} pages in this format")]
    PageSize {
        /// The page size asked for.
        size: PageSize,
    },
    /// The format cannot express these rights.
    #[error("no entry grants exactly {rights:?} in this format")]
    Rights {
        /// The rights asked for.
        rights: Rights,
    },
    /// The format cannot express that memory type.
    #[error("no such memory type in this format")]
    Caching,
    /// The extra bits are not free for software in a leaf of that size.
    #[error("bits {bits:#x} are not ignored in a {size} leaf")]
    SoftwareBits {
        /// Those that are not free.
        bits: u64,
        /// Size of the leaf.
        size: PageSize,
    },
    /// Something is mapped in the way.
    #[error("{address:#x} is taken at level {level} by entry {entry:#x}")]
    Overlap {
        /// The input address.
        address: u64,
        /// Level of the entry in the way.
        level: u8,
        /// The entry in the way.
        entry: u64,
    },
    /// Nothing is mapped there.
    #[error("{address:#x} is not mapped")]
    NotMapped {
        /// The input address.
        address: u64,
    },
    /// A 4 KiB page has no smaller ones.
    #[error("the page at {address:#x} is 4K, the smallest there is")]
    NotLarge {
        /// The input address.
        address: u64,
    },
    /// An entry is in the way of one large page: it is absent or a table, leads to another frame than the page would,
    /// or differs from the first entry in more than A and D.
    #[error("{address:#x} is no part of a {size} page: entry {entry:#x} at level {level}")]
    NotJoinable {
        /// The first input address of the entry.
        address: u64,
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
        /// The page size asked for.
        size: PageSize,
    },
    /// The mapper builds EPT, NPT, and 4- and 5-level paging.
    #[error("tables of {kind:?} paging are walked, not built")]
    NotBuilt {
        /// The kind of tables.
        kind: Kind,
    },
    /// Accessed and dirty flags are asked for, where hardware sets none.
    #[error("no accessed and dirty flags in these tables")]
    NoFlags,
    /// An entry on the way is malformed, so nothing below it can be changed.
    #[error("entry {entry:#x} at level {level}: {reason}")]
    Malformed {
        /// Level of the entry.
        level: u8,
        /// The entry.
        entry: u64,
        /// What is wrong with it.
        reason: Misconfiguration,
    },
    /// The allocator has no frame for a table.
    #[error("no frame left for a page table")]
    OutOfTables,
    /// A table lies where no memory is.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A slot to verify against is empty, not made of whole pages, or wraps.
    #[error("a slot of {bytes:#x} bytes at {base} is none")]
    Slot {
        /// Its base.
        base: Gpa,
        /// Its length.
        bytes: u64,
    },
    /// No memory for a bit for each frame of the host.
    #[error("no room for a bit for each frame of {range}")]
    HostRam {
        /// The host's RAM.
        range: AddrRange<Hpa>,
    },
    /// The tables cannot be second-level tables.
    #[error("{kind:?} tables cannot be verified")]
    Unverifiable {
        /// Their kind.
        kind: Kind,
    },
}
