//! CR0 to CR8: which values they take, and what follows a change (SDM vol. 3A, 2.5 and 4.1).

use iced_x86::Register;
use memory_model::Gva;

use super::Outcome;
use super::system::check;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};
use crate::soft::{AccessKind, Bus, Paging};
use crate::{SystemRegs, cr0, cr3, cr4, efer};

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// The bit of CR4 that no feature stands behind.
const CR4_ALWAYS: u64 = cr4::PCE;

/// Bits of CR4 that CPUID must offer.
const CR4_FEATURES: [(u64, Feature); 17] = [
    (cr4::TSD, Feature::TSC),
    (cr4::DE, Feature::DE),
    (cr4::PSE, Feature::PSE),
    (cr4::PAE, Feature::PAE),
    (cr4::MCE, Feature::MCE),
    (cr4::PGE, Feature::PGE),
    (cr4::OSFXSR, Feature::FXSR),
    (cr4::OSXMMEXCPT, Feature::SSE),
    (cr4::UMIP, Feature::UMIP),
    (cr4::LA57, Feature::LA57),
    (cr4::FSGSBASE, Feature::FSGSBASE),
    (cr4::PCIDE, Feature::PCID),
    (cr4::OSXSAVE, Feature::XSAVE),
    (cr4::SMEP, Feature::SMEP),
    (cr4::SMAP, Feature::SMAP),
    (cr4::PKE, Feature::PKU),
    (cr4::PKS, Feature::PKS),
];

/// What selects the paging mode, and the caching of its tables: PAE paging loads its pointers anew when these change.
const CR0_OF_PDPTES: u64 = cr0::PG | cr0::CD | cr0::NW;
const CR4_OF_PDPTES: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP;

/// The number of PCID bits in CR3.
const PCID: u64 = 0xfff;

