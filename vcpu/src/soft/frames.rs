//! The simulated host: which frame is behind which page of this process, and what a frame is used for.
//!
//! A frame has a number and an owner. The bytes of a page's frame are the RAM block's own, so `Hva` and `Hpa`
//! reach the same memory; a table's frame has bytes of its own. Frames are handed out scattered, so that no
//! address can be right by accident.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ept::mmu::{HostFault, HostFrame, HostFrames};
use ept::{MemoryError, PhysMemory};
use memory_model::{Hpa, Hva, PageSize, RamBlock};

const FRAME: u64 = PageSize::Size4K.bytes();
const ENTRIES: usize = 512;

/// Frames lie above 4 GiB, where no small guest has an address that could be mistaken for one ...
const FIRST_FRAME: u64 = (4 << 30) / FRAME;
/// ... and below 1 TiB.
const FRAMES: u64 = 1 << 28;
/// Odd, so that counting in steps of it meets every frame once before it meets one twice.
const SCATTER: u64 = 0x9e3_779b;

/// What a frame is used for.
enum Owner {
    /// A page of a RAM block.
    Page { block: Arc<RamBlock>, offset: u64 },
    /// A table of the second level.
    Table(Box<[AtomicU64; ENTRIES]>),
}

/// The frame table of the simulated host (Linux's `struct page` array and `struct mm` in one).
#[derive(Default)]
pub struct FrameTable {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// What this process has mapped: Linux's VMAs.
    blocks: Vec<Arc<RamBlock>>,
    owners: HashMap<u64, Owner>,
    pages: HashMap<u64, Hpa>,
    handed_out: u64,
    free: Vec<u64>,
}

impl FrameTable {
    /// Makes the pages of a block known; frames come when they are first touched.
    pub fn map(&self, block: &Arc<RamBlock>) {
        let blocks = &mut self.state.borrow_mut().blocks;
        if !blocks.iter().any(|known| Arc::ptr_eq(known, block)) {
            blocks.push(block.clone());
        }
    }

    /// The frame behind the page that holds `hva`, with the offset inside the page, if it has one already.
    pub fn frame_of(&self, hva: Hva) -> Option<Hpa> {
        self.state.borrow().frame_of(hva)
    }

    /// The same, with a new frame if the page has none (Linux's `handle_mm_fault`). `None` where this process
    /// has mapped nothing, or no frame is left.
    pub fn fault_in(&self, hva: Hva) -> Option<Hpa> {
        self.state.borrow_mut().fault_in(hva)
    }

    /// Reads guest memory. All bytes lie in one frame.
    pub fn read(&self, hpa: Hpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let state = self.state.borrow();
        let (block, offset) = state.page(hpa)?;
        block.read(offset, buf).map_err(|_| MemoryError::Absent { address: hpa.0 })
    }

    /// Writes guest memory. All bytes lie in one frame.
    pub fn write(&self, hpa: Hpa, data: &[u8]) -> Result<(), MemoryError> {
        let state = self.state.borrow();
        let (block, offset) = state.page(hpa)?;
        block.write(offset, data).map_err(|_| MemoryError::Absent { address: hpa.0 })
    }
}

impl State {
    fn frame_of(&self, hva: Hva) -> Option<Hpa> {
        self.pages.get(&hva.page_number())?.checked_add(hva.page_offset(PageSize::Size4K))
    }

    fn fault_in(&mut self, hva: Hva) -> Option<Hpa> {
        if let Some(hpa) = self.frame_of(hva) {
            return Some(hpa);
        }
        let page = hva.align_down(PageSize::Size4K);
        let owner = self
            .blocks
            .iter()
            .find_map(|block| Some(Owner::Page { block: block.clone(), offset: block.offset_of(page)? }))?;
        let frame = self.hand_out(owner)?;
        self.pages.insert(page.page_number(), Hpa(frame * FRAME));
        self.frame_of(hva)
    }

    /// The page of guest memory at `hpa`. A table is not guest memory: a mapping that leads the guest to one is
    /// a broken mapping.
    fn page(&self, hpa: Hpa) -> Result<(&RamBlock, u64), MemoryError> {
        match self.owners.get(&hpa.page_number()) {
            Some(Owner::Page { block, offset }) => Ok((block, offset + hpa.page_offset(PageSize::Size4K))),
            Some(Owner::Table(_)) | None => Err(MemoryError::Absent { address: hpa.0 }),
        }
    }

