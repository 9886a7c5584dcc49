//! Second-level faults, as KVM tells of them; and which of them it counts.

use super::event::{Event, Happened};
use crate::access::Access;
use crate::fault::{Fault, PageFaultCode, Qualification};
use crate::live::host::{KvmModule, SecondLevel};

/// A fault of a vCPU, told before KVM has looked what is to be done (`kvm_page_fault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuFault {
    /// The vCPU's number.
    pub vcpu: u32,
    /// The instruction.
    pub rip: u64,
    /// What could not be translated: a guest-physical address, or a linear one where shadow tables translate those.
    pub address: u64,
    /// Why, in the hardware's own bits: see [`why`](Self::why).
    pub code: u64,
}

impl VcpuFault {
    /// Why the guest could not go on: with EPT, a violation and its qualification, else a page fault.
    pub fn why(&self, second_level: SecondLevel) -> Fault {
        let code = self.code;
        match second_level {
            SecondLevel::Ept => Fault::EptViolation { qualification: Qualification::from_bits_retain(code) },
            SecondLevel::Npt | SecondLevel::Shadow => {
                Fault::PageFault { code: PageFaultCode::from_bits_retain(code) }
            }
        }
    }

    /// What the guest did.
    pub fn access(&self, second_level: SecondLevel) -> Access {
        PageFaultCode::of_exit(self.why(second_level)).access()
    }

    /// Whether it is for MMIO's entries alone, which have a reserved bit set (rule I1). With EPT those do not come as
    /// violations, and KVM does not tell of them.
    pub fn is_mmio(&self, second_level: SecondLevel) -> bool {
        PageFaultCode::of_exit(self.why(second_level)).contains(PageFaultCode::RESERVED)
    }
}

/// How many of the faults went to KVM's tables, as it counts them itself (`pf_taken`): all but those that an entry for MMIO
/// answers. `None` of `kvm_pvm`, which does not tell of faults.
pub(super) fn taken(events: &[Event], module: KvmModule, second_level: SecondLevel) -> Option<u64> {
    if module == KvmModule::Pvm {
        return None;
    }
    let is_taken = |event: &&Event| match event.what {
        Happened::Faulted(fault) => !fault.is_mmio(second_level),
        Happened::MmioChecked { stale } => stale,
        _ => false,
    };
    Some(events.iter().filter(is_taken).count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(code: u64, checks: &[bool]) -> alloc::vec::Vec<Event> {
        let fault = Happened::Faulted(VcpuFault { vcpu: 0, rip: 0x1000, address: 0x20_0000, code });
        let checks = checks.iter().map(|&stale| Happened::MmioChecked { stale });
        [fault].into_iter().chain(checks).map(|what| Event { time: 0, thread: 1, what }).collect()
    }

    #[test]
    fn an_access_that_an_entry_for_mmio_answers_is_not_counted() {
        let taken = |events: &[Event], second_level| taken(events, KvmModule::Amd, second_level).unwrap();
        let mmio = (PageFaultCode::RESERVED | PageFaultCode::NPT_FINAL).bits();
        for second_level in [SecondLevel::Npt, SecondLevel::Shadow] {
            assert_eq!(taken(&events(PageFaultCode::WRITE.bits(), &[]), second_level), 1);
            assert_eq!(taken(&events(mmio, &[]), second_level), 0);
            assert_eq!(taken(&events(mmio, &[false]), second_level), 0);
            assert_eq!(taken(&events(mmio, &[true]), second_level), 1);
        }
        // A violation of a page that can be read; then a misconfiguration, of which nothing is told.
        let readable = (Qualification::READABLE | Qualification::WRITE).bits();
        assert_eq!(taken(&events(readable, &[]), SecondLevel::Ept), 1);
        assert_eq!(taken(&events(readable, &[true, false]), SecondLevel::Ept), 2);
        assert_eq!(super::taken(&[], KvmModule::Pvm, SecondLevel::Shadow), None);
    }

    #[test]
    fn an_access_is_told_in_the_words_of_its_hardware() {
        let access =
            |code, second_level| VcpuFault { vcpu: 0, rip: 0, address: 0, code }.access(second_level);
        assert_eq!(access(1 << 0, SecondLevel::Ept), Access::READ);
        assert_eq!(access(1 << 1, SecondLevel::Ept), Access::WRITE);
        assert_eq!(access(1 << 2, SecondLevel::Ept), Access::FETCH);
        assert_eq!(access(1 << 2 | 1 << 32, SecondLevel::Npt), Access::READ);
        assert_eq!(access(1 << 1 | 1 << 2 | 1 << 32, SecondLevel::Npt), Access::WRITE);
        assert_eq!(access(1 << 4 | 1 << 2, SecondLevel::Shadow), Access::FETCH);
    }
}
