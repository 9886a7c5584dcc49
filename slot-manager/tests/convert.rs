//! Conversion between private and shared memory (rule R10), through a manager behind an address space.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::kvm_create_guest_memfd;
use memory_model::{
    AddrRange, AddressSpace, Backing, Gpa, MemoryError, PageSize, Pages, RamBlock, RamOptions, RegionId,
    RegionTree,
};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use slot_manager::{KernelCaps, KernelMemslots, Recorder, Side, SlotError, SlotManager};

const PAGE: u64 = PageSize::Size4K.bytes();
/// Pages of each block.
const PAGES: u64 = 16;
const ALLOCATE: i32 = libc::FALLOC_FL_KEEP_SIZE;

struct Guest {
    manager: Arc<Mutex<SlotManager<Recorder<KernelMemslots>>>>,
    kernel: Recorder<KernelMemslots>,
    space: AddressSpace,
    /// Two blocks with private halves, one behind the other from 0 on; behind them one without.
    blocks: [Arc<RamBlock>; 3],
    regions: Vec<RegionId>,
}

/// A descriptor that names a file of `kernel`.
fn guest_memfd(kernel: &Recorder<KernelMemslots>, size: u64) -> OwnedFd {
    let fd = OwnedFd::from(File::open("/dev/null").unwrap());
    let request = kvm_create_guest_memfd { size, ..Default::default() };
    kernel.with_inner_mut(|kernel| kernel.create_guest_memfd_as(fd.as_fd(), &request)).unwrap();
    fd
}

/// All pages of both sides have memory, and those of the shared side hold their number and 100.
fn guest(caps: KernelCaps) -> Guest {
    let kernel = Recorder::new(KernelMemslots::with_caps(caps));
    let memfd = || RamOptions { backing: Backing::Memfd, shared: true, ..RamOptions::default() };
    let private = || RamOptions { guest_memfd: Some(guest_memfd(&kernel, PAGES * PAGE)), ..memfd() };
    let blocks = [("one", private()), ("two", private()), ("plain", memfd())]
        .map(|(name, options)| RamBlock::create(name, PAGES * PAGE, options).unwrap());
    let manager = Arc::new(Mutex::new(SlotManager::new(kernel.clone())));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.register(manager.clone()).unwrap();
    let regions = space.update(|tree| {
        let add = |(place, block): (u64, &Arc<RamBlock>)| {
            let ram = tree.ram(block.name(), block.clone())?;
            tree.add(tree.root(), place * PAGES * PAGE, ram)?;
            Ok::<_, MemoryError>(ram)
        };
        (0..).zip(&blocks).map(add).collect()
    });
    let guest = Guest { manager, kernel, space, blocks, regions: regions.unwrap() };
    for page in 0..3 * PAGES {
        guest.block(page).write(page % PAGES * PAGE, &[page as u8 + 100]).unwrap();
    }
    for block in 0..2 {
        guest.allocate(block);
    }
    guest
}

impl Guest {
    fn manager(&self) -> MutexGuard<'_, SlotManager<Recorder<KernelMemslots>>> {
        self.manager.lock().unwrap()
    }

    fn convert(&self, pages: Range<u64>, side: Side) -> Result<(), SlotError> {
        self.manager().convert(range(pages), side)
    }

    fn block(&self, page: u64) -> &RamBlock {
        &self.blocks[(page / PAGES) as usize]
    }

    fn fd(&self, block: usize) -> u32 {
        self.blocks[block].guest_memfd().unwrap().as_raw_fd() as u32
    }

    /// The guest uses all of the private half.
    fn allocate(&self, block: usize) {
        let fd = self.fd(block);
        self.kernel.with_inner_mut(|kernel| kernel.fallocate(fd, ALLOCATE, 0, PAGES * PAGE)).unwrap();
    }

    fn side(&self, page: u64) -> Side {
        self.kernel.with_inner(|kernel| kernel.side(Gpa(page * PAGE)))
    }

    /// What the shared side of a page holds: its number and 100, or nothing.
    fn shared(&self, page: u64) -> bool {
        let mut byte = [0];
        self.block(page).read(page % PAGES * PAGE, &mut byte).unwrap();
        assert!(byte == [0] || byte == [page as u8 + 100]);
        byte != [0]
    }

    /// Whether the private side of a page has memory.
    fn private(&self, page: u64) -> bool {
        let fd = self.fd((page / PAGES) as usize);
        let data = self.kernel.with_inner(|kernel| kernel.guest_memfd_data(fd)).unwrap();
        data.iter().any(|run| run.contains(&(page % PAGES * PAGE)))
    }

    fn snapshot(&self) -> Vec<(Side, bool, bool)> {
        (0..2 * PAGES).map(|page| (self.side(page), self.shared(page), self.private(page))).collect()
    }
}

