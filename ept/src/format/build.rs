//! From rows to masks: what a [`Format`] computes once.

use crate::access::{Access, Controls, Rights};

use super::fields::{self, Features, Field, Role, bits_of, known_bits};
use super::{
    EptCaps, Eptp, FRAME_HIGH_SHIFT, Format, Kind, LevelMasks, Levels, MAX_LEVEL, MaxPhyAddr, MemoryType,
    Offer, RIGHTS, ask_index,
};

/// What a processor's IA-32e paging offers: the inputs of [`Format::ia32e`] and [`Format::npt`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ia32e {
    /// CR4.LA57.
    pub levels: Levels,
    /// MAXPHYADDR of the processor that walks.
    pub max_phy_addr: MaxPhyAddr,
    /// EFER.NXE; without it bit 63 is reserved.
    pub no_execute: bool,
    /// CPUID: 1 GiB pages.
    pub page_1g: bool,
    /// Whether AMD made it: then bit 8 of PML5 and PML4 entries is reserved (rule I1).
    pub amd: bool,
}

impl Ia32e {
    /// A processor with NX and 1 GiB pages.
    pub const fn new(levels: Levels, max_phy_addr: MaxPhyAddr) -> Self {
        Self { levels, max_phy_addr, no_execute: true, page_1g: true, amd: false }
    }
}

/// What a processor's PAE paging offers: the inputs of [`Format::pae`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pae {
    /// MAXPHYADDR.
    pub max_phy_addr: MaxPhyAddr,
    /// EFER.NXE; without it bit 63 is reserved.
    pub no_execute: bool,
}

/// What a processor's 32-bit paging offers: the inputs of [`Format::legacy32`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Legacy32 {
    /// CR4.PSE: 4 MiB pages.
    pub page_4m: bool,
    /// CPUID: PSE-36, with as many address bits as MAXPHYADDR says, at most 40.
    pub pse_36: Option<MaxPhyAddr>,
}

/// What selects an EPT format: the EPTP without its root, the processor, and VM-execution controls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ept {
    /// Levels of the table: EPTP bits 5:3.
    pub levels: Levels,
    /// Accessed and dirty flags: EPTP bit 6.
    pub accessed_dirty: bool,
    /// Bit 60 lets supervisor shadow-stack accesses through: EPTP bit 7 (rule X2).
    pub supervisor_shadow_stack: bool,
    /// IA32_VMX_EPT_VPID_CAP.
    pub caps: EptCaps,
    /// The host's MAXPHYADDR.
    pub max_phy_addr: MaxPhyAddr,
    /// "Mode-based execute control for EPT": bit 10 is XU (rule X1).
    pub mode_based_execute: bool,
    /// "EPT paging-write": bit 58 (rule X3).
    pub paging_write: bool,
    /// "Guest-paging verification": bit 57 (rule X4).
    pub guest_paging_verification: bool,
    /// "Sub-page write permissions for EPT": bit 61.
    pub sub_page_write: bool,
}

impl Ept {
    /// Without flags and without any of the controls.
    pub const fn new(levels: Levels, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        Self {
            levels,
            accessed_dirty: false,
            supervisor_shadow_stack: false,
            caps,
            max_phy_addr,
            mode_based_execute: false,
            paging_write: false,
            guest_paging_verification: false,
            sub_page_write: false,
        }
    }

    /// As that EPTP says, without any of the controls.
    pub const fn of(eptp: Eptp, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        Self {
            accessed_dirty: eptp.accessed_dirty(),
            supervisor_shadow_stack: eptp.supervisor_shadow_stack(),
            ..Self::new(eptp.levels(), caps, max_phy_addr)
        }
    }

    const fn features(self) -> Features {
        let caps = self.caps;
        with(Features::PAGE_2M, caps.contains(EptCaps::PAGE_2M))
            .union(with(Features::PAGE_1G, caps.contains(EptCaps::PAGE_1G)))
            .union(with(Features::EXECUTE_ONLY, caps.contains(EptCaps::EXECUTE_ONLY)))
            .union(with(Features::ADVANCED_EXIT_INFO, caps.contains(EptCaps::ADVANCED_EXIT_INFO)))
            .union(with(Features::ACCESSED_DIRTY, self.accessed_dirty))
            .union(with(Features::SUPERVISOR_SHADOW_STACK, self.supervisor_shadow_stack))
            .union(with(Features::MODE_BASED_EXECUTE, self.mode_based_execute))
            .union(with(Features::PAGING_WRITE, self.paging_write))
            .union(with(Features::GUEST_PAGING_VERIFICATION, self.guest_paging_verification))
            .union(with(Features::SUB_PAGE_WRITE, self.sub_page_write))
    }
}

