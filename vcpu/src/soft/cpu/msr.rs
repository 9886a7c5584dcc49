//! Model-specific registers (SDM vol. 4). Most are plain values that some bits of may be set.

use super::Cpu;
use super::cpuid::Feature;
use super::step::Step;
use crate::soft::Bus;
use crate::soft::irqchip::{Interrupts, Refused};
use crate::{cr0, efer};

/// The registers that live nowhere else.
#[derive(Clone, Debug)]
pub(super) struct Msrs {
    pub kernel_gs_base: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// TSC minus the clock.
    pub tsc_offset: u64,
    pub tsc_aux: u64,
    pub pkrs: u64,
    pat: u64,
    apic_base: u64,
    misc_enable: u64,
    mtrr_default: u64,
    /// Bases and masks in turn.
    mtrr_variable: [u64; 2 * VARIABLE_RANGES],
    mtrr_fixed: [u64; MTRR_FIXED.len()],
}

impl Default for Msrs {
    /// The values after reset (SDM vol. 3A, table 11-1, and 13.4.4 and 14.12.4).
    fn default() -> Self {
        Self {
            kernel_gs_base: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_offset: 0,
            tsc_aux: 0,
            pkrs: 0,
            pat: 0x0007_0406_0007_0406,
            apic_base: 0xfee0_0900,
            misc_enable: FAST_STRINGS,
            mtrr_default: 0,
            mtrr_variable: [0; 2 * VARIABLE_RANGES],
            mtrr_fixed: [0; MTRR_FIXED.len()],
        }
    }
}

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
/// IA32_BIOS_SIGN_ID: no microcode was ever loaded.
const BIOS_SIGN_ID: u32 = 0x8b;
const MTRR_CAP: u32 = 0xfe;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MISC_ENABLE: u32 = 0x1a0;
const MTRR_PHYS_BASE0: u32 = 0x200;
const MTRR_LAST_VARIABLE: u32 = MTRR_PHYS_BASE0 + 2 * VARIABLE_RANGES as u32 - 1;
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const TSC_DEADLINE: u32 = 0x6e0;
const PKRS: u32 = 0x6e1;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
/// AMD's four event selectors and counters, which no bit of CPUID announces. Here they count nothing.
const K7_COUNTERS_FIRST: u32 = 0xc001_0000;
const K7_COUNTERS_LAST: u32 = 0xc001_0007;

/// The fixed-range MTRRs: one of 64 KiB, two of 16 KiB and eight of 4 KiB ranges.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const VARIABLE_RANGES: usize = 8;
/// Fixed ranges and write combining are supported.
const MTRR_CAPABILITIES: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// Bit 0 of IA32_MISC_ENABLE.
const FAST_STRINGS: u64 = 1;

/// #GP(0): no such register, or not such a value.
pub(super) struct BadMsr;

impl From<Refused> for BadMsr {
    fn from(_: Refused) -> Self {
        Self
    }
}

/// The local APIC has registers of its own, and the others are the processor's.
impl<B: Bus> Step<'_, B> {
    pub(super) fn read_msr(&mut self, index: u32) -> Result<u64, BadMsr> {
        if index == TSC_DEADLINE && self.cpu.cpuid.has(Feature::TSC_DEADLINE) {
            let at = self.with_interrupts(|interrupts| interrupts.deadline()).flatten();
            return Ok(at.map_or(0, |at| at.wrapping_add(self.cpu.msrs.tsc_offset)));
        }
        match self.with_interrupts(|interrupts| interrupts.read_msr(index)).flatten() {
            Some(value) => Ok(value?),
            None => self.cpu.read_msr(index),
        }
    }

    pub(super) fn write_msr(&mut self, index: u32, value: u64) -> Result<(), BadMsr> {
        if index == TSC_DEADLINE && self.cpu.cpuid.has(Feature::TSC_DEADLINE) {
            self.set_deadline(value);
            return Ok(());
        }
        let addresses = (1 << self.cpu.cpuid.physical_address_bits()) - 1;
        let x2apic = self.cpu.cpuid.has(Feature::X2APIC);
        let write = |interrupts: &mut Interrupts<'_>| interrupts.write_msr(index, value, addresses, x2apic);
        if let Some(done) = self.with_interrupts(write).flatten() {
            return Ok(done?);
        }
        let deadline = if index == TSC { self.read_msr(TSC_DEADLINE).unwrap_or(0) } else { 0 };
        self.cpu.write_msr(index, value)?;
        if deadline != 0 {
            // It is a value of the TSC, not a time.
            self.set_deadline(deadline);
        }
        Ok(())
    }

    /// Interrupts when the TSC gets there; 0 disarms.
    fn set_deadline(&mut self, deadline: u64) {
        let left = deadline.saturating_sub(self.cpu.tsc());
        let at = (deadline != 0).then(|| self.cpu.clock.saturating_add(left));
        self.with_interrupts(|interrupts| interrupts.set_deadline(at));
    }
}

