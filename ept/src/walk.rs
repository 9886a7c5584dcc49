//! The walker: one for every format, over any memory.

use core::ops::Deref;

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights};
use crate::fault::{Fault, Stop};
use crate::format::{Caching, Cr3, Entry, EptCaps, Eptp, Format, Ia32e, MAX_LEVEL, MaxPhyAddr};
use crate::phys::{MemoryError, PhysMemory};

/// A tree of tables, and all that it takes to walk it.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// Format of the entries.
    pub format: Format,
    /// Physical address of the root table.
    pub root: u64,
    /// Control bits that judge an access; only IA-32e looks at them.
    pub controls: Controls,
}

impl Paging {
    /// The tables that an EPTP selects.
    pub const fn ept(eptp: Eptp, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        Self { format: Format::ept(eptp, caps, max_phy_addr), root: eptp.root(), controls: Controls::empty() }
    }

    /// The tables that a CR3 selects.
    pub const fn ia32e(cr3: Cr3, paging: Ia32e, controls: Controls) -> Self {
        Self { format: Format::ia32e(paging), root: cr3.root(), controls }
    }
}

/// Whether a walk sets accessed and dirty flags as hardware does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flags {
    /// A look: nothing is written.
    Keep,
    /// A in every entry used, D in the leaf on a write (rule A1), once the access is known to be allowed.
    Set,
}

/// One entry that a walk has read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Step {
    /// Level of the entry: 5 PML5, 4 PML4, 3 PDPT, 2 PD, 1 PT.
    pub level: u8,
    /// Index in its table, 0 to 511.
    pub index: u16,
    /// Physical address of the table.
    pub table: u64,
    /// The entry as it was read, before flags were set.
    pub entry: u64,
}

impl Step {
    /// Physical address of the entry.
    #[inline]
    pub const fn entry_address(&self) -> u64 {
        self.table + self.index as u64 * 8
    }
}

/// The entries of a walk, root first; a slice of [`Step`].
#[derive(Clone, Copy, Default)]
pub struct Path {
    steps: [Step; MAX_LEVEL],
    len: usize,
}

impl Path {
    #[inline]
    pub(crate) fn push(&mut self, step: Step) {
        self.steps[self.len] = step;
        self.len += 1;
    }
}

impl Deref for Path {
    type Target = [Step];
    fn deref(&self) -> &[Step] {
        &self.steps[..self.len]
    }
}

impl core::fmt::Debug for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// The output address: frame plus offset.
    pub address: u64,
    /// Physical address of the page.
    pub frame: u64,
    /// Size of the page.
    pub size: PageSize,
    /// What all entries of the walk grant together.
    pub rights: Rights,
    /// The kind of memory, as the leaf says it.
    pub caching: Caching,
    /// The leaf as it was read.
    pub entry: u64,
}

/// A walk: how far it came, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The entries read, root first.
    pub path: Path,
    /// The translation, or the event raised.
    pub outcome: Result<Leaf, Fault>,
}

/// Walks `paging` for one access.
pub fn walk(memory: &impl PhysMemory, paging: &Paging, address: u64, access: Access, flags: Flags) -> Walk {
    let mut path = Path::default();
    let outcome = walk_into(&mut path, memory, paging, address, access, flags);
    Walk { path, outcome }
}

/// The walk's outcome alone.
pub fn translate(
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Result<Leaf, Fault> {
    walk_into(&mut Path::default(), memory, paging, address, access, flags)
}

/// A walk that leaves its path with the caller.
pub(crate) fn walk_into(
    path: &mut Path,
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Result<Leaf, Fault> {
    match walk_entries(&mut Plain(memory), paging, address, access, flags, path) {
        Ok(leaf) => Ok(leaf),
        Err(Failure::Event(fault)) => Err(fault),
        Err(Failure::Source(error)) => Err(Fault::Memory(error)),
    }
}

/// Where a walk gets its entries from: memory, or memory behind another table.
pub(crate) trait Entries {
    type Error;
    fn read(&mut self, address: u64) -> Result<u64, Self::Error>;
    fn compare_exchange(&mut self, address: u64, current: u64, new: u64) -> Result<bool, Self::Error>;
}

struct Plain<'a, M>(&'a M);

impl<M: PhysMemory> Entries for Plain<'_, M> {
    type Error = MemoryError;
    fn read(&mut self, address: u64) -> Result<u64, MemoryError> {
        self.0.read_entry(address)
    }
    fn compare_exchange(&mut self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange(address, current, new)
    }
}

/// The tables say no, or their entries could not be had.
pub(crate) enum Failure<E> {
    Event(Fault),
    Source(E),
}

/// The walk itself. If an entry changes before its flags are set, the walk starts again, as hardware's would.
pub(crate) fn walk_entries<E: Entries>(
    entries: &mut E,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
    path: &mut Path,
) -> Result<Leaf, Failure<E::Error>> {
    loop {
        path.len = 0;
        let leaf = descend(entries, paging, address, access, path)?;
        if flags == Flags::Keep
            || set_flags(entries, &paging.format, access, path).map_err(Failure::Source)?
        {
            return Ok(leaf);
        }
    }
}

/// From the root to the leaf. The order is that of rules M6 and F1: not present, malformed, descend; rights last.
fn descend<E: Entries>(
    entries: &mut E,
    paging: &Paging,
    address: u64,
    access: Access,
    path: &mut Path,
) -> Result<Leaf, Failure<E::Error>> {
    let Paging { format, root, controls } = paging;
    let stop = |stop: Stop| Err(Failure::Event(stop.event(format, access, *controls)));
    if !format.translates(address) {
        return stop(Stop::Input(address));
    }
    let mut table = *root;
    let mut level = format.levels();
    let mut merged = u64::MAX;
    let (frame, size, entry) = loop {
        let mut step = Step { level, index: index_of(level, address), table, entry: 0 };
        step.entry = entries.read(step.entry_address()).map_err(Failure::Source)?;
        path.push(step);
        merged &= format.mergeable(step.entry);
        match format.decode(level, step.entry) {
            Entry::Absent => return stop(Stop::Absent),
            Entry::Malformed(reason) => return stop(Stop::Malformed(reason)),
            Entry::Table(next) => table = next,
            Entry::Leaf(frame, size) => break (frame, size, step.entry),
        }
        // An entry of level 1 never points to a table, so this ends.
        level -= 1;
    };
    let rights = format.merged_rights(merged);
    if !format.grants(rights, access, *controls) {
        return stop(Stop::Denied(rights));
    }
    let address = frame | address & (size.bytes() - 1);
    Ok(Leaf { address, frame, size, rights, caching: format.caching(level, entry), entry })
}

/// Sets A and D along the path; `false` if an entry is no longer what was read.
fn set_flags<E: Entries>(
    entries: &mut E,
    format: &Format,
    access: Access,
    path: &Path,
) -> Result<bool, E::Error> {
    for (at, step) in path.iter().enumerate() {
        let leaf = at + 1 == path.len();
        let marked = format.marked(step.entry, leaf, access.writes());
        if marked != step.entry && !entries.compare_exchange(step.entry_address(), step.entry, marked)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The index of `address` in a table of that level.
#[inline]
pub(crate) const fn index_of(level: u8, address: u64) -> u16 {
    (address >> crate::format::shift_of(level) & 0x1ff) as u16
}
