//! Starting a guest by Multiboot 1: flat 32-bit protected mode, and an information structure that tells of memory.
//!
//! Names and layout are those of the Multiboot Specification 0.6.96, chapter 3. All that the guest is told lies in the
//! one page, [`information_page`]:
//!
//! | offset | what |
//! |---|---|
//! | `0x000` | the information structure |
//! | `0x080` | the name of the boot loader |
//! | `0x100` | the memory map: the RAM of the flat view, 24 bytes a range |
//! | `0xb00` | the command line |

use memory_model::{AddrRange, FlatRange, FlatView, Gpa, PageSize};

use super::BootError;
use crate::guest_tables::GuestTables;
use crate::{Gpr, Regs, Segment, SystemRegs, cr0, rflags};

/// The page that the boot writes: a program is loaded beside it.
pub fn information_page() -> AddrRange<Gpa> {
    AddrRange::page_of(Gpa(INFO), PageSize::Size4K)
}

const INFO: u64 = 0x7000;
const PAGE: usize = 0x1000;
const LOADER_NAME: usize = 0x80;
const MEMORY_MAP: usize = 0x100;
const COMMAND_LINE: usize = 0xb00;

/// A range of the memory map: its own size (without this field), base, length, type.
const MAP_ENTRY: usize = 24;
const MAX_MAP_ENTRIES: usize = (COMMAND_LINE - MEMORY_MAP) / MAP_ENTRY;
/// With a zero behind it.
const MAX_COMMAND_LINE: usize = PAGE - COMMAND_LINE - 1;

/// What EAX holds: a Multiboot loader was here.
const BOOTLOADER_MAGIC: u64 = 0x2bad_b002;
/// Flags of the information structure: sizes of memory, command line, memory map, name of the loader.
const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9;
const AVAILABLE: u32 = 1;
const LOADER: &[u8] = b"memvirt\0";

/// A guest that starts by Multiboot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Multiboot {
    /// The program's first instruction.
    pub entry: u32,
    /// Its command line: by custom, the program's name and its arguments.
    pub command_line: String,
}

impl Multiboot {
    /// Writes the information structure into guest memory; gives the registers to start with.
    pub fn install(&self, view: &FlatView) -> Result<(Regs, SystemRegs), BootError> {
        let page = self.information(view)?;
        let written = GuestTables(view).write_frame(INFO, &page);
        written.map_err(|source| BootError::NoInformation { page: information_page(), source })?;
        let mut regs = Regs { rip: self.entry.into(), rflags: rflags::FIXED, ..Regs::default() };
        regs[Gpr::Rax] = BOOTLOADER_MAGIC;
        regs[Gpr::Rbx] = INFO;
        Ok((regs, system_regs()))
    }

    fn information(&self, view: &FlatView) -> Result<[u8; PAGE], BootError> {
        let command_line = self.command_line.as_bytes();
        if command_line.len() > MAX_COMMAND_LINE {
            return Err(BootError::CommandLine { size: command_line.len(), most: MAX_COMMAND_LINE });
        }
        let ram: Vec<_> = view.ranges().filter(|range| is_ram(range)).map(|range| range.range).collect();
        if ram.len() > MAX_MAP_ENTRIES {
            return Err(BootError::MemoryMap { count: ram.len(), most: MAX_MAP_ENTRIES });
        }
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let fields = [
            (0, FLAGS),
            (4, kib_from(&ram, 0).min(640)),
            (8, kib_from(&ram, 0x10_0000)),
            (16, address(COMMAND_LINE)),
            (44, (ram.len() * MAP_ENTRY) as u32),
            (48, address(MEMORY_MAP)),
            (64, address(LOADER_NAME)),
        ];
        for (at, value) in fields {
            put(at, &value.to_le_bytes());
        }
        put(LOADER_NAME, LOADER);
        for (index, range) in ram.iter().enumerate() {
            let at = MEMORY_MAP + index * MAP_ENTRY;
            put(at, &(MAP_ENTRY as u32 - 4).to_le_bytes());
            put(at + 4, &range.first().0.to_le_bytes());
            // A RAM block is shorter than 2^64 bytes.
            put(at + 12, &(range.bytes() as u64).to_le_bytes());
            put(at + 20, &AVAILABLE.to_le_bytes());
        }
        put(COMMAND_LINE, command_line);
        Ok(page)
    }
}

