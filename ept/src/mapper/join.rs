//! One large page in the place of 512 smaller ones.

use memory_model::PageSize;

use super::flags::{accessed, dirty};
use super::operation::{Span, shift_of};
use super::{Flush, Mapper};
use crate::error::Error;
use crate::format::{Entry, Format, Role};
use crate::phys::{FrameAllocator, PhysMemory};
use crate::walk::Step;

impl<M: PhysMemory + FrameAllocator> Mapper<'_, M> {
    /// Puts one page of that size at `address` in the place of 512 pages of the next smaller size, and frees their
    /// table. They must map contiguous frames, the first of them aligned to the large page, and must be equal in
    /// all else but A and D; the large page has A if one of them had it, and D likewise.
    ///
    /// A processor that keeps a pointer to the freed table can set a flag there until the flush, and that flag is
    /// lost. Where dirty pages are being collected, take WRITE away and flush, then join, then grant it again.
    pub fn join(&mut self, address: u64, size: PageSize) -> Result<Flush, Error> {
        let format = self.paging.format;
        let span = Span::new(&format, address, size.bytes() - 1)?;
        if size == PageSize::Size4K {
            return Err(Error::NotLarge { address });
        }
        if !format.has_size(size) {
            return Err(Error::PageSize { size });
        }
        span.check_alignment(&format, size)?;
        loop {
            let pointer = self.descend(address, size.level())?.step;
            let Step { level, entry, .. } = pointer;
            let table = match format.decode(level, entry) {
                Entry::Table(table) => table,
                Entry::Leaf(..) => return Err(Error::NotJoinable { address, level, entry, size }),
                Entry::Malformed(reason) => return Err(Error::Malformed { level, entry, reason }),
                Entry::Absent => return Err(Error::NotMapped { address }),
            };
            let (large, flags) = self.joined(pointer, table, address, size)?;
            if self.memory.compare_exchange(pointer.entry_address(), entry, large | flags)? {
                self.keep_late_flags(pointer, table, large | flags)?;
                self.memory.free_table(table);
                return Ok(Flush::between(address, address + (size.bytes() - 1)));
            }
        }
    }

    /// The large leaf that maps what `table` maps, without A and D, and those of its entries.
    fn joined(&self, pointer: Step, table: u64, address: u64, size: PageSize) -> Result<(u64, u64), Error> {
        let format = &self.paging.format;
        let level = pointer.level - 1;
        let flags = accessed(format) | dirty(format);
        let first = self.memory.read_entry(table)?;
        let large = match format.decode(level, first) {
            Entry::Leaf(..) => enlarged(format, pointer.level, first & !flags),
            _ => 0,
        };
        let mut found = 0;
        for index in 0..512 {
            let entry = self.memory.read_entry(table + u64::from(index) * 8)?;
            if large == 0 || entry & !flags != format.split(pointer.level, large, index) {
                let address = address + (u64::from(index) << shift_of(level));
                return Err(Error::NotJoinable { address, level, entry, size });
            }
            found |= entry & flags;
        }
        // A pointer that grants less would have been in the way of the rights that the leaf now gives.
        match format.rights(pointer.entry).contains(format.rights(large)) {
            true => Ok((large, found)),
            false => Err(Error::NotJoinable { address, level: pointer.level, entry: pointer.entry, size }),
        }
    }

    /// Flags that hardware set in the smaller entries after they were read go into the large one.
    fn keep_late_flags(&self, at: Step, table: u64, mut large: u64) -> Result<(), Error> {
        let flags = accessed(&self.paging.format) | dirty(&self.paging.format);
        let mut late = 0;
        for index in 0..512 {
            late |= self.memory.read_entry(table + index * 8)? & flags;
        }
        while large & late != late {
            if self.memory.compare_exchange(at.entry_address(), large, large | late)? {
                break;
            }
            large = self.memory.read_entry(at.entry_address())?;
        }
        Ok(())
    }
}

/// The leaf at `level` whose first piece `leaf` is; zero if there is none. What the two keep in other places is moved,
/// the rest is taken as it is.
fn enlarged(format: &Format, level: u8, leaf: u64) -> u64 {
    let bits = |role, level| format.bits(role, level, true);
    let below = level - 1;
    let frame = leaf & bits(Role::Frame, below);
    let pat = leaf & bits(Role::PageAttribute, below);
    let pat = if pat == 0 { 0 } else { bits(Role::PageAttribute, level) };
    let moved = bits(Role::Frame, below) | bits(Role::PageAttribute, below) | bits(Role::PageSize, below);
    let large = leaf & !moved | bits(Role::PageSize, level) | frame | pat;
    // Bits that mean something at one level and nothing at the other.
    let odd = (bits(Role::Ignored, below) ^ bits(Role::Ignored, level)) & !moved;
    let well_formed =
        leaf & odd == 0 && matches!(format.decode(level, large), Entry::Leaf(at, _) if at == frame);
    if well_formed { large } else { 0 }
}
