//! Building tables: map, unmap, change rights, split and join pages, collect accessed and dirty flags.

mod change;
mod flags;
mod flush;
mod join;
mod operation;

use memory_model::{AddrRange, Address, PageSize};

use crate::access::Rights;
use crate::error::Error;
use crate::format::{Attributes, Entry};
use crate::mappings::Mapping;
use crate::paging::Paging;
use crate::phys::{FrameAllocator, PhysMemory};
use crate::walk::Step;
use change::{Change, Map, Protect, Split, Unmap};
use operation::{Operation, Span};

pub use flush::Flush;

/// Builds the tables of one root: EPT, NPT, or 4- or 5-level paging. It is their only writer but for the flags that
/// hardware sets.
///
/// - A refused change has changed nothing: all of it is checked, and all tables for it are allocated, before the
///   first entry is written.
/// - Another processor may walk the tables all the time. Each entry changes at one stroke, from one valid value to the
///   next, and new tables are filled before they are linked. So a page that stays mapped is never seen unmapped, and
///   no entry is ever seen malformed. No entry has to be taken away before it is replaced ("break before make"): x86
///   does not ask for it.
/// - Translations that a processor keeps are the caller's to flush: [`Flush`] says which. Nothing becomes stale when
///   pages are mapped. Tables that become empty are freed, all but the root; the allocator must not give them out
///   again before that flush ([`FrameAllocator::free_table`]).
/// - A range that begins or ends inside a large page splits it, as KVM does: what lies outside stays as it was.
///
/// ```
/// use ept::*;
/// use memory_model::{AddrRange, Gva, PageSize};
/// let mut memory = SparseMemory::allocating_from(0x10_0000);
/// let cr3 = Cr3::new(memory.allocate_table().unwrap(), MaxPhyAddr::MAX)?;
/// let processor = Ia32e::new(Levels::Four, MaxPhyAddr::MAX);
/// let paging = Paging::ia32e(cr3, processor, Controls::WP);
///
/// let mut mapper = Mapper::new(&mut memory, paging);
/// let user_code = Attributes::ram(Kind::Ia32e, Rights::READ | Rights::EXEC | Rights::USER);
/// mapper.map(0x40_0000, 0x20_0000, PageSize::Size2M, user_code)?;
/// let stale = mapper.protect_range(AddrRange::page_of(Gva(0x40_1000), PageSize::Size4K), Rights::READ)?;
/// assert_eq!(stale.range(), Some(AddrRange::page_of(Gva(0x40_1000), PageSize::Size2M))); // one page till now
///
/// let read = |address| translate(&memory, &paging, address, Access::READ, Flags::Keep).unwrap();
/// assert_eq!(read(0x40_1234).address, 0x20_1234);
/// assert_eq!((read(0x40_1000).rights(), read(0x40_2000).rights()), (Rights::READ, user_code.rights));
/// # Ok::<(), ept::Error>(())
/// ```
#[derive(Debug)]
pub struct Mapper<'a, M> {
    memory: &'a mut M,
    paging: Paging,
}

/// Which page sizes a range is mapped with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sizes {
    /// That size alone; the range and its frames must be aligned to it.
    Only(PageSize),
    /// At each place the largest that the alignment of both addresses, the rest of the range, the format and this
    /// bound allow.
    UpTo(PageSize),
}

/// Where a descent ended: at an entry that is no table pointer, or at the level asked for.
struct Place {
    step: Step,
    merged: u64,
}

impl<'a, M: PhysMemory + FrameAllocator> Mapper<'a, M> {
    /// A mapper for the tables of `paging`, whose root table exists.
    pub fn new(memory: &'a mut M, paging: Paging) -> Self {
        Self { memory, paging }
    }

    /// Maps the page of that size at `address` to the one at `frame`. Nothing may be mapped there yet.
    pub fn map(&mut self, address: u64, frame: u64, size: PageSize, page: Attributes) -> Result<(), Error> {
        let span = Span::new(&self.paging.format, address, size.bytes() - 1)?;
        self.map_span(span, frame, Sizes::Only(size), page)
    }

    /// Maps the addresses of `range` to as many from `frame` on. Nothing may be mapped there yet.
    pub fn map_range<A: Address>(
        &mut self,
        range: AddrRange<A>,
        frame: u64,
        sizes: Sizes,
        page: Attributes,
    ) -> Result<(), Error> {
        let span = Span::of(&self.paging.format, range)?;
        self.map_span(span, frame, sizes, page)
    }

