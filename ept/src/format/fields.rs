//! The bits of an entry: one row per field, saying where it means what.
//!
//! A bit without a row is reserved. Nothing else in this crate says which bits are.

/// What the bits of a field mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// P.
    Present,
    /// R of EPT.
    Read,
    /// W.
    Write,
    /// X of EPT.
    Execute,
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
    /// Protection key.
    ProtectionKey,
    /// EPT: a violation is no #VE.
    SuppressVe,
    /// Free for software.
    Ignored,
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
}

/// The bit in [`Field::places`] for entries of that level: leaves in the low half, table pointers above.
const fn place(level: u8, leaf: bool) -> u16 {
    1 << (level + if leaf { 0 } else { 8 })
}

const PTE: u16 = place(1, true);
const PAGE_2M: u16 = place(2, true);
const PAGE_1G: u16 = place(3, true);
const LARGE: u16 = PAGE_2M | PAGE_1G;
const LEAVES: u16 = PTE | LARGE;
const TABLES: u16 = place(2, false) | place(3, false) | place(4, false) | place(5, false);
const ALL: u16 = TABLES | LEAVES;

const fn field(high: u32, low: u32, role: Role, places: u16) -> Field {
    Field { bits: (u64::MAX >> (63 - high)) & (u64::MAX << low), role, places }
}

/// EPT entries (SDM vol. 3C, format of EPT entries).
pub(crate) const EPT: &[Field] = &[
    field(0, 0, Role::Read, ALL),
    field(1, 1, Role::Write, ALL),
    field(2, 2, Role::Execute, ALL),
    field(5, 3, Role::MemoryType, LEAVES),
    field(6, 6, Role::IgnorePat, LEAVES),
    field(7, 7, Role::PageSize, LARGE),
    field(7, 7, Role::Ignored, PTE),
    field(8, 8, Role::Accessed, ALL),
    field(9, 9, Role::Dirty, LEAVES),
    field(9, 9, Role::Ignored, TABLES),
    field(11, 10, Role::Ignored, ALL),
    field(51, 12, Role::Frame, TABLES | PTE),
    field(51, 21, Role::Frame, PAGE_2M),
    field(51, 30, Role::Frame, PAGE_1G),
    field(62, 52, Role::Ignored, ALL),
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
    field(7, 7, Role::PageSize, LARGE),
    field(7, 7, Role::PageAttribute, PTE),
    field(8, 8, Role::Global, LEAVES),
    field(8, 8, Role::Ignored, TABLES),
    field(11, 9, Role::Ignored, ALL),
    field(12, 12, Role::PageAttribute, LARGE),
    field(51, 12, Role::Frame, TABLES | PTE),
    field(51, 21, Role::Frame, PAGE_2M),
    field(51, 30, Role::Frame, PAGE_1G),
    field(58, 52, Role::Ignored, ALL),
    field(62, 59, Role::ProtectionKey, LEAVES),
    field(62, 59, Role::Ignored, TABLES),
    field(63, 63, Role::NoExecute, ALL),
];

/// The bits of that role in entries of that level, as a mask.
pub(crate) const fn bits_of(fields: &[Field], role: Role, level: u8, leaf: bool) -> u64 {
    let mut bits = 0;
    let mut row = 0;
    while row < fields.len() {
        let field = &fields[row];
        if field.role as u8 == role as u8 && field.places & place(level, leaf) != 0 {
            bits |= field.bits;
        }
        row += 1;
    }
    bits
}

/// The bits that have any row in entries of that level, as a mask.
pub(crate) const fn known_bits(fields: &[Field], level: u8, leaf: bool) -> u64 {
    let mut bits = 0;
    let mut row = 0;
    while row < fields.len() {
        if fields[row].places & place(level, leaf) != 0 {
            bits |= fields[row].bits;
        }
        row += 1;
    }
    bits
}
