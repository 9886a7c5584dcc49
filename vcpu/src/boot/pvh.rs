//! Starting a guest by PVH, the direct boot of Xen's HVM guests: flat 32-bit protected mode, and a structure that tells
//! of memory, the command line and an initial RAM disk.
//!
//! Names and layout are those of Xen's `public/arch-x86/hvm/start_info.h`, version 1; an ELF file names its entry in the
//! note `XEN_ELFNOTE_PHYS32_ENTRY`. All that the guest is told lies in the one page,
//! [`information_page`](super::information_page):
//!
//! | offset | what |
//! |---|---|
//! | `0x000` | `hvm_start_info` |
//! | `0x080` | `hvm_modlist_entry`: the initial RAM disk, if there is one |
//! | `0x100` | `hvm_memmap_table_entry`: the RAM of the flat view, 24 bytes a range |
//! | `0xb00` | the command line |

use memory_model::{AddrRange, FlatView, Gpa};

use super::BootError;
use super::flat::{self, COMMAND_LINE, INFO, MAP_ENTRY, MAX_MAP_ENTRIES, MEMORY_MAP, Page, address};
use crate::{Gpr, Regs, SystemRegs, rflags};

const START_MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULES: usize = 0x80;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;

/// A guest that starts by PVH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pvh<'a> {
    /// The program's first instruction.
    pub entry: u32,
    /// Its command line.
    pub command_line: &'a str,
    /// Its initial RAM disk, to be its first module; empty for none.
    pub initrd: &'a [u8],
    /// The program's last byte: the initial RAM disk lies behind it, and below 4 GiB.
    pub last: Gpa,
}

impl Pvh<'_> {
    /// Writes the start info and the initial RAM disk into guest memory; gives the registers to start with.
    pub fn install(&self, view: &FlatView) -> Result<(Regs, SystemRegs), BootError> {
        let ram = flat::ram(view, MAX_MAP_ENTRIES)?;
        let mut page = Page::new(self.command_line)?;
        let behind =
            self.last.checked_add(1).and_then(|first| AddrRange::inclusive(first, Gpa(u32::MAX.into())));
        let initrd = flat::place_initrd(view, &ram, self.initrd, behind)?;
        page.put_all(&[
            (0, START_MAGIC),
            (4, VERSION),
            (12, initrd.is_some().into()),
            (16, address(MODULES)),
            (24, address(COMMAND_LINE)),
            (40, address(MEMORY_MAP)),
            (48, ram.len() as u32),
        ]);
        if let Some(initrd) = initrd {
            page.put(MODULES, &initrd.first().0.to_le_bytes());
            page.put(MODULES + 8, &(initrd.bytes() as u64).to_le_bytes());
        }
        for (range, at) in ram.iter().zip((MEMORY_MAP..).step_by(MAP_ENTRY)) {
            page.put(at, &range.first().0.to_le_bytes());
            // A RAM block is shorter than 2^64 bytes.
            page.put(at + 8, &(range.bytes() as u64).to_le_bytes());
            page.put(at + 16, &RAM.to_le_bytes());
        }
        page.write(view, INFO)?;
        let mut regs = Regs { rip: self.entry.into(), rflags: rflags::FIXED, ..Regs::default() };
        regs[Gpr::Rbx] = INFO;
        Ok((regs, flat::system_regs(1 << 3, 2 << 3)))
    }
}
