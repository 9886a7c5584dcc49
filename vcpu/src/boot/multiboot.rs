//! Starting a guest by Multiboot 1: flat 32-bit protected mode, and an information structure that tells of memory.
//!
//! Names and layout are those of the Multiboot Specification 0.6.96, chapter 3. All that the guest is told lies in the
//! one page, [`information_page`](super::information_page):
//!
//! | offset | what |
//! |---|---|
//! | `0x000` | the information structure |
//! | `0x080` | the name of the boot loader |
//! | `0x100` | the memory map: the RAM of the flat view, 24 bytes a range |
//! | `0xb00` | the command line |

use memory_model::{AddrRange, FlatView, Gpa};

use super::BootError;
use super::flat::{self, COMMAND_LINE, INFO, MAP_ENTRY, MAX_MAP_ENTRIES, MEMORY_MAP, Page, address};
use crate::{Gpr, Regs, SystemRegs, rflags};

const LOADER_NAME: usize = 0x80;

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
        self.information(view)?.write(view, INFO)?;
        let mut regs = Regs { rip: self.entry.into(), rflags: rflags::FIXED, ..Regs::default() };
        regs[Gpr::Rax] = BOOTLOADER_MAGIC;
        regs[Gpr::Rbx] = INFO;
        Ok((regs, flat::system_regs(1 << 3, 2 << 3)))
    }

    fn information(&self, view: &FlatView) -> Result<Page, BootError> {
        let mut page = Page::new(&self.command_line)?;
        let ram = flat::ram(view, MAX_MAP_ENTRIES)?;
        page.put_all(&[
            (0, FLAGS),
            (4, kib_from(&ram, 0).min(640)),
            (8, kib_from(&ram, 0x10_0000)),
            (16, address(COMMAND_LINE)),
            (44, (ram.len() * MAP_ENTRY) as u32),
            (48, address(MEMORY_MAP)),
            (64, address(LOADER_NAME)),
        ]);
        page.put(LOADER_NAME, LOADER);
        for (range, at) in ram.iter().zip((MEMORY_MAP..).step_by(MAP_ENTRY)) {
            // The size of what follows, base, length, type.
            page.put(at, &(MAP_ENTRY as u32 - 4).to_le_bytes());
            page.put(at + 4, &range.first().0.to_le_bytes());
            // A RAM block is shorter than 2^64 bytes.
            page.put(at + 12, &(range.bytes() as u64).to_le_bytes());
            page.put(at + 20, &AVAILABLE.to_le_bytes());
        }
        Ok(page)
    }
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

#[cfg(test)]
mod tests {
    use memory_model::{AddressSpace, RamBlock, RegionTree};

    use super::super::flat::MAX_COMMAND_LINE;
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
            "the boot information needs RAM at 0x7000-0x7fff: no memory at 0x7000"
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
