//! The walker: one for every format, over any memory.

use core::hash::{Hash, Hasher};
use core::ops::Deref;

use memory_model::PageSize;

use crate::access::{Access, Rights};
use crate::fault::{Fault, Stop};
use crate::format::{Caching, Entry, Format, Kind, MAX_LEVEL, Offer};
use crate::judge::{Found, judge};
use crate::paging::{Paging, Start};
use crate::phys::{MemoryError, PhysMemory};
use crate::quick::{Ask, Quick};

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
    /// Bytes of an entry: 8, or 4 in 32-bit paging.
    pub width: u8,
    /// Index in its table, 0 to 511, or to 1023 in 32-bit paging.
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
        self.table + self.index as u64 * self.width as u64
    }
}

impl Format {
    /// The step to the entry for `address` in a table of that level, not yet read.
    #[inline]
    pub(crate) const fn step(&self, level: u8, table: u64, address: u64) -> Step {
        self.step_at(level, table, self.index(level, address))
    }

    /// The step to entry `index` of a table of that level, not yet read.
    #[inline]
    pub(crate) const fn step_at(&self, level: u8, table: u64, index: u16) -> Step {
        Step { level, width: self.entry_bytes(), index, table, entry: 0 }
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

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Path {}

impl core::fmt::Debug for Path {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A translation.
#[derive(Clone, Copy)]
pub struct Leaf {
    /// The output address: frame plus offset.
    pub address: u64,
    /// The leaf as it was read.
    pub entry: u64,
    /// OR of what the entries of the walk [withhold](Format::withheld): the rights are made of it when they are asked for.
    withheld: u64,
    /// Size of the page.
    pub size: PageSize,
    offer: Offer,
}

impl Leaf {
    /// Of a walk for `address` that ended at `entry`, which maps the page at `frame`.
    #[inline(always)]
    pub(crate) const fn new(
        offer: Offer,
        address: u64,
        (frame, size): (u64, PageSize),
        entry: u64,
        withheld: u64,
    ) -> Self {
        Self { address: frame | address & (size.bytes() - 1), entry, withheld, size, offer }
    }

    /// Physical address of the page.
    #[inline]
    pub const fn frame(&self) -> u64 {
        self.address & !(self.size.bytes() - 1)
    }

    /// OR of what the entries of the walk [withhold](Format::withheld).
    #[inline]
    pub(crate) const fn withheld(&self) -> u64 {
        self.withheld
    }

    /// What all entries of the walk grant together.
    #[inline]
    pub const fn rights(&self) -> Rights {
        self.offer.rights(self.withheld, self.entry)
    }

    /// Whether [`rights`](Self::rights) contain USER, which is quicker to tell.
    #[inline]
    pub(crate) const fn grants_user(&self) -> bool {
        self.offer.grants_user(self.withheld)
    }

    /// The kind of memory, as the leaf says it.
    #[inline]
    pub const fn caching(&self) -> Caching {
        let kind = if self.offer.is_ept() { Kind::Ept } else { Kind::Ia32e };
        kind.caching(self.size.level(), self.entry)
    }
}

impl Leaf {
    /// All that it tells, which is less than what the entries above it withhold.
    const fn told(&self) -> (u64, u64, PageSize, Offer, Rights) {
        (self.address, self.entry, self.size, self.offer, self.rights())
    }
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Self) -> bool {
        self.told() == other.told()
    }
}

impl Eq for Leaf {}

impl Hash for Leaf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.told().hash(state);
    }
}

impl core::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Leaf")
            .field("address", &format_args!("{:#x}", self.address))
            .field("entry", &format_args!("{:#x}", self.entry))
            .field("size", &self.size)
            .field("rights", &self.rights())
            .field("caching", &self.caching())
            .finish()
    }
}

/// A walk: how far it came, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The entries read, root first.
    pub path: Path,
    /// The translation, or the event raised.
    pub outcome: Result<Leaf, Fault>,
}

impl Walk {
    /// Whether the walk ended with a violation that becomes a virtualization exception, if those are on (rule V2).
    pub fn is_convertible(&self) -> bool {
        self.outcome.is_err_and(|fault| is_convertible(&self.path, fault))
    }
}

/// Rule V2: the entry that was not present, or else the leaf, decides. A misconfiguration never becomes a #VE (M8).
pub(crate) fn is_convertible(path: &Path, fault: Fault) -> bool {
    matches!(fault, Fault::EptViolation { .. })
        && path.last().is_some_and(|last| !Format::suppresses_ve(last.entry))
}

/// Walks `paging` for one access.
pub fn walk(memory: &impl PhysMemory, paging: &Paging, address: u64, access: Access, flags: Flags) -> Walk {
    let mut path = Path::default();
    let outcome = walk_into(&mut path, memory, paging, address, access, flags);
    Walk { path, outcome }
}

