//! Looking at the entries of tables: whole page tables at once where nothing is wrong, else one by one.

use memory_model::{AddrRange, Gpa, Hpa, PageSize};

use super::finding::{Finding, Limit, Violation};
use super::host::HostPage;
use super::input::{DirtyLog, Guest, Slot};
use super::met::Met;
use super::report::{Tally, Unchecked};
use super::slots::{Stretch, from};
use super::template::Template;
use super::tree::{Root, Table, Tree};
use crate::access::Rights;
use crate::format::{Entry, Format, Kind, Role};
use crate::phys::PhysMemory;
use crate::walk::{Path, Step};

/// Whatever lets a guest write: also without W, to shadow stacks and to flags in its paging entries (rules X2, X3).
pub(super) const WRITES: Rights = Rights::WRITE.union(Rights::SHADOW_STACK).union(Rights::PAGING_WRITE);

/// Takes note of the frames that leaves map.
pub(super) trait Sink {
    /// `count` frames from `hpa` on, mapped by the entry at `at`, whose first address is `gpa`.
    fn frames(&mut self, at: &At<'_>, gpa: Gpa, hpa: Hpa, count: u64, tally: &mut Tally);

    /// The frames of consecutive entries; `at` is the first.
    fn table(&mut self, at: At<'_>, pages: &[HostPage], tally: &mut Tally) {
        for (index, page) in pages.iter().enumerate() {
            let at = at.plus(index);
            self.frames(&at, at.gpa(), Hpa(page.raw()), 1, tally);
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub tree: &'a Tree,
    pub table: &'a Table,
    pub index: u16,
    /// The first address that it translates: guest-physical, or linear in a shadow table.
    pub address: u64,
    pub entries: &'a [u64; 512],
}

impl<'a> At<'a> {
    fn new(tree: &'a Tree, table: &'a Table, index: usize, entries: &'a [u64; 512]) -> Self {
        let format = format(tree, table);
        let address = format.extend(table.base | (index as u64) << format.shift(table.level));
        Self { tree, table, index: index as u16, address, entries }
    }

    /// The address, in a table of a second level.
    pub fn gpa(&self) -> Gpa {
        Gpa(self.address)
    }

    /// The entry that many further on in the same table.
    fn plus(&self, index: usize) -> Self {
        Self::new(self.tree, self.table, usize::from(self.index) + index, self.entries)
    }

    /// The address of a leaf's byte that lies at `gpa`.
    fn address_of(&self, gpa: Gpa) -> u64 {
        let span = 1 << format(self.tree, self.table).shift(self.table.level);
        self.address | gpa.raw() & (span - 1)
    }

    pub fn root(&self) -> &'a Root {
        &self.tree.roots[self.table.root]
    }

    pub fn entry(&self) -> u64 {
        self.entries[usize::from(self.index)]
    }

    pub fn path(&self) -> Path {
        let Table { frame, level, .. } = *self.table;
        let mut path = self.tree.path_to(self.table);
        let step = format(self.tree, self.table).step_at(level, frame, self.index);
        path.push(Step { entry: self.entry(), ..step });
        path
    }

    /// Counts and keeps what is wrong with this entry from `address` on.
    #[cold]
    pub fn found(&self, address: u64, more: u64, violation: Violation, tally: &mut Tally) {
        let root = self.root();
        let (guest, number, address) = (root.guest, root.number, root.input(address));
        let head = Finding { guest, root: number, address, path: Path::default(), violation };
        tally.found(self.table.level, more, head, || self.path());
    }
}

fn format<'a>(tree: &'a Tree, table: &Table) -> &'a Format {
    &tree.roots[table.root].paging.format
}

/// A pass over tables.
pub(super) struct Pass<'a, M, S> {
    pub memory: &'a M,
    pub guests: &'a [Guest<'a>],
    pub spaces: &'a [alloc::vec::Vec<Stretch>],
    pub tree: &'a Tree,
    pub met: &'a Met,
    pub sink: S,
    pub tally: Tally,
}

/// A table and the host's pages behind it. Kept from table to table: to clear them would cost as much as to look.
pub(super) struct Scratch {
    entries: [u64; 512],
    pages: [HostPage; 512],
}

impl Scratch {
    pub fn new() -> Self {
        Self { entries: [0; 512], pages: [HostPage::UNKNOWN; 512] }
    }
}

