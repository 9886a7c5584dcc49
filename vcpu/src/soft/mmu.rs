//! Each access of the software CPU, through the guest's tables and the second level.

use ept::mmu::FaultOutcome;
use ept::{
    Access, Fault, Flags, NestedFault, PageFaultCode, Processor, Qualification, Registers, Rights,
    nested_translate,
};
use memory_model::{Gpa, Gva, Hpa, PageSize};

use super::kernel::{MAX_PHY_ADDR, Slots, SoftKernel};
use super::{AccessKind, Bus, BusFault, Paging};

/// Memory as the CPU sees it. Nothing is cached, so there is nothing to invalidate.
pub(super) struct Mmu<'a> {
    pub(super) kernel: &'a mut SoftKernel,
    /// Whose accesses they are.
    pub(super) vcpu: u32,
}

impl Bus for Mmu<'_> {
    fn read(&mut self, paging: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        let mut done = 0;
        for (at, len) in pieces(gva, buf.len())? {
            let (gpa, hpa) = self.translate(paging, at, len, kind)?;
            let piece = &mut buf[done..done + len];
            self.kernel.frames.read(hpa, piece).map_err(|_| BusFault::HostMemory { gpa })?;
            done += len;
        }
        Ok(())
    }

    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        // All pages are translated before the first byte is written: an access is done whole or not at all.
        for (at, len) in pieces(gva, data.len())? {
            self.translate(paging, at, len, AccessKind::Write)?;
        }
        let mut done = 0;
        for (at, len) in pieces(gva, data.len())? {
            let (gpa, hpa) = self.translate(paging, at, len, AccessKind::Write)?;
            let piece = &data[done..done + len];
            self.kernel.frames.write(hpa, piece).map_err(|_| BusFault::HostMemory { gpa })?;
            done += len;
        }
        Ok(())
    }

    fn invalidate_page(&mut self, _gva: Gva) {}

    fn invalidate_all(&mut self) {}
}

impl Mmu<'_> {
    /// Walks both dimensions until the second level lets the access through, taking its violations on the way.
    fn translate(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        kind: AccessKind,
    ) -> Result<(Gpa, Hpa), BusFault> {
        let access = access_of(paging, kind);
        let guest = guest_paging(paging)?;
        loop {
            let SoftKernel { frames, tdp, .. } = &*self.kernel;
            match nested_translate(frames, guest.as_ref(), tdp.paging(), gva, access, Flags::Set) {
                Ok(leaf) => return Ok((leaf.gpa, leaf.hpa)),
                Err(NestedFault::Guest(fault)) => return Err(guest_fault(fault, gva)),
                Err(NestedFault::Final { gpa, fault }) => match self.violation(gpa, fault, access)? {
                    Resolved::Retry => {}
                    Resolved::Device => return Err(BusFault::Mmio { gpa, len }),
                },
                // A guest table where no memory is: KVM's walk finds no entry there and the guest gets a #PF.
                Err(NestedFault::Table { gpa, fault }) => match self.violation(gpa, fault, Access::READ)? {
                    Resolved::Retry => {}
                    Resolved::Device => return Err(no_table(gva, access)),
                },
            }
        }
    }

    /// KVM's exit handler for a violation at `gpa`.
    fn violation(&mut self, gpa: Gpa, fault: Fault, access: Access) -> Result<Resolved, BusFault> {
        // What the second level refused, in its own words: a guest-table read may count as a write (rule A2).
        let access = match fault {
            Fault::EptViolation { qualification } => Access { does: does(qualification), ..Access::READ },
            // Wider than the table translates: no slot lies there.
            Fault::TooWide { .. } => access,
            // The tables are broken. KVM cannot go on with this guest either.
            _ => return Err(BusFault::HostMemory { gpa }),
        };
        let SoftKernel { memslots, frames, tdp } = &mut *self.kernel;
        match tdp.fault(gpa, access, &Slots { memslots, vcpu: self.vcpu }, frames) {
            Ok(FaultOutcome::Fixed { .. } | FaultOutcome::Spurious | FaultOutcome::Retry) => {
                Ok(Resolved::Retry)
            }
            Ok(FaultOutcome::Mmio { .. } | FaultOutcome::MmioReadonlyWrite { .. }) => Ok(Resolved::Device),
            Ok(FaultOutcome::HostFault { .. }) | Err(_) => Err(BusFault::HostMemory { gpa }),
            // Only of a shadow.
            Ok(FaultOutcome::WriteProtected { .. } | FaultOutcome::Guest(_)) => {
                Err(BusFault::HostMemory { gpa })
            }
        }
    }
}

/// What a violation came to.
enum Resolved {
    /// A page was mapped, or will be once a slot has gone where it goes: walk again.
    Retry,
    /// No slot, or a write into a read-only one.
    Device,
}

/// The parts of an access that lie in one page each.
fn pieces(gva: Gva, len: usize) -> Result<impl Iterator<Item = (Gva, usize)>, BusFault> {
    let first = len.min((PageSize::Size4K.bytes() - gva.page_offset(PageSize::Size4K)) as usize);
    let second = match len - first {
        0 => None,
        rest => Some((gva.checked_add(first as u64).ok_or(BusFault::NotCanonical)?, rest)),
    };
    Ok([Some((gva, first)), second].into_iter().flatten())
}

fn access_of(paging: &Paging, kind: AccessKind) -> Access {
    let does = match kind {
        AccessKind::Read => Rights::READ,
        AccessKind::Write => Rights::WRITE,
        AccessKind::Fetch => Rights::EXEC,
    };
    Access { does, user: paging.user, ac: paging.ac }
}

fn does(qualification: Qualification) -> Rights {
    let bits = [
        (Qualification::READ, Rights::READ),
        (Qualification::WRITE, Rights::WRITE),
        (Qualification::FETCH, Rights::EXEC),
    ];
    bits.into_iter().filter(|&(bit, _)| qualification.contains(bit)).map(|(_, right)| right).collect()
}

/// The guest's tables, as its control registers describe them; `None` with paging off.
pub(super) fn guest_paging(paging: &Paging) -> Result<Option<ept::Paging>, BusFault> {
    let Paging { cr0, cr3, cr4, efer, keys, pdptes, .. } = *paging;
    // A register may hold what MOV to CR3 would have refused: those bits never reach the tables.
    let cr3 = cr3 & MAX_PHY_ADDR.last();
    let registers = Registers { cr0, cr3, cr4, efer, keys, pdptes };
    // No instruction leads to registers that select no paging mode.
    ept::Paging::from_registers(&registers, Processor::new(MAX_PHY_ADDR)).map_err(|_| BusFault::NotCanonical)
}

fn guest_fault(fault: Fault, gva: Gva) -> BusFault {
    match fault {
        Fault::PageFault { code } => BusFault::PageFault { error_code: code.bits() as u32, address: gva },
        _ => BusFault::NotCanonical,
    }
}

fn no_table(gva: Gva, access: Access) -> BusFault {
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::WRITE, access.writes());
    code.set(PageFaultCode::USER, access.user);
    code.set(PageFaultCode::FETCH, access.fetches());
    BusFault::PageFault { error_code: code.bits() as u32, address: gva }
}
