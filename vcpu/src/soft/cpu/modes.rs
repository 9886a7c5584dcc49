//! Which mode the processor is in, and the sizes that follow from it (SDM vol. 3A, 2.2 and vol. 1, 3.2 and 3.6).

use super::Cpu;
use super::alu::Width;
use super::cpuid::Feature;
use crate::{cr0, cr3, cr4, efer};

impl Cpu {
    /// CR0.PE: segments come from descriptors, and there are rings.
    pub(super) fn in_protected_mode(&self) -> bool {
        self.system.cr0 & cr0::PE != 0
    }

    /// EFER.LMA: 64-bit or compatibility mode.
    pub(super) fn in_long_mode(&self) -> bool {
        self.system.efer & efer::LMA != 0
    }

    pub(super) fn in_64_bit_mode(&self) -> bool {
        self.in_long_mode() && self.system.cs.long
    }

    /// CR3 leads to four page-directory pointers.
    pub(super) fn has_pae_paging(&self) -> bool {
        let system = &self.system;
        system.cr0 & cr0::PG != 0 && system.cr4 & cr4::PAE != 0 && system.efer & efer::LME == 0
    }

    /// The default size of code: 16, 32 or 64 bits.
    pub(super) fn code_width(&self) -> Width {
        match (self.in_64_bit_mode(), self.system.cs.db) {
            (true, _) => Width::Qword,
            (false, true) => Width::Dword,
            (false, false) => Width::Word,
        }
    }

    /// How much of RSP is the stack pointer: B of SS says, outside 64-bit mode.
    pub(super) fn stack_width(&self) -> Width {
        match (self.in_64_bit_mode(), self.system.ss.db) {
            (true, _) => Width::Qword,
            (false, true) => Width::Dword,
            (false, false) => Width::Word,
        }
    }

    /// Whether all bits above the linear address width copy its top bit.
    pub(super) fn canonical(&self, address: u64) -> bool {
        let width = if self.system.cr4 & cr4::LA57 != 0 { 57 } else { 48 };
        sign_extend(address, width) == address
    }

    /// The same for a base or a target that is only kept for later: what counts is the widest address that the
    /// processor has, in whatever mode it is.
    pub(super) fn canonical_if_widest(&self, address: u64) -> bool {
        let width = if self.cpuid.has(Feature::LA57) { 57 } else { 48 };
        sign_extend(address, width) == address
    }

    /// A data address without the metadata that linear-address masking lets programs keep in it: bits below 63
    /// copy the highest bit that is left. Bit 63 stays, so that an address of the wrong half is still wrong.
    pub(super) fn untagged(&self, address: u64) -> u64 {
        let system = &self.system;
        let user = address >> 63 == 0;
        let width = match user {
            true if system.cr3 & cr3::LAM_U57 != 0 => 57,
            true if system.cr3 & cr3::LAM_U48 != 0 => 48,
            false if system.cr4 & cr4::LAM_SUP != 0 && system.cr4 & cr4::LA57 != 0 => 57,
            false if system.cr4 & cr4::LAM_SUP != 0 => 48,
            _ => return address,
        };
        sign_extend(address, width) & !(1 << 63) | address & 1 << 63
    }
}

fn sign_extend(address: u64, width: u32) -> u64 {
    let unused = 64 - width;
    ((address << unused) as i64 >> unused) as u64
}
