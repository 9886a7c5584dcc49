//! Each access of the software CPU, through the guest's tables and the second level.

use std::time::Instant;

use ept::mmu::{FaultOutcome, HostFault, HostFrames, Memslots};
use ept::{
    Access, Fault, Flags, NestedFault, NestedLeaf, Rights, nested_translate, translate, try_guest_table,
    try_nested_translate_by, try_translate,
};
use memory_model::{Gpa, Gva, Hpa, Hva, PageSize, RamPage};
use slot_manager::SlotRecord;

use super::irqchip::Interrupts;
use super::kernel::{Slots, SoftKernel, VcpuArch};
use super::second_level::SoftMmu;
use super::table_tlb::Table;
use super::tlb::{Page, Use};
use super::{AccessKind, Bus, BusFault, Paging};
use crate::FaultEvent;

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
            let place = self.translate(paging, at, len, kind)?;
            let piece = &mut buf[done..done + len];
            let hpa = match place {
                Place::Frame(hpa) => hpa,
                Place::GuestTable(gpa) => self.writable(gpa)?,
            };
            self.kernel.host.read(hpa, piece).map_err(|_| BusFault::Broken)?;
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
            let place = self.translate(paging, at, len, AccessKind::Write)?;
            let piece = &data[done..done + len];
            match place {
                Place::Frame(hpa) => self.kernel.host.write(hpa, piece).map_err(|_| BusFault::Broken)?,
                Place::GuestTable(gpa) => self.write_guest_table(gpa, piece)?,
            }
            done += len;
        }
        Ok(())
    }

    fn page(&mut self, paging: &Paging, gva: Gva, kind: AccessKind) -> Option<RamPage> {
        let of = Use::new(paging, gva, kind);
        let flushes = self.kernel.flushes();
        let known = self.kernel.vcpu(self.vcpu).tlb.get(of, flushes);
        let page = known.or_else(|| self.walk_quickly(paging, of))?;
        self.kernel.host.page(page.hpa, kind == AccessKind::Write)
    }

    fn generation(&self) -> u64 {
        self.kernel.vcpus[self.vcpu as usize].tlb.generation(self.kernel.flushes())
    }

    fn invalidate_page(&mut self, gva: Gva) {
        let SoftKernel { memslots, host, mmu, vcpus, .. } = &mut *self.kernel;
        let arch = &mut vcpus[self.vcpu as usize];
        arch.tlb.flush_page(gva);
        let slots = Slots { memslots, vcpu: self.vcpu };
        if let (SoftMmu::Shadow(shadow), Some(context)) = (mmu, &mut arch.shadow) {
            // What cannot be done for one address is done for all.
            arch.reload |= shadow.invlpg(context, gva.raw(), &slots, host).is_err();
        }
    }

    fn invalidate_all(&mut self) {
        self.kernel.vcpu(self.vcpu).registers_changed();
    }

    fn interrupts(&mut self, now: u64) -> Option<Interrupts<'_>> {
        Some(self.kernel.irqchip.as_mut()?.of(self.vcpu as usize, now))
    }
}

/// An access that has not come through after so many faults waits for something that the kernel has to do first.
const MAX_FAULTS: usize = 64;

/// Where bytes of a page are.
#[derive(Clone, Copy)]
enum Place {
    /// In a frame.
    Frame(Hpa),
    /// In a table of the guest's that it may not write itself: the access is emulated.
    GuestTable(Gpa),
}

/// What one walk of the tables came to.
enum Walked {
    /// A translation, the address that the MMU's tables translated, and how large the guest's page is.
    To { input: u64, hpa: Hpa, size: PageSize },
    /// The access is to be emulated.
    GuestTable(Gpa),
    /// A fault was handled: walk again.
    Again,
}