impl<'a, M: PhysMemory, S: Sink> Pass<'a, M, S> {
    /// Looks at all entries of one table.
    pub fn table(&mut self, table: &'a Table, Scratch { entries, pages }: &mut Scratch) {
        self.tally.coverage.tables[usize::from(table.level)] += 1;
        if self.memory.read_table(table.frame, entries).is_err() {
            let at = At::new(self.tree, table, 0, entries);
            let violation = Violation::Outside { table: Hpa(table.frame), level: table.level };
            return at.found(at.address, 0, violation, &mut self.tally);
        }
        match (table.level, table.shadowed) {
            (1, None) => self.page_table(table, entries, pages),
            _ => self.directory(table, entries),
        }
    }

    pub fn space(&self, table: &Table) -> (&'a Guest<'a>, &'a [Stretch]) {
        let guest = self.tree.roots[table.root].guest;
        (&self.guests[guest], &self.spaces[guest])
    }

    /// A table of level 2 or above, or a shadow table.
    fn directory(&mut self, table: &Table, entries: &[u64; 512]) {
        let mut pointers = 0u64;
        for index in 0..512 {
            let at = At::new(self.tree, table, index, entries);
            if let Some(next) = self.entry(&at) {
                pointers = pointers.wrapping_add(next);
            }
        }
        self.tally.unchecked(Unchecked::Changed, u64::from(pointers != table.pointers));
    }

    /// A table of level 1, stretch by stretch of the slots.
    fn page_table(&mut self, table: &Table, entries: &[u64; 512], pages: &mut [HostPage; 512]) {
        let first = At::new(self.tree, table, 0, entries).gpa();
        let whole = AddrRange::page_of(first, PageSize::Size2M);
        let (_, space) = self.space(table);
        let mut done = 0;
        for stretch in from(space, first) {
            let Some(part) = stretch.gpa.intersection(whole) else { break };
            let index = |gpa: Gpa| (gpa.page_offset(PageSize::Size2M) >> 12) as usize;
            let (begin, end) = (index(part.first()), index(part.last()) + 1);
            self.entries(table, entries, done..begin);
            self.stretch(table, entries, begin..end, stretch, &mut pages[begin..end]);
            done = end;
        }
        self.entries(table, entries, done..512);
    }

    /// Entries of a page table, one by one.
    fn entries(&mut self, table: &Table, entries: &[u64; 512], range: core::ops::Range<usize>) {
        for index in range {
            if entries[index] != 0 {
                self.entry(&At::new(self.tree, table, index, entries));
            }
        }
    }

    /// Entries of a page table that lie in one stretch of a slot.
    fn stretch(
        &mut self,
        table: &Table,
        entries: &[u64; 512],
        range: core::ops::Range<usize>,
        stretch: &Stretch,
        pages: &mut [HostPage],
    ) {
        let (guest, _) = self.space(table);
        let first = At::new(self.tree, table, range.start, entries);
        guest.host.pages(stretch.hva_of(first.gpa()), pages);
        let slot = &guest.slots[stretch.slot];
        let template = first.root().template(slot);
        let (log, first_page) = (slot.log(), (first.gpa().raw() - slot.memslot.base.raw()) >> 12);
        let logged = |(page, &entry): (u64, &u64)| !template.writes(entry) || in_log(log, page);
        let all = &entries[range.clone()];
        if template.all_right(all, pages) && (log.is_none() || (first_page..).zip(all).all(logged)) {
            return self.right(&first, pages, stretch);
        }
        for ((index, &page), number) in range.zip(pages.iter()).zip(first_page..) {
            let entry = entries[index];
            if entry == 0 {
                continue;
            }
            let at = At::new(self.tree, table, index, entries);
            match template.wrong(entry, page) {
                0 if logged((number, &entry)) => self.right(&at, &[page], stretch),
                _ => _ = self.entry(&at),
            }
        }
    }

    /// Consecutive leaves that are as they should be.
    #[inline]
    fn right(&mut self, first: &At<'_>, pages: &[HostPage], stretch: &Stretch) {
        let count = pages.len() as u64;
        self.tally.coverage.leaves[first.root().guest][0] += count;
        self.tally.coverage.frames += count;
        if first.root().counts_frames(stretch) {
            return self.sink.table(*first, pages, &mut self.tally);
        }
        for (index, page) in pages.iter().enumerate() {
            let hpa = Hpa(page.raw());
            if self.tree.frames.contains(hpa.page_number()) {
                let at = first.plus(index);
                table_mapped(&at, at.address, hpa, &mut self.tally);
            }
        }
    }

