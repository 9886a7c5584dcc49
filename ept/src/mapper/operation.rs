//! One change of a range of entries: first everything is checked and each new table is allocated, then it is done.

use alloc::vec::Vec;

use memory_model::{AddrRange, Address, PageSize};

use super::change::{Change, New};
use super::flush::Flush;
use crate::error::Error;
use crate::format::{Entry, Format, Kind, Role};
use crate::paging::Paging;
use crate::phys::{FrameAllocator, PhysMemory};
use crate::walk::Step;

/// Input addresses, both inside. Those of the upper canonical half are cut to the width of the table, so that they lie
/// where the indices of their entries say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
}

impl Span {
    /// From `address` on, and `more` behind it.
    pub fn new(format: &Format, address: u64, more: u64) -> Result<Self, Error> {
        let kind = format.kind();
        if matches!(kind, Kind::Pae | Kind::Legacy32) {
            return Err(Error::NotBuilt { kind });
        }
        let refused = |address| Err(Error::InputRange { address, levels: format.levels() });
        if !format.translates(address) {
            return refused(address);
        }
        let Some(last) = address.checked_add(more) else { return refused(address) };
        // Two canonical addresses of different halves have all that is not canonical between them.
        if !format.translates(last) || (address ^ last) >> 63 != 0 {
            return refused(last);
        }
        let inside = u64::MAX >> (64 - format.input_bits());
        Ok(Self { first: address & inside, last: last & inside })
    }

    pub fn of<A: Address>(format: &Format, range: AddrRange<A>) -> Result<Self, Error> {
        let (first, last) = (range.first().raw(), range.last().raw());
        Self::new(format, first, last - first)
    }

    /// Whether it is made of whole pages of that size.
    pub fn check_alignment(self, format: &Format, size: PageSize) -> Result<(), Error> {
        let misaligned = |address: u64| (address & (size.bytes() - 1) != 0).then_some(address);
        match misaligned(self.first).or(misaligned(self.last.wrapping_add(1))) {
            Some(address) => Err(Error::Misaligned { address: format.extend(address), size }),
            None => Ok(()),
        }
    }
}

/// Where an entry lies.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub level: u8,
    /// The first address it stands for.
    pub address: u64,
    /// Whether all of its addresses are in the range.
    pub whole: bool,
}

/// A table, and the addresses that it translates.
#[derive(Clone, Copy)]
struct Table {
    level: u8,
    base: u64,
    frame: u64,
}

impl Table {
    const LAST_INDEX: u64 = 511;

    /// The indices of the entries that share an address with `span`: the first, and the last.
    #[inline]
    fn indices(self, span: Span) -> (u16, u16) {
        let index = |address: u64| address.saturating_sub(self.base) >> shift_of(self.level);
        (index(span.first) as u16, index(span.last).min(Self::LAST_INDEX) as u16)
    }

    /// The first address that entry `index` stands for.
    #[inline]
    fn address(self, index: u16) -> u64 {
        self.base + (u64::from(index) << shift_of(self.level))
    }

    fn spot(self, index: u16, span: Span) -> Spot {
        let address = self.address(index);
        let last = address + ((1 << shift_of(self.level)) - 1);
        Spot { level: self.level, address, whole: span.first <= address && last <= span.last }
    }

    fn step(self, format: &Format, index: u16, entry: u64) -> Step {
        Step { entry, ..format.step_at(self.level, self.frame, index) }
    }

    #[inline]
    fn entry_address(self, index: u16) -> u64 {
        self.frame + u64::from(index) * 8
    }

    /// The table that an entry of this one points to.
    fn child(self, spot: Spot, frame: u64) -> Self {
        Self { level: self.level - 1, base: spot.address, frame }
    }
}

/// What is to be done with an entry.
enum Plan {
    Visit(Table),
    Write(u64),
    /// A table takes its place.
    Link,
}

