//! What both MMUs do with a fault: from a guest-physical address to the host's frame (`kvm_page_fault`).

use memory_model::{Gpa, Hva, PageSize};

use super::host::{HostFault, HostFrame, HostFrames};
use super::notifier::InvalidateSeq;
use super::spte::Writable;
use super::{Memslot, Memslots, SlotLookup};
use crate::access::Access;
use crate::fault::{Fault, PageFaultCode, Qualification};

/// A fault on a guest-physical address (`struct kvm_page_fault`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// Where.
    pub gpa: Gpa,
    /// What the guest did.
    pub access: Access,
    /// The largest page that may be mapped: the guest's own (rule L4).
    pub max_size: PageSize,
}

/// What is behind the address of a fault (`kvm_faultin_pfn`). It holds until the next invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faultin {
    /// Its slot.
    pub slot: Memslot,
    /// Where it lies in the host's process.
    pub hva: Hva,
    /// The frame there.
    pub host: HostFrame,
    /// From when this is.
    pub seq: InvalidateSeq,
}

impl PageFault {
    /// One of a second level. NPT takes each access for one of user mode.
    pub fn of_tdp(gpa: Gpa, access: Access) -> Self {
        Self { gpa, access: access.by_user(), max_size: PageSize::Size1G }
    }

    /// Steps 5 and 6: the slot, then the frame. Nothing is locked while the host looks for it; `seq` is from before.
    /// The outcome, if the fault goes no further.
    pub fn resolve(
        &self,
        seq: InvalidateSeq,
        slots: &impl Memslots,
        host: &impl HostFrames,
    ) -> Result<Faultin, FaultOutcome> {
        let (gpa, writes) = (self.gpa, self.access.writes());
        let slot = match slots.slot(gpa) {
            SlotLookup::Slot(slot) => slot,
            SlotLookup::Invalid => return Err(FaultOutcome::Retry),
            SlotLookup::Hole => return Err(FaultOutcome::Mmio { gpa }),
        };
        let Some(hva) = slot.hva_of(gpa) else { return Err(FaultOutcome::Mmio { gpa }) };
        if writes && slot.readonly {
            return Err(FaultOutcome::MmioReadonlyWrite { gpa });
        }
        match host.host_frame(hva, writes) {
            // Or the guest would fault for ever.
            Ok(found) if writes && !found.writable => {
                Err(FaultOutcome::HostFault { gpa, hva, fault: HostFault::Unmapped })
            }
            Ok(host) => Ok(Faultin { slot, hva, host, seq }),
            Err(fault) => Err(FaultOutcome::HostFault { gpa, hva, fault }),
        }
    }

    /// How far the leaf that follows may be written.
    pub(super) fn writable(&self, faultin: &Faultin) -> Writable {
        if !faultin.host.writable {
            Writable::NotInHost
        } else if faultin.slot.readonly {
            Writable::NotInGuest
        } else if faultin.slot.log_dirty && !self.access.writes() {
            Writable::AfterLogging
        } else {
            Writable::Yes
        }
    }
}

impl PageFaultCode {
    /// Step 1: KVM's one error code for what hardware says in its own words (`handle_ept_violation`,
    /// `handle_ept_misconfig`, `npf_interception`).
    pub fn of_exit(why: Fault) -> Self {
        let qualification = match why {
            Fault::EptViolation { qualification } => qualification,
            Fault::EptMisconfiguration { .. } => return Self::RESERVED,
            Fault::PageFault { code } => return code,
            Fault::NonCanonical { .. } | Fault::TooWide { .. } | Fault::Memory(_) => return Self::empty(),
        };
        let entry = Qualification::READABLE | Qualification::WRITABLE | Qualification::EXECUTABLE;
        let is_final = qualification.contains(Qualification::FINAL);
        let mut code = if is_final { Self::NPT_FINAL } else { Self::NPT_TABLE };
        code.set(Self::USER, qualification.contains(Qualification::READ));
        code.set(Self::WRITE, qualification.contains(Qualification::WRITE));
        code.set(Self::FETCH, qualification.contains(Qualification::FETCH));
        code.set(Self::PRESENT, qualification.intersects(entry));
        code
    }

    /// What was done.
    pub(crate) fn access(self) -> Access {
        match () {
            () if self.contains(Self::FETCH) => Access::FETCH,
            () if self.contains(Self::WRITE) => Access::WRITE,
            () => Access::READ,
        }
    }
}

/// What a fault came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// A page of that size was mapped, or got more rights: the guest goes on (`RET_PF_FIXED`).
    Fixed {
        /// Size of the page.
        size: PageSize,
    },
    /// The tables allow the access already: the processor used an older translation (`RET_PF_SPURIOUS`).
    Spurious,
    /// The slot is about to go or to move, or the host takes the page away: nothing was mapped, and the access is to be
    /// made again (`RET_PF_RETRY`).
    Retry,
    /// No slot: the access is emulated (`RET_PF_EMULATE`).
    Mmio {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// A write to a read-only slot: emulated like MMIO.
    MmioReadonlyWrite {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// A write to a page that holds a guest table with a shadow: it is emulated, and the shadow is told of it
    /// (`RET_PF_WRITE_PROTECTED`).
    WriteProtected {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// The guest's own tables refuse: the page fault is the guest's.
    Guest(PageFaultCode),
    /// The host has no page there: `KVM_RUN` fails.
    HostFault {
        /// The guest-physical address.
        gpa: Gpa,
        /// Where the slot says it lies.
        hva: Hva,
        /// What the host says.
        fault: HostFault,
    },
}