    /// Any entry; returns the table that it points to.
    fn entry(&mut self, at: &At<'_>) -> Option<u64> {
        let (entry, root) = (at.entry(), at.root());
        let (guest, _) = self.space(at.table);
        let decoded = root.decode(at.table.level, entry);
        let software =
            || guest.policy.software.iter().any(|encoding| entry & encoding.mask == encoding.value);
        let violation = match decoded {
            Entry::Absent if entry == 0 => return None,
            Entry::Absent | Entry::Malformed(_) if software() => {
                self.tally.coverage.software += 1;
                return None;
            }
            Entry::Absent => Violation::NotZero { seen: entry },
            Entry::Malformed(reason) => Violation::Misconfigured { reason },
            Entry::Table(next) => {
                self.pointer(at, guest.policy.tables_grant_all);
                return Some(next);
            }
            Entry::Leaf(frame, size) => {
                self.leaf(at, Hpa(frame), size);
                return None;
            }
        };
        at.found(at.address, 0, violation, &mut self.tally);
        None
    }

    fn pointer(&mut self, at: &At<'_>, all_rights: bool) {
        let expected = at.root().pointer;
        // Some bits of leaves grant rights that have no say in a pointer.
        let seen = at.root().paging.format.rights(at.entry()) & expected;
        if all_rights && seen != expected {
            at.found(at.address, 0, Violation::TableRights { expected, seen }, &mut self.tally);
        }
        self.encryption(at);
    }

    fn encryption(&mut self, at: &At<'_>) {
        let expected = at.root().encryption;
        let seen = at.entry() & expected;
        if seen != expected {
            at.found(at.address, 1, Violation::Encryption { expected, seen }, &mut self.tally);
        }
    }

    fn leaf(&mut self, at: &At<'_>, hpa: Hpa, size: PageSize) {
        if !at.table.again {
            self.tally.coverage.leaves[at.root().guest][usize::from(size.level()) - 1] += 1;
        }
        self.encryption(at);
        self.flags(at);
        if let Some(shadow) = at.tree.shadowed(at.table) {
            return self.shadow_leaf(at, hpa, size, shadow);
        }
        let leaf = AddrRange::page_of(at.gpa(), size);
        if let Some(slot) = self.slot(at, leaf, hpa, size) {
            return self.frames(at, hpa, leaf, slot);
        }
        self.sink.frames(at, at.gpa(), hpa, size.bytes() >> 12, &mut self.tally);
    }

    /// The slot that the guest-physical page of a leaf lies in: `None` if it is not wholly in one, which is a finding.
    pub fn slot(
        &mut self,
        at: &At<'_>,
        leaf: AddrRange<Gpa>,
        hpa: Hpa,
        size: PageSize,
    ) -> Option<&'a Slot<'a>> {
        let (guest, space) = self.space(at.table);
        let gpa = leaf.first();
        let stretch = from(space, gpa).first();
        match stretch.and_then(|stretch| Some((stretch, stretch.gpa.intersection(leaf)?))) {
            Some((stretch, inside)) => {
                let slot = &guest.slots[stretch.slot];
                self.limits(at, gpa, size, slot);
                let whole = slot_range(slot).and_then(|slot| slot.intersection(leaf)).unwrap_or(inside);
                if whole == leaf {
                    let hva = slot.memslot.hva.raw() + (gpa.raw() - slot.memslot.base.raw());
                    let seen = hva & (size.bytes() - 1);
                    if seen != 0 {
                        at.found(at.address, 1, Violation::Incongruent { size, seen }, &mut self.tally);
                    }
                    return Some(slot);
                }
                at.found(at.address, 0, Violation::Straddles { leaf, slot: whole }, &mut self.tally);
            }
            None => at.found(at.address, 0, Violation::NoSlot { hpa }, &mut self.tally),
        }
        self.tally.unchecked(Unchecked::NoHva, size.bytes() >> 12);
        None
    }

    /// What the leaf says for itself: D and A, and the user bit of nested tables.
    fn flags(&mut self, at: &At<'_>) {
        let (guest, _) = self.space(at.table);
        let format = &at.root().paging.format;
        let set = |role| at.entry() & format.bits(role, at.table.level, true) != 0;
        let flags = format.has_accessed_dirty() && guest.policy.dirty_implies_accessed;
        if flags && set(Role::Dirty) && !set(Role::Accessed) {
            at.found(at.address, 0, Violation::DirtyNotAccessed, &mut self.tally);
        }
        if format.kind() == Kind::Npt && !set(Role::User) {
            at.found(at.address, 2, Violation::Supervisor, &mut self.tally);
        }
    }