/// What an operation has done.
pub(super) struct Done {
    pub flush: Flush,
    /// The last leaf that was replaced, as it was.
    pub replaced: Option<Step>,
}

/// A change of all entries in a span.
pub(super) struct Operation<'a, M, C> {
    memory: &'a mut M,
    format: &'a Format,
    root: Table,
    span: Span,
    change: C,
    /// Tables allocated and not linked yet. Those before `used` are filled.
    reserve: Vec<u64>,
    used: usize,
    done: Done,
}

impl<'a, M: PhysMemory + FrameAllocator, C: Change> Operation<'a, M, C> {
    pub fn new(memory: &'a mut M, paging: &'a Paging, span: Span, change: C) -> Self {
        let format = &paging.format;
        let root = Table { level: format.levels(), base: 0, frame: paging.root };
        let done = Done { flush: Flush::NOTHING, replaced: None };
        Self { memory, format, root, span, change, reserve: Vec::new(), used: 0, done }
    }

    pub fn run(mut self) -> Result<Done, Error> {
        let top = self.top()?;
        let outcome = self.check(top).and_then(|()| self.commit(top)).and_then(|()| self.prune(top));
        while let Some(table) = self.reserve.pop() {
            self.memory.free_table(table);
        }
        outcome.map(|()| self.done)
    }

    /// A low table that translates the whole span and more: what is above it stays as it is.
    fn top(&self) -> Result<Table, Error> {
        let mut top = self.root;
        while let (index, last) = top.indices(self.span)
            && index == last
        {
            let (spot, entry) = (top.spot(index, self.span), self.read(top, index)?);
            if spot.whole || !self.format.are_plain_tables(spot.level, self.format.withheld(entry)) {
                break;
            }
            top = top.child(spot, entry & self.format.table_frame());
        }
        Ok(top)
    }

    /// Takes away tables above `top` too, if nothing is left in it.
    fn prune(&mut self, top: Table) -> Result<(), Error> {
        match C::TAKES_TABLES && top.level < self.root.level && self.is_empty(top)? {
            true => self.commit(self.root),
            false => Ok(()),
        }
    }

    #[inline]
    fn read(&self, table: Table, index: u16) -> Result<u64, Error> {
        Ok(self.memory.read_entry(table.entry_address(index))?)
    }

    /// What becomes of an entry above level 1.
    fn plan(&self, table: Table, spot: Spot, entry: u64) -> Result<Plan, Error> {
        match self.format.decode(spot.level, entry) {
            Entry::Malformed(reason) => Err(Error::Malformed { level: spot.level, entry, reason }),
            Entry::Table(next) => {
                self.change.table(self.format, spot, entry)?;
                Ok(Plan::Visit(table.child(spot, next)))
            }
            Entry::Absent | Entry::Leaf(..) => Ok(match self.change.entry(self.format, spot, entry)? {
                New::Entry(new) => Plan::Write(new),
                New::Table => Plan::Link,
            }),
        }
    }

    /// What becomes of an entry at level 1.
    #[inline]
    fn page(&self, table: Table, index: u16, entry: u64) -> Result<u64, Error> {
        if self.format.is_present(entry)
            && !self.format.is_plain_leaf(1, entry)
            && let Entry::Malformed(reason) = self.format.decode(1, entry)
        {
            return Err(Error::Malformed { level: 1, entry, reason });
        }
        self.change.page(self.format, table.address(index), entry)
    }

    /// Finds whatever would refuse the change below `table`, and allocates the tables that it takes.
    fn check(&mut self, table: Table) -> Result<(), Error> {
        let mut written = None;
        let (first, last) = table.indices(self.span);
        for index in first..=last {
            let entry = self.read(table, index)?;
            let changes = match table.level {
                1 => self.page(table, index, entry)? != entry,
                _ => self.check_entry(table, index, entry)?,
            };
            if changes {
                written = Some((index, entry));
            }
        }
        // An exchange that changes nothing: read-only memory is found out now.
        if let Some((index, entry)) = written {
            self.memory.compare_exchange(table.entry_address(index), entry, entry)?;
        }
        Ok(())
    }

