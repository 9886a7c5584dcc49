//! The bits of an entry: one row per field, saying where it means what, and when.
//!
//! A bit without a row is reserved. Nothing else in this crate says which bits are.

use bitflags::bitflags;

/// What the bits of a field mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// P.
    Present,
    /// R of EPT.
    Read,
    /// W.
    Write,
    /// X of EPT: supervisor execute under mode-based execute control.
    Execute,
    /// XU of EPT: user execute under mode-based execute control.
    UserExecute,
    /// NX.
    NoExecute,
    /// U.
    User,
    /// PWT.
    WriteThrough,
    /// PCD.
    CacheDisable,
    /// PAT.
    PageAttribute,
    /// EPT memory type.
    MemoryType,
    /// IPAT: ignore the guest's PAT.
    IgnorePat,
    /// PS: a large leaf.
    PageSize,
    /// A.
    Accessed,
    /// D.
    Dirty,
    /// G.
    Global,
    /// Physical address of the next table or of the page.
    Frame,
    /// Bits 39:32 of the physical address of a 4 MiB page (PSE-36).
    FrameHigh,
    /// Protection key.
    ProtectionKey,
    /// EPT: the guest-paging verification of rule X4.
    GuestPagingVerification,
    /// EPT: the processor may write guest paging entries here (rule X3).
    PagingWrite,
    /// EPT: supervisor shadow-stack accesses (rule X2).
    SupervisorShadowStack,
    /// EPT: sub-page write permissions decide.
    SubPageWrite,
    /// EPT: a violation is no #VE.
    SuppressVe,
    /// Free for software.
    Ignored,
}

bitflags! {
    /// What a processor offers and its registers select, as far as it gives bits a meaning or takes one away.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Features: u16 {
        const PAGE_2M = 1 << 0;
        const PAGE_1G = 1 << 1;
        /// EFER.NXE.
        const NO_EXECUTE = 1 << 2;
        /// AMD's reserved bits.
        const AMD = 1 << 3;
        /// CR4.PSE.
        const PAGE_4M = 1 << 4;
        const PSE_36 = 1 << 5;
        /// EPTP bit 6.
        const ACCESSED_DIRTY = 1 << 6;
        const EXECUTE_ONLY = 1 << 7;
        const MODE_BASED_EXECUTE = 1 << 8;
        /// EPTP bit 7.
        const SUPERVISOR_SHADOW_STACK = 1 << 9;
        const PAGING_WRITE = 1 << 10;
        const GUEST_PAGING_VERIFICATION = 1 << 11;
        const SUB_PAGE_WRITE = 1 << 12;
        /// Qualification bits 9 to 11.
        const ADVANCED_EXIT_INFO = 1 << 13;
    }
}

/// One field of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// All its bits, as a mask.
    pub bits: u64,
    /// Its meaning.
    pub role: Role,
    /// The entries that have it: one bit each, see [`place`].
    places: u16,
    /// It is there only with all of these, and with none of those.
    on: Features,
    off: Features,
}

impl Field {
    const fn on(self, features: Features) -> Self {
        Self { on: features, ..self }
    }

    const fn off(self, features: Features) -> Self {
        Self { off: features, ..self }
    }

    const fn is_at(&self, features: Features, level: u8, leaf: bool) -> bool {
        self.places & place(level, leaf) != 0 && features.contains(self.on) && !features.intersects(self.off)
    }
}

/// The bit in [`Field::places`] for entries of that level: leaves in the low half, table pointers above.
const fn place(level: u8, leaf: bool) -> u16 {
    1 << (level + if leaf { 0 } else { 8 })
}

const PTE: u16 = place(1, true);
/// A 4 MiB page in 32-bit paging.
const PAGE_2M: u16 = place(2, true);
const PAGE_1G: u16 = place(3, true);
const LARGE: u16 = PAGE_2M | PAGE_1G;
const LEAVES: u16 = PTE | LARGE;
const PDE: u16 = place(2, false);
const PDPTE: u16 = place(3, false);
const UPPER: u16 = place(4, false) | place(5, false);
const TABLES: u16 = PDE | PDPTE | UPPER;
const ALL: u16 = TABLES | LEAVES;

