//! What the bits of an entry mean, as data for the page.

use ept::{Format, Kind, Role};
use serde::Serialize;

/// The roles of bits, with their names in the manuals.
const ROLES: &[(Role, &str)] = &[
    (Role::Present, "P"),
    (Role::Read, "R"),
    (Role::Write, "W"),
    (Role::Execute, "X"),
    (Role::UserExecute, "XU"),
    (Role::User, "U"),
    (Role::NoExecute, "NX"),
    (Role::WriteThrough, "PWT"),
    (Role::CacheDisable, "PCD"),
    (Role::PageAttribute, "PAT"),
    (Role::MemoryType, "memory type"),
    (Role::IgnorePat, "IPAT"),
    (Role::PageSize, "PS"),
    (Role::Accessed, "A"),
    (Role::Dirty, "D"),
    (Role::Global, "G"),
    (Role::ProtectionKey, "key"),
    (Role::GuestPagingVerification, "VGP"),
    (Role::PagingWrite, "PW"),
    (Role::SupervisorShadowStack, "SSS"),
    (Role::SubPageWrite, "SPP"),
    (Role::SuppressVe, "no #VE"),
    (Role::Frame, "frame"),
    (Role::FrameHigh, "frame 39:32"),
    (Role::Ignored, "software"),
];

/// A format's name.
pub(super) fn name_of(format: &Format) -> &'static str {
    match format.kind() {
        Kind::Ept => "EPT",
        Kind::Npt => "NPT",
        Kind::Ia32e => "IA-32e",
        Kind::Pae => "PAE",
        Kind::Legacy32 => "32-bit",
    }
}

/// A format, so that a page can take an address and an entry apart.
#[derive(Serialize)]
pub(super) struct FormatData {
    kind: &'static str,
    levels: u8,
    entry_bytes: u8,
    /// The lowest address bit of an index, for each level from 1 on.
    shifts: Vec<u32>,
    entries: u16,
    /// For each level from 1 on: the fields of table pointers, and those of leaves.
    fields: Vec<[Vec<FieldData>; 2]>,
}

/// A name, and its bits as a mask in hexadecimal.
type FieldData = (&'static str, String);

impl FormatData {
    pub fn of(format: &Format) -> Self {
        let levels = 1..=format.levels();
        let fields = |level, leaf| -> Vec<FieldData> {
            let named = ROLES.iter().map(|&(role, name)| (name, format.bits(role, level, leaf)));
            named.filter(|(_, bits)| *bits != 0).map(|(name, bits)| (name, format!("{bits:#x}"))).collect()
        };
        Self {
            kind: name_of(format),
            levels: format.levels(),
            entry_bytes: format.entry_bytes(),
            shifts: levels.clone().map(|level| format.shift(level)).collect(),
            entries: format.entries(),
            fields: levels.map(|level| [fields(level, false), fields(level, true)]).collect(),
        }
    }
}