    /// What the slot and its dirty log allow.
    fn limits(&mut self, at: &At<'_>, gpa: Gpa, size: PageSize, slot: &Slot<'_>) {
        let seen = at.root().paging.format.rights(at.entry());
        if at.entry() & at.root().paging.format.bits(Role::SubPageWrite, at.table.level, true) != 0 {
            self.tally.unchecked(Unchecked::SubPages, 1);
        }
        if !seen.intersects(WRITES) {
            return;
        }
        if slot.memslot.log_dirty && size != PageSize::Size4K && !is_logged_whole(slot, gpa, size) {
            at.found(at.address, 1, Violation::LoggedLarge { size }, &mut self.tally);
        }
        let limit = match slot.log {
            _ if slot.memslot.readonly => Some(Limit::ReadonlySlot),
            _ if !slot.memslot.log_dirty || size != PageSize::Size4K => None,
            DirtyLog::Pml => None,
            DirtyLog::Unknown => return self.tally.unchecked(Unchecked::LogUnknown, 1),
            DirtyLog::Bitmap(_) => {
                let page = (gpa.raw() - slot.memslot.base.raw()) >> 12;
                (!in_log(slot.log(), page)).then_some(Limit::DirtyLog)
            }
        };
        self.not_writable(at, limit);
    }

    fn not_writable(&mut self, at: &At<'_>, limit: Option<Limit>) {
        let seen = at.root().paging.format.rights(at.entry());
        if let Some(limit) = limit {
            let allowed = seen - WRITES;
            at.found(at.address, 0, Violation::Rights { allowed, seen, limit }, &mut self.tally);
        }
    }

    /// Compares each frame of a leaf inside one slot with the host's.
    pub fn frames(&mut self, at: &At<'_>, hpa: Hpa, leaf: AddrRange<Gpa>, slot: &Slot<'_>) {
        let (guest, space) = self.space(at.table);
        let (mut one, mut many);
        let pages: &mut [HostPage] = if at.table.level == 1 {
            one = [HostPage::UNKNOWN];
            &mut one
        } else {
            many = [HostPage::UNKNOWN; 512];
            &mut many
        };
        let mut seen = Seen::default();
        for stretch in from(space, leaf.first()) {
            let Some(part) = stretch.gpa.intersection(leaf) else { break };
            let counts = at.root().counts_frames(stretch);
            let mut gpa = part.first();
            while let Some(left) = part.from_addr(gpa) {
                let count = (left.bytes() >> 12).min(512) as u64;
                let pages = &mut pages[..count as usize];
                guest.host.pages(stretch.hva_of(gpa), pages);
                let frame = Hpa(hpa.raw() + (gpa.raw() - leaf.first().raw()));
                let plain = pages.iter().enumerate().fold(0, |wrong, (index, page)| {
                    wrong | page.raw() ^ (frame.raw() + ((index as u64) << 12))
                });
                if plain == 0 && counts && at.table.shadowed.is_none() {
                    self.tally.coverage.frames += count;
                    self.sink.frames(at, gpa, frame, count, &mut self.tally);
                } else {
                    for (index, &page) in (0u64..).zip(pages.iter()) {
                        let (gpa, hpa) = (Gpa(gpa.raw() + (index << 12)), Hpa(frame.raw() + (index << 12)));
                        self.frame(at, gpa, hpa, page, counts.then_some(stretch), &mut seen);
                    }
                }
                match gpa.checked_add(count << 12) {
                    Some(next) => gpa = next,
                    None => break,
                }
            }
        }
        if let Some((at_gpa, expected, hpa)) = seen.first_wrong {
            let wrong = seen.wrong;
            let violation = match at.table.shadowed {
                None => Violation::Frame { at: at_gpa, expected, seen: hpa, wrong },
                Some(_) => Violation::ShadowFrame { gpa: at_gpa, expected, seen: hpa, wrong },
            };
            at.found(at.address, 0, violation, &mut self.tally);
        }
        if seen.read_only && !slot.memslot.readonly {
            let writable = at.root().paging.format.rights(at.entry()).intersects(WRITES);
            self.not_writable(at, writable.then_some(Limit::Host));
        }
        self.memory_type(at, &seen);
    }

