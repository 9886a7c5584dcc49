//! What the boots without paging have in common: flat 32-bit protected mode, one page for what the guest is told, the
//! RAM that is told of, and a place for an initial RAM disk.

use memory_model::{AddrRange, FlatView, Gpa, PageSize};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::guest_tables::GuestTables;
use crate::{Segment, SystemRegs, cr0};

/// The page in which a guest finds what it is told: a program is loaded beside it.
pub fn information_page() -> AddrRange<Gpa> {
    AddrRange::page_of(Gpa(INFO), PageSize::Size4K)
}

/// Where that page is.
pub(super) const INFO: u64 = 0x7000;

const PAGE: usize = 0x1000;
/// Offset of the memory map.
pub(super) const MEMORY_MAP: usize = 0x100;
/// Offset of the command line.
pub(super) const COMMAND_LINE: usize = 0xb00;
/// A range of the memory map takes so much, in all protocols whose map is in this page.
pub(super) const MAP_ENTRY: usize = 24;
pub(super) const MAX_MAP_ENTRIES: usize = (COMMAND_LINE - MEMORY_MAP) / MAP_ENTRY;
/// With a zero behind it.
pub(super) const MAX_COMMAND_LINE: usize = PAGE - COMMAND_LINE - 1;

/// The address of something in the page.
pub(super) const fn address(offset: usize) -> u32 {
    INFO as u32 + offset as u32
}

/// The page while it is filled in.
pub(super) struct Page([u8; PAGE]);

impl Page {
    /// With the command line, at [`COMMAND_LINE`].
    pub fn new(command_line: &str) -> Result<Self, BootError> {
        check_command_line(command_line, MAX_COMMAND_LINE)?;
        let mut page = Self([0; PAGE]);
        page.put(COMMAND_LINE, command_line.as_bytes());
        Ok(page)
    }

    /// Bytes at an offset; all of them lie in the page.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Fields of 32 bits at their offsets.
    pub fn put_all(&mut self, fields: &[(usize, u32)]) {
        fields.iter().for_each(|(at, value)| self.put(*at, &value.to_le_bytes()));
    }

    /// Writes it into guest memory, at that address.
    pub fn write(&self, view: &FlatView, address: u64) -> Result<(), BootError> {
        let page = AddrRange::page_of(Gpa(address), PageSize::Size4K);
        GuestTables(view)
            .write_frame(address, &self.0)
            .map_err(|source| BootError::NoInformation { page, source })
    }
}

/// What has no room for more than `most` bytes of command line.
pub(super) fn check_command_line(command_line: &str, most: usize) -> Result<(), BootError> {
    match command_line.len() {
        size if size > most => Err(BootError::CommandLine { size, most }),
        _ => Ok(()),
    }
}

/// The RAM of a view, ascending: no more than `most` ranges.
pub(super) fn ram(view: &FlatView, most: usize) -> Result<Vec<AddrRange<Gpa>>, BootError> {
    let is_ram = |range: &&memory_model::FlatRange| range.ram().is_some() && !range.readonly;
    let ram: Vec<_> = view.ranges().filter(is_ram).map(|range| range.range).collect();
    if ram.len() > most {
        return Err(BootError::MemoryMap { count: ram.len(), most });
    }
    Ok(ram)
}

/// The first address of `range` that is not RAM.
pub(super) fn first_without_ram(ram: &[AddrRange<Gpa>], range: AddrRange<Gpa>) -> Option<Gpa> {
    let mut next = range.first();
    // Ascending, and disjoint.
    while let Some(part) = ram.iter().find(|part| part.contains(next)) {
        if part.last() >= range.last() {
            return None;
        }
        next = part.last().checked_add(1)?;
    }
    Some(next)
}

/// Copies an initial RAM disk to the highest pages of RAM within `within`; says where. Nothing to copy is no disk.
pub(super) fn place_initrd(
    view: &FlatView,
    ram: &[AddrRange<Gpa>],
    initrd: &[u8],
    within: Option<AddrRange<Gpa>>,
) -> Result<Option<AddrRange<Gpa>>, BootError> {
    if initrd.is_empty() {
        return Ok(None);
    }
    let size = initrd.len() as u64;
    let fits = |part: AddrRange<Gpa>| {
        let end = part.last().0.checked_add(1)?;
        let first = Gpa(end.checked_sub(size)?).align_down(PageSize::Size4K);
        AddrRange::new(first, size.into()).filter(|place| part.contains(place.first()))
    };
    let parts = ram.iter().rev().filter_map(|part| part.intersection(within?));
    let place = parts.filter_map(fits).next().ok_or(BootError::NoRoomForInitrd { size, within })?;
    view.write_slice(initrd, GuestAddress(place.first().0))
        .map_err(|source| BootError::Load { place, source })?;
    Ok(Some(place))
}

/// Flat segments of 4 GiB with these selectors, paging off. GDTR and IDTR are empty: the guest brings its own.
pub(super) fn system_regs(code: u16, data: u16) -> SystemRegs {
    let flat = Segment { limit: u32::MAX, code_or_data: true, present: true, db: true, ..Segment::default() };
    let code = Segment { selector: code, kind: 0xb, ..flat };
    let data = Segment { selector: data, kind: 0x3, ..flat };
    SystemRegs {
        tr: Segment { kind: 0xb, limit: 0x67, present: true, ..Segment::default() },
        cr0: cr0::PE | cr0::ET,
        ..SystemRegs::with_segments(code, data)
    }
}
