//! Other crates on the flat view by vm-memory's traits: linux-loader fills it, virtio-queue works on it.

use std::io::{Cursor, Read, Write};
use std::sync::Arc;

use linux_loader::loader::{BzImage, Elf, KernelLoader};
use memory_model::{
    DirtyClients, DmaView, FlatView, MemTxAttrs, MemTxError, MemoryError, MmioOps, RamBlock, RegionId,
    RegionTree,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, Permissions,
};

struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

/// Two RAM blocks side by side, the second logged; a ROM behind them; a device; the first page of the second block
/// again, high up.
struct Board {
    tree: RegionTree,
    low: Arc<RamBlock>,
    high: Arc<RamBlock>,
    rom: Arc<RamBlock>,
}

const LOW: u64 = 0x10_0000;
const ROM: u64 = 0x20_0000;
const DEVICE: u64 = 0x21_0000;
const ALIAS: u64 = 0x1_0000_0000;

fn board() -> Result<Board, MemoryError> {
    let mut tree = RegionTree::new("system", 1 << 64)?;
    let block = |name, size| RamBlock::anonymous(name, size);
    let (low, high, rom) = (block("low", LOW)?, block("high", LOW)?, block("rom", 0x1_0000)?);
    let place = |tree: &mut RegionTree, at, id: RegionId| tree.add(tree.root(), at, id);
    let id = tree.ram("low", low.clone())?;
    place(&mut tree, 0, id)?;
    let id = tree.ram("high", high.clone())?;
    tree.set_dirty_log(id, DirtyClients::MIGRATION)?;
    place(&mut tree, LOW, id)?;
    let alias = tree.alias("again", id, 0, 0x1000)?;
    place(&mut tree, ALIAS, alias)?;
    let id = tree.rom("rom", rom.clone())?;
    place(&mut tree, ROM, id)?;
    let id = tree.mmio("device", 0x1000, Arc::new(NoDevice))?;
    place(&mut tree, DEVICE, id)?;
    Ok(Board { tree, low, high, rom })
}

fn dirty(block: &RamBlock) -> Vec<u64> {
    block.snapshot_and_clear_dirty(0..block.size(), DirtyClients::MIGRATION).pages().collect()
}

#[test]
fn regions_are_the_ranges_that_are_memory() {
    let board = board().unwrap();
    let view = FlatView::render(&board.tree).unwrap();
    let regions: Vec<_> = view.iter().map(|region| (region.start_addr().0, region.len())).collect();
    assert_eq!(regions, [(0, LOW), (LOW, LOW), (ROM, 0x1_0000), (ALIAS, 0x1000)]);
    assert_eq!(view.num_regions(), 4);
    assert_eq!(view.last_addr(), GuestAddress(ALIAS + 0xfff));
    for (at, found) in
        [(0, true), (LOW - 1, true), (ROM + 0xffff, true), (ROM + 0x1_0000, false), (DEVICE, false)]
    {
        assert_eq!(view.find_region(GuestAddress(at)).is_some(), found, "{at:#x}");
        assert_eq!(view.to_region_addr(GuestAddress(at)).is_some(), found, "{at:#x}");
    }
    let (region, offset) = view.to_region_addr(GuestAddress(LOW + 0x123)).unwrap();
    assert_eq!((region.start_addr().0, offset), (LOW, MemoryRegionAddress(0x123)));
    assert_eq!(view.get_host_address(GuestAddress(LOW + 0x123)).unwrap() as u64, board.high.hva().0 + 0x123);
    assert!(region.get_slice(MemoryRegionAddress(LOW - 8), 9).is_err());
    assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 2).is_err());
    assert!(view.read_obj::<u64>(GuestAddress(DEVICE)).is_err());
}

#[test]
fn writes_cross_ranges_and_set_the_dirty_bits_of_those_who_log() {
    let board = board().unwrap();
    let view = FlatView::render(&board.tree).unwrap();
    view.write_slice(&[1; 0x2000], GuestAddress(LOW - 0x1000)).unwrap();
    assert_eq!(dirty(&board.low), [0_u64; 0], "nobody logs it");
    assert_eq!(dirty(&board.high), [0]);
    view.write_obj(0x1122_u16, GuestAddress(LOW + 0x3fff)).unwrap();
    view.write_obj(0x33_u8, GuestAddress(ALIAS + 0x10)).unwrap();
    view.store(7_u32, GuestAddress(LOW + 0x8000), std::sync::atomic::Ordering::Relaxed).unwrap();
    view.read_obj::<u64>(GuestAddress(LOW + 0x6000)).unwrap();
    let region = view.find_region(GuestAddress(LOW)).unwrap();
    assert!(region.bitmap().dirty_at(0x4000) && !region.bitmap().dirty_at(0x6000));
    assert_eq!(dirty(&board.high), [0, 0x3000, 0x4000, 0x8000]);
    assert_eq!(view.read_obj::<u8>(GuestAddress(LOW + 0x10)).unwrap(), 0x33, "the alias is the same byte");
}