const fn with(feature: Features, on: bool) -> Features {
    if on { feature } else { Features::empty() }
}

impl Format {
    /// EPT.
    pub const fn ept(ept: Ept) -> Self {
        Self::from_rows(Kind::Ept, ept.features(), ept.levels as u8, ept.max_phy_addr)
    }

    /// A guest's or host's own IA-32e paging.
    pub const fn ia32e(paging: Ia32e) -> Self {
        Self::of_ia32e(Kind::Ia32e, paging)
    }

    /// AMD's nested page tables: entries as in the host's own paging (rules N1, N2).
    pub const fn npt(host: Ia32e) -> Self {
        Self::of_ia32e(Kind::Npt, host)
    }

    const fn of_ia32e(kind: Kind, paging: Ia32e) -> Self {
        let features = Features::PAGE_2M
            .union(with(Features::PAGE_1G, paging.page_1g))
            .union(with(Features::NO_EXECUTE, paging.no_execute))
            .union(with(Features::AMD, paging.amd));
        Self::from_rows(kind, features, paging.levels as u8, paging.max_phy_addr)
    }

    /// PAE paging: the two levels below the page-directory pointers.
    pub const fn pae(paging: Pae) -> Self {
        let features = Features::PAGE_2M.union(with(Features::NO_EXECUTE, paging.no_execute));
        Self::from_rows(Kind::Pae, features, 2, paging.max_phy_addr)
    }

    /// 32-bit paging.
    pub const fn legacy32(paging: Legacy32) -> Self {
        let features = with(Features::PAGE_4M, paging.page_4m);
        match paging.pse_36 {
            Some(width) => Self::from_rows(Kind::Legacy32, features.union(Features::PSE_36), 2, width),
            None => Self::from_rows(Kind::Legacy32, features, 2, MaxPhyAddr(32)),
        }
    }

    const fn from_rows(kind: Kind, features: Features, levels: u8, max_phy_addr: MaxPhyAddr) -> Self {
        let rows = kind.rows();
        let executable = features.union(Features::NO_EXECUTE);
        let grants = grants_of(kind, executable);
        let no_execute = bits_of(rows, executable, Role::NoExecute, 1, true);
        let [read, write, exec, user, user_exec, shadow_stack, paging_write] = grants;
        let leaf_grants = shadow_stack | paging_write;
        let present = match bits_of(rows, features, Role::Present, 1, true) {
            0 => read | write | exec | user_exec,
            present => present,
        };
        let all_grants = read | write | exec | user | user_exec | leaf_grants;
        let accessed = bits_of(rows, features, Role::Accessed, 1, true);
        let dirty = bits_of(rows, features, Role::Dirty, 1, true);
        let well_formed = well_formed(kind, features);
        let mut format = Self {
            kind,
            offer: Offer::new(kind, &grants),
            fields: rows,
            features,
            levels,
            max_phy_addr,
            index_bits: if matches!(kind, Kind::Legacy32) { 10 } else { 9 },
            input_bias: 0,
            input_last: 0,
            present,
            good: all_grants & !no_execute | accessed | dirty,
            grants,
            leaf_grants,
            all_grants,
            accessed,
            dirty,
            level: [LevelMasks {
                reserved: [0; 2],
                leaf: 0,
                plain_table: 0,
                frame: 0,
                frame_high: 0,
                page_size: 0,
            }; MAX_LEVEL + 1],
            well_formed,
            plain_leaf: 0,
            asks: [0; 16],
        };
        format.plain_leaf = plain_leaf(&format);
        format.input_last = (1 << format.input_bits()) - 1;
        if matches!(kind, Kind::Ia32e) {
            format.input_bias = 1 << (format.input_bits() - 1);
        }
        let mut level = 1;
        while level <= MAX_LEVEL {
            format.level[level] = level_masks(rows, features, level as u8, max_phy_addr);
            level += 1;
        }
        // Of EPT entries it takes more to tell: see `plain_leaf`.
        let present = if matches!(kind, Kind::Ept) { 0 } else { format.present };
        let always = present | format.level[1].reserved[1];
        let mut does = 0;
        while does <= Rights::RWX.bits() {
            let access = Access { does: Rights::from_bits_truncate(does), user: false, ac: false };
            // Without WP fewer accesses are denied: the exact walker knows.
            format.asks[ask_index(access)] = always | format.demand(access, Controls::WP).all;
            let user = access.by_user();
            format.asks[ask_index(user)] = always | format.demand(user, Controls::WP).all;
            does += 1;
        }
        format
    }
}