fn is_ram(range: &FlatRange) -> bool {
    range.ram().is_some() && !range.readonly
}

/// KiB of RAM from `first` on, up to the first hole.
fn kib_from(ram: &[AddrRange<Gpa>], first: u64) -> u32 {
    let mut end = first;
    // Ascending, and disjoint.
    while let Some(range) = ram.iter().find(|range| range.contains(Gpa(end))) {
        end = match range.last().0.checked_add(1) {
            Some(end) => end,
            None => break,
        };
    }
    u32::try_from((end - first) >> 10).unwrap_or(u32::MAX)
}

/// The address of something in the page.
const fn address(offset: usize) -> u32 {
    INFO as u32 + offset as u32
}

/// Flat segments of 4 GiB, paging off, interrupts off. GDTR and IDTR are empty: the guest brings its own.
fn system_regs() -> SystemRegs {
    let flat = Segment { limit: u32::MAX, code_or_data: true, present: true, db: true, ..Segment::default() };
    let code = Segment { selector: 1 << 3, kind: 0xb, ..flat };
    let data = Segment { selector: 2 << 3, kind: 0x3, ..flat };
    SystemRegs {
        tr: Segment { kind: 0xb, limit: 0x67, present: true, ..Segment::default() },
        cr0: cr0::PE | cr0::ET,
        ..SystemRegs::with_segments(code, data)
    }
}

#[cfg(test)]
mod tests {
    use memory_model::{AddressSpace, RamBlock, RegionTree};

    use super::*;

    /// RAM at these addresses, each this long.
    fn space(ram: &[(u64, u64)]) -> AddressSpace {
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
        let add = |tree: &mut RegionTree| {
            for &(gpa, size) in ram {
                let region = tree.ram("ram", RamBlock::anonymous("ram", size)?)?;
                tree.add(tree.root(), gpa, region)?;
            }
            Ok::<(), memory_model::MemoryError>(())
        };
        space.update(add).unwrap();
        space
    }

    fn install(ram: &[(u64, u64)], command_line: &str) -> Result<(Regs, SystemRegs), BootError> {
        let guest = Multiboot { entry: 0x10_0000, command_line: command_line.to_owned() };
        guest.install(&space(ram).view())
    }

    #[test]
    fn sizes_end_at_the_first_hole() {
        let kib = |ram: &[(u64, u64)], first| {
            let ram: Vec<_> = ram
                .iter()
                .map(|&(gpa, size)| AddrRange::new(Gpa(gpa), size.into()).expect("not empty"))
                .collect();
            kib_from(&ram, first)
        };
        assert_eq!(kib(&[(0, 0x9_f000)], 0), 0x9_f000 >> 10);
        assert_eq!(kib(&[(0, 0x20_0000), (0x20_0000, 0x1000), (0x30_0000, 0x1000)], 0x10_0000), 0x404);
        assert_eq!(kib(&[(0, 0x9_f000)], 0x10_0000), 0);
        assert_eq!(kib(&[(0, 1 << 46)], 0x10_0000), u32::MAX);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let says =
            |ram: &[(u64, u64)], command_line: &str| install(ram, command_line).unwrap_err().to_string();
        assert_eq!(
            says(&[(0, 0x1000), (0x8000, 0x1000)], ""),
            "the Multiboot information needs RAM at 0x7000-0x7fff: no memory at 0x7000"
        );
        let fits = "x".repeat(MAX_COMMAND_LINE);
        assert!(install(&[(0, 0x1_0000)], &fits).is_ok());
        assert_eq!(
            says(&[(0, 0x1_0000)], &format!("{fits}x")),
            "the command line has 0x500 bytes, at most 0x4ff fit"
        );
        let many: Vec<_> = (0..=MAX_MAP_ENTRIES as u64).map(|index| (index * 0x2_0000, 0x1_0000)).collect();
        assert!(install(&many[1..], "").is_err_and(|error| matches!(error, BootError::NoInformation { .. })));
        assert_eq!(says(&many, ""), "the memory map has 107 ranges of RAM, at most 106 fit");
    }
}
