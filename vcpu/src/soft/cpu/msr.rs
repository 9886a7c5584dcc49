//! Model-specific registers: the few that memory and segments need.

use super::Cpu;
use crate::{cr0, efer};

/// The registers that live nowhere else.
#[derive(Clone, Debug)]
pub(super) struct Msrs {
    pub kernel_gs_base: u64,
    /// TSC minus instructions retired.
    pub tsc_offset: u64,
    pat: u64,
    apic_base: u64,
}

impl Default for Msrs {
    /// The values after reset (SDM vol. 3A, 10.1.1 and 12.12.4; vol. 3A, 11.4.4).
    fn default() -> Self {
        Self { kernel_gs_base: 0, tsc_offset: 0, pat: 0x0007_0406_0007_0406, apic_base: 0xfee0_0900 }
    }
}

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// #GP(0): no such register, or not such a value.
pub(super) struct BadMsr;

impl Cpu {
    pub(super) fn read_msr(&self, index: u32) -> Result<u64, BadMsr> {
        Ok(match index {
            TSC => self.tsc(),
            APIC_BASE => self.msrs.apic_base,
            PAT => self.msrs.pat,
            EFER => self.system.efer,
            FS_BASE => self.system.fs.base,
            GS_BASE => self.system.gs.base,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            _ => return Err(BadMsr),
        })
    }

    pub(super) fn write_msr(&mut self, index: u32, value: u64) -> Result<(), BadMsr> {
        let address = if self.canonical(value) { Ok(value) } else { Err(BadMsr) };
        match index {
            TSC => self.msrs.tsc_offset = value.wrapping_sub(self.retired),
            APIC_BASE => self.msrs.apic_base = checked(value, 0xf_ffff_f900)?,
            PAT => {
                self.msrs.pat =
                    value.to_le_bytes().iter().all(is_memory_type).then_some(value).ok_or(BadMsr)?
            }
            EFER => self.system.efer = self.checked_efer(value)?,
            FS_BASE => self.system.fs.base = address?,
            GS_BASE => self.system.gs.base = address?,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = address?,
            _ => return Err(BadMsr),
        }
        Ok(())
    }

    /// LMA follows LME and CR0.PG, and LME can't change while paging is on.
    fn checked_efer(&self, value: u64) -> Result<u64, BadMsr> {
        let value = checked(value, efer::SCE | efer::LME | efer::LMA | efer::NXE)?;
        let old = self.system.efer;
        if self.system.cr0 & cr0::PG != 0 && (value ^ old) & efer::LME != 0 {
            return Err(BadMsr);
        }
        Ok(value & !efer::LMA | old & efer::LMA)
    }
}

fn checked(value: u64, allowed: u64) -> Result<u64, BadMsr> {
    if value & !allowed == 0 { Ok(value) } else { Err(BadMsr) }
}

/// UC, WC, WT, WP, WB, UC-.
fn is_memory_type(byte: &u8) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6 | 7)
}