impl Cpu {
    pub(super) fn read_msr(&self, index: u32) -> Result<u64, BadMsr> {
        let msrs = &self.msrs;
        Ok(match index {
            TSC => self.tsc(),
            MTRR_CAP => MTRR_CAPABILITIES,
            EFER => self.system.efer,
            FS_BASE => self.system.fs.base,
            GS_BASE => self.system.gs.base,
            APIC_BASE => msrs.apic_base,
            SYSENTER_CS => msrs.sysenter_cs,
            SYSENTER_ESP => msrs.sysenter_esp,
            SYSENTER_EIP => msrs.sysenter_eip,
            MISC_ENABLE => msrs.misc_enable,
            PAT => msrs.pat,
            STAR => msrs.star,
            LSTAR => msrs.lstar,
            CSTAR => msrs.cstar,
            FMASK => msrs.fmask,
            KERNEL_GS_BASE => msrs.kernel_gs_base,
            BIOS_SIGN_ID | K7_COUNTERS_FIRST..=K7_COUNTERS_LAST => 0,
            TSC_AUX if self.cpuid.has(Feature::RDTSCP) => msrs.tsc_aux,
            PKRS if self.cpuid.has(Feature::PKS) => msrs.pkrs,
            MTRR_DEF_TYPE => msrs.mtrr_default,
            MTRR_PHYS_BASE0..=MTRR_LAST_VARIABLE => msrs.mtrr_variable[(index - MTRR_PHYS_BASE0) as usize],
            _ => msrs.mtrr_fixed[fixed_mtrr(index)?],
        })
    }

    pub(super) fn write_msr(&mut self, index: u32, value: u64) -> Result<(), BadMsr> {
        let address = if self.canonical_if_widest(value) { Ok(value) } else { Err(BadMsr) };
        let (rdtscp, pks) = (self.cpuid.has(Feature::RDTSCP), self.cpuid.has(Feature::PKS));
        let physical = (1 << self.cpuid.physical_address_bits()) - 1;
        let efer = if index == EFER { self.checked_efer(value)? } else { 0 };
        let msrs = &mut self.msrs;
        match index {
            TSC => msrs.tsc_offset = value.wrapping_sub(self.clock),
            EFER => self.system.efer = efer,
            FS_BASE => self.system.fs.base = address?,
            GS_BASE => self.system.gs.base = address?,
            APIC_BASE => msrs.apic_base = checked(value, physical & !0x6ff)?,
            SYSENTER_CS => msrs.sysenter_cs = value,
            SYSENTER_ESP => msrs.sysenter_esp = address?,
            SYSENTER_EIP => msrs.sysenter_eip = address?,
            MISC_ENABLE => msrs.misc_enable = value,
            PAT => msrs.pat = memory_types(value, &PAT_TYPES)?,
            STAR => msrs.star = value,
            LSTAR => msrs.lstar = address?,
            CSTAR => msrs.cstar = address?,
            FMASK => msrs.fmask = checked(value, u32::MAX.into())?,
            KERNEL_GS_BASE => msrs.kernel_gs_base = address?,
            BIOS_SIGN_ID | K7_COUNTERS_FIRST..=K7_COUNTERS_LAST => {}
            TSC_AUX if rdtscp => msrs.tsc_aux = checked(value, u32::MAX.into())?,
            PKRS if pks => msrs.pkrs = checked(value, u32::MAX.into())?,
            MTRR_DEF_TYPE => {
                memory_types(value & 0xff, &MTRR_TYPES)?;
                msrs.mtrr_default = checked(value, 0xcff)?;
            }
            MTRR_PHYS_BASE0..=MTRR_LAST_VARIABLE => {
                let number = index - MTRR_PHYS_BASE0;
                let is_mask = number % 2 == 1;
                if !is_mask {
                    memory_types(value & 0xff, &MTRR_TYPES)?;
                }
                let allowed = physical & !0xfff | if is_mask { 1 << 11 } else { 0xff };
                msrs.mtrr_variable[number as usize] = checked(value, allowed)?;
            }
            _ => msrs.mtrr_fixed[fixed_mtrr(index)?] = memory_types(value, &MTRR_TYPES)?,
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

fn fixed_mtrr(index: u32) -> Result<usize, BadMsr> {
    MTRR_FIXED.iter().position(|&fixed| fixed == index).ok_or(BadMsr)
}

/// UC, WC, WT, WP, WB, and in the PAT UC-.
const PAT_TYPES: [u8; 6] = [0, 1, 4, 5, 6, 7];
const MTRR_TYPES: [u8; 5] = [0, 1, 4, 5, 6];

/// Eight memory types.
fn memory_types(value: u64, types: &[u8]) -> Result<u64, BadMsr> {
    let legal = value.to_le_bytes().iter().all(|byte| types.contains(byte));
    if legal { Ok(value) } else { Err(BadMsr) }
}
