//! Which translation a shadow page takes part in (`kvm_mmu_page_role`, rule K2).

use alloc::vec::Vec;

use crate::access::{Access, Controls, Rights};
use crate::format::{Format, Kind};
use crate::paging::Paging;

/// Two shadows of one guest table differ in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRole {
    /// Level of the table's entries: 5 PML5, 4 PML4, 3 PDPT, 2 PD, 1 PT.
    pub level: u8,
    /// Translates guest-physical addresses without a guest table (rule K3).
    pub direct: bool,
    /// Stands for the registers above the page directories of PAE and 32-bit paging (`pae_root`).
    pub pae_root: bool,
    /// Which part of a table of 1024 guest entries it shadows: 0 to 3 of a page directory, 0 and 1 of a page table.
    pub quadrant: u8,
    /// What the guest's pointers to it grant; of a direct page, what its leaves grant at most. Any of `WRITE`, `EXEC`
    /// and `USER`.
    pub access: Rights,
    /// What the guest's registers say about its entries.
    pub(super) mode: Mode,
}

impl PageRole {
    /// Everything that a role can grant (`ACC_ALL`).
    pub(super) const ALL: Rights = Rights::WRITE.union(Rights::EXEC).union(Rights::USER);

    /// The root of a guest in that mode.
    pub(super) fn root(mode: Mode, guest: Option<&Paging>) -> Self {
        let (level, pae_root) = match guest {
            Some(paging) if paging.format.levels() > 2 => (paging.format.levels(), false),
            Some(_) => (4, true),
            None => (4, false),
        };
        Self { level, direct: guest.is_none(), pae_root, quadrant: 0, access: Self::ALL, mode }
    }

    /// Whether a guest's table lies behind it.
    pub fn shadows_table(&self) -> bool {
        !self.direct && !self.pae_root
    }

    /// Whether it is of use when nothing points to it any more.
    pub(super) fn outlives_parents(&self) -> bool {
        self.shadows_table()
    }
}

/// The number of a [`GuestMode`]; zero with paging off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Mode(u16);

impl Mode {
    pub const PAGING_OFF: Self = Self(0);
}

/// What CR0, CR4 and EFER say about a guest's entries: the format (`has_4_byte_gpte`, `efer_nx`, and what else decides
/// which bits are reserved), and with CR0.WP clear also who may do what to a read-only page (`cr0_wp`,
/// `smep_andnot_wp`, `smap_andnot_wp`).
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestMode {
    pub format: Format,
    pub controls: Controls,
}

impl GuestMode {
    fn of(paging: &Paging) -> Self {
        let controls = paging.controls;
        let controls = if controls.contains(Controls::WP) { Controls::WP } else { controls };
        Self { format: paging.format, controls }
    }

    fn is(&self, other: &Self) -> bool {
        let shape = |format: &Format| (format.kind(), format.levels(), format.max_phy_addr());
        let reserved = |format: &Format, level| [false, true].map(|leaf| format.reserved(level, leaf));
        self.controls == other.controls
            && shape(&self.format) == shape(&other.format)
            && (1..=self.format.levels())
                .all(|level| reserved(&self.format, level) == reserved(&other.format, level))
            && self.format.page_size(2) == other.format.page_size(2)
    }

    /// Whether an entry is of four bytes (`has_4_byte_gpte`).
    pub fn has_4_byte_gpte(&self) -> bool {
        self.format.kind() == Kind::Legacy32
    }

    /// Whether a read-only page may become writable for the supervisor alone (rule H3). It is no user page then, so that
    /// hardware would apply neither SMAP nor the key of the page: where those count, the write is emulated.
    pub fn flips_read_only_pages(&self) -> bool {
        !self.controls.intersects(Controls::WP | Controls::SMAP | Controls::PKE | Controls::PKS)
    }

    /// What the leaf of a read-only page grants for a supervisor's write (rule H3): a user page loses U, and X too if SMEP
    /// forbids the supervisor to execute it.
    pub fn flipped(&self, rights: Rights) -> Rights {
        let mut flipped = (rights | Rights::WRITE) - Rights::USER;
        if rights.contains(Rights::USER) && self.controls.contains(Controls::SMEP) {
            flipped -= Rights::EXEC;
        }
        flipped
    }

    /// Whether hardware, for which CR0.WP is set, lets a write through that the guest allows.
    pub fn hardware_agrees(&self, access: Access, granted: Rights) -> bool {
        let keys = self.controls.intersects(Controls::PKE | Controls::PKS);
        let by_key = access.user || self.controls.contains(Controls::WP) || !keys;
        granted.contains(Rights::WRITE) && by_key
    }

    /// What the guest's entries grant together, of the AND of their [`Format::mergeable`]s.
    pub fn access(&self, merged: u64) -> Rights {
        self.format.merged_rights(merged, 0) & PageRole::ALL
    }
}

/// The modes that guests have been in.
#[derive(Debug, Default)]
pub(super) struct Modes(Vec<GuestMode>);

impl Modes {
    /// The number of the mode that these registers select.
    pub fn number(&mut self, guest: Option<&Paging>) -> Mode {
        let Some(paging) = guest else { return Mode::PAGING_OFF };
        let mode = GuestMode::of(paging);
        let at = self.0.iter().position(|known| known.is(&mode)).unwrap_or_else(|| {
            self.0.push(mode);
            self.0.len() - 1
        });
        Mode(at as u16 + 1)
    }

    /// The mode of that number; `None` with paging off.
    pub fn get(&self, Mode(number): Mode) -> Option<&GuestMode> {
        self.0.get(usize::from(number).checked_sub(1)?)
    }
}