const fn field(high: u32, low: u32, role: Role, places: u16) -> Field {
    let bits = (u64::MAX >> (63 - high)) & (u64::MAX << low);
    Field { bits, role, places, on: Features::empty(), off: Features::empty() }
}

/// EPT entries (SDM vol. 3C, format of EPT entries).
pub(crate) const EPT: &[Field] = &[
    field(0, 0, Role::Read, ALL),
    field(1, 1, Role::Write, ALL),
    field(2, 2, Role::Execute, ALL),
    field(5, 3, Role::MemoryType, LEAVES),
    field(6, 6, Role::IgnorePat, LEAVES),
    field(7, 7, Role::PageSize, PAGE_2M).on(Features::PAGE_2M),
    field(7, 7, Role::PageSize, PAGE_1G).on(Features::PAGE_1G),
    field(7, 7, Role::Ignored, PTE),
    field(8, 8, Role::Accessed, ALL).on(Features::ACCESSED_DIRTY),
    field(8, 8, Role::Ignored, ALL).off(Features::ACCESSED_DIRTY),
    field(9, 9, Role::Dirty, LEAVES).on(Features::ACCESSED_DIRTY),
    field(9, 9, Role::Ignored, LEAVES).off(Features::ACCESSED_DIRTY),
    field(9, 9, Role::Ignored, TABLES),
    field(10, 10, Role::UserExecute, ALL).on(Features::MODE_BASED_EXECUTE),
    field(10, 10, Role::Ignored, ALL).off(Features::MODE_BASED_EXECUTE),
    field(11, 11, Role::Ignored, ALL),
    field(51, 12, Role::Frame, TABLES | PTE),
    field(51, 21, Role::Frame, PAGE_2M),
    field(51, 30, Role::Frame, PAGE_1G),
    field(62, 52, Role::Ignored, TABLES),
    field(56, 52, Role::Ignored, LEAVES),
    field(57, 57, Role::GuestPagingVerification, LEAVES).on(Features::GUEST_PAGING_VERIFICATION),
    field(57, 57, Role::Ignored, LEAVES).off(Features::GUEST_PAGING_VERIFICATION),
    field(58, 58, Role::PagingWrite, LEAVES).on(Features::PAGING_WRITE),
    field(58, 58, Role::Ignored, LEAVES).off(Features::PAGING_WRITE),
    field(59, 59, Role::Ignored, LEAVES),
    field(60, 60, Role::SupervisorShadowStack, LEAVES).on(Features::SUPERVISOR_SHADOW_STACK),
    field(60, 60, Role::Ignored, LEAVES).off(Features::SUPERVISOR_SHADOW_STACK),
    field(61, 61, Role::SubPageWrite, PTE).on(Features::SUB_PAGE_WRITE),
    field(61, 61, Role::Ignored, PTE).off(Features::SUB_PAGE_WRITE),
    field(61, 61, Role::Ignored, LARGE),
    field(62, 62, Role::Ignored, LEAVES),
    field(63, 63, Role::SuppressVe, LEAVES),
    field(63, 63, Role::Ignored, TABLES),
];

/// IA-32e entries (SDM vol. 3A, 4.5).
pub(crate) const IA32E: &[Field] = &[
    field(0, 0, Role::Present, ALL),
    field(1, 1, Role::Write, ALL),
    field(2, 2, Role::User, ALL),
    field(3, 3, Role::WriteThrough, ALL),
    field(4, 4, Role::CacheDisable, ALL),
    field(5, 5, Role::Accessed, ALL),
    field(6, 6, Role::Dirty, LEAVES),
    field(6, 6, Role::Ignored, TABLES),
    field(7, 7, Role::PageSize, PAGE_2M),
    field(7, 7, Role::PageSize, PAGE_1G).on(Features::PAGE_1G),
    field(7, 7, Role::PageAttribute, PTE),
    field(8, 8, Role::Global, LEAVES),
    field(8, 8, Role::Ignored, PDE | PDPTE),
    field(8, 8, Role::Ignored, UPPER).off(Features::AMD),
    field(11, 9, Role::Ignored, ALL),
    field(12, 12, Role::PageAttribute, LARGE),
    field(51, 12, Role::Frame, TABLES | PTE),
    field(51, 21, Role::Frame, PAGE_2M),
    field(51, 30, Role::Frame, PAGE_1G),
    field(58, 52, Role::Ignored, ALL),
    field(62, 59, Role::ProtectionKey, LEAVES),
    field(62, 59, Role::Ignored, TABLES),
    field(63, 63, Role::NoExecute, ALL).on(Features::NO_EXECUTE),
];

