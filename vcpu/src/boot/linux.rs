//! Starting Linux from a bzImage, by the 32-bit entry of its boot protocol (`Documentation/arch/x86/boot.rst`): flat
//! protected mode, and the zero page (`boot_params`) with the setup header, the RAM, the command line and the initial
//! RAM disk.
//!
//! | guest-physical | what |
//! |---|---|
//! | `0x7000` | the zero page |
//! | `0x8000` | GDT, and at `0x8b00` the command line |
//! | `code32_start` | the kernel, 1 MiB unless its header says otherwise |

use std::io::Cursor;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use memory_model::{AddrRange, FlatView, Gpa, PageSize};
use vm_memory::{ByteValued, GuestAddress};

use super::BootError;
use super::flat::{self, COMMAND_LINE, INFO, MAX_COMMAND_LINE, Page};
use crate::{DescriptorTable, Gpr, Regs, SystemRegs, rflags};

/// The oldest protocol whose header tells all that is asked here: 2.10, with `init_size`.
const OLDEST: u16 = 0x20a;
/// Where the header begins.
const HEADER: usize = 0x1f1;
const MAGIC_AT: usize = 0x202;
const SECTOR: usize = 512;

const LOADED_HIGH: u8 = 1 << 0;
/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;
const MAX_RANGES: usize = 128;
/// Below is what the boot keeps for itself, and from here on what a PC has of devices.
const DEVICES: u64 = 0xa_0000;
const HIGH_MEMORY: u64 = 0x10_0000;

const TEXT: u64 = 0x8000;
/// Null twice; flat code and data, at the selectors that the protocol asks for.
const GDT: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const BOOT_CS: u16 = 2 << 3;
const BOOT_DS: u16 = 3 << 3;

/// Whether a file is a bzImage, as far as its magic says: `HdrS` at 0x202.
pub fn is_bz_image(file: &[u8]) -> bool {
    file.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS")
}

/// A Linux kernel to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Linux<'a> {
    /// The bzImage.
    pub kernel: &'a [u8],
    /// Its command line.
    pub command_line: &'a str,
    /// Its initial RAM disk; empty for none.
    pub initrd: &'a [u8],
}

