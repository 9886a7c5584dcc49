//! From control registers to paging: which of the four paging modes a guest is in, and with what rules.

use crate::access::{Controls, ProtectionKeys};
use crate::error::Error;
use crate::format::{Cr3, Format, Ia32e, Legacy32, Levels, MaxPhyAddr, Pae};
use crate::paging::Paging;
use crate::phys::{MemoryError, PhysMemory};

/// The registers that decide about a guest's paging, as they stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// CR0: PE, WP, PG.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4: PSE, PAE, LA57, SMEP, SMAP, PKE, CET, PKS.
    pub cr4: u64,
    /// EFER: LME, NXE.
    pub efer: u64,
    /// PKRU and IA32_PKRS.
    pub keys: ProtectionKeys,
    /// The page-directory pointers, in PAE paging: what [`pdptes`] or `nested_pdptes` read when CR3 was loaded.
    pub pdptes: [u64; 4],
}

/// What a guest's processor offers, as its CPUID says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// MAXPHYADDR.
    pub max_phy_addr: MaxPhyAddr,
    /// 1 GiB pages.
    pub page_1g: bool,
    /// PSE-36.
    pub pse_36: bool,
    /// AMD made it.
    pub amd: bool,
}

impl Processor {
    /// Intel's, with 1 GiB pages and PSE-36.
    pub const fn new(max_phy_addr: MaxPhyAddr) -> Self {
        Self { max_phy_addr, page_1g: true, pse_36: true, amd: false }
    }
}

const CR0_PE: u64 = 1 << 0;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LME: u64 = 1 << 8;
const EFER_NXE: u64 = 1 << 11;

impl Paging {
    /// The guest's paging, as its registers select it (SDM vol. 3A, 4.1.1); `None` with paging off. What MOV to a control
    /// register refuses with #GP is an error: paging without protection, long mode without PAE, reserved bits in CR3
    /// or in a page-directory pointer (rule I2).
    pub fn from_registers(registers: &Registers, processor: Processor) -> Result<Option<Self>, Error> {
        let Registers { cr0, cr3, cr4, efer, keys, pdptes } = *registers;
        let Processor { max_phy_addr, page_1g, pse_36, amd } = processor;
        if cr0 & CR0_PG == 0 {
            return Ok(None);
        }
        let (long_mode, pae) = (efer & EFER_LME != 0, cr4 & CR4_PAE != 0);
        if cr0 & CR0_PE == 0 || long_mode && !pae {
            return Err(Error::PagingMode { cr0, cr4, efer });
        }
        let no_execute = efer & EFER_NXE != 0;
        let paging = match (long_mode, pae) {
            (true, _) => {
                let levels = if cr4 & CR4_LA57 != 0 { Levels::Five } else { Levels::Four };
                let root = Cr3::new(cr3, max_phy_addr)?.root();
                Self::new(Format::ia32e(Ia32e { levels, max_phy_addr, no_execute, page_1g, amd }), root)
            }
            (false, true) => {
                let format = Format::pae(Pae { max_phy_addr, no_execute });
                check_pdptes(&format, &pdptes)?;
                Self { pdptes, ..Self::new(format, 0) }
            }
            (false, false) => {
                let pse_36 = if pse_36 { Some(max_phy_addr) } else { None };
                let page_4m = cr4 & CR4_PSE != 0;
                // CR3 has 32 bits here.
                let root = cr3 & 0xffff_f000;
                Self::new(Format::legacy32(Legacy32 { page_4m, pse_36 }), root)
            }
        };
        Ok(Some(Self { controls: controls(cr0, cr4), keys, ..paging }))
    }
}

fn controls(cr0: u64, cr4: u64) -> Controls {
    let bits = [
        (cr0 & CR0_WP, Controls::WP),
        (cr4 & 1 << 20, Controls::SMEP),
        (cr4 & 1 << 21, Controls::SMAP),
        (cr4 & 1 << 22, Controls::PKE),
        (cr4 & 1 << 23, Controls::CET),
        (cr4 & 1 << 24, Controls::PKS),
    ];
    bits.into_iter().filter(|&(bit, _)| bit != 0).map(|(_, control)| control).collect()
}

/// Rule I2.
fn check_pdptes(format: &Format, pdptes: &[u64; 4]) -> Result<(), Error> {
    for (index, &pdpte) in pdptes.iter().enumerate() {
        let bits = pdpte & format.reserved(3, false);
        if format.is_present(pdpte) && bits != 0 {
            return Err(Error::PdpteReservedBits { index: index as u8, pdpte, bits });
        }
    }
    Ok(())
}

/// Reads the four page-directory pointers that MOV to CR3 loads in PAE paging. For a guest behind a second level see
/// [`nested_pdptes`](crate::nested_pdptes).
pub fn pdptes(memory: &impl PhysMemory, cr3: Cr3) -> Result<[u64; 4], MemoryError> {
    let mut pdptes = [0; 4];
    for (index, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = memory.read_entry(cr3.page_directory_pointers() + 8 * index as u64)?;
    }
    Ok(pdptes)
}