const fn level_masks(
    rows: &'static [Field],
    features: Features,
    level: u8,
    max_phy_addr: MaxPhyAddr,
) -> LevelMasks {
    let page_size = bits_of(rows, features, Role::PageSize, level, true);
    let frame_high = bits_of(rows, features, Role::FrameHigh, level, true);
    let wide_high = (!max_phy_addr.last() >> FRAME_HIGH_SHIFT) & frame_high;
    let wide = !max_phy_addr.last() & bits_of(rows, features, Role::Frame, 1, true);
    let leaf = if level == 1 { u64::MAX } else { page_size };
    let table_reserved = !known_bits(rows, features, level, false) | wide;
    LevelMasks {
        reserved: [table_reserved, !known_bits(rows, features, level, true) | wide | wide_high],
        leaf,
        plain_table: table_reserved | leaf | 1,
        frame: bits_of(rows, features, Role::Frame, level, true),
        frame_high: frame_high & !wide_high,
        page_size,
    }
}

impl Kind {
    const fn rows(self) -> &'static [Field] {
        match self {
            Self::Ia32e | Self::Npt => fields::IA32E,
            Self::Pae => fields::PAE,
            Self::Legacy32 => fields::LEGACY32,
            Self::Ept => fields::EPT,
        }
    }

    /// By right, lowest first: the bit that grants it in any format of this kind, by being set or, as NX, clear; zero
    /// where there is no such right.
    pub(super) const fn grants(self) -> [u64; RIGHTS] {
        grants_of(self, Features::all())
    }
}

const fn grants_of(kind: Kind, features: Features) -> [u64; RIGHTS] {
    const fn bit(kind: Kind, features: Features, role: Role) -> u64 {
        bits_of(kind.rows(), features, role, 1, true)
    }
    // P grants reads; in 32-bit paging, which never has NX, fetches too.
    let present = bit(kind, features, Role::Present);
    let exec = match kind {
        Kind::Legacy32 => present,
        _ => bit(kind, features, Role::Execute) | bit(kind, features, Role::NoExecute),
    };
    [
        present | bit(kind, features, Role::Read),
        bit(kind, features, Role::Write),
        exec,
        bit(kind, features, Role::User),
        bit(kind, features, Role::UserExecute),
        bit(kind, features, Role::SupervisorShadowStack),
        bit(kind, features, Role::PagingWrite),
    ]
}

/// Rules M1, M2 and M4 for all values of bits 5:0 of a present entry: rights in 2:0, memory type in 5:3. With no
/// right in 2:0 it is XU that makes the entry present.
const fn well_formed(kind: Kind, features: Features) -> u64 {
    if !matches!(kind, Kind::Ept) {
        return u64::MAX;
    }
    let mut bitmap = 0;
    let mut low = 0;
    while low < 64 {
        let readable = low & 0b001 != 0;
        let execute_only = low & 0b011 == 0 && features.contains(Features::EXECUTE_ONLY);
        if (readable || execute_only) && MemoryType::from_raw((low >> 3) as u8).is_some() {
            bitmap |= 1 << low;
        }
        low += 1;
    }
    bitmap
}

/// The same by what is withheld, without what XU alone makes present and without what rule M5 may find fault with.
const fn plain_leaf(format: &Format) -> u64 {
    let mut bitmap = 0;
    let mut low = 0;
    while low < 64 {
        let readable = low & 0b001 != 0 || !format.features.contains(Features::PAGING_WRITE);
        if low & format.present != 0 && readable && format.well_formed >> low & 1 != 0 {
            bitmap |= 1 << (format.withheld(low) & 0x3f);
        }
        low += 1;
    }
    bitmap
}

impl Offer {
    const fn new(kind: Kind, grants: &[u64; RIGHTS]) -> Self {
        let mut offer = if matches!(kind, Kind::Ept) { Self::EPT } else { 0 };
        let mut right = 0;
        while right < RIGHTS {
            offer |= ((grants[right] != 0) as u8) << right;
            right += 1;
        }
        Self(offer)
    }
}