fn range(pages: Range<u64>) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(pages.start * PAGE), u128::from((pages.end - pages.start) * PAGE)).unwrap()
}

/// How much memory the host has given a block's memfd.
fn host_bytes(block: &RamBlock) -> u64 {
    let file = File::from(block.fd().unwrap().try_clone_to_owned().unwrap());
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn r10_only_whole_pages_of_slots_with_private_halves_are_converted() {
    let guest = guest(KernelCaps::default());
    let before = guest.snapshot();
    let plain = guest.blocks[2].hva();
    for (first, last, text) in [
        (0x800, 0x1fff, "cannot make 0x800-0x1fff private: it is not whole pages".into()),
        (0x1000, 0x1ffe, "cannot make 0x1000-0x1ffe private: it is not whole pages".into()),
        (0x1000, 0x1000, "cannot make 0x1000-0x1000 private: it is not whole pages".into()),
        (
            0x1f000,
            0x20fff,
            format!(
                "cannot make 0x1f000-0x20fff private: slot 2 (plain at 0x20000-0x2ffff -> {plain}) has no guest_memfd"
            ),
        ),
        (0x3_0000, 0x3_0fff, "cannot make 0x30000-0x30fff private: 0x30000-0x30fff has no slot".into()),
    ] {
        let range = AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
        let error = guest.manager().convert(range, Side::Private).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    // A hole between the two, one before the first and one behind the last.
    guest
        .space
        .update(|tree| {
            tree.set_offset(guest.regions[0], 0x10_0000)?;
            tree.set_offset(guest.regions[1], 0x11_1000)
        })
        .unwrap();
    for (pages, hole) in [
        (0x10f..0x112, "0x110000-0x110fff"),
        (0xfe..0x101, "0xfe000-0xfffff"),
        (0x120..0x124, "0x121000-0x123fff"),
    ] {
        let text = guest.convert(pages, Side::Shared).unwrap_err().to_string();
        assert!(text.ends_with(&format!(" shared: {hole} has no slot")), "{text}");
    }
    for page in 0x100..0x124 {
        assert_eq!(guest.side(page), Side::Shared);
    }
    assert_eq!(guest.snapshot(), before);
}

#[test]
fn r10_the_side_that_is_left_goes_back_to_the_host() {
    let guest = guest(KernelCaps::default());
    let bytes = || [0, 1].map(|block| host_bytes(&guest.blocks[block]));
    assert_eq!(bytes(), [PAGES * PAGE; 2]);
    guest.convert(14..19, Side::Private).unwrap();
    assert_eq!(bytes(), [14 * PAGE, 13 * PAGE]);
    for page in 0..2 * PAGES {
        let inside = (14..19).contains(&page);
        assert_eq!((guest.shared(page), guest.private(page)), (!inside, true), "page {page}");
    }
    guest.convert(15..18, Side::Shared).unwrap();
    for page in 0..2 * PAGES {
        assert_eq!(guest.private(page), !(15..18).contains(&page), "page {page}");
    }
    let private: Vec<_> = (0..2 * PAGES).filter(|&page| guest.side(page) == Side::Private).collect();
    assert_eq!(private, [14, 18]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn r10_conversions_leave_what_a_table_with_an_entry_a_page_says(
        steps in prop::collection::vec((0..2 * PAGES, 1..2 * PAGES, any::<bool>()), 1..16),
    ) {
        let guest = guest(KernelCaps::default());
        let mut pages = vec![(Side::Shared, true, true); 2 * PAGES as usize];
        for (first, count, private) in steps {
            let span = first..(first + count).min(2 * PAGES);
            let side = if private { Side::Private } else { Side::Shared };
            guest.convert(span.clone(), side).unwrap();
            for page in span {
                let (at, shared, memory) = &mut pages[page as usize];
                *at = side;
                *(if private { shared } else { memory }) = false;
            }
            prop_assert_eq!(&guest.snapshot(), &pages);
        }
    }
}

#[test]
fn r10_what_the_kernel_refuses_changes_nothing() {
    for (memory_attributes, text) in [
        (None, "cannot make 0x0-0x3fff private: ENOTTY"),
        (Some(0), "cannot make 0x0-0x3fff private: EINVAL"),
    ] {
        let guest = guest(KernelCaps { memory_attributes, ..KernelCaps::default() });
        let before = guest.snapshot();
        assert_eq!(guest.convert(0..4, Side::Private).unwrap_err().to_string(), text);
        assert_eq!(guest.snapshot(), before);
    }
}

#[test]
fn r10_a_failing_discard_leaves_the_pages_converted_and_says_which_it_kept() {
    let guest = guest(KernelCaps::default());
    guest.convert(0..2 * PAGES, Side::Private).unwrap();
    let fd = guest.fd(0);
    guest.kernel.with_inner_mut(|kernel| kernel.close_file(fd)).unwrap();
    let error = guest.convert(14..19, Side::Shared).unwrap_err();
    let text = format!(
        "0xe000-0x12fff is shared now, but keeps pages that it left: cannot discard the private pages \
         0xe000-0xffff of slot 0 (one at 0x0-0xffff -> {}, GUEST_MEMFD): EBADF",
        guest.blocks[0].hva()
    );
    assert_eq!(error.to_string(), text);
    let SlotError::NotDiscarded { kept, .. } = error else { panic!("{error}") };
    assert_eq!(kept.len(), 1);
    for page in 0..2 * PAGES {
        let inside = (14..19).contains(&page);
        assert_eq!(guest.side(page) == Side::Shared, inside, "page {page}");
        // The other slot's part was discarded all the same.
        if page >= PAGES {
            assert_eq!(guest.private(page), !inside, "page {page}");
        }
    }
    // Once the host is willing, the same again mends it.
    let request = kvm_create_guest_memfd { size: PAGES * PAGE, ..Default::default() };
    let fd = guest.blocks[0].guest_memfd().unwrap();
    guest.kernel.with_inner_mut(|kernel| kernel.create_guest_memfd_as(fd, &request)).unwrap();
    guest.allocate(0);
    guest.convert(14..19, Side::Shared).unwrap();
    assert!((0..14).all(|page| guest.private(page)) && (14..19).all(|page| !guest.private(page)));
}

#[test]
fn r10_a_shared_side_that_the_host_does_not_take_back_is_said_too() {
    let kernel = Recorder::new(KernelMemslots::new());
    let file = rustix::fs::memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
    let options = RamOptions {
        backing: Backing::File { file: file.try_clone().unwrap(), offset: 0 },
        shared: true,
        guest_memfd: Some(guest_memfd(&kernel, 4 * PAGE)),
        ..RamOptions::default()
    };
    let block = RamBlock::create("sealed", 4 * PAGE, options).unwrap();
    let manager = alone(&kernel, &block);
    block.write(0, &[7]).unwrap();
    // Whoever has it mapped goes on writing; holes count as writes of others.
    rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).unwrap();
    let error = manager.lock().unwrap().convert(range(0..2), Side::Private).unwrap_err();
    let text = error.to_string();
    let start =
        "0x0-0x1fff is private now, but keeps pages that it left: cannot discard the shared pages 0x0-0x1fff";
    assert!(text.starts_with(start) && text.contains("sealed"), "{text}");
    assert_eq!(kernel.with_inner(|kernel| kernel.side(Gpa(0))), Side::Private);
    let mut seen = [0];
    block.read(0, &mut seen).unwrap();
    assert_eq!(seen, [7]);
}

/// A guest whose memory is this block, from 0 on.
fn alone(
    kernel: &Recorder<KernelMemslots>,
    block: &Arc<RamBlock>,
) -> Arc<Mutex<SlotManager<Recorder<KernelMemslots>>>> {
    let manager = Arc::new(Mutex::new(SlotManager::new(kernel.clone())));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.register(manager.clone()).unwrap();
    let added = space.update(|tree| {
        let ram = tree.ram(block.name(), block.clone())?;
        tree.add(tree.root(), 0, ram)
    });
    added.unwrap();
    manager
}

/// Only a host with a pool of huge pages can show it whole.
#[test]
fn r10_the_shared_side_of_huge_pages_is_kept() {
    let kernel = Recorder::new(KernelMemslots::new());
    let size = PageSize::Size2M.bytes();
    let options = RamOptions {
        backing: Backing::Memfd,
        shared: true,
        pages: Pages::Huge2M,
        guest_memfd: Some(guest_memfd(&kernel, size)),
        ..RamOptions::default()
    };
    let block = match RamBlock::create("huge", size, options) {
        Err(error @ MemoryError::NoHugePages { .. }) => {
            println!("not checked: a guest with huge pages and private memory: {error}");
            return;
        }
        made => made.unwrap(),
    };
    let manager = alone(&kernel, &block);
    block.write(0, &[7; 2 * PAGE as usize]).unwrap();
    for pages in [0..1, 0..size / PAGE] {
        manager.lock().unwrap().convert(range(pages), Side::Private).unwrap();
        let mut seen = [0; 2 * PAGE as usize];
        block.read(0, &mut seen).unwrap();
        assert_eq!(seen, [7; 2 * PAGE as usize]);
    }
}