    /// Checks an entry above level 1, and what is below it; whether it will be written.
    fn check_entry(&mut self, table: Table, index: u16, entry: u64) -> Result<bool, Error> {
        let spot = table.spot(index, self.span);
        match self.plan(table, spot, entry)? {
            Plan::Visit(child) => self.check(child).map(|()| C::TAKES_TABLES),
            Plan::Write(new) => Ok(new != entry),
            Plan::Link => self.allocate(spot, entry).map(|()| true),
        }
    }

    /// Allocates the table that takes the place of `old` at `spot`, and those below it.
    fn allocate(&mut self, spot: Spot, old: u64) -> Result<(), Error> {
        let level = spot.level - 1;
        if let Some(size) = PageSize::of_level(level)
            && self.format.is_present(old)
        {
            if !self.format.has_size(size) {
                return Err(Error::PageSize { size });
            }
            let ignored = |level| self.format.bits(Role::Ignored, level, true);
            match old & ignored(spot.level) & !ignored(level) {
                0 => {}
                bits => return Err(Error::SoftwareBits { bits, size }),
            }
        }
        let frame = self.memory.allocate_table().ok_or(Error::OutOfTables)?;
        self.reserve.push(frame);
        self.format.table(frame)?;
        self.memory.write_entries(frame, &[0])?;
        if level > 1 {
            let table = Table { level, base: spot.address, frame };
            let (first, last) = table.indices(self.span);
            for index in first..=last {
                let present = self.format.is_present(old);
                let piece = if present { self.format.split(spot.level, old, index) } else { 0 };
                let spot = table.spot(index, self.span);
                if self.change.entry(self.format, spot, piece)? == New::Table {
                    self.allocate(spot, piece)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the change below `table`.
    fn commit(&mut self, table: Table) -> Result<(), Error> {
        let (first, last) = table.indices(self.span);
        for index in first..=last {
            // Again if hardware has set a flag meanwhile.
            while !self.commit_entry(table, index)? {}
        }
        Ok(())
    }

    /// Changes one entry; `false` if hardware has set a flag in it meanwhile.
    #[inline]
    fn commit_entry(&mut self, table: Table, index: u16) -> Result<bool, Error> {
        let entry = self.read(table, index)?;
        match table.level {
            1 => self.write(table, index, entry, self.page(table, index, entry)?),
            _ => self.commit_large(table, index, entry),
        }
    }

    /// Changes an entry above level 1.
    fn commit_large(&mut self, table: Table, index: u16, entry: u64) -> Result<bool, Error> {
        let (step, spot) = (table.step(self.format, index, entry), table.spot(index, self.span));
        match self.plan(table, spot, entry)? {
            Plan::Visit(child) => self.commit_table(step, spot, child),
            Plan::Write(new) => self.write(table, index, entry, new),
            Plan::Link => {
                let pointer = self.build(spot, entry)?;
                let linked = self.memory.compare_exchange(step.entry_address(), entry, pointer)?;
                if linked {
                    self.reserve.drain(..self.used);
                    self.replaced(table, step, self.format.is_present(entry));
                }
                self.used = 0;
                Ok(linked)
            }
        }
    }

    /// Replaces an absent entry or a leaf by another; `false` if hardware has set a flag in it meanwhile.
    #[inline]
    fn write(&mut self, table: Table, index: u16, entry: u64, new: u64) -> Result<bool, Error> {
        let address = table.entry_address(index);
        if new == entry {
            return Ok(true);
        }
        if !self.format.is_present(entry) {
            // Hardware never writes to an absent entry.
            self.memory.write_entries(address, &[new])?;
            return Ok(true);
        }
        let exchanged = self.memory.compare_exchange(address, entry, new)?;
        if exchanged {
            let granted = |entry| self.format.granted(self.format.mergeable(entry), entry);
            let lost = granted(entry) & !granted(new);
            self.replaced(table, table.step(self.format, index, entry), lost != 0);
        }
        Ok(exchanged)
    }

    fn commit_table(&mut self, step: Step, spot: Spot, child: Table) -> Result<bool, Error> {
        if !(C::TAKES_TABLES && spot.whole) {
            self.commit(child)?;
        }
        if C::TAKES_TABLES && (spot.whole || self.is_empty(child)?) {
            if !self.memory.compare_exchange(step.entry_address(), step.entry, 0)? {
                return Ok(false);
            }
            let last = spot.address + ((1 << shift_of(spot.level)) - 1);
            self.stale(spot.address.max(self.span.first), last.min(self.span.last));
            self.free_tree(child)?;
        }
        Ok(true)
    }

    /// An entry has been replaced that was no table pointer.
    fn replaced(&mut self, table: Table, old: Step, stale: bool) {
        self.done.replaced = Some(old);
        if stale {
            let first = table.address(old.index);
            self.stale(first, first + ((1 << shift_of(table.level)) - 1));
        }
    }

    fn stale(&mut self, first: u64, last: u64) {
        let (first, last) = (self.format.extend(first), self.format.extend(last));
        self.done.flush = self.done.flush.and(Flush::between(first, last));
    }

    /// Fills the table that takes the place of `old` at `spot`, and those below it; returns the entry that points to
    /// it. Whatever its frame held before is gone.
    fn build(&mut self, spot: Spot, old: u64) -> Result<u64, Error> {
        /// A part of a table at a time: a whole one is large for a stack.
        const PART: usize = 64;
        let &frame = self.reserve.get(self.used).ok_or(Error::OutOfTables)?;
        self.used += 1;
        let table = Table { level: spot.level - 1, base: spot.address, frame };
        let (first, last) = table.indices(self.span);
        for part in (0..=Table::LAST_INDEX as u16).step_by(PART) {
            let mut entries = [0; PART];
            if self.format.is_present(old) {
                for (entry, index) in entries.iter_mut().zip(part..) {
                    *entry = self.format.split(spot.level, old, index);
                }
            }
            for index in first.max(part)..=last.min(part + (PART as u16 - 1)) {
                let entry = &mut entries[usize::from(index - part)];
                *entry = match table.level {
                    1 => self.change.page(self.format, table.address(index), *entry)?,
                    _ => self.build_entry(table.spot(index, self.span), *entry)?,
                };
            }
            self.memory.write_entries(table.entry_address(part), &entries)?;
        }
        let accessed = self.format.marked(0, false, false);
        let inherited = if self.format.is_present(old) { old & accessed } else { 0 };
        Ok(self.format.table(table.frame)? | inherited)
    }

    fn build_entry(&mut self, spot: Spot, piece: u64) -> Result<u64, Error> {
        match self.change.entry(self.format, spot, piece)? {
            New::Entry(new) => Ok(new),
            New::Table => self.build(spot, piece),
        }
    }

    /// Whether nothing is left in a table. It begins where its neighbours are likely to be left.
    fn is_empty(&self, table: Table) -> Result<bool, Error> {
        let (first, _) = table.indices(self.span);
        let start = first.saturating_sub(1);
        for index in (start..=Table::LAST_INDEX as u16).chain(0..start) {
            if self.read(table, index)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Frees a table that is no longer linked, and all below it.
    fn free_tree(&mut self, table: Table) -> Result<(), Error> {
        if table.level > 1 {
            for index in 0..=Table::LAST_INDEX as u16 {
                let entry = self.read(table, index)?;
                if let Entry::Table(next) = self.format.decode(table.level, entry) {
                    self.free_tree(table.child(table.spot(index, self.span), next))?;
                }
            }
        }
        self.memory.free_table(table.frame);
        Ok(())
    }
}

/// log2 of what an entry at that level spans, in tables of 512.
#[inline]
pub(super) const fn shift_of(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}
