//! Guest memory as a device may use it.

use core::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, VolatileSlice,
};

use crate::{FlatRange, FlatView, RegionKind};

/// A view for devices (virtio queues, say): vm-memory's `GuestMemory`, which is told what an access is for. It
/// refuses to write what devices cannot write (rule R6).
///
/// The backend traits do not know what an access is for, so it does not show a backend.
///
/// ```
/// use memory_model::{AddressSpace, DmaView, MemoryError, RamBlock, RegionTree};
/// use vm_memory::{Bytes, GuestAddress};
/// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
/// space.update(|tree| {
///     let rom = tree.rom("bios", RamBlock::anonymous("bios", 0x1000)?)?;
///     tree.add(tree.root(), 0xf_f000, rom)
/// })?;
/// // The loader fills the ROM, a device cannot.
/// let view = space.view();
/// view.write_obj(0x55_u8, GuestAddress(0xf_f000)).unwrap();
/// let dma = DmaView::new(view);
/// assert!(dma.write_obj(0_u8, GuestAddress(0xf_f000)).is_err());
/// assert_eq!(dma.read_obj::<u8>(GuestAddress(0xf_f000)).unwrap(), 0x55);
/// # Ok::<(), MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DmaView {
    view: Arc<FlatView>,
}

impl DmaView {
    /// Memory as devices see it in this snapshot.
    pub fn new(view: Arc<FlatView>) -> Self {
        Self { view }
    }
}

impl GuestMemory for DmaView {
    type PhysicalMemory = FlatView;
    type Bitmap = FlatRange;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.slices(addr, count, access).all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, FlatRange>>> {
        Ok(self.slices(addr, count, access))
    }
}

impl DmaView {
    fn slices(&self, addr: GuestAddress, count: usize, access: Permissions) -> Slices<'_> {
        Slices { view: &self.view, next: Some(addr), left: count, access }
    }
}

/// The pieces of an access, up to the first that is not allowed.
struct Slices<'a> {
    view: &'a FlatView,
    /// `None` behind the last address.
    next: Option<GuestAddress>,
    left: usize,
    access: Permissions,
}

impl<'a> Slices<'a> {
    fn piece(&self) -> Result<VolatileSlice<'a, BS<'a, FlatRange>>> {
        let addr = self.next.ok_or(Error::GuestAddressOverflow)?;
        let refused = || Error::InvalidGuestAddress(addr);
        let (range, start) = self.view.to_region_addr(addr).ok_or_else(refused)?;
        if self.access.has_write() && !writable(range) {
            return Err(refused());
        }
        let rest = usize::try_from(range.len() - start.0).unwrap_or(usize::MAX);
        range.get_slice(start, rest.min(self.left))
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, BS<'a, FlatRange>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let piece = self.piece();
        match &piece {
            Ok(slice) => {
                self.left -= slice.len();
                self.next =
                    self.next.and_then(|addr| addr.0.checked_add(slice.len() as u64)).map(GuestAddress);
            }
            Err(_) => self.left = 0,
        }
        Some(piece)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, FlatRange>> for Slices<'a> {
    // What vm-memory does, without its `Peekable`: an access is nearly always one piece.
    #[inline]
    fn stop_on_error(mut self) -> Result<impl Iterator<Item = VolatileSlice<'a, BS<'a, FlatRange>>>> {
        let first = self.next().transpose()?;
        Ok(first.into_iter().chain(self.map_while(Result::ok)))
    }
}

/// Whether a device's write changes the memory: not so for ROM and ROM devices.
fn writable(range: &FlatRange) -> bool {
    matches!(range.kind, RegionKind::Ram(_)) && !range.readonly
}
