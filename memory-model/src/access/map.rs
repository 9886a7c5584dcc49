//! Memory lent out for a while: RAM itself, or a copy that is written back (rule R39).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use crate::access::place::{self, Place};
use crate::{
    Access, AccessError, AddressSpace, DirtyClients, FlatView, Gpa, MemTxAttrs, RamBlock, RegionKind,
};

/// So many bytes of bounce buffers an address space has, as in QEMU.
pub const BOUNCE_BYTES: usize = 4096;

/// Why memory could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// What is there needs a bounce buffer, and they are all in use: [`BounceBudget::when_free`] tells of the next.
    #[error("no RAM at {gpa}, and the bounce buffers of the address space are in use")]
    Exhausted {
        /// Where memory was to be mapped.
        gpa: Gpa,
    },
    /// A bounce buffer could not be filled.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl AddressSpace {
    /// Lends out up to `len` bytes at `gpa`, for reading, writing or both (QEMU's `address_space_map`).
    ///
    /// RAM is lent itself, as far as it goes. Anything else gets a bounce buffer: a copy, filled now if it is to
    /// be read, and written by [`MappedMemory::unmap`]. All bounce buffers of an address space share
    /// [`BOUNCE_BYTES`]. In both cases what is lent may be shorter than `len`.
    ///
    /// ```
    /// use memory_model::{Access, AddressSpace, Gpa, MemTxAttrs, RamBlock, RegionTree};
    /// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
    /// space.update(|tree| {
    ///     let ram = tree.ram("ram", RamBlock::anonymous("ram", 0x1000)?)?;
    ///     tree.add(tree.root(), 0, ram)
    /// })?;
    /// let mut memory = space.map(Gpa(0xffe), 0x10, Access::WRITE, MemTxAttrs::default())?;
    /// assert_eq!(memory.len(), 2, "there is no more RAM behind it");
    /// memory.bytes().copy_from(&[1u8, 2]);
    /// memory.unmap(2)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map(
        &self,
        gpa: Gpa,
        len: usize,
        access: Access,
        attrs: MemTxAttrs,
    ) -> Result<MappedMemory, MapError> {
        let view = self.view();
        let bus = view.bus().attrs(attrs);
        let direct = place::locate(&bus, gpa, len, access, |place, len| direct(&place, len, access));
        if let Some(memory) = direct {
            return Ok(MappedMemory(memory));
        }
        let grant = self.bounce.take(len).ok_or(MapError::Exhausted { gpa })?;
        let mut buffer = vec![0; grant.bytes];
        if access.contains(Access::READ) {
            bus.read(gpa, &mut buffer)?;
        }
        Ok(MappedMemory(Memory::Bounce(Bounce { buffer, view, gpa, access, attrs, _grant: grant })))
    }

    /// The bounce buffers of this space.
    pub fn bounce(&self) -> &BounceBudget {
        &self.bounce
    }
}

/// RAM that can be lent itself: not to be written if it is ROM or a device hears of writes, and never a RAM
/// device, whose accesses are of exact width.
fn direct(place: &Place<'_>, len: usize, access: Access) -> Option<Memory> {
    let Place::Region { range, offset, bytes } = *place else { return None };
    let write = access.contains(Access::WRITE);
    let block = match &range.kind {
        RegionKind::Ram(block) if !(write && range.readonly) => block,
        RegionKind::RomDevice { block, .. } if range.romd && !write => block,
        _ => return None,
    };
    let len = len.min(bytes);
    block.noting_slice(offset, len, ())?;
    let written = if write { len } else { 0 };
    Some(Memory::Direct(Direct { block: block.clone(), offset, len, written, clients: range.dirty_mask }))
}

/// Memory lent out by [`AddressSpace::map`]. It stays what it was when it was mapped, whatever later views show.
///
/// Dropped without [`unmap`](Self::unmap), RAM lent for writing counts as written all over, and a bounce buffer is
/// not written back.
pub struct MappedMemory(Memory);

enum Memory {
    Direct(Direct),
    Bounce(Bounce),
}

struct Direct {
    block: Arc<RamBlock>,
    offset: u64,
    len: usize,
    /// So many bytes from the start are marked dirty in the end.
    written: usize,
    clients: DirtyClients,
}

struct Bounce {
    buffer: Vec<u8>,
    view: Arc<FlatView>,
    gpa: Gpa,
    access: Access,
    attrs: MemTxAttrs,
    /// Given back last of all: who waits for it sees what was written.
    _grant: Grant,
}

#[expect(clippy::len_without_is_empty, reason = "as empty as what was asked for")]
impl MappedMemory {
    /// How many bytes are lent.
    pub fn len(&self) -> usize {
        match &self.0 {
            Memory::Direct(direct) => direct.len,
            Memory::Bounce(bounce) => bounce.buffer.len(),
        }
    }

    /// Whether this is RAM itself, not a copy.
    pub fn is_direct(&self) -> bool {
        matches!(self.0, Memory::Direct(_))
    }

    /// The bytes.
    pub fn bytes(&mut self) -> VolatileSlice<'_> {
        match &mut self.0 {
            Memory::Direct(direct) => {
                direct.block.noting_slice(direct.offset, direct.len, ()).expect("checked by map")
            }
            Memory::Bounce(bounce) => VolatileSlice::from(&mut bounce.buffer[..]),
        }
    }

    /// Gives the memory back after `accessed` bytes from its start were used. If it was lent for writing, these
    /// are now marked dirty, or written to where the bounce buffer stands for.
    pub fn unmap(self, accessed: usize) -> Result<(), AccessError> {
        match self.0 {
            Memory::Direct(mut direct) => {
                direct.written = direct.written.min(accessed);
                Ok(())
            }
            Memory::Bounce(bounce) if bounce.access.contains(Access::WRITE) => {
                let data = &bounce.buffer[..accessed.min(bounce.buffer.len())];
                bounce.view.bus().attrs(bounce.attrs).write(bounce.gpa, data)
            }
            Memory::Bounce(_) => Ok(()),
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.block.mark_dirty(self.offset, self.written as u64, self.clients);
    }
}

/// The bounce buffers of an address space: how much is left, and who waits for more.
pub struct BounceBudget {
    state: Mutex<BounceState>,
}

struct BounceState {
    free: usize,
    waiters: Vec<Box<dyn FnOnce() + Send>>,
}

impl BounceBudget {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(BounceState { free: BOUNCE_BYTES, waiters: Vec::new() }) })
    }

    /// Calls `waiter` once when there are bytes to be had: at once, or in the thread that gives some back. There is
    /// no promise that they are still there when it comes to ask (QEMU's `address_space_register_map_client`).
    pub fn when_free(&self, waiter: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.free == 0 {
            state.waiters.push(Box::new(waiter));
        } else {
            drop(state);
            waiter();
        }
    }

    fn take(self: &Arc<Self>, wanted: usize) -> Option<Grant> {
        let mut state = self.lock();
        let bytes = wanted.min(state.free);
        if bytes == 0 && wanted > 0 {
            return None;
        }
        state.free -= bytes;
        Some(Grant { budget: self.clone(), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, BounceState> {
        // Nobody else's code runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of the budget, in use until dropped.
struct Grant {
    budget: Arc<BounceBudget>,
    bytes: usize,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.free += self.bytes;
        let waiters = if self.bytes > 0 { std::mem::take(&mut state.waiters) } else { Vec::new() };
        drop(state);
        waiters.into_iter().for_each(|waiter| waiter());
    }
}