impl<B: Bus> Step<'_, B> {
    pub(super) fn mov_from_cr(&mut self) -> Outcome {
        let system = &self.cpu.system;
        let value = match self.instruction.op_register(1) {
            Register::CR0 => system.cr0,
            Register::CR2 => system.cr2,
            Register::CR3 => system.cr3,
            Register::CR4 => system.cr4,
            Register::CR8 => system.cr8,
            _ => return Err(Exception::INVALID_OPCODE.into()),
        };
        self.privileged()?;
        let place = self.place(0)?;
        self.write(place, value)
    }

    pub(super) fn mov_to_cr(&mut self) -> Outcome {
        let place = self.place(1)?;
        let value = self.read(place)?;
        match self.instruction.op_register(0) {
            Register::CR0 => self.privileged().and_then(|()| self.set_cr0(value)),
            Register::CR2 => {
                self.privileged()?;
                self.cpu.system.cr2 = value;
                Ok(())
            }
            Register::CR3 => self.privileged().and_then(|()| self.set_cr3(value)),
            Register::CR4 => self.privileged().and_then(|()| self.set_cr4(value)),
            Register::CR8 => {
                self.privileged()?;
                check(value < 16)?;
                self.cpu.system.cr8 = value;
                self.with_interrupts(|interrupts| interrupts.set_tpr((value as u8) << 4));
                Ok(())
            }
            _ => Err(Exception::INVALID_OPCODE.into()),
        }
    }

    /// `MOV`, `LMSW` and `CLTS` lead here.
    pub(super) fn set_cr0(&mut self, value: u64) -> Outcome {
        let old = self.cpu.system;
        // NW without CD makes no sense, nor does paging without protection.
        check(value >> 32 == 0)?;
        check(value & cr0::NW == 0 || value & cr0::CD != 0)?;
        check(value & cr0::PG == 0 || value & cr0::PE != 0)?;
        let value = value & CR0_BITS | cr0::ET;
        let mut new = SystemRegs { cr0: value, ..old };
        let (was_paged, is_paged) = (old.cr0 & cr0::PG != 0, value & cr0::PG != 0);
        if !was_paged && is_paged && old.efer & efer::LME != 0 {
            // The way into long mode starts in 16- or 32-bit code.
            check(old.cr4 & cr4::PAE != 0 && !old.cs.long)?;
            new.efer |= efer::LMA;
        }
        if was_paged && !is_paged {
            check(!self.cpu.in_64_bit_mode() && old.cr4 & cr4::PCIDE == 0)?;
            new.efer &= !efer::LMA;
        }
        let reload = (value ^ old.cr0) & CR0_OF_PDPTES != 0;
        self.change_paging(new, reload)
    }

    fn set_cr3(&mut self, value: u64) -> Outcome {
        let system = self.cpu.system;
        let value = if system.cr4 & cr4::PCIDE != 0 { value & !cr3::NO_FLUSH } else { value };
        let tags = if self.cpu.cpuid.has(Feature::LAM) { cr3::LAM_U48 | cr3::LAM_U57 } else { 0 };
        if self.cpu.in_long_mode() {
            check((value & !tags) >> self.cpu.cpuid.physical_address_bits() == 0)?;
        }
        self.change_paging(SystemRegs { cr3: value, ..system }, true)
    }

    fn set_cr4(&mut self, value: u64) -> Outcome {
        let old = self.cpu.system;
        let cpuid = &self.cpu.cpuid;
        let offered = CR4_FEATURES.iter().filter(|&&(_, feature)| cpuid.has(feature)).map(|&(bit, _)| bit);
        let tags = if cpuid.has(Feature::LAM) { cr4::LAM_SUP } else { 0 };
        let allowed = offered.fold(CR4_ALWAYS | tags, |bits, bit| bits | bit);
        check(value & !allowed == 0)?;
        let changed = value ^ old.cr4;
        if self.cpu.in_long_mode() {
            check(value & cr4::PAE != 0 && changed & cr4::LA57 == 0)?;
        }
        if changed & value & cr4::PCIDE != 0 {
            check(self.cpu.in_long_mode() && old.cr3 & PCID == 0)?;
        }
        self.change_paging(SystemRegs { cr4: value, ..old }, changed & CR4_OF_PDPTES != 0)
    }

    /// Takes new control registers over. PAE paging reads its four pointers then, and #GP refuses bad ones.
    fn change_paging(&mut self, new: SystemRegs, reload_pdptes: bool) -> Outcome {
        let old = std::mem::replace(&mut self.cpu.system, new);
        if reload_pdptes && self.cpu.has_pae_paging() {
            let loaded = self.load_pdptes();
            if loaded.is_err() {
                self.cpu.system = old;
                return loaded;
            }
        }
        self.bus.invalidate_all();
        Ok(())
    }

    /// Reads the page-directory pointers that CR3 leads to.
    pub(in crate::soft::cpu) fn load_pdptes(&mut self) -> Outcome {
        let cr3 = self.cpu.system.cr3;
        // Their address is physical: what linear addresses are without paging. Neither kind may be taken for the
        // other by a bus that remembers translations.
        let physical = Paging { cr0: cr0::PE, user: false, ..self.cpu.paging() };
        let mut bytes = [0; 32];
        self.bus.invalidate_all();
        let read = self.bus.read(&physical, Gva(cr3 & 0xffff_ffe0), &mut bytes, AccessKind::Read);
        self.bus.invalidate_all();
        read.map_err(|fault| Abort::from_system(fault, Exception::protection(0)))?;
        let mut pdptes = [0; 4];
        for (pdpte, bytes) in pdptes.iter_mut().zip(bytes.as_chunks().0) {
            *pdpte = u64::from_le_bytes(*bytes);
            let address = ((1 << self.cpu.cpuid.physical_address_bits()) - 1) & !0xfff;
            // P, PWT, PCD and what software may use.
            let allowed = address | 0b1110_0001_1001;
            check(*pdpte & 1 == 0 || *pdpte & !allowed == 0)?;
        }
        self.cpu.pdptes = LoadedPdptes { cr3: Some(cr3), entries: pdptes };
        Ok(())
    }

    pub(super) fn clts(&mut self) -> Outcome {
        self.privileged()?;
        self.cpu.system.cr0 &= !cr0::TS;
        Ok(())
    }

    /// `LMSW`: four bits of CR0. PE can be set, not cleared.
    pub(super) fn lmsw(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.source(0, Width::Word)?;
        let old = self.cpu.system.cr0;
        const BITS: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
        self.set_cr0(old & !(BITS & !cr0::PE) | value & BITS)
    }

    pub(super) fn smsw(&mut self) -> Outcome {
        self.allowed_by_umip()?;
        let place = self.place(0)?;
        self.write(place, self.cpu.system.cr0 & place.width().mask())
    }
}

/// What PAE paging has read: it looks at these, not at memory.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::soft::cpu) struct LoadedPdptes {
    /// The CR3 they were loaded for.
    pub cr3: Option<u64>,
    pub entries: [u64; 4],
}
