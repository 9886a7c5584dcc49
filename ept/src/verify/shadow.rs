//! Shadow tables: each of their leaves against the guest's own tables, put over the slots.
//!
//! A shadow table is compared with what of the guest's tables lies behind the same addresses ([`Behind`]). As long as a
//! guest has one table at several addresses, so may its shadow: such a table is looked at once for each of them that
//! differs in what lies behind.
//! What is wrong with it and alike at several addresses is found at the first.

use memory_model::{AddrRange, Gpa, Hpa, PageSize};

use super::finding::{NoPage, Violation};
use super::host::HostPage;
use super::input::Guest;
use super::report::Unchecked;
use super::slots::{Stretch, from};
use super::tree::{Root, ShadowOf};
use super::work::{At, Pass, Sink, WRITES};
use crate::access::{Controls, Rights};
use crate::format::{Entry, Kind};
use crate::paging::{Paging, Start};
use crate::phys::{MemoryError, PhysMemory};
use crate::walk::{Plain, read};

/// What of the guest's own tables lies behind the addresses of a shadow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// More than its root table translates.
    Everything,
    /// That table, from the offset on: a table of 32-bit paging takes more than one shadow table.
    Table { start: Start, offset: u64 },
    /// A page, from that address on.
    Page { gpa: Gpa, size: PageSize, grants: Grants },
    /// No page.
    Nothing(NoPage),
    /// A table that the guest may write, so that its shadow may lag behind.
    Unsync,
    /// A table whose contents the host does not tell.
    Unknown,
}

/// What is behind a shadow table, and what the pointers to it grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shadowed {
    pub behind: Behind,
    /// Granting bits, in the shape of [`Format::granted`](crate::Format::granted).
    pub pointers: u64,
}

/// What a shadow leaf of a guest's page may grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grants {
    /// With U.
    user: Rights,
    /// Without.
    supervisor: Rights,
}

impl Grants {
    /// A page with those rights. Without D in the guest's leaf no write may pass unseen, so W is withheld. With CR0.WP
    /// clear, a supervisor writes what a user may not: KVM then sets W and clears U, and X too if SMEP forbids the
    /// supervisor to execute a user page (rules I5, I6). SMAP and protection keys are not looked at.
    fn new(paging: &Paging, rights: Rights, clean: bool) -> Self {
        let (mut user, mut supervisor) = (rights, rights - Rights::USER);
        if matches!(paging.format.kind(), Kind::Ia32e | Kind::Pae | Kind::Legacy32) {
            if !paging.controls.contains(Controls::WP) {
                supervisor |= Rights::WRITE;
            }
            if paging.controls.contains(Controls::SMEP) && rights.contains(Rights::USER) {
                supervisor -= Rights::EXEC;
            }
        }
        if clean {
            user -= Rights::WRITE;
            supervisor -= Rights::WRITE;
        }
        Self { user, supervisor }
    }

    fn allowed(&self, seen: Rights) -> Rights {
        if seen.contains(Rights::USER) { self.user } else { self.supervisor }
    }
}

/// A guest's memory, by slots and host; only to look at.
struct GuestMemory<'a, M> {
    memory: &'a M,
    guest: &'a Guest<'a>,
    space: &'a [Stretch],
}

impl<M> GuestMemory<'_, M> {
    /// Whether it lies in a read-only slot.
    fn is_read_only(&self, gpa: Gpa) -> bool {
        self.stretch(gpa).is_some_and(|stretch| self.guest.slots[stretch.slot].memslot.readonly)
    }

    fn stretch(&self, gpa: Gpa) -> Option<&Stretch> {
        from(self.space, gpa).first().filter(|stretch| stretch.gpa.contains(gpa))
    }
}

impl<M: PhysMemory> PhysMemory for GuestMemory<'_, M> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        let (absent, page) = (MemoryError::Absent { address }, Gpa(address & !0xfff));
        let stretch = self.stretch(page).ok_or(absent)?;
        let mut pages = [HostPage::UNKNOWN];
        self.guest.host.pages(stretch.hva_of(page), &mut pages);
        let hpa = pages[0].hpa().ok_or(absent)?;
        self.memory.read_entry(hpa.raw() | address & 0xfff)
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}

/// A guest's own tables, as they are.
pub(super) struct GuestTables<'a, M> {
    memory: GuestMemory<'a, M>,
    of: &'a ShadowOf,
}

impl<'a, M: PhysMemory> GuestTables<'a, M> {
    pub fn new(memory: &'a M, guest: &'a Guest<'a>, space: &'a [Stretch], of: &'a ShadowOf) -> Self {
        Self { memory: GuestMemory { memory, guest, space }, of }
    }

    /// Goes down from what is behind a wider stretch around `address` to what is behind the `1 << bits` bytes from there
    /// on. Of 12 bits it comes to the page, if there is one.
    pub fn below(&self, mut behind: Behind, address: u64, bits: u32) -> Behind {
        let Paging { format, .. } = &self.of.guest;
        if behind == Behind::Everything {
            if bits > format.shift(format.levels() + 1) {
                return behind;
            }
            behind = match self.of.guest.start(address) {
                Some(start) => Behind::Table { start, offset: 0 },
                None => Behind::Nothing(NoPage::NotPresent),
            };
        }
        while let Behind::Table { start, .. } = behind
            && format.shift(start.level) >= bits
        {
            behind = self.entry(start, address);
        }
        match behind {
            Behind::Table { start, .. } => {
                let offset = address & ((1 << format.shift(start.level + 1)) - 1);
                Behind::Table { start, offset }
            }
            Behind::Page { gpa, size, grants } => {
                let gpa = Gpa(gpa.align_down(size).raw() | address & (size.bytes() - 1));
                Behind::Page { gpa, size, grants }
            }
            other => other,
        }
    }