    fn hand_out(&mut self, owner: Owner) -> Option<u64> {
        let frame = match self.free.pop() {
            Some(frame) => frame,
            None if self.handed_out == FRAMES => return None,
            None => {
                self.handed_out += 1;
                FIRST_FRAME + self.handed_out.wrapping_mul(SCATTER) % FRAMES
            }
        };
        self.owners.insert(frame, owner);
        Some(frame)
    }
}

impl PhysMemory for FrameTable {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        let absent = MemoryError::Absent { address };
        match self.state.borrow().owners.get(&(address / FRAME)).ok_or(absent)? {
            Owner::Page { block, offset } => block.load_u64(offset + address % FRAME).map_err(|_| absent),
            Owner::Table(entries) => Ok(entries[(address % FRAME / 8) as usize].load(Ordering::Acquire)),
        }
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let absent = MemoryError::Absent { address };
        match self.state.borrow().owners.get(&(address / FRAME)).ok_or(absent)? {
            Owner::Page { block, offset } => {
                let found = block.compare_exchange_u64(offset + address % FRAME, current, new);
                found.map(|found| found == current).map_err(|_| absent)
            }
            Owner::Table(entries) => {
                let entry = &entries[(address % FRAME / 8) as usize];
                Ok(entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok())
            }
        }
    }
}

impl HostFrames for FrameTable {
    fn host_frame(&self, hva: Hva, _write: bool) -> Result<HostFrame, HostFault> {
        let hpa = self.fault_in(hva).ok_or(HostFault::Unmapped)?;
        Ok(HostFrame { hpa: hpa.align_down(PageSize::Size4K), size: PageSize::Size4K, writable: true })
    }

    fn allocate_table(&self) -> Option<u64> {
        let entries = Box::new([const { AtomicU64::new(0) }; ENTRIES]);
        Some(self.state.borrow_mut().hand_out(Owner::Table(entries))? * FRAME)
    }

    fn free_table(&self, address: u64) {
        let frame = address / FRAME;
        let state = &mut *self.state.borrow_mut();
        if matches!(state.owners.get(&frame), Some(Owner::Table(_))) {
            state.owners.remove(&frame);
            state.free.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_its_frame_and_both_addresses_reach_the_same_bytes() {
        let block = RamBlock::anonymous("ram", 0x4000).unwrap();
        let frames = FrameTable::default();
        frames.map(&block);
        assert_eq!(frames.frame_of(block.hva()), None);
        let hva = Hva(block.hva().0 + 0x1010);
        let hpa = frames.fault_in(hva).unwrap();
        assert_eq!(frames.fault_in(hva), Some(hpa));
        assert_eq!(hpa.page_offset(PageSize::Size4K), 0x10);
        frames.write(hpa, &7u64.to_le_bytes()).unwrap();
        assert_eq!(block.load_u64(0x1010).unwrap(), 7);
        assert_eq!(frames.read_entry(hpa.0), Ok(7));
        assert_eq!(frames.fault_in(Hva(block.hva().0 + 0x4000)), None, "past the block");
    }

    #[test]
    fn frames_are_all_different_and_tables_are_not_guest_memory() {
        let block = RamBlock::anonymous("ram", 0x40_0000).unwrap();
        let frames = FrameTable::default();
        frames.map(&block);
        let mut seen = std::collections::HashSet::new();
        for page in 0..0x400 {
            assert!(seen.insert(frames.fault_in(Hva(block.hva().0 + page * FRAME)).unwrap()));
            let table = frames.allocate_table().unwrap();
            assert!(seen.insert(Hpa(table)));
            assert!(frames.write(Hpa(table), &[1]).is_err());
        }
        let table = frames.allocate_table().unwrap();
        frames.free_table(table);
        assert_eq!(frames.read_entry(table), Err(MemoryError::Absent { address: table }));
        assert_eq!(frames.allocate_table(), Some(table), "a freed frame is used again");
    }
}