#[test]
fn r6_the_loader_writes_rom_and_a_device_does_not() {
    let board = board().unwrap();
    let view = Arc::new(FlatView::render(&board.tree).unwrap());
    view.write_slice(&[0xea; 16], GuestAddress(ROM)).unwrap();
    let dma = DmaView::new(view);
    let mut bytes = [0; 16];
    dma.read_slice(&mut bytes, GuestAddress(ROM)).unwrap();
    assert_eq!(bytes, [0xea; 16]);
    assert!(dma.write_slice(&[1; 16], GuestAddress(ROM)).is_err());
    assert!(dma.store(1_u32, GuestAddress(ROM), std::sync::atomic::Ordering::Relaxed).is_err());
    // A write that runs into the ROM ends there.
    assert!(dma.write_slice(&[2; 16], GuestAddress(ROM - 8)).is_err());
    board.rom.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xea; 16]);
    assert!(dma.physical_memory().is_none(), "no way around the rights");
    for (at, len, access, allowed) in [
        (ROM, 16, Permissions::Read, true),
        (ROM, 16, Permissions::Write, false),
        (ROM, 16, Permissions::ReadWrite, false),
        (ROM - 8, 16, Permissions::Read, true),
        (ROM - 8, 16, Permissions::Write, false),
        (ROM - 8, 8, Permissions::Write, true),
        (DEVICE, 1, Permissions::Read, false),
        (u64::MAX, 2, Permissions::Read, false),
    ] {
        assert_eq!(dma.check_range(GuestAddress(at), len, access), allowed, "{at:#x} {access:?}");
    }
    assert_eq!(dirty(&board.high), [0xf_f000], "the first half of the write that ran into the ROM");
    dma.write_obj(1_u8, GuestAddress(LOW + 0x5000)).unwrap();
    assert_eq!(dirty(&board.high), [0x5000]);
}

#[test]
fn r7_r8_devices_backed_by_memory_are_copied_only_while_reads_are_direct() {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let flash = RamBlock::anonymous("flash", 0x1000).unwrap();
    let rom_device = tree.rom_device("flash", flash, Arc::new(NoDevice)).unwrap();
    let bar = tree.ram_device("bar", RamBlock::anonymous("bar", 0x1000).unwrap()).unwrap();
    tree.add(tree.root(), 0, rom_device).unwrap();
    tree.add(tree.root(), 0x1000, bar).unwrap();
    let view = Arc::new(FlatView::render(&tree).unwrap());
    view.write_obj(5_u8, GuestAddress(0)).unwrap();
    let dma = DmaView::new(view.clone());
    assert_eq!(dma.read_obj::<u8>(GuestAddress(0)).unwrap(), 5);
    assert!(dma.write_obj(6_u8, GuestAddress(0)).is_err(), "a write belongs to the device");
    assert!(view.read_obj::<u8>(GuestAddress(0x1000)).is_err(), "exact width only");
    tree.set_romd(rom_device, false).unwrap();
    let view = FlatView::render(&tree).unwrap();
    assert!(view.read_obj::<u8>(GuestAddress(0)).is_err(), "a read belongs to the device");
}

