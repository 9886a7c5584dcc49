//! Reads and writes of any length through a view, as a CPU or a device does them (QEMU's `address_space_rw`).

mod dispatch;
mod find;
#[cfg(feature = "host")]
mod map;
mod memory;
mod nesting;
mod place;
mod step;

#[cfg(feature = "host")]
pub use map::{BOUNCE_BYTES, BounceBudget, MapError, MappedMemory};

use crate::access::step::load_step;
use crate::{Access, FlatView, Gpa, MemTxAttrs, MemTxError};

/// An access failed. What could be done was done: the rest of it was read or written, and read as 0 where it
/// failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("access failed at {gpa}")]
pub struct AccessError {
    /// Where the first step that failed began, as the one who accessed sees it.
    pub gpa: Gpa,
    /// What went wrong there.
    pub source: MemTxError,
}

/// What an access meets where nothing is: no region, a reservation, or no translation of an IOMMU (rule R38).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Unassigned {
    /// [`MemTxError::Decode`]; reads give 0.
    #[default]
    DecodeError,
    /// No error; reads give all ones, as a PC's bus does.
    AllOnes,
}

/// A view as a CPU or a device accesses it.
///
/// Nothing is locked and, for accesses that go well, nothing is allocated. Lengths are those of the access: a
/// device sees steps of the sizes it takes ([`AccessRules`](crate::AccessRules)), memory is copied as far as it
/// reaches. Copies may mix old and new bytes while the guest writes, but 2, 4 or 8 bytes of one range of memory
/// are one load or store of the host: whole, if they are aligned.
///
/// ```
/// use memory_model::{AddressSpace, Gpa, MemTxError, MemoryError, RamBlock, RegionTree, Unassigned};
/// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
/// space.update(|tree| {
///     let ram = tree.ram("ram", RamBlock::anonymous("ram", 0x1000)?)?;
///     tree.add(tree.root(), 0x1000, ram)
/// })?;
/// let view = space.view();
/// view.bus().write(Gpa(0x1ffe), &[1, 2]).unwrap();
///
/// let mut word = [0xaa; 4];
/// let error = view.bus().read(Gpa(0x1ffe), &mut word).unwrap_err();
/// assert_eq!((error.gpa, error.source, word), (Gpa(0x2000), MemTxError::Decode, [1, 2, 0, 0]));
/// view.bus().unassigned(Unassigned::AllOnes).read(Gpa(0x1ffe), &mut word).unwrap();
/// assert_eq!(word, [1, 2, 0xff, 0xff]);
/// # Ok::<(), MemoryError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Bus<'v> {
    view: &'v FlatView,
    attrs: MemTxAttrs,
    unassigned: Unassigned,
}

impl FlatView {
    /// The view as a CPU accesses it, with a decode error where nothing is.
    pub fn bus(&self) -> Bus<'_> {
        Bus { view: self, attrs: MemTxAttrs::default(), unassigned: Unassigned::default() }
    }
}

/// How far a step went, and how.
type Step = (usize, Result<(), MemTxError>);

impl Bus<'_> {
    /// The same, for accesses by somebody else.
    #[must_use]
    pub fn attrs(self, attrs: MemTxAttrs) -> Self {
        Self { attrs, ..self }
    }

    /// The same, with another answer where nothing is.
    #[must_use]
    pub fn unassigned(self, unassigned: Unassigned) -> Self {
        Self { unassigned, ..self }
    }

    /// Reads `buf.len()` bytes at `gpa`.
    #[inline]
    pub fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        if let Some((_, block, offset)) = self.plain_memory(gpa, buf.len(), Access::READ) {
            return memory::read(block, offset, buf).map_err(|source| AccessError { gpa, source });
        }
        self.read_in_steps(gpa, buf)
    }

    fn read_in_steps(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        if let Some(past_the_space) = buf.get_mut(place::bytes_between(gpa, Gpa(u64::MAX))..) {
            past_the_space.fill(0);
        }
        transfer(gpa, buf.len(), |at, done| {
            let rest = &mut buf[done..];
            place::locate(self, at, rest.len(), Access::READ, |place, len| {
                self.read_step(place, &mut rest[..len])
            })
        })
    }

    /// Writes `data` at `gpa`. ROM, reservations and what is not there stay as they are.
    #[inline]
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        if let Some((range, block, offset)) = self.plain_memory(gpa, data.len(), Access::WRITE) {
            return memory::write(block, offset, data, range.dirty_mask)
                .map_err(|source| AccessError { gpa, source });
        }
        self.write_in_steps(gpa, data)
    }

    fn write_in_steps(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        transfer(gpa, data.len(), |at, done| {
            let rest = &data[done..];
            place::locate(self, at, rest.len(), Access::WRITE, |place, len| {
                self.write_step(place, &rest[..len])
            })
        })
    }

    /// Writes `data` at `gpa` as a loader does: ROM is written like RAM, a ROM device's memory too, and no device
    /// is called (QEMU's `address_space_write_rom`, rule R6).
    pub fn write_rom(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        transfer(gpa, data.len(), |at, done| {
            let rest = &data[done..];
            place::locate(self, at, rest.len(), Access::WRITE, |place, len| load_step(place, &rest[..len]))
        })
    }
}

/// Goes through an access of `len` bytes step by step. It goes on after an error, and gives the first.
/// Past the last address nothing takes it.
fn transfer(gpa: Gpa, len: usize, mut step: impl FnMut(Gpa, usize) -> Step) -> Result<(), AccessError> {
    let mut outcome = Ok(());
    let mut done = 0;
    while done < len {
        let Some(at) = gpa.checked_add(done as u64) else {
            return outcome.and(Err(AccessError { gpa, source: MemTxError::Decode }));
        };
        let (bytes, result) = step(at, done);
        outcome = outcome.and(result.map_err(|source| AccessError { gpa: at, source }));
        done += bytes;
    }
    outcome
}
