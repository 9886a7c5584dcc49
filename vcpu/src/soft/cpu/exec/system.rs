//! Control registers, tables, MSRs: mostly for ring 0.

use iced_x86::{Mnemonic, Register};
use memory_model::Gva;

use super::Outcome;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::cpuid::{PHYSICAL_ADDRESS_BITS, cpuid};
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};
use crate::{DescriptorTable, Exit, Gpr, cr0, cr4};

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
/// Bits of CR4 that may be set. Those of SSE are there for guests that set them without looking.
const CR4_BITS: u64 = cr4::TSD
    | cr4::PSE
    | cr4::PAE
    | cr4::PGE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::LA57
    | cr4::SMEP
    | cr4::SMAP;

fn check(legal: bool) -> Outcome {
    if legal { Ok(()) } else { Err(Exception::protection(0).into()) }
}

impl<B: Bus> Step<'_, B> {
    /// #GP(0) outside ring 0.
    pub(super) fn privileged(&self) -> Outcome {
        check(self.cpu.system.cpl() == 0)
    }

    pub(super) fn hlt(&mut self) -> Outcome {
        self.privileged()?;
        self.exit = Some(Exit::Halt);
        Ok(())
    }

    pub(super) fn mov_from_cr(&mut self) -> Outcome {
        self.privileged()?;
        let system = &self.cpu.system;
        let value = match self.instruction.op_register(1) {
            Register::CR0 => system.cr0,
            Register::CR2 => system.cr2,
            Register::CR3 => system.cr3,
            Register::CR4 => system.cr4,
            _ => return Err(Abort::Unimplemented),
        };
        let place = self.place(0)?;
        self.write(place, value)
    }

    pub(super) fn mov_to_cr(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.source(1, Width::Qword)?;
        let system = &mut self.cpu.system;
        match self.instruction.op_register(0) {
            Register::CR0 => {
                // Paging can't be turned off in 64-bit mode; NW without CD makes no sense.
                let kept = cr0::PE | cr0::PG;
                check(value >> 32 == 0 && value & kept == kept)?;
                check(value & cr0::NW == 0 || value & cr0::CD != 0)?;
                system.cr0 = value & CR0_BITS | cr0::ET;
            }
            Register::CR2 => {
                system.cr2 = value;
                return Ok(());
            }
            Register::CR3 => {
                check(value >> PHYSICAL_ADDRESS_BITS == 0)?;
                system.cr3 = value;
            }
            Register::CR4 => {
                check(value & !CR4_BITS == 0 && value & cr4::PAE != 0)?;
                check((value ^ system.cr4) & cr4::LA57 == 0)?;
                system.cr4 = value;
            }
            _ => return Err(Abort::Unimplemented),
        }
        self.invalidate_all();
        Ok(())
    }

    pub(super) fn clts(&mut self) -> Outcome {
        self.privileged()?;
        self.cpu.system.cr0 &= !cr0::TS;
        Ok(())
    }

    pub(super) fn invlpg(&mut self) -> Outcome {
        self.privileged()?;
        let at = self.memory_operand();
        // Of an address that is not canonical it does nothing.
        if self.cpu.canonical(at.address) {
            self.invalidate_page(Gva(at.address));
        }
        Ok(())
    }

    pub(super) fn clflush(&mut self) -> Outcome {
        let at = self.memory_operand();
        self.check_access(at, 1, AccessKind::Read)
    }

    /// `LGDT`, `LIDT`.
    pub(super) fn load_table(&mut self) -> Outcome {
        self.privileged()?;
        let mut bytes = [0; 10];
        let at = self.memory_operand();
        self.load_bytes(at, &mut bytes, AccessKind::Read)?;
        let [l0, l1, base @ ..] = bytes;
        let table = DescriptorTable { base: u64::from_le_bytes(base), limit: u16::from_le_bytes([l0, l1]) };
        check(self.cpu.canonical(table.base))?;
        match self.instruction.mnemonic() {
            Mnemonic::Lgdt => self.cpu.system.gdt = table,
            _ => self.cpu.system.idt = table,
        }
        Ok(())
    }

    /// `SGDT`, `SIDT`.
    pub(super) fn store_table(&mut self) -> Outcome {
        let table = match self.instruction.mnemonic() {
            Mnemonic::Sgdt => self.cpu.system.gdt,
            _ => self.cpu.system.idt,
        };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let at = self.memory_operand();
        self.store_bytes(at, &bytes)
    }

    pub(super) fn ltr(&mut self) -> Outcome {
        self.privileged()?;
        let selector = self.source(0, Width::Word)?;
        self.load_task_register(selector as u16)
    }

    pub(super) fn str(&mut self) -> Outcome {
        let place = self.place(0)?;
        self.write(place, self.cpu.system.tr.selector.into())
    }

    fn msr_index(&self) -> u32 {
        self.gpr(Gpr::Rcx, Width::Dword) as u32
    }

    pub(super) fn rdmsr(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.cpu.read_msr(self.msr_index()).map_err(|_| Exception::protection(0))?;
        self.set_edx_eax(value);
        Ok(())
    }

    pub(super) fn wrmsr(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.gpr(Gpr::Rdx, Width::Dword) << 32 | self.gpr(Gpr::Rax, Width::Dword);
        let efer = self.cpu.system.efer;
        self.cpu.write_msr(self.msr_index(), value).map_err(|_| Exception::protection(0))?;
        if self.cpu.system.efer != efer {
            self.invalidate_all();
        }
        Ok(())
    }

    fn set_edx_eax(&mut self, value: u64) {
        self.set_gpr(Gpr::Rax, Width::Dword, value);
        self.set_gpr(Gpr::Rdx, Width::Dword, value >> 32);
    }

    pub(super) fn swapgs(&mut self) -> Outcome {
        self.privileged()?;
        std::mem::swap(&mut self.cpu.system.gs.base, &mut self.cpu.msrs.kernel_gs_base);
        Ok(())
    }

    pub(super) fn rdtsc(&mut self) -> Outcome {
        if self.cpu.system.cr4 & cr4::TSD != 0 {
            self.privileged()?;
        }
        self.set_edx_eax(self.cpu.tsc());
        Ok(())
    }

    pub(super) fn cpuid(&mut self) -> Outcome {
        let [leaf, subleaf] = [Gpr::Rax, Gpr::Rcx].map(|register| self.gpr(register, Width::Dword) as u32);
        let values = cpuid(leaf, subleaf, &self.cpu.system);
        for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(values) {
            self.set_gpr(register, Width::Dword, value.into());
        }
        Ok(())
    }
}
