//! Each access of the software CPU, through the guest's tables and the second level.

use ept::mmu::{FaultOutcome, HostFault};
use ept::{Access, Fault, Flags, NestedFault, PageFaultCode, Processor, Registers, Rights, nested_translate};
use memory_model::{Gpa, Gva, Hpa, PageSize};

use super::kernel::{Slots, SoftKernel};
use super::options::MAX_PHY_ADDR;
use super::second_level::SoftMmu;
use super::tlb::{Page, Use};
use super::{AccessKind, Bus, BusFault, Paging};
use crate::{cr4, efer};

/// Memory as a CPU sees it.
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
            self.kernel.host.read(hpa, piece).map_err(|_| BusFault::HostMemory { gpa })?;
            done += len;
        }
        Ok(())
    }

    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        // All pages are translated before the first byte is written: an access is done whole or not at all.
        if data.len() > room_in_page(gva) {
            for (at, len) in pieces(gva, data.len())? {
                self.translate(paging, at, len, AccessKind::Write)?;
            }
        }
        let mut done = 0;
        for (at, len) in pieces(gva, data.len())? {
            let (gpa, hpa) = self.translate(paging, at, len, AccessKind::Write)?;
            let piece = &data[done..done + len];
            self.kernel.host.write(hpa, piece).map_err(|_| BusFault::HostMemory { gpa })?;
            done += len;
        }
        Ok(())
    }

    fn invalidate_page(&mut self, _gva: Gva) {
        self.kernel.vcpu(self.vcpu).tlb.flush();
    }

    fn invalidate_all(&mut self) {
        self.kernel.vcpu(self.vcpu).tlb.flush();
    }
}

/// An access that has not come through after so many faults waits for something that the kernel has to do first.
const MAX_FAULTS: usize = 64;

impl Mmu<'_> {
    /// Where the byte at `gva` lies, for an access of `len` bytes of its page.
    fn translate(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        kind: AccessKind,
    ) -> Result<(Gpa, Hpa), BusFault> {
        let of = Use::new(paging, gva, kind);
        let offset = gva.page_offset(PageSize::Size4K);
        let flushes = self.kernel.flushes();
        if let Some(page) = self.kernel.vcpu(self.vcpu).tlb.get(of, flushes) {
            return Ok((Gpa(page.gpa.raw() | offset), Hpa(page.hpa.raw() | offset)));
        }
        let (gpa, hpa) = self.walk(paging, gva, len, kind)?;
        let page = Page { gpa: gpa.align_down(PageSize::Size4K), hpa: hpa.align_down(PageSize::Size4K) };
        let flushes = self.kernel.flushes();
        self.kernel.vcpu(self.vcpu).tlb.insert(of, page, flushes);
        Ok((gpa, hpa))
    }

    /// Walks the tables until they let the access through, taking its violations on the way.
    fn walk(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        kind: AccessKind,
    ) -> Result<(Gpa, Hpa), BusFault> {
        let access = access_of(kind, paging.user, paging.ac);
        let guest = guest_paging(paging)?;
        for _ in 0..MAX_FAULTS {
            let SoftKernel { host, mmu: SoftMmu::Tdp(tdp), .. } = &*self.kernel;
            match nested_translate(host, guest.as_ref(), tdp.paging(), gva, access, Flags::Set) {
                Ok(leaf) => return Ok((leaf.gpa, leaf.hpa)),
                Err(NestedFault::Guest(fault)) => return Err(guest_fault(fault, gva)),
                Err(NestedFault::Final { gpa, fault }) => match self.violation(gpa, fault)? {
                    Resolved::Again => {}
                    Resolved::Device => return Err(BusFault::Mmio { gpa, len }),
                },
                // A guest table where no memory is: KVM's walk finds no entry there and the guest gets a #PF.
                Err(NestedFault::Table { gpa, fault }) => match self.violation(gpa, fault)? {
                    Resolved::Again => {}
                    Resolved::Device => return Err(no_table(paging, gva, access)),
                },
            }
        }
        Err(BusFault::Retry)
    }

    /// KVM's exit handler for what the second level refuses at `gpa`.
    fn violation(&mut self, gpa: Gpa, why: Fault) -> Result<Resolved, BusFault> {
        let SoftKernel { memslots, host, mmu: SoftMmu::Tdp(tdp), .. } = &*self.kernel;
        let outcome = tdp.exit(gpa, why, &Slots { memslots, vcpu: self.vcpu }, host);
        self.settle(gpa, outcome)
    }

    /// What a fault came to, for the access that took it.
    fn settle(&mut self, gpa: Gpa, outcome: Result<FaultOutcome, ept::Error>) -> Result<Resolved, BusFault> {
        match outcome {
            Ok(FaultOutcome::Fixed { .. } | FaultOutcome::Spurious | FaultOutcome::Retry) => {
                Ok(Resolved::Again)
            }
            Ok(FaultOutcome::Mmio { .. } | FaultOutcome::MmioReadonlyWrite { .. }) => Ok(Resolved::Device),
            Ok(FaultOutcome::HostFault { hva, fault: HostFault::CopyOnWrite, .. }) => {
                let broken = self.kernel.host_event(|host, notifier| host.break_cow(hva, notifier));
                broken.map(|()| Resolved::Again).map_err(|_| BusFault::HostMemory { gpa })
            }
            Err(ept::Error::OutOfTables) => {
                self.kernel.reclaim();
                Ok(Resolved::Again)
            }
            // Or the tables are broken, and KVM cannot go on with this guest either.
            Ok(FaultOutcome::HostFault { .. }) | Err(_) => Err(BusFault::HostMemory { gpa }),
            // Only of a shadow.
            Ok(FaultOutcome::WriteProtected { .. } | FaultOutcome::Guest(_)) => {
                Err(BusFault::HostMemory { gpa })
            }
        }
    }
}

/// What a fault came to.
enum Resolved {
    /// A page was mapped, or will be once a slot has gone where it goes: walk again.
    Again,
    /// No slot, or a write into a read-only one.
    Device,
}

/// Bytes from `gva` to the end of its page.
fn room_in_page(gva: Gva) -> usize {
    (PageSize::Size4K.bytes() - gva.page_offset(PageSize::Size4K)) as usize
}

/// The parts of an access that lie in one page each.
fn pieces(gva: Gva, len: usize) -> Result<impl Iterator<Item = (Gva, usize)>, BusFault> {
    let first = len.min(room_in_page(gva));
    let second = match len - first {
        0 => None,
        rest => Some((gva.checked_add(first as u64).ok_or(BusFault::NotCanonical)?, rest)),
    };
    Ok([Some((gva, first)), second].into_iter().flatten())
}

/// An access of that kind.
pub(super) fn access_of(kind: AccessKind, user: bool, ac: bool) -> Access {
    let does = match kind {
        AccessKind::Read => Rights::READ,
        AccessKind::Write => Rights::WRITE,
        AccessKind::Fetch => Rights::EXEC,
    };
    Access { does, user, ac }
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

/// A #PF of an entry that is not present. A fetch shows in its code only where fetches have rights of their own (rule F2).
fn no_table(paging: &Paging, gva: Gva, access: Access) -> BusFault {
    let fetch_shows = paging.efer & efer::NXE != 0 || paging.cr4 & cr4::SMEP != 0;
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::WRITE, access.writes());
    code.set(PageFaultCode::USER, access.user);
    code.set(PageFaultCode::FETCH, access.fetches() && fetch_shows);
    BusFault::PageFault { error_code: code.bits() as u32, address: gva }
}
