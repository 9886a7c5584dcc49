//! Tables, MSRs, counters and translations: mostly for ring 0.

use iced_x86::{Code, Mnemonic};
use memory_model::Gva;

use super::Outcome;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::cpuid::{Cpuid, Feature};
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::segments::{Logical, SegmentName};
use crate::soft::cpu::step::Step;
use crate::soft::{AccessKind, Bus};
use crate::{DescriptorTable, Exit, Gpr, cr4, rflags};

/// What `PAUSE` takes beyond any instruction: about as long as on a processor.
const PAUSE_TICKS: u64 = 127;

/// #GP(0) unless `legal`.
pub(super) fn check(legal: bool) -> Outcome {
    if legal { Ok(()) } else { Err(Exception::protection(0).into()) }
}

impl<B: Bus> Step<'_, B> {
    /// #GP(0) outside ring 0.
    pub(in crate::soft::cpu) fn privileged(&self) -> Outcome {
        check(self.cpu.system.cpl() == 0)
    }

    pub(super) fn hlt(&mut self) -> Outcome {
        self.privileged()?;
        let interruptible = self.cpu.regs.rflags & rflags::IF != 0;
        if self.with_interrupts(|interrupts| interrupts.halt(interruptible)).is_none() {
            self.exit = Some(Exit::Halt);
        }
        Ok(())
    }

    /// A program that waits says so: that takes its time.
    pub(super) fn pause(&mut self) -> Outcome {
        self.cpu.clock += PAUSE_TICKS;
        Ok(())
    }

    /// #UD unless CPUID has `feature`.
    pub(in crate::soft::cpu) fn requires(&self, feature: Feature) -> Outcome {
        if self.cpu.cpuid.has(feature) { Ok(()) } else { Err(Exception::INVALID_OPCODE.into()) }
    }

    /// #UD unless the bits of CR4 are set.
    fn requires_cr4(&self, bits: u64) -> Outcome {
        if self.cpu.system.cr4 & bits == bits { Ok(()) } else { Err(Exception::INVALID_OPCODE.into()) }
    }

    /// #UD in real mode, for what works on descriptors.
    fn requires_protected_mode(&self) -> Outcome {
        if self.cpu.in_protected_mode() { Ok(()) } else { Err(Exception::INVALID_OPCODE.into()) }
    }

    /// Of `SGDT` and its kin: CR4.UMIP keeps them from programs.
    pub(super) fn allowed_by_umip(&self) -> Outcome {
        if self.cpu.system.cr4 & cr4::UMIP == 0 { Ok(()) } else { self.privileged() }
    }

    pub(super) fn invlpg(&mut self) -> Outcome {
        self.privileged()?;
        let at = self.memory_operand();
        let base = match self.cpu.in_64_bit_mode() {
            true if !matches!(at.segment, SegmentName::Fs | SegmentName::Gs) => 0,
            _ => self.cpu.system.segment(at.segment).base,
        };
        let address = base.wrapping_add(at.offset);
        let address = if self.cpu.in_64_bit_mode() { address } else { u64::from(address as u32) };
        // Of an address that is not canonical it does nothing.
        if self.cpu.canonical_if_widest(address) {
            self.invalidate_page(Gva(address));
        }
        Ok(())
    }

    fn invalidate_page(&mut self, gva: Gva) {
        self.cpu.quick.forget_page(gva);
        self.bus.invalidate_page(gva);
    }

    /// `INVPCID`: a descriptor of PCID and address, and a type (SDM vol. 2A, "INVPCID").
    pub(super) fn invpcid(&mut self) -> Outcome {
        self.requires(Feature::INVPCID)?;
        self.privileged()?;
        let place = self.place(0)?;
        let kind = self.read(place)?;
        let mut bytes = [0; 16];
        self.load_bytes(self.memory_operand(), &mut bytes, AccessKind::Read)?;
        let [low, high] =
            [&bytes[..8], &bytes[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()));
        let (pcid, address) = (low & 0xfff, high);
        let pcids = self.cpu.system.cr4 & cr4::PCIDE != 0;
        check(kind <= 3 && low >> 12 == 0)?;
        check(kind > 1 || pcids || pcid == 0)?;
        check(kind != 0 || self.cpu.canonical_if_widest(address))?;
        if kind == 0 && pcid == self.cpu.system.cr3 & 0xfff {
            self.invalidate_page(Gva(address));
        } else {
            self.bus.invalidate_all();
        }
        Ok(())
    }

    pub(super) fn clflush(&mut self) -> Outcome {
        let at = self.memory_operand();
        self.check_access(at, 1, AccessKind::Read)
    }

    /// `LGDT`, `LIDT`. The 16-bit forms take 24 bits of base.
    pub(super) fn load_table(&mut self) -> Outcome {
        self.privileged()?;
        let (bytes_of_base, mask) = match self.instruction.code() {
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => (4, 0xff_ffff),
            Code::Lgdt_m1632 | Code::Lidt_m1632 => (4, u32::MAX.into()),
            _ => (8, u64::MAX),
        };
        let mut bytes = [0; 10];
        self.load_bytes(self.memory_operand(), &mut bytes[..2 + bytes_of_base], AccessKind::Read)?;
        let [l0, l1, base @ ..] = bytes;
        let base = u64::from_le_bytes(base) & mask;
        let table = DescriptorTable { base, limit: u16::from_le_bytes([l0, l1]) };
        check(bytes_of_base == 4 || self.cpu.canonical_if_widest(table.base))?;
        match self.instruction.mnemonic() {
            Mnemonic::Lgdt => self.cpu.system.gdt = table,
            _ => self.cpu.system.idt = table,
        }
        Ok(())
    }

    /// `SGDT`, `SIDT`.
    pub(super) fn store_table(&mut self) -> Outcome {
        self.allowed_by_umip()?;
        let table = match self.instruction.mnemonic() {
            Mnemonic::Sgdt => self.cpu.system.gdt,
            _ => self.cpu.system.idt,
        };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let len = if self.cpu.in_64_bit_mode() { 10 } else { 6 };
        self.store_bytes(self.memory_operand(), &bytes[..len])
    }

    /// `LLDT`, `LTR`.
    pub(super) fn load_system_segment(&mut self) -> Outcome {
        self.requires_protected_mode()?;
        self.privileged()?;
        let selector = self.source(0, Width::Word)? as u16;
        match self.instruction.mnemonic() {
            Mnemonic::Lldt => self.load_local_table(selector),
            _ => self.load_task_register(selector),
        }
    }

    /// `SLDT`, `STR`.
    pub(super) fn store_system_segment(&mut self) -> Outcome {
        self.requires_protected_mode()?;
        self.allowed_by_umip()?;
        let segment = match self.instruction.mnemonic() {
            Mnemonic::Sldt => self.cpu.system.ldt,
            _ => self.cpu.system.tr,
        };
        let place = self.place(0)?;
        self.write(place, segment.selector.into())
    }

    fn msr_index(&self) -> u32 {
        self.gpr(Gpr::Rcx, Width::Dword) as u32
    }

    pub(super) fn rdmsr(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.read_msr(self.msr_index()).map_err(|_| Exception::protection(0))?;
        self.set_edx_eax(value);
        Ok(())
    }

    pub(super) fn wrmsr(&mut self) -> Outcome {
        self.privileged()?;
        let value = self.gpr(Gpr::Rdx, Width::Dword) << 32 | self.gpr(Gpr::Rax, Width::Dword);
        let before = (self.cpu.system.efer, self.cpu.msrs.pkrs);
        self.write_msr(self.msr_index(), value).map_err(|_| Exception::protection(0))?;
        if (self.cpu.system.efer, self.cpu.msrs.pkrs) != before {
            self.bus.invalidate_all();
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

    /// `RDFSBASE` and its kin: the base as a register, or a part of it.
    pub(super) fn segment_base(&mut self) -> Outcome {
        self.requires(Feature::FSGSBASE)?;
        self.requires_cr4(cr4::FSGSBASE)?;
        let place = self.place(0)?;
        let mnemonic = self.instruction.mnemonic();
        let name = match mnemonic {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentName::Fs,
            _ => SegmentName::Gs,
        };
        if matches!(mnemonic, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
            return self.write(place, self.cpu.system.segment(name).base & place.width().mask());
        }
        let base = self.read(place)?;
        check(self.cpu.canonical_if_widest(base))?;
        self.cpu.system.segment_mut(name).base = base;
        Ok(())
    }

    pub(super) fn rdtsc(&mut self) -> Outcome {
        if self.cpu.system.cr4 & cr4::TSD != 0 {
            self.privileged()?;
        }
        self.set_edx_eax(self.cpu.tsc());
        Ok(())
    }

    pub(super) fn rdtscp(&mut self) -> Outcome {
        self.requires(Feature::RDTSCP)?;
        self.rdtsc()?;
        self.set_gpr(Gpr::Rcx, Width::Dword, self.cpu.msrs.tsc_aux);
        Ok(())
    }

    pub(super) fn rdpid(&mut self) -> Outcome {
        self.requires(Feature::RDPID)?;
        let place = self.place(0)?;
        self.write(place, self.cpu.msrs.tsc_aux)
    }

    /// There are no counters.
    pub(super) fn rdpmc(&mut self) -> Outcome {
        check(false)
    }

    /// `MONITOR`: a read that nothing comes of, for `MWAIT` does not wait.
    pub(super) fn monitor(&mut self) -> Outcome {
        self.check_monitor()?;
        check(self.gpr(Gpr::Rcx, Width::Dword) == 0)?;
        let addresses = match self.instruction.code() {
            Code::Monitorw => Width::Word,
            Code::Monitord => Width::Dword,
            _ => Width::Qword,
        };
        let at = Logical { segment: self.operand_segment(), offset: self.gpr(Gpr::Rax, addresses) };
        self.check_access(at, 1, AccessKind::Read)
    }

    pub(super) fn mwait(&mut self) -> Outcome {
        self.check_monitor()
    }

    /// #UD outside ring 0, too.
    fn check_monitor(&self) -> Outcome {
        self.requires(Feature::MONITOR)?;
        if self.cpu.system.cpl() == 0 { Ok(()) } else { Err(Exception::INVALID_OPCODE.into()) }
    }

    pub(super) fn rdpkru(&mut self) -> Outcome {
        self.requires_cr4(cr4::PKE)?;
        check(self.gpr(Gpr::Rcx, Width::Dword) == 0)?;
        self.set_edx_eax(self.cpu.pkru.into());
        Ok(())
    }

    pub(super) fn wrpkru(&mut self) -> Outcome {
        self.requires_cr4(cr4::PKE)?;
        check(self.gpr(Gpr::Rcx, Width::Dword) == 0 && self.gpr(Gpr::Rdx, Width::Dword) == 0)?;
        self.cpu.pkru = self.gpr(Gpr::Rax, Width::Dword) as u32;
        // The bus remembers what the keys allowed.
        self.bus.invalidate_all();
        Ok(())
    }

    pub(super) fn xgetbv(&mut self) -> Outcome {
        self.requires_cr4(cr4::OSXSAVE)?;
        check(self.gpr(Gpr::Rcx, Width::Dword) == 0)?;
        self.set_edx_eax(self.cpu.xcr0);
        Ok(())
    }

    /// XCR0 holds the x87 bit, and what leaf 0xd of CPUID offers.
    pub(super) fn xsetbv(&mut self) -> Outcome {
        self.requires_cr4(cr4::OSXSAVE)?;
        self.privileged()?;
        let value = self.gpr(Gpr::Rdx, Width::Dword) << 32 | self.gpr(Gpr::Rax, Width::Dword);
        let [low, _, _, high] = self.cpu.cpuid.get(0xd, 0);
        let offered = u64::from(high) << 32 | u64::from(low);
        check(self.gpr(Gpr::Rcx, Width::Dword) == 0 && value & 1 != 0 && value & !offered == 0)?;
        self.cpu.xcr0 = value;
        Ok(())
    }

    pub(super) fn cpuid(&mut self) -> Outcome {
        let [leaf, subleaf] = [Gpr::Rax, Gpr::Rcx].map(|register| self.gpr(register, Width::Dword) as u32);
        let mut values = self.cpu.cpuid.execute(leaf, subleaf, &self.cpu.system);
        if leaf == 1 && self.with_interrupts(|interrupts| interrupts.is_enabled()) == Some(false) {
            values[3] &= !Cpuid::APIC;
        }
        for (register, value) in [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].into_iter().zip(values) {
            self.set_gpr(register, Width::Dword, value.into());
        }
        Ok(())
    }
}
