//! A tree of tables, and what judges accesses through it.

use crate::access::{Access, Controls, ProtectionKeys};
use crate::fault::{Fault, Stop};
use crate::format::{Cr3, Ept, EptCaps, Eptp, Format, Ia32e, Kind, MaxPhyAddr};

/// A tree of tables, and all that it takes to walk it.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// Format of the entries.
    pub format: Format,
    /// Physical address of the root table.
    pub root: u64,
    /// Control bits that judge an access; EPT looks at none of them.
    pub controls: Controls,
    /// PKRU and PKRS; only IA-32e looks at them.
    pub keys: ProtectionKeys,
    /// The page-directory pointers of PAE paging, which stand for a root table.
    pub pdptes: [u64; 4],
}

impl Paging {
    /// The tables of that format at `root`, with all control bits clear.
    pub const fn new(format: Format, root: u64) -> Self {
        let keys = ProtectionKeys { pkru: 0, pkrs: 0 };
        Self { format, root, controls: Controls::empty(), keys, pdptes: [0; 4] }
    }

    /// The tables that an EPTP selects, without any of the VM-execution controls in [`Ept`].
    pub const fn ept(eptp: Eptp, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        Self::new(Format::ept(Ept::of(eptp, caps, max_phy_addr)), eptp.root())
    }

    /// The tables that a CR3 selects.
    pub const fn ia32e(cr3: Cr3, paging: Ia32e, controls: Controls) -> Self {
        Self { controls, ..Self::new(Format::ia32e(paging), cr3.root()) }
    }

    /// What an access comes to whose entry is not present. Of a guest that is so, too, where its table would lie outside
    /// of its memory: a hypervisor finds no entry there.
    pub fn not_present(&self, access: Access) -> Fault {
        Stop::Absent.event(&self.format, access, self.controls)
    }

    /// Where a walk for `address` begins; `None` if its page-directory pointer is not present.
    pub(crate) fn start(&self, address: u64) -> Option<Start> {
        let level = self.format.levels();
        if self.format.kind() != Kind::Pae {
            return Some(Start { level, table: self.root, tables: u64::MAX });
        }
        let pdpte = self.pdptes[(address >> self.format.shift(3) & 3) as usize];
        let table = pdpte & self.format.table_frame();
        self.format.is_present(pdpte).then_some(Start { level, table, tables: u64::MAX })
    }
}

/// Where a walk begins: at the root, or at a table that a processor remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Start {
    /// Level of the table.
    pub level: u8,
    /// Its address.
    pub table: u64,
    /// AND of the table pointers above it, in the shape of [`Format::mergeable`].
    pub tables: u64,
}