/// The walk's outcome alone: several times as fast as [`walk`], which it falls back to.
#[inline(always)]
pub fn translate(
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Result<Leaf, Fault> {
    let ask = Ask::new(paging, access, flags).filter(|_| paging.format.levels() == 4);
    let read = |entry| memory.read_entry(entry).ok();
    match ask.and_then(|ask| ask.descend_four(Quick::new(paging, address), read)) {
        Some(leaf) => Ok(leaf),
        None => translate_other(memory, paging, address, access, flags),
    }
}

/// The same, if nothing about the walk is unusual: nothing is refused, and no flag is left to set. It writes nothing, and
/// `None` says only that [`walk`] knows more.
#[inline(always)]
pub fn try_translate(
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Option<Leaf> {
    Ask::new(paging, access, flags)?.descend(address, |entry| memory.read_entry(entry).ok())
}

/// What is not through four levels, or unusual.
#[cold]
#[inline(never)]
fn translate_other(
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Result<Leaf, Fault> {
    let ask = Ask::new(paging, access, flags).filter(|_| paging.format.levels() == 5);
    match ask.and_then(|ask| ask.descend(address, |entry| memory.read_entry(entry).ok())) {
        Some(leaf) => Ok(leaf),
        None => walk(memory, paging, address, access, flags).outcome,
    }
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
    walk_from(None, path, memory, paging, address, access, flags)
}

/// A walk that begins at a table below the root.
pub(crate) fn walk_from(
    from: Option<Start>,
    path: &mut Path,
    memory: &impl PhysMemory,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
) -> Result<Leaf, Fault> {
    match walk_entries(&mut Plain(memory), paging, from, address, access, flags, path) {
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

pub(crate) struct Plain<'a, M>(pub &'a M);

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

/// The walk itself, from a remembered table or else from the root. If an entry changes before its flags are set, the
/// walk starts again, as hardware's would.
pub(crate) fn walk_entries<E: Entries>(
    entries: &mut E,
    paging: &Paging,
    from: Option<Start>,
    address: u64,
    access: Access,
    flags: Flags,
    path: &mut Path,
) -> Result<Leaf, Failure<E::Error>> {
    loop {
        path.len = 0;
        let leaf = descend(entries, paging, from, address, access, path)?;
        if flags == Flags::Keep
            || set_flags(entries, &paging.format, access, path).map_err(Failure::Source)?
        {
            return Ok(leaf);
        }
    }
}

/// From there to the leaf. The order is that of rules M6 and F1: not present, malformed, descend; rights last.
fn descend<E: Entries>(
    entries: &mut E,
    paging: &Paging,
    from: Option<Start>,
    address: u64,
    access: Access,
    path: &mut Path,
) -> Result<Leaf, Failure<E::Error>> {
    let format = &paging.format;
    let stop = |stop: Stop| Err(Failure::Event(stop.event(format, access, paging.controls)));
    if !format.translates(address) {
        return stop(Stop::Input(address));
    }
    let Some(start) = from.or_else(|| paging.start(address)) else { return stop(Stop::Absent) };
    let Start { mut level, mut table, mut tables } = start;
    let (frame, size, leaf) = loop {
        let mut step = format.step(level, table, address);
        step.entry = read(entries, step).map_err(Failure::Source)?;
        path.push(step);
        match format.decode(level, step.entry) {
            Entry::Absent => return stop(Stop::Absent),
            Entry::Malformed(reason) => return stop(Stop::Malformed(reason)),
            Entry::Table(next) => table = next,
            Entry::Leaf(frame, size) => break (frame, size, step.entry),
        }
        tables &= format.mergeable(step.entry);
        // An entry of level 1 never points to a table, so this ends.
        level -= 1;
    };
    let merged = tables & format.mergeable(leaf);
    match judge(paging, access, Found { tables, granted: format.granted(merged, leaf), leaf }) {
        Ok(()) => Ok(Leaf::new(format.offer(), address, (frame, size), leaf, !merged)),
        Err(denial) => stop(Stop::Denied(denial)),
    }
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
        if marked != step.entry && !exchange(entries, *step, marked)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads the entry of a step. One of 32 bits is read with its neighbour, as memory gives eight bytes at a time.
pub(crate) fn read<E: Entries>(entries: &mut E, step: Step) -> Result<u64, E::Error> {
    let address = step.entry_address();
    if step.width == 8 {
        return entries.read(address);
    }
    Ok(entries.read(address & !7)? >> ((address & 4) * 8) & u64::from(u32::MAX))
}

/// Replaces the entry of a step, if it still is what was read.
fn exchange<E: Entries>(entries: &mut E, step: Step, new: u64) -> Result<bool, E::Error> {
    let address = step.entry_address();
    if step.width == 8 {
        return entries.compare_exchange(address, step.entry, new);
    }
    let shift = (address & 4) * 8;
    let both = entries.read(address & !7)?;
    if both >> shift & u64::from(u32::MAX) != step.entry {
        return Ok(false);
    }
    entries.compare_exchange(address & !7, both, both ^ (step.entry ^ new) << shift)
}