    /// What the entry for `address` in one of the tables leads to.
    fn entry(&self, Start { level, table, tables }: Start, address: u64) -> Behind {
        let Paging { format, .. } = &self.of.guest;
        if !self.of.is_synced(Gpa(table)) {
            return Behind::Unsync;
        }
        let step = format.step(level, table, address);
        let Ok(entry) = read(&mut Plain(&self.memory), step) else {
            return match self.memory.stretch(Gpa(table)) {
                None => Behind::Nothing(NoPage::TableOutside { table: Gpa(table) }),
                Some(_) => Behind::Unknown,
            };
        };
        let merged = tables & format.mergeable(entry);
        // Where nobody can set flags, an entry is used without them.
        let flagged =
            if self.memory.is_read_only(Gpa(table)) { format.marked(entry, true, true) } else { entry };
        match format.decode(level, entry) {
            Entry::Absent => Behind::Nothing(NoPage::NotPresent),
            Entry::Malformed(reason) => Behind::Nothing(NoPage::Malformed { reason }),
            _ if format.marked(flagged, false, false) != flagged => {
                Behind::Nothing(NoPage::NotAccessed { level })
            }
            Entry::Table(table) => {
                let start = Start { level: level - 1, table, tables: format.granted(merged, u64::MAX) };
                Behind::Table { start, offset: 0 }
            }
            Entry::Leaf(frame, size) => {
                let clean = format.marked(flagged, true, true) != flagged;
                let grants = Grants::new(&self.of.guest, format.merged_rights(merged, entry), clean);
                Behind::Page { gpa: Gpa(frame), size, grants }
            }
        }
    }

    /// The page at a linear address.
    fn page(&self, behind: Behind, address: u64) -> Behind {
        match self.of.guest.format.translates(address) {
            true => self.below(behind, address, 12),
            false => Behind::Nothing(NoPage::NotTranslated),
        }
    }
}

impl Root {
    /// What is behind a shadow's root table.
    pub fn shadowed_root<M: PhysMemory>(&self, tables: &GuestTables<'_, M>) -> Shadowed {
        let bits = self.paging.format.shift(self.paging.format.levels() + 1);
        Shadowed { behind: tables.below(Behind::Everything, 0, bits), pointers: u64::MAX }
    }

    /// What is behind the table to which an entry of that level points, and whose first address is `base`.
    pub fn shadowed_table<M: PhysMemory>(
        &self,
        tables: &GuestTables<'_, M>,
        above: Shadowed,
        (level, entry): (u8, u64),
        base: u64,
    ) -> Shadowed {
        let format = &self.paging.format;
        let pointers = format.granted(above.pointers & format.mergeable(entry), u64::MAX);
        Shadowed { behind: tables.below(above.behind, base, format.shift(level)), pointers }
    }
}

impl<'a, M: PhysMemory, S: Sink> Pass<'a, M, S> {
    /// A leaf of a shadow table.
    pub fn shadow_leaf(&mut self, at: &At<'_>, hpa: Hpa, size: PageSize, shadowed: Shadowed) {
        let root = at.root();
        let Some(of) = &root.shadow else { return };
        let (guest, space) = self.space(at.table);
        let found = GuestTables::new(self.memory, guest, space, of).page(shadowed.behind, at.address);
        let (gpa, guest_size, grants) = match found {
            Behind::Page { gpa, size, grants } => (gpa, size, grants),
            Behind::Nothing(reason) => {
                let violation = Violation::Stale { reason, seen: hpa };
                return at.found(at.address, 0, violation, &mut self.tally);
            }
            Behind::Unsync => return self.tally.unchecked(Unchecked::Unsync, 1),
            _ => return self.tally.unchecked(Unchecked::GuestTableUnknown, 1),
        };
        let format = &root.paging.format;
        let seen = format.merged_rights(shadowed.pointers & format.mergeable(at.entry()), at.entry());
        let allowed = grants.allowed(seen);
        if !allowed.contains(seen) {
            let violation = Violation::GuestRights { gpa, allowed, seen };
            at.found(at.address, 3, violation, &mut self.tally);
        }
        // Of a leaf that is too large, the part that is the guest's page can be compared.
        let part = if size.bytes() > guest_size.bytes() {
            let violation = Violation::LargerThanGuests { gpa, expected: guest_size, seen: size };
            at.found(at.address, 4, violation, &mut self.tally);
            guest_size
        } else {
            size
        };
        let leaf = AddrRange::page_of(gpa, part);
        let first = leaf.first().page_number();
        let table = at.tree.synced_table(root.guest, first..=leaf.last().page_number());
        if let Some(table) = table.filter(|_| seen.intersects(WRITES)) {
            at.found(at.address, 5, Violation::GuestTableWritable { table }, &mut self.tally);
        }
        if !root.counts {
            self.tally.unchecked(Unchecked::ShadowAliases, part.bytes() >> 12);
        }
        if let Some(slot) = self.slot(at, leaf, hpa, part) {
            self.frames(at, hpa, leaf, slot);
        }
    }
}