/// A bzImage as the boot protocol has it: a boot sector and setup sectors with the header, then the kernel.
fn bz_image(kernel: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: usize = 2;
    let mut image = vec![0; (SETUP_SECTORS + 1) * 512];
    image[0x1f1] = SETUP_SECTORS as u8;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image.extend_from_slice(kernel);
    image
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn linux_loader_loads_a_bzimage_across_ranges() {
    let board = board().unwrap();
    let view = FlatView::render(&board.tree).unwrap();
    let kernel = pattern(0x1_2345);
    // It ends in the second block, and the rest in the ROM.
    for (start, blocks) in
        [(LOW - 0x8000, [&board.low, &board.high]), (ROM - 0x8000, [&board.high, &board.rom])]
    {
        let loaded =
            BzImage::load(&view, Some(GuestAddress(start)), &mut Cursor::new(bz_image(&kernel)), None)
                .unwrap();
        assert_eq!((loaded.kernel_load.0, loaded.kernel_end), (start, start + 0x1_2345));
        let (mut first, mut second) = (vec![0; 0x8000], vec![0; 0xa345]);
        blocks[0].read(LOW - 0x8000, &mut first).unwrap();
        blocks[1].read(0, &mut second).unwrap();
        assert!(first == kernel[..0x8000] && second == kernel[0x8000..]);
    }
    // What does not fit is an error.
    let at = Some(GuestAddress(ROM));
    assert!(BzImage::load(&view, at, &mut Cursor::new(bz_image(&kernel)), None).is_err());
}

/// An ELF file with one loadable segment.
fn elf_image(start: u64, bytes: &[u8]) -> Vec<u8> {
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    [2_u16, 62].iter().for_each(|half| image.extend_from_slice(&half.to_le_bytes()));
    image.extend_from_slice(&1_u32.to_le_bytes());
    [start, 64, 0].iter().for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
    image.extend_from_slice(&0_u32.to_le_bytes());
    [64_u16, 56, 1, 64, 0, 0].iter().for_each(|half| image.extend_from_slice(&half.to_le_bytes()));
    [1_u32, 7].iter().for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
    let len = bytes.len() as u64;
    [120, start, start, len, len, 1].iter().for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
    image.extend_from_slice(bytes);
    image
}

#[test]
fn linux_loader_loads_an_elf_across_ranges() {
    let board = board().unwrap();
    let view = FlatView::render(&board.tree).unwrap();
    let kernel = pattern(0x3000);
    let image = elf_image(LOW - 0x1000, &kernel);
    let loaded = Elf::load(&view, None, &mut Cursor::new(image), None).unwrap();
    assert_eq!((loaded.kernel_load.0, loaded.kernel_end), (LOW - 0x1000, LOW + 0x2000));
    let mut bytes = vec![0; 0x3000];
    view.read_slice(&mut bytes, GuestAddress(LOW - 0x1000)).unwrap();
    assert_eq!(bytes, kernel);
    assert_eq!(dirty(&board.high), [0, 0x1000]);
}

/// Where the driver of these tests puts its queue.
const TABLE: u64 = LOW + 0x1_0000;
const AVAILABLE: u64 = LOW + 0x1_1000;
const USED: u64 = LOW + 0x1_2000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Writes a chain of descriptors (address, length, flags) and makes it available, as a driver does.
fn offer(view: &FlatView, chain: &[(u64, u32, u16)]) -> Queue {
    for (index, &(addr, len, flags)) in chain.iter().enumerate() {
        let at = TABLE + 16 * index as u64;
        let last = index + 1 == chain.len();
        view.write_obj(addr, GuestAddress(at)).unwrap();
        view.write_obj(len, GuestAddress(at + 8)).unwrap();
        view.write_obj(if last { flags } else { flags | NEXT }, GuestAddress(at + 12)).unwrap();
        view.write_obj(index as u16 + 1, GuestAddress(at + 14)).unwrap();
    }
    view.write_obj(0_u16, GuestAddress(AVAILABLE + 4)).unwrap();
    view.write_obj(1_u16, GuestAddress(AVAILABLE + 2)).unwrap();
    let mut queue = Queue::new(16).unwrap();
    queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

#[test]
fn virtio_queue_consumes_a_chain_across_ranges() {
    let board = board().unwrap();
    let view = Arc::new(FlatView::render(&board.tree).unwrap());
    let dma = DmaView::new(view.clone());
    // A request that crosses from one block into the other, a part of it in ROM; room for the answer behind the alias.
    let request = pattern(0x30);
    view.write_slice(&request[..0x20], GuestAddress(LOW - 0x10)).unwrap();
    view.write_slice(&request[0x20..], GuestAddress(ROM + 0x100)).unwrap();
    let mut queue = offer(
        &view,
        &[
            (LOW - 0x10, 0x20, 0),
            (ROM + 0x100, 0x10, 0),
            (ALIAS + 0xf00, 0x100, WRITE),
            (LOW + 0x2000, 0x20, WRITE),
        ],
    );
    assert!(queue.is_valid(&dma));
    dirty(&board.high);

    let chain = queue.pop_descriptor_chain(&dma).unwrap();
    assert_eq!(chain.clone().count(), 4);
    let mut seen = Vec::new();
    let mut reader = chain.clone().reader(&dma).unwrap();
    reader.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, request);
    let mut writer = chain.clone().writer(&dma).unwrap();
    assert_eq!(writer.available_bytes(), 0x120);
    writer.write_all(&[0x5a; 0x110]).unwrap();
    let head = chain.head_index();
    assert_eq!(dirty(&board.high), [0, 0x2000], "the answer's pages, and no others");
    queue.add_used(&dma, head, 0x110).unwrap();
    assert_eq!(dirty(&board.high), [USED - LOW]);
    assert_eq!(view.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 1);
    assert_eq!(view.read_obj::<u8>(GuestAddress(LOW + 0xfff)).unwrap(), 0x5a);
    assert_eq!(view.read_obj::<u16>(GuestAddress(LOW + 0x200f)).unwrap(), 0x005a);
    assert!(queue.pop_descriptor_chain(&dma).is_none());
    // The same code on the VMM's own way in.
    assert!(queue.is_valid(&*view));
}

#[test]
fn r6_virtio_queue_cannot_answer_into_rom() {
    let board = board().unwrap();
    let view = Arc::new(FlatView::render(&board.tree).unwrap());
    view.write_obj(0x77_u8, GuestAddress(ROM)).unwrap();
    let dma = DmaView::new(view.clone());
    let mut queue = offer(&view, &[(ROM, 0x10, WRITE)]);
    let chain = queue.pop_descriptor_chain(&dma).unwrap();
    assert!(chain.writer(&dma).is_err());
    let mut seen = [0];
    board.rom.read(0, &mut seen).unwrap();
    assert_eq!(seen, [0x77]);
}
