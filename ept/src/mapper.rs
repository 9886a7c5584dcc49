//! Building tables: map, unmap, change rights.

use memory_model::PageSize;

use crate::access::Rights;
use crate::error::Error;
use crate::format::{Attributes, Entry, MAX_LEVEL};
use crate::mappings::Mapping;
use crate::phys::{FrameAllocator, PhysMemory};
use crate::walk::{Paging, Path, Step};

/// Builds the tables of one root, in any format. It is their only writer but for the flags that hardware sets. A
/// refused change has changed nothing; translations that a processor keeps are the caller's to flush.
///
/// ```
/// use ept::*;
/// use memory_model::PageSize;
/// let mut memory = SparseMemory::allocating_from(0x10_0000);
/// let cr3 = Cr3::new(memory.allocate_table().unwrap(), MaxPhyAddr::MAX)?;
/// let processor = Ia32e::new(Levels::Four, MaxPhyAddr::MAX);
/// let paging = Paging::ia32e(cr3, processor, Controls::WP);
///
/// let mut mapper = Mapper::new(&mut memory, paging);
/// let user_code = Attributes::ram(Kind::Ia32e, Rights::READ | Rights::EXEC | Rights::USER);
/// mapper.map(0x40_0000, 0x20_0000, PageSize::Size2M, user_code)?;
///
/// let fetch = translate(&memory, &paging, 0x40_1234, Access::FETCH.by_user(), Flags::Keep).unwrap();
/// assert_eq!(fetch.address, 0x20_1234);
/// # Ok::<(), ept::Error>(())
/// ```
#[derive(Debug)]
pub struct Mapper<'a, M> {
    memory: &'a mut M,
    paging: Paging,
}