/// PAE entries (SDM vol. 3A, 4.4). Those of level 3 are loaded into registers with CR3.
pub(crate) const PAE: &[Field] = &[
    field(0, 0, Role::Present, PDPTE | PDE | PAGE_2M | PTE),
    field(1, 1, Role::Write, PDE | PAGE_2M | PTE),
    field(2, 2, Role::User, PDE | PAGE_2M | PTE),
    field(3, 3, Role::WriteThrough, PDPTE | PDE | PAGE_2M | PTE),
    field(4, 4, Role::CacheDisable, PDPTE | PDE | PAGE_2M | PTE),
    field(5, 5, Role::Accessed, PDE | PAGE_2M | PTE),
    field(6, 6, Role::Dirty, PAGE_2M | PTE),
    field(6, 6, Role::Ignored, PDE),
    field(7, 7, Role::PageSize, PAGE_2M),
    field(7, 7, Role::PageAttribute, PTE),
    field(8, 8, Role::Global, PAGE_2M | PTE),
    field(8, 8, Role::Ignored, PDE),
    field(11, 9, Role::Ignored, PDPTE | PDE | PAGE_2M | PTE),
    field(12, 12, Role::PageAttribute, PAGE_2M),
    field(51, 12, Role::Frame, PDPTE | PDE | PTE),
    field(51, 21, Role::Frame, PAGE_2M),
    field(63, 63, Role::NoExecute, PDE | PAGE_2M | PTE).on(Features::NO_EXECUTE),
];

/// The 32-bit entries of 32-bit paging (SDM vol. 3A, 4.3).
pub(crate) const LEGACY32: &[Field] = &[
    field(0, 0, Role::Present, PDE | PAGE_2M | PTE),
    field(1, 1, Role::Write, PDE | PAGE_2M | PTE),
    field(2, 2, Role::User, PDE | PAGE_2M | PTE),
    field(3, 3, Role::WriteThrough, PDE | PAGE_2M | PTE),
    field(4, 4, Role::CacheDisable, PDE | PAGE_2M | PTE),
    field(5, 5, Role::Accessed, PDE | PAGE_2M | PTE),
    field(6, 6, Role::Dirty, PAGE_2M | PTE),
    field(6, 6, Role::Ignored, PDE),
    field(7, 7, Role::PageSize, PAGE_2M).on(Features::PAGE_4M),
    field(7, 7, Role::Ignored, PDE).off(Features::PAGE_4M),
    field(7, 7, Role::PageAttribute, PTE),
    field(8, 8, Role::Global, PAGE_2M | PTE),
    field(8, 8, Role::Ignored, PDE),
    field(11, 9, Role::Ignored, PDE | PAGE_2M | PTE),
    field(12, 12, Role::PageAttribute, PAGE_2M),
    field(20, 13, Role::FrameHigh, PAGE_2M).on(Features::PSE_36),
    field(31, 12, Role::Frame, PDE | PTE),
    field(31, 22, Role::Frame, PAGE_2M),
];

/// The bits of that role in entries of that level, as a mask.
pub(crate) const fn bits_of(fields: &[Field], features: Features, role: Role, level: u8, leaf: bool) -> u64 {
    let mut bits = 0;
    let mut row = 0;
    while row < fields.len() {
        let field = &fields[row];
        if field.role as u8 == role as u8 && field.is_at(features, level, leaf) {
            bits |= field.bits;
        }
        row += 1;
    }
    bits
}

/// The bits that have any row in entries of that level, as a mask.
pub(crate) const fn known_bits(fields: &[Field], features: Features, level: u8, leaf: bool) -> u64 {
    let mut bits = 0;
    let mut row = 0;
    while row < fields.len() {
        if fields[row].is_at(features, level, leaf) {
            bits |= fields[row].bits;
        }
        row += 1;
    }
    bits
}