    fn map_span(&mut self, span: Span, frame: u64, sizes: Sizes, page: Attributes) -> Result<(), Error> {
        let map = Map::new(&self.paging.format, span, frame, sizes, page)?;
        self.change(span, map).map(|_| ())
    }

    /// Takes away the page that starts at `address`, and the tables that become empty; returns it as it was.
    pub fn unmap(&mut self, address: u64) -> Result<(Mapping, Flush), Error> {
        self.change_page(address, Unmap)
    }

    /// Takes away whatever is mapped in `range`, and the tables that become empty. Entries there that are absent
    /// become zero. Its bounds are those of 4 KiB pages.
    pub fn unmap_range<A: Address>(&mut self, range: AddrRange<A>) -> Result<Flush, Error> {
        self.change_range(range, Unmap)
    }

    /// Gives the page that starts at `address` other rights; returns it as it was.
    pub fn protect(&mut self, address: u64, rights: Rights) -> Result<(Mapping, Flush), Error> {
        let protect = Protect::new(&self.paging.format, rights)?;
        self.change_page(address, protect)
    }

    /// Gives whatever is mapped in `range` other rights. Its bounds are those of 4 KiB pages.
    pub fn protect_range<A: Address>(&mut self, range: AddrRange<A>, rights: Rights) -> Result<Flush, Error> {
        let protect = Protect::new(&self.paging.format, rights)?;
        self.change_range(range, protect)
    }

    /// Puts a table of 512 smaller pages in the place of the large page that `address` lies in.
    ///
    /// They inherit its accessed and dirty flags. A processor that holds the large translation with D set writes
    /// through it without setting D again, so a piece with D clear would hide those writes.
    ///
    /// All addresses translate as before, and yet a flush is asked for: bit 7 has changed (rule IV1). Processors with
    /// the erratum "machine check on instruction fetch with two page sizes" want executable pages flushed in between:
    /// there, take EXEC away first.
    pub fn split(&mut self, address: u64) -> Result<Flush, Error> {
        let page = self.page_at(address)?;
        if page.size == PageSize::Size4K {
            return Err(Error::NotLarge { address });
        }
        let span = Span::new(&self.paging.format, page.address, page.size.bytes() - 1)?;
        Ok(self.change(span, Split(page.step.level))?.flush)
    }

    /// Changes the page that starts at `address`.
    fn change_page<C: Change>(&mut self, address: u64, change: C) -> Result<(Mapping, Flush), Error> {
        let page = self.page_at(address)?;
        if page.address != address {
            return Err(Error::Misaligned { address, size: page.size });
        }
        let span = Span::new(&self.paging.format, address, page.size.bytes() - 1)?;
        let done = self.change(span, change)?;
        // Where nothing was replaced, the page was already what it was to become.
        let step = done.replaced.unwrap_or(page.step);
        Ok((Mapping { step, ..page }, done.flush))
    }

    fn change_range<A: Address, C: Change>(
        &mut self,
        range: AddrRange<A>,
        change: C,
    ) -> Result<Flush, Error> {
        let span = Span::of(&self.paging.format, range)?;
        span.check_alignment(&self.paging.format, PageSize::Size4K)?;
        Ok(self.change(span, change)?.flush)
    }

    fn change<C: Change>(&mut self, span: Span, change: C) -> Result<operation::Done, Error> {
        Operation::new(self.memory, &self.paging, span, change).run()
    }

    /// The page that `address` lies in.
    fn page_at(&self, address: u64) -> Result<Mapping, Error> {
        let format = &self.paging.format;
        Span::new(format, address, 0)?;
        let Place { step, merged } = self.descend(address, 1)?;
        match format.decode(step.level, step.entry) {
            Entry::Leaf(frame, size) => {
                let address = address & !(size.bytes() - 1);
                Ok(Mapping { address, size, frame, rights: format.merged_rights(merged, step.entry), step })
            }
            Entry::Malformed(reason) => {
                Err(Error::Malformed { level: step.level, entry: step.entry, reason })
            }
            Entry::Absent | Entry::Table(_) => Err(Error::NotMapped { address }),
        }
    }

    fn descend(&self, address: u64, level: u8) -> Result<Place, Error> {
        let format = &self.paging.format;
        let mut table = self.paging.root;
        let mut merged = u64::MAX;
        let mut at = format.levels();
        loop {
            let mut step = format.step(at, table, address);
            step.entry = self.memory.read_entry(step.entry_address())?;
            merged &= format.mergeable(step.entry);
            match format.decode(at, step.entry) {
                Entry::Table(next) if at > level => table = next,
                _ => return Ok(Place { step, merged }),
            }
            at -= 1;
        }
    }
}
