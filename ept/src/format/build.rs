//! From rows to masks: what a [`Format`] computes once.

use super::fields::{self, Field, bits_of, known_bits};
use super::{
    EptCaps, Eptp, Format, Ia32e, Kind, LevelMasks, Levels, MAX_LEVEL, MaxPhyAddr, MemoryType, Role,
};

impl Format {
    /// EPT, as that EPTP selects it on a processor with these capabilities. Its root does not matter here.
    pub const fn ept(eptp: Eptp, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        let sizes = [caps.contains(EptCaps::PAGE_2M), caps.contains(EptCaps::PAGE_1G)];
        let mut format = Self::from_rows(Kind::Ept, fields::EPT, eptp.levels(), max_phy_addr, sizes, 0);
        if !eptp.accessed_dirty() {
            format.accessed = 0;
            format.dirty = 0;
        }
        format.malformed = malformed_ept(caps.contains(EptCaps::EXECUTE_ONLY));
        format
    }

    /// A guest's or host's own IA-32e paging.
    pub const fn ia32e(paging: Ia32e) -> Self {
        let dropped = if paging.no_execute { 0 } else { bits_of(fields::IA32E, Role::NoExecute, 1, true) };
        let sizes = [true, paging.page_1g];
        Self::from_rows(Kind::Ia32e, fields::IA32E, paging.levels, paging.max_phy_addr, sizes, dropped)
    }

    /// AMD's nested page tables: entries as in the host's own paging (rules N1, N2).
    pub const fn npt(host: Ia32e) -> Self {
        let mut format = Self::ia32e(host);
        format.kind = Kind::Npt;
        format
    }

    /// `large`: whether there are 2 MiB and 1 GiB leaves. `dropped`: bits that have a row, but not here.
    const fn from_rows(
        kind: Kind,
        rows: &'static [Field],
        levels: Levels,
        max_phy_addr: MaxPhyAddr,
        large: [bool; 2],
        dropped: u64,
    ) -> Self {
        let present = bits_of(rows, Role::Present, 1, true);
        let inverted = bits_of(rows, Role::NoExecute, 1, true) & !dropped;
        let [read, write, exec, user] = [
            bits_of(rows, Role::Read, 1, true),
            bits_of(rows, Role::Write, 1, true),
            bits_of(rows, Role::Execute, 1, true) | inverted,
            bits_of(rows, Role::User, 1, true),
        ];
        let mut format = Self {
            kind,
            fields: rows,
            levels,
            max_phy_addr,
            present: if present == 0 { read | write | exec } else { present },
            inverted,
            // Where a right has no bit of its own, being present grants it.
            grants: [or_else(read, present), write, or_else(exec, present), user],
            accessed: bits_of(rows, Role::Accessed, 1, true),
            dirty: bits_of(rows, Role::Dirty, 1, true),
            level: [LevelMasks { reserved: [0; 2], leaf: 0, frame: 0, page_size: 0, page_attribute: 0 };
                MAX_LEVEL + 1],
            ignore_pat: bits_of(rows, Role::IgnorePat, 1, true),
            cache_bits: [
                bits_of(rows, Role::WriteThrough, 1, true),
                bits_of(rows, Role::CacheDisable, 1, true),
            ],
            malformed: 0,
        };
        let mut level = 1;
        while level <= MAX_LEVEL {
            let wide = !max_phy_addr.last() & bits_of(rows, Role::Frame, 1, true);
            let number = level as u8;
            let page_size = match number {
                2 if large[0] => bits_of(rows, Role::PageSize, 2, true),
                3 if large[1] => bits_of(rows, Role::PageSize, 3, true),
                _ => 0,
            };
            format.level[level] = LevelMasks {
                reserved: [
                    !known_bits(rows, number, false) | dropped | wide,
                    !known_bits(rows, number, true) | dropped | wide,
                ],
                leaf: if number == 1 { u64::MAX } else { page_size },
                frame: bits_of(rows, Role::Frame, number, true),
                page_size,
                page_attribute: bits_of(rows, Role::PageAttribute, number, true),
            };
            level += 1;
        }
        format
    }
}

const fn or_else(bit: u64, other: u64) -> u64 {
    if bit == 0 { other } else { bit }
}

/// Rules M1, M2 and M4 for all values of bits 5:0: rights in 2:0, memory type in 5:3.
const fn malformed_ept(execute_only: bool) -> u64 {
    let mut bitmap = 0;
    let mut low = 0;
    while low < 64 {
        let rights = low & 0x7;
        let write_without_read = rights & 0b011 == 0b010;
        let bad_execute_only = rights == 0b100 && !execute_only;
        let bad_type = MemoryType::from_raw((low >> 3) as u8).is_none();
        if write_without_read || bad_execute_only || bad_type {
            bitmap |= 1 << low;
        }
        low += 1;
    }
    bitmap
}