impl Mmu<'_> {
    /// Where the byte at `gva` lies, for an access of `len` bytes of its page.
    fn translate(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        kind: AccessKind,
    ) -> Result<Place, BusFault> {
        let of = Use::new(paging, gva, kind);
        let flushes = self.kernel.flushes();
        if let Some(page) = self.kernel.vcpu(self.vcpu).tlb.get(of, flushes) {
            return Ok(Place::Frame(Hpa(page.hpa.raw() | gva.page_offset(PageSize::Size4K))));
        }
        let access = access_of(kind, paging.user, paging.ac);
        for _ in 0..MAX_FAULTS {
            let walked = match self.kernel.mmu {
                SoftMmu::Tdp(_) => self.walk_both(paging, gva, len, access)?,
                SoftMmu::Shadow(_) => self.walk_shadow(paging, gva, len, access)?,
            };
            match walked {
                Walked::To { input, hpa, size } => {
                    let page = Page { input: input & !0xfff, hpa: hpa.align_down(PageSize::Size4K) };
                    let flushes = self.kernel.flushes();
                    self.kernel.vcpu(self.vcpu).tlb.insert(of, page, size, flushes);
                    return Ok(Place::Frame(hpa));
                }
                Walked::GuestTable(gpa) => return Ok(Place::GuestTable(gpa)),
                Walked::Again => {}
            }
        }
        Err(BusFault::Retry)
    }

    /// What a walk comes to that meets nothing unusual, for a use that is not in the TLB.
    fn walk_quickly(&mut self, paging: &Paging, of: Use) -> Option<Page> {
        let flushes = self.kernel.flushes();
        let SoftKernel { host, mmu, vcpus, .. } = &mut *self.kernel;
        let VcpuArch { tlb, tables, pagings, shadow, reload } = &mut vcpus[self.vcpu as usize];
        let (gva, access) = (of.gva(), access_of(of.kind(), of.user(), of.ac()));
        let (page, size) = match mmu {
            SoftMmu::Tdp(tdp) => {
                let guest = pagings.select(paging).ok()?;
                let second = tdp.paging();
                let find = |gpa| {
                    let hpa = Hpa(try_guest_table(host, second, gpa, Flags::Set)?.address);
                    let page = host.page(hpa, false)?;
                    Some(Table { hpa: hpa.align_down(PageSize::Size4K), page })
                };
                tables.hear(flushes);
                let entry = |gpa| tables.entry(gpa, || find(gpa));
                let leaf = try_nested_translate_by(entry, host, guest, second, gva, access, Flags::Set)?;
                (Page { input: leaf.gpa.raw(), hpa: leaf.hpa }, guest_size(&leaf))
            }
            SoftMmu::Shadow(_) => {
                let context = shadow.as_ref().filter(|_| !*reload)?;
                let leaf = try_translate(host, context.paging(), gva.raw(), access, Flags::Set)?;
                (Page { input: gva.raw(), hpa: Hpa(leaf.address) }, PageSize::Size4K)
            }
        };
        tlb.insert(of, page, size, flushes);
        Some(page)
    }

    /// Walks the guest's tables, each of them and the page behind the second level.
    fn walk_both(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        access: Access,
    ) -> Result<Walked, BusFault> {
        let SoftKernel { memslots, host, mmu: SoftMmu::Tdp(tdp), faults, vcpus, .. } = &mut *self.kernel
        else {
            return Err(BusFault::Broken);
        };
        let guest = vcpus[self.vcpu as usize].pagings.select(paging)?;
        let (gpa, why, absent_table) =
            match nested_translate(host, guest, tdp.paging(), gva, access, Flags::Set) {
                Ok(leaf) => {
                    let size = guest_size(&leaf);
                    return Ok(Walked::To { input: leaf.gpa.raw(), hpa: leaf.hpa, size });
                }
                Err(NestedFault::Guest(fault)) => return Err(guest_fault(fault, gva)),
                Err(NestedFault::Final { gpa, fault }) => (gpa, fault, None),
                Err(NestedFault::Table { gpa, fault }) => {
                    (gpa, fault, guest.map(|guest| guest.not_present(access)))
                }
            };
        let begun = faults.begin();
        let outcome = tdp.exit(gpa, why, &Slots { memslots, vcpu: self.vcpu }, host);
        faults.end(begun, |at| fault_event(at, self.vcpu, gva, Some(gpa), access, &outcome));
        match (self.settle(gva, len, outcome), absent_table) {
            // A guest table where no memory is: KVM's walk finds no entry there and the guest gets a #PF.
            (Err(BusFault::Mmio { .. }), Some(fault)) => Err(guest_fault(fault, gva)),
            (settled, _) => settled,
        }
    }

    /// Walks the shadow of the guest's tables.
    fn walk_shadow(
        &mut self,
        paging: &Paging,
        gva: Gva,
        len: usize,
        access: Access,
    ) -> Result<Walked, BusFault> {
        let SoftKernel { memslots, host, mmu: SoftMmu::Shadow(shadow), faults, vcpus, .. } =
            &mut *self.kernel
        else {
            return Err(BusFault::Broken);
        };
        let VcpuArch { shadow: Some(context), pagings, reload, .. } = &mut vcpus[self.vcpu as usize] else {
            return Err(BusFault::Broken);
        };
        let slots = Slots { memslots, vcpu: self.vcpu };
        if *reload {
            let guest = pagings.select(paging)?;
            shadow.load(context, guest, &slots, host).map_err(|_| BusFault::Retry)?;
            *reload = false;
        }
        if let Ok(leaf) = translate(host, context.paging(), gva.raw(), access, Flags::Set) {
            // The leaf's size says nothing of the guest's page: the MMU asks for a flush where more than one goes.
            return Ok(Walked::To { input: gva.raw(), hpa: Hpa(leaf.address), size: PageSize::Size4K });
        }
        let begun = faults.begin();
        let outcome = shadow.fault(context, gva.raw(), access, &slots, host);
        faults.end(begun, |at| fault_event(at, self.vcpu, gva, None, access, &outcome));
        self.settle(gva, len, outcome)
    }

    /// What a fault came to, for the access of `len` bytes at `gva` that took it.
    fn settle(
        &mut self,
        gva: Gva,
        len: usize,
        outcome: Result<FaultOutcome, ept::Error>,
    ) -> Result<Walked, BusFault> {
        match outcome {
            Ok(FaultOutcome::Fixed { .. } | FaultOutcome::Spurious | FaultOutcome::Retry) => {
                Ok(Walked::Again)
            }
            Ok(FaultOutcome::Mmio { gpa } | FaultOutcome::MmioReadonlyWrite { gpa }) => {
                Err(BusFault::Mmio { gpa, len })
            }
            Ok(FaultOutcome::HostFault { gpa, hva, fault: HostFault::CopyOnWrite }) => {
                self.break_cow(gpa, hva).map(|()| Walked::Again)
            }
            Ok(FaultOutcome::HostFault { gpa, .. }) => Err(BusFault::HostMemory { gpa }),
            Ok(FaultOutcome::WriteProtected { gpa }) => Ok(Walked::GuestTable(gpa)),
            Ok(FaultOutcome::Guest(code)) => {
                Err(BusFault::PageFault { error_code: code.bits() as u32, address: gva })
            }
            Err(ept::Error::OutOfTables) => {
                self.kernel.reclaim();
                Ok(Walked::Again)
            }
            Err(ept::Error::InputRange { .. }) => Err(BusFault::NotCanonical),
            // The tables are broken, and KVM cannot go on with this guest either.
            Err(_) => Err(BusFault::Broken),
        }
    }

    /// The page at `hva` gets a frame of its own, for a write.
    fn break_cow(&mut self, gpa: Gpa, hva: Hva) -> Result<(), BusFault> {
        let broken = self.kernel.host_event(|host, notifier| host.break_cow(hva, notifier));
        broken.map_err(|_| BusFault::HostMemory { gpa })
    }

    /// Where the guest's memory at `gpa` is, to be written by the kernel for it (`kvm_write_guest`).
    fn writable(&mut self, gpa: Gpa) -> Result<Hpa, BusFault> {
        let slot = self.kernel.memslots.gfn_to_memslot(gpa);
        let hva = slot.and_then(|slot| slot.hva_of(gpa)).ok_or(BusFault::HostMemory { gpa })?;
        if self.kernel.host.host_frame(hva, true) == Err(HostFault::CopyOnWrite) {
            self.break_cow(gpa, hva)?;
        }
        let frame = self.kernel.host.host_frame(hva, true).map_err(|_| BusFault::HostMemory { gpa })?;
        Ok(Hpa(frame.hpa.raw() | gpa.page_offset(PageSize::Size4K)))
    }

    /// Writes a table of the guest for it, and lets its shadow know (rule H2).
    fn write_guest_table(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), BusFault> {
        let hpa = self.writable(gpa)?;
        let SoftKernel { memslots, host, mmu, .. } = &mut *self.kernel;
        host.write(hpa, data).map_err(|_| BusFault::Broken)?;
        Slots { memslots, vcpu: self.vcpu }.mark_page_dirty(gpa);
        match mmu {
            SoftMmu::Shadow(shadow) => {
                shadow.track_write(gpa, data.len() as u64, host).map_err(|_| BusFault::Broken)
            }
            SoftMmu::Tdp(_) => Ok(()),
        }
    }
}

/// What is recorded of a fault, but for how long it took; nothing of one that the MMU could not handle.
fn fault_event(
    at: Instant,
    vcpu: u32,
    gva: Gva,
    gpa: Option<Gpa>,
    access: Access,
    outcome: &Result<FaultOutcome, ept::Error>,
) -> Option<FaultEvent> {
    let outcome = Some(outcome.ok()?);
    Some(FaultEvent { at, took: None, vcpu, gva: Some(gva), gpa, access: access.does, outcome })
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

/// The size of the guest's page; with paging off, one that is in one piece here.
fn guest_size(leaf: &NestedLeaf) -> PageSize {
    leaf.guest.map_or(PageSize::Size4K, |guest| guest.size)
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

fn guest_fault(fault: Fault, gva: Gva) -> BusFault {
    match fault {
        Fault::PageFault { code } => BusFault::PageFault { error_code: code.bits() as u32, address: gva },
        _ => BusFault::NotCanonical,
    }
}