/// Where a descent ended: at an entry that is no table pointer, or at the level asked for.
struct Place {
    above: Path,
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
        self.map_range(address, frame, size, 1, page)
    }

    /// Maps `count` pages of that size from `address` on, to as many from `frame` on: all of them, or none if one is
    /// refused.
    pub fn map_range(
        &mut self,
        address: u64,
        frame: u64,
        size: PageSize,
        count: u64,
        page: Attributes,
    ) -> Result<(), Error> {
        let format = self.paging.format;
        if address & (size.bytes() - 1) != 0 {
            return Err(Error::Misaligned { address, size });
        }
        let mut last = None;
        for index in 0..count {
            let at = |base: u64| base.checked_add(index.checked_mul(size.bytes())?);
            let mapped = match (at(address), at(frame)) {
                (Some(address), Some(frame)) => format
                    .leaf(size, frame, page)
                    .and_then(|leaf| self.map_leaf(address, size.level(), leaf, &mut last)),
                _ => Err(Error::InputRange { address, levels: format.levels() }),
            };
            if let Err(error) = mapped {
                for done in 0..index {
                    self.unmap(address + done * size.bytes())?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Maps one page. `last` is the entry written before, by which its neighbour is found without a descent.
    fn map_leaf(&mut self, address: u64, level: u8, leaf: u64, last: &mut Option<Step>) -> Result<(), Error> {
        let format = self.paging.format;
        self.check_input(address)?;
        loop {
            let index = format.index(level, address);
            let place = match *last {
                Some(last) if last.level == level && index > 0 && last.index == index - 1 => {
                    let step = Step { index, ..last };
                    Step { entry: self.memory.read_entry(step.entry_address())?, ..step }
                }
                _ => self.descend(address, level)?.step,
            };
            let Step { level: at, entry, .. } = place;
            match format.decode(at, entry) {
                Entry::Absent => {}
                Entry::Malformed(reason) => return Err(Error::Malformed { level: at, entry, reason }),
                Entry::Table(_) | Entry::Leaf(..) => {
                    return Err(Error::Overlap { address, level: at, entry });
                }
            }
            if self.link(place, address, level, leaf)? {
                *last = Some(place);
                return Ok(());
            }
        }
    }

    /// Takes away the page that starts at `address`, and the tables that become empty.
    pub fn unmap(&mut self, address: u64) -> Result<Mapping, Error> {
        let (mapping, above) = self.replace_leaf(address, |_, _| Ok(0))?;
        self.prune(&above, mapping.step.table)?;
        Ok(mapping)
    }

    /// Gives the page that starts at `address` other rights; returns it as it was.
    pub fn protect(&mut self, address: u64, rights: Rights) -> Result<Mapping, Error> {
        let format = self.paging.format;
        Ok(self.replace_leaf(address, |level, leaf| format.with_rights(level, leaf, rights))?.0)
    }

    fn check_input(&self, address: u64) -> Result<(), Error> {
        let format = &self.paging.format;
        match format.translates(address) {
            true => Ok(()),
            false => Err(Error::InputRange { address, levels: format.levels() }),
        }
    }

    fn descend(&self, address: u64, level: u8) -> Result<Place, Error> {
        let format = &self.paging.format;
        let mut above = Path::default();
        let mut table = self.paging.root;
        let mut merged = u64::MAX;
        let mut at = format.levels();
        loop {
            let mut step = format.step(at, table, address);
            step.entry = self.memory.read_entry(step.entry_address())?;
            merged &= format.mergeable(step.entry);
            match format.decode(at, step.entry) {
                Entry::Table(next) if at > level => table = next,
                _ => return Ok(Place { above, step, merged }),
            }
            above.push(step);
            at -= 1;
        }
    }

    /// Hangs `leaf`, of that level, below the absent entry at `place`. The tables in between are built aside and
    /// then linked by one exchange; `false` if the entry has changed meanwhile.
    fn link(&mut self, place: Step, address: u64, level: u8, leaf: u64) -> Result<bool, Error> {
        let mut built = Built::default();
        let linked = self
            .build(&mut built, address, level..place.level, leaf)
            .and_then(|entry| Ok(self.memory.compare_exchange(place.entry_address(), place.entry, entry)?));
        if linked != Ok(true) {
            built.tables().iter().for_each(|&table| self.memory.free_table(table));
        }
        linked
    }

    /// One new table for each of `levels`, lowest first, each holding the one below; returns the entry for the last.
    fn build(
        &mut self,
        built: &mut Built,
        address: u64,
        levels: core::ops::Range<u8>,
        leaf: u64,
    ) -> Result<u64, Error> {
        let mut entry = leaf;
        for level in levels {
            let table = self.memory.allocate_table().ok_or(Error::OutOfTables)?;
            built.push(table);
            let step = self.paging.format.step(level, table, address);
            self.memory.compare_exchange(step.entry_address(), 0, entry)?;
            entry = self.paging.format.table(table)?;
        }
        Ok(entry)
    }

    /// Replaces the leaf that starts at `address` by what `new` makes of it, again if hardware sets a flag meanwhile.
    fn replace_leaf(
        &mut self,
        address: u64,
        new: impl Fn(u8, u64) -> Result<u64, Error>,
    ) -> Result<(Mapping, Path), Error> {
        let format = self.paging.format;
        self.check_input(address)?;
        loop {
            let Place { above, step, merged } = self.descend(address, 1)?;
            let Step { level, entry, .. } = step;
            let (frame, size) = match format.decode(level, entry) {
                Entry::Leaf(frame, size) => (frame, size),
                Entry::Malformed(reason) => return Err(Error::Malformed { level, entry, reason }),
                Entry::Absent | Entry::Table(_) => return Err(Error::NotMapped { address }),
            };
            if address & (size.bytes() - 1) != 0 {
                return Err(Error::Misaligned { address, size });
            }
            if self.memory.compare_exchange(step.entry_address(), entry, new(level, entry)?)? {
                let rights = format.merged_rights(merged, entry);
                return Ok((Mapping { address, size, frame, rights, step }, above));
            }
        }
    }

    /// Frees `table`, reached through `above`, and the tables above it, as far as they are empty. The root stays.
    fn prune(&mut self, above: &Path, mut table: u64) -> Result<(), Error> {
        for parent in above.iter().rev() {
            for index in 0..512 {
                if self.memory.read_entry(table + index * 8)? != 0 {
                    return Ok(());
                }
            }
            let mut entry = parent.entry;
            while !self.memory.compare_exchange(parent.entry_address(), entry, 0)? {
                entry = self.memory.read_entry(parent.entry_address())?;
            }
            self.memory.free_table(table);
            table = parent.table;
        }
        Ok(())
    }
}

/// Tables allocated for one change.
#[derive(Default)]
struct Built {
    tables: [u64; MAX_LEVEL],
    len: usize,
}

impl Built {
    fn push(&mut self, table: u64) {
        self.tables[self.len] = table;
        self.len += 1;
    }

    fn tables(&self) -> &[u64] {
        &self.tables[..self.len]
    }
}