impl Linux<'_> {
    /// Writes the kernel and all that it is told into guest memory; gives the registers to start with.
    pub fn install(&self, view: &FlatView) -> Result<(Regs, SystemRegs), BootError> {
        let mut header = self.header()?;
        // Less one, for the one that is split.
        let ram = flat::ram(view, MAX_RANGES - 1)?;
        let most = MAX_COMMAND_LINE.min(header.cmdline_size as usize);
        flat::check_command_line(self.command_line, most)?;
        let kernel = self.kernel_memory(&header)?;
        if let Some(gpa) = flat::first_without_ram(&ram, kernel) {
            return Err(BootError::KernelOutsideMemory { kernel, gpa });
        }
        let start = kernel.first().0;
        BzImage::load(view, Some(GuestAddress(start)), &mut Cursor::new(self.kernel), None)
            .map_err(|error| BootError::NotBzImage { why: error.to_string() })?;
        let behind = kernel.last().checked_add(1);
        let last = Gpa(header.initrd_addr_max.into());
        let within = behind.and_then(|first| AddrRange::inclusive(first, last));
        if let Some(initrd) = flat::place_initrd(view, &ram, self.initrd, within)? {
            header.ramdisk_image = initrd.first().0 as u32;
            header.ramdisk_size = initrd.bytes() as u32;
        }
        header.type_of_loader = UNDEFINED_LOADER;
        header.code32_start = start as u32;
        header.cmd_line_ptr = (TEXT + COMMAND_LINE as u64) as u32;
        self.text()?.write(view, TEXT)?;
        write_zero_page(header, &ram, view)?;
        let mut regs = Regs { rip: start, rflags: rflags::FIXED, ..Regs::default() };
        regs[Gpr::Rsi] = INFO;
        let gdt = DescriptorTable { base: TEXT, limit: 8 * GDT.len() as u16 - 1 };
        Ok((regs, SystemRegs { gdt, ..flat::system_regs(BOOT_CS, BOOT_DS) }))
    }

    /// The setup header, as long as the file says that it is; what a later protocol has behind it is zero.
    fn header(&self) -> Result<setup_header, BootError> {
        let wrong = |why: String| Err(BootError::NotBzImage { why });
        if !is_bz_image(self.kernel) {
            return wrong("no `HdrS` at 0x202".to_owned());
        }
        let end = MAGIC_AT + usize::from(self.kernel[MAGIC_AT - 1]);
        let Some(given) = self.kernel.get(HEADER..end) else {
            return wrong(format!("its header ends at {end:#x}, the file at {:#x}", self.kernel.len()));
        };
        let mut bytes = [0; size_of::<setup_header>()];
        bytes.iter_mut().zip(given).for_each(|(to, &from)| *to = from);
        let header = *setup_header::from_slice(&bytes).expect("it has no alignment");
        let version = header.version;
        if version < OLDEST {
            return wrong(format!("boot protocol {version:#x} is older than {OLDEST:#x}"));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return wrong("it is a zImage, to be loaded below 1 MiB".to_owned());
        }
        let setup = setup_bytes(&header);
        if self.kernel.len() <= setup {
            return wrong(format!("its setup has {setup:#x} bytes, the file {:#x}", self.kernel.len()));
        }
        Ok(header)
    }

    /// All memory that the kernel is loaded to, or unpacks itself to before it looks at the memory map.
    fn kernel_memory(&self, header: &setup_header) -> Result<AddrRange<Gpa>, BootError> {
        let wrong = |why: String| BootError::NotBzImage { why };
        let (start, align) = (u64::from(header.code32_start), u64::from(header.kernel_alignment));
        if start < HIGH_MEMORY {
            return Err(wrong(format!("it is to be loaded at {start:#x}, below {HIGH_MEMORY:#x}")));
        }
        if !align.is_power_of_two() {
            return Err(wrong(format!("its alignment {align:#x} is no power of two")));
        }
        let loaded = start + (self.kernel.len() - setup_bytes(header)) as u64;
        let wanted = header.pref_address;
        let unpacked = match header.relocatable_kernel {
            0 => wanted,
            _ => start.next_multiple_of(align).max(wanted),
        };
        let end = unpacked.checked_add(header.init_size.into()).map(|end| end.max(loaded));
        let range = end.and_then(|end| AddrRange::new(Gpa(start), end.checked_sub(start)?.into()));
        range.ok_or_else(|| {
            let size = header.init_size;
            wrong(format!("{size:#x} bytes at {unpacked:#x} reach past the end of the address space"))
        })
    }

    /// The page of the GDT and the command line.
    fn text(&self) -> Result<Page, BootError> {
        let mut page = Page::new(self.command_line)?;
        for (descriptor, at) in GDT.iter().zip((0..).step_by(8)) {
            page.put(at, &descriptor.to_le_bytes());
        }
        Ok(page)
    }
}

/// The boot sector and the setup sectors: what lies before the kernel itself.
fn setup_bytes(header: &setup_header) -> usize {
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => usize::from(sectors),
    };
    (1 + sectors) * SECTOR
}

/// RAM without that behind the devices of a PC, from 640 KiB to 1 MiB. Linux looks at no map that has one range alone.
fn as_on_a_pc(range: AddrRange<Gpa>) -> impl Iterator<Item = AddrRange<Gpa>> {
    let parts = [(0, DEVICES - 1), (HIGH_MEMORY, u64::MAX)];
    parts
        .into_iter()
        .filter_map(move |(first, last)| range.intersection(AddrRange::inclusive(Gpa(first), Gpa(last))?))
}

fn write_zero_page(header: setup_header, ram: &[AddrRange<Gpa>], view: &FlatView) -> Result<(), BootError> {
    let map: Vec<_> = ram.iter().flat_map(|&range| as_on_a_pc(range)).collect();
    let mut page = boot_params { hdr: header, e820_entries: map.len() as u8, ..boot_params::default() };
    for (index, range) in map.iter().enumerate() {
        // A RAM block is shorter than 2^64 bytes.
        let size = range.bytes() as u64;
        page.e820_table[index] = boot_e820_entry { addr: range.first().0, size, r#type: E820_RAM };
    }
    let place = AddrRange::page_of(Gpa(INFO), PageSize::Size4K);
    let page = BootParams::new(&page, GuestAddress(INFO));
    LinuxBootConfigurator::write_bootparams(&page, view).map_err(|_| BootError::NoInformation {
        page: place,
        source: ept::MemoryError::Absent { address: INFO },
    })
}