    /// One frame of a leaf; `counts` is the stretch that it lies in, if frames count there.
    fn frame(
        &mut self,
        at: &At<'_>,
        gpa: Gpa,
        hpa: Hpa,
        page: HostPage,
        counts: Option<&Stretch>,
        seen: &mut Seen,
    ) {
        let known = page.hpa();
        match known {
            None if page != HostPage::ABSENT => self.tally.unchecked(Unchecked::HostUnknown, 1),
            _ => self.tally.coverage.frames += 1,
        }
        let right = known == Some(hpa);
        seen.read_only |= page.is_read_only();
        seen.device |= page.is_device();
        if !right && (known.is_some() || page == HostPage::ABSENT) {
            seen.wrong += 1;
            seen.first_wrong = seen.first_wrong.or(Some((gpa, page, hpa)));
            if at.table.shadowed.is_none() {
                return self.sink.frames(at, gpa, hpa, 1, &mut self.tally);
            }
        }
        // Another leaf of a shadow may have the page too.
        let shadowed = at.table.shadowed.is_some();
        let first = |stretch| !shadowed || right && self.met.is_first(at.root().guest, stretch, gpa);
        if !page.is_shared() && counts.is_some_and(first) {
            if shadowed && self.tree.frames.contains(hpa.page_number()) {
                table_mapped(at, at.address_of(gpa), hpa, &mut self.tally);
            }
            return self.sink.frames(at, gpa, hpa, 1, &mut self.tally);
        }
        if known.is_none() {
            self.tally.unchecked(Unchecked::AliasUnknown, 1);
        }
        if self.tree.frames.contains(hpa.page_number()) {
            table_mapped(at, at.address_of(gpa), hpa, &mut self.tally);
        }
    }

    /// A leaf is of the type of what it maps; where both RAM and a device are behind it, the device's counts.
    fn memory_type(&mut self, at: &At<'_>, seen: &Seen) {
        let (guest, _) = self.space(at.table);
        // What the host does not tell, or has nothing of, counts as RAM: that is what slots are made of.
        let expected = if seen.device { guest.policy.device } else { guest.policy.ram };
        let seen = at.root().paging.format.caching(at.table.level, at.entry());
        if seen != expected {
            at.found(at.address, 0, Violation::MemoryType { expected, seen }, &mut self.tally);
        }
    }
}

/// What the frames of one leaf came to.
#[derive(Default)]
struct Seen {
    wrong: u64,
    first_wrong: Option<(Gpa, HostPage, Hpa)>,
    read_only: bool,
    device: bool,
}

impl Root {
    /// Whether the frames of that stretch are counted under this root: once, however many roots and slots have them.
    fn counts_frames(&self, stretch: &Stretch) -> bool {
        self.counts && !stretch.alias
    }

    fn template(&self, slot: &Slot<'_>) -> &Template {
        if slot.memslot.readonly { &self.readonly } else { &self.writable }
    }
}

impl Slot<'_> {
    /// The log that says which pages may be writable, if one does. One that is not known allows none.
    fn log(&self) -> Option<&[u64]> {
        match self.log {
            _ if !self.memslot.log_dirty => None,
            DirtyLog::Pml => None,
            DirtyLog::Unknown => Some(&[]),
            DirtyLog::Bitmap(words) => Some(words),
        }
    }
}

/// Whether the page of that number may be writable by the log.
#[inline]
fn in_log(log: Option<&[u64]>, page: u64) -> bool {
    let word = |words: &[u64]| words.get(usize::try_from(page / 64).ok()?).copied();
    log.is_none_or(|words| word(words).is_some_and(|word| word >> (page % 64) & 1 != 0))
}

/// Whether all of a large page is in the log already.
fn is_logged_whole(slot: &Slot<'_>, gpa: Gpa, size: PageSize) -> bool {
    let DirtyLog::Bitmap(words) = slot.log else { return false };
    let first = gpa.align_down(size).raw().saturating_sub(slot.memslot.base.raw()) >> 12;
    (first..first + (size.bytes() >> 12)).all(|page| in_log(Some(words), page))
}

fn slot_range(slot: &Slot<'_>) -> Option<AddrRange<Gpa>> {
    AddrRange::new(slot.memslot.base, slot.memslot.bytes.into())
}

/// A leaf maps a table.
#[cold]
pub(super) fn table_mapped(at: &At<'_>, address: u64, table: Hpa, tally: &mut Tally) {
    let (of, level) = at.tree.place_of(table);
    at.found(address, 0, Violation::TableMapped { table, level, of }, tally);
}
