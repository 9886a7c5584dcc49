//! All leaves of a VM's tables, and what KVM says they are for.

use core::fmt;

use memory_model::{Gpa, Hpa, PageSize};

use super::page::LivePage;
use super::reading::FRAME;
use super::tables::{LiveRoot, LiveTables};
use crate::access::Rights;
use crate::format::{Entry, Levels};
use crate::mappings::{Mapping, mappings};

/// A leaf of KVM's, and what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveLeaf {
    /// The first guest-physical address that it maps, as KVM has it.
    pub gpa: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// Where the page is.
    pub hpa: Hpa,
    /// What the leaf alone grants.
    pub rights: Rights,
    /// Where the leaf is.
    pub entry_address: Hpa,
    /// Its raw value.
    pub entry: u64,
    /// It is of system management mode, so that the slots of that address space count.
    pub smm: bool,
    /// It is of a guest of the guest: then what [`gpa`](Self::gpa) is depends on whose tables are shadowed.
    pub nested: bool,
    /// It stands for a page of its size in the guest's own tables, and not for a part of a larger one.
    pub of_guest_page: bool,
}

impl fmt::Display for LiveLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpa, size, hpa, entry, entry_address, .. } = self;
        write!(f, "a {size} leaf for GPA {gpa} at {hpa} (entry {entry:#x} at {entry_address})")
    }
}

impl LiveLeaf {
    fn of_tdp(root: &LiveRoot, mapping: Mapping) -> Self {
        Self {
            gpa: Gpa(mapping.address),
            size: mapping.size,
            hpa: Hpa(mapping.frame),
            rights: mapping.rights,
            entry_address: Hpa(mapping.step.entry_address()),
            entry: mapping.step.entry,
            smm: root.page.smm,
            nested: root.page.nested,
            of_guest_page: false,
        }
    }
}

impl LiveTables {
    /// All leaves: of the TDP MMU those of each root, of the shadow MMU those of each table, whether or not a vCPU gets
    /// there.
    pub fn leaves(&self) -> impl Iterator<Item = LiveLeaf> {
        let tdp = self.roots().iter().filter(|root| root.is_tdp);
        let tdp =
            tdp.flat_map(|root| mappings(self, &root.paging).map(|mapping| LiveLeaf::of_tdp(root, mapping)));
        tdp.chain(self.reading.pages.iter().flat_map(|page| self.leaves_of(page)))
    }

    /// The leaves of a table of the shadow MMU, which knows itself what each of them is for.
    fn leaves_of<'a>(&'a self, page: &'a LivePage) -> impl Iterator<Item = LiveLeaf> {
        let format = self.kernel.format(Levels::Four, page.flags_off);
        let at = self.kernel.direct_map.get().map_or(0, |&direct_map| page.table.wrapping_sub(direct_map));
        let table =
            self.reading.tables.get(&at).into_iter().flat_map(|table| (0u16..).zip(table.iter().copied()));
        let translation = self.reading.translations.get(&at);
        table.filter_map(move |(index, entry)| {
            let Entry::Leaf(frame, size) = format.decode(page.level, entry) else { return None };
            let gpa = match translation {
                Some(made_of) => made_of[usize::from(index)] & !(FRAME - 1),
                None => page.gfn << 12 | u64::from(index) << format.shift(page.level),
            };
            Some(LiveLeaf {
                gpa: Gpa(gpa).align_down(size),
                size,
                hpa: Hpa(frame),
                rights: format.rights(entry),
                entry_address: Hpa(at.wrapping_add(u64::from(index) * 8)),
                entry,
                smm: page.smm,
                nested: page.nested,
                of_guest_page: !page.direct,
            })
        })
    }
}
