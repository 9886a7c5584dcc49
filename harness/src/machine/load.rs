//! What is in a guest's memory when it starts: its program, and what its boot protocol promises.

use guest_tests::{BootSpec, Image, RegionSpec};
use memory_model::{AddrRange, FlatView, Gpa, Gva, PageSize};
use vcpu::boot::linux::Linux;
use vcpu::boot::multiboot::Multiboot;
use vcpu::boot::pvh::Pvh;
use vcpu::boot::{GuestMap, LongMode, RESERVED_BYTES, Ring, information_page};
use vcpu::{Regs, SystemRegs};
use vm_memory::{Bytes, GuestAddress};

use crate::HarnessError;

/// Copies the program into memory, which is fresh and so zero where the file has no bytes.
pub(super) fn program(image: &Image, view: &FlatView) -> Result<(), HarnessError> {
    let reserved = boot_memory(image.boot());
    for segment in image.segments() {
        let memory = segment.memory;
        if memory.overlaps(reserved) {
            return Err(HarnessError::SegmentInBootMemory { segment: memory, reserved });
        }
        if let Some(gpa) = first_without_memory(view, memory) {
            return Err(HarnessError::SegmentOutsideMemory { segment: memory, gpa });
        }
        let loaded = view.write_slice(image.bytes_of(segment), GuestAddress(memory.first().0));
        loaded.map_err(|source| HarnessError::Load { segment: memory, source })?;
    }
    Ok(())
}

/// What the boot keeps for itself.
fn boot_memory(boot: BootSpec) -> AddrRange<Gpa> {
    match boot {
        BootSpec::Long => AddrRange::inclusive(Gpa(0), Gpa(RESERVED_BYTES - 1)).expect("written in order"),
        BootSpec::Multiboot | BootSpec::Pvh | BootSpec::Linux => information_page(),
    }
}

/// The first address in `range` where neither RAM nor ROM is.
fn first_without_memory(view: &FlatView, range: AddrRange<Gpa>) -> Option<Gpa> {
    let mut next = range.first();
    loop {
        let Some(found) = view.find(next).filter(|found| found.ram().is_some()) else { return Some(next) };
        if found.range.last() >= range.last() {
            return None;
        }
        next = found.range.last().checked_add(1)?;
    }
}

/// Writes what the guest finds in memory when it starts; gives its first registers.
pub(super) fn boot(image: &Image, view: &FlatView) -> Result<(Regs, SystemRegs), HarnessError> {
    let (command_line, initrd) = (&image.manifest().machine.command_line, image.initrd());
    // A file for a 32-bit protocol has no other addresses.
    let entry = image.entry() as u32;
    let booted = match image.boot() {
        BootSpec::Long => long_mode(image)?.install(view),
        BootSpec::Multiboot => Multiboot { entry, command_line: command_line.clone() }.install(view),
        BootSpec::Pvh => {
            let last = image.segments().last().map_or(Gpa(0), |segment| segment.memory.last());
            Pvh { entry, command_line, initrd, last }.install(view)
        }
        BootSpec::Linux => Linux { kernel: image.bytes(), command_line, initrd }.install(view),
    };
    Ok(booted?)
}

/// The registers and tables that the manifest asks for.
fn long_mode(image: &Image) -> Result<LongMode, HarnessError> {
    let manifest = image.manifest();
    let mut handlers = Vec::new();
    for (vector, handler) in &manifest.handlers {
        handlers.push((vector.0, image.resolve(handler)?));
    }
    let regions = std::iter::once(manifest.main_ram()).chain(manifest.regions.iter().cloned());
    let mut maps: Vec<GuestMap> =
        regions.flat_map(|region| identity(&region, manifest.machine.page.0)).collect();
    maps.extend(manifest.maps.iter().filter_map(|map| {
        Some(GuestMap {
            gva: AddrRange::new(Gva(map.gva.0), map.size.0.into())?,
            gpa: Gpa(map.gpa.0),
            page: map.page.0,
            rights: guest_rights(map.access, map.ring),
        })
    }));
    let ring = if manifest.machine.ring == 0 { Ring::Kernel } else { Ring::User };
    Ok(LongMode { entry: image.entry(), ring, handlers, maps })
}

/// The identity map of a region, but for the boot's own memory: large pages where they fit, small ones at the ends.
fn identity(region: &RegionSpec, page: PageSize) -> Vec<GuestMap> {
    let end = region.gpa.0 + region.size.0;
    let first = region.gpa.0.max(RESERVED_BYTES);
    if first >= end {
        return Vec::new();
    }
    let map = |first: u64, end: u64, page| {
        let gva = AddrRange::new(Gva(first), end.saturating_sub(first).into())?;
        Some(GuestMap { page, ..GuestMap::identity(gva) })
    };
    let whole = AddrRange::new(Gva(first), (end - first).into()).and_then(|range| range.pages_within(page));
    let Some(whole) = whole.filter(|_| page != PageSize::Size4K) else {
        return map(first, end, PageSize::Size4K).into_iter().collect();
    };
    let (large_first, large_end) = (whole.first().0, whole.last().0 + 1);
    let pieces = [
        map(first, large_first, PageSize::Size4K),
        map(large_first, large_end, page),
        map(large_end, end, PageSize::Size4K),
    ];
    pieces.into_iter().flatten().collect()
}

/// A manifest's rights as entries of the guest's tables.
fn guest_rights(rights: guest_tests::Rights, ring: u8) -> ept::Rights {
    if rights.is_empty() {
        return ept::Rights::empty();
    }
    let mut bits = ept::Rights::READ;
    bits.set(ept::Rights::USER, ring == 3);
    bits.set(ept::Rights::WRITE, rights.write);
    bits.set(ept::Rights::EXEC, rights.execute);
    bits
}
