//! The kernel side of the software machine: slots, host frames and the MMU, tied together as `struct kvm` ties them.

use ept::mmu::{Memslots, ShadowContext, SlotLookup, Zapped};
use ept::{Access, Flags, Paging, walk};
use memory_model::{AddrRange, Gpa, Gva, Hpa, Hva, PageSize};
use slot_manager::{
    DirtyLog, Errno, GENERATION_UPDATE, KernelCaps, KernelMemslots, KvmArch, Memslot, Side, SlotChange,
    SlotError, SlotFault, SlotFlags, SlotOp, SlotRecord,
};

use super::faults::FaultLog;
use super::guest_paging::GuestPagings;
use super::host::{Host, MmuNotifier};
use super::irqchip::Irqchip;
use super::options::{MAX_PHY_ADDR, SoftOptions};
use super::second_level::SoftMmu;
use super::table_tlb::TableTlb;
use super::tlb::Tlb;
use crate::{MappedPage, SecondLevelLeaf, SecondLevelTables, VcpuError};

/// Slots, host and MMU of one VM. Its fields are open, so that a test can look at them, or break one and see who notices.
pub struct SoftKernel {
    /// The memory slots.
    pub memslots: KernelMemslots,
    /// The host: this process's memory and the frames behind it.
    pub host: Host,
    /// The MMU.
    pub mmu: SoftMmu,
    /// The interrupt controllers, if it has them.
    pub irqchip: Option<Irqchip>,
    /// The faults, if they are recorded.
    pub(super) faults: FaultLog,
    /// How often it has asked the processors to flush.
    flushes: Flushes,
    pub(super) vcpus: Vec<VcpuArch>,
    /// Dirty pages are known by D.
    pub(super) dirty_bits: bool,
}

/// A count of requests to flush the processors (`KVM_REQ_TLB_FLUSH`): each makes them before its next access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Flushes(u64);

impl Flushes {
    /// How many.
    pub(super) fn count(self) -> u64 {
        self.0
    }

    fn request(&mut self) {
        self.0 += 1;
    }

    /// Takes in what an MMU has done. That allocates nothing and reads only tables of this VM, so it succeeds.
    fn after(&mut self, done: Result<Zapped, ept::Error>) {
        if done.expect("the MMU's own tables are in the host's memory").flush {
            self.request();
        }
    }
}

/// What the kernel keeps of a vCPU (`kvm_vcpu_arch`).
pub(super) struct VcpuArch {
    /// Its processor's translation cache.
    pub(super) tlb: Tlb,
    /// Its processor's way to the guest's tables.
    pub(super) tables: TableTlb,
    /// What its control registers select.
    pub(super) pagings: GuestPagings,
    /// Its roots, if the MMU is a shadow.
    pub(super) shadow: Option<ShadowContext>,
    /// Its control registers have changed since the root was chosen.
    pub(super) reload: bool,
}

impl VcpuArch {
    /// MOV to a control register, or what is like it.
    pub(super) fn registers_changed(&mut self) {
        self.tlb.flush();
        self.reload = true;
    }
}

impl SoftKernel {
    /// A VM without slots, with an empty second level.
    pub(super) fn new(options: &SoftOptions) -> Result<Self, VcpuError> {
        let host = Host::default();
        let mmu = SoftMmu::new(options, &host)?;
        let caps = KernelCaps {
            max_gfn: Gpa(MAX_PHY_ADDR.last()).page_number(),
            // No access of its guests is private, and none leaves as a memory fault.
            memory_attributes: None,
            ..KernelCaps::default()
        };
        Ok(Self {
            memslots: KernelMemslots::with_caps(caps),
            host,
            mmu,
            irqchip: options.irqchip.then(Irqchip::new),
            faults: FaultLog::default(),
            flushes: Flushes::default(),
            vcpus: Vec::new(),
            dirty_bits: options.dirty_bits && options.second_level.has_dirty_bits(),
        })
    }

    /// `KVM_CREATE_VCPU`; returns its index.
    pub(super) fn create_vcpu(&mut self) -> Result<u32, VcpuError> {
        let shadow = self.mmu.context(&self.host)?;
        self.vcpus.push(VcpuArch {
            tlb: Tlb::default(),
            tables: TableTlb::default(),
            pagings: GuestPagings::default(),
            shadow,
            reload: true,
        });
        if let Some(irqchip) = &mut self.irqchip {
            irqchip.add_processor();
        }
        Ok(self.memslots.create_vcpu())
    }

    pub(super) fn vcpu(&mut self, index: u32) -> &mut VcpuArch {
        &mut self.vcpus[index as usize]
    }

    /// All requests to flush the processors so far.
    pub(super) fn flushes(&self) -> Flushes {
        match &self.mmu {
            SoftMmu::Tdp(_) => self.flushes,
            // It counts its own; both counts only grow.
            SoftMmu::Shadow(shadow) => Flushes(self.flushes.0 + shadow.flushes()),
        }
    }

    /// The slots, and the MMU that hears of what happens to them.
    fn parts(&mut self) -> (&mut KernelMemslots, SlotMmu<'_>) {
        let Self { memslots, host, mmu, flushes, .. } = self;
        (memslots, SlotMmu { host, mmu, flushes })
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    pub(super) fn set_slot(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        self.sync_dirty_log(None);
        let (memslots, mut mmu) = self.parts();
        if let SlotChange::Created(_) = memslots.on(&mut mmu).execute(op)? {
            self.host.map(&op.slot().block);
        }
        Ok(())
    }

    /// Lets `act` do something with the dirty logs.
    pub(super) fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        self.sync_dirty_log(None);
        let (memslots, mut mmu) = self.parts();
        act(&mut memslots.on(&mut mmu));
    }

    /// `KVM_GET_DIRTY_LOG`: one bit a page. Without manual protect it starts the log anew.
    pub fn get_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.sync_dirty_log(None);
        let (memslots, mut mmu) = self.parts();
        memslots.on(&mut mmu).get_dirty_log(slot, bitmap)
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.sync_dirty_log(None);
        let (memslots, mut mmu) = self.parts();
        memslots.on(&mut mmu).clear_dirty_log(slot, first_page, num_pages, bitmap)
    }

    /// Puts the pages that processors have marked by D into the log (`kvm_arch_sync_dirty_log`), as written by `vcpu`.
    pub(super) fn sync_dirty_log(&mut self, vcpu: Option<u32>) {
        if !self.dirty_bits {
            return;
        }
        let Self { memslots, host, mmu, flushes, .. } = self;
        for slot in memslots.slots().iter().filter(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES)) {
            let log = |gpa| {
                let logged = memslots.mark_page_dirty(vcpu, 0, gpa);
                debug_assert!(logged, "a ring is synchronized after each instruction");
            };
            flushes.after(mmu.clear_dirty(slot.gpa(), log, host));
        }
    }

    /// Lets something happen to the host's memory, with the notifier that tells the MMU of it: see [`Host`]'s events.
    ///
    /// ```
    /// # use memory_model::{AddrRange, Hva};
    /// # let vm = vcpu::soft::SoftVm::new()?;
    /// # let range = AddrRange::new(Hva(0x1000), 0x1000).unwrap();
    /// vm.kernel().host_event(|host, notifier| host.swap_out(range, notifier));
    /// # Ok::<(), vcpu::VcpuError>(())
    /// ```
    pub fn host_event<T>(&mut self, event: impl FnOnce(&Host, &mut dyn MmuNotifier) -> T) -> T {
        let Self { memslots, host, mmu, flushes, .. } = self;
        event(host, &mut Notifier { memslots, host, mmu, flushes })
    }

    /// Whether the guest has accessed a page of `range` since it was last asked; processors are flushed, so that they
    /// mark what they access from now on (`kvm_mmu_notifier_clear_flush_young`).
    pub fn age(&mut self, range: AddrRange<Gpa>) -> Result<bool, ept::Error> {
        self.flushes.request();
        self.mmu.age(range, &self.host)
    }

    /// The same, and nothing changes (`kvm_mmu_notifier_test_young`).
    pub fn test_age(&self, range: AddrRange<Gpa>) -> Result<bool, ept::Error> {
        self.mmu.test_age(range, &self.host)
    }

    /// The MMU has no table left for a fault: some of what it has gives way.
    pub(super) fn reclaim(&mut self) {
        self.flushes.after(self.mmu.reclaim(&self.host));
        self.host.quiesce();
    }

    /// The tables of the MMU as a whole; `None` for a shadow before there is a vCPU.
    pub(super) fn tables(&self) -> Option<SecondLevelTables> {
        let (format, shadow) = match &self.mmu {
            SoftMmu::Tdp(tdp) => (tdp.paging().format, false),
            SoftMmu::Shadow(_) => (self.vcpus.first()?.shadow.as_ref()?.paging().format, true),
        };
        let stats = self.mmu.stats();
        let leaves = [stats.pages_4k, stats.pages_2m, stats.pages_1g];
        Some(SecondLevelTables { format, shadow, bytes: self.mmu.table_bytes(), leaves })
    }

    /// What the second level says of the guest's page at `gpa`; a shadow, of `gva`, from which the guest's own tables
    /// lead there, as vCPU 0 walks it.
    pub fn leaf(&self, gva: Gva, gpa: Gpa) -> Option<SecondLevelLeaf> {
        match &self.mmu {
            SoftMmu::Tdp(tdp) => leaf(&self.host, tdp.paging(), gpa.raw(), Access::READ.by_user()),
            SoftMmu::Shadow(_) => {
                let context = self.vcpus.first()?.shadow.as_ref()?;
                // Whosever page it is.
                leaf(&self.host, context.paging(), gva.raw(), Access { ac: true, ..Access::READ })
            }
        }
    }

    /// All pages of tables that translate guest-physical addresses.
    pub(super) fn mapped_pages(&self) -> Option<Vec<MappedPage>> {
        let SoftMmu::Tdp(tdp) = &self.mmu else { return None };
        let kind = tdp.paging().format.kind();
        let pages = tdp.leaves(&self.host).map(|leaf| MappedPage {
            gpa: Gpa(leaf.address),
            size: leaf.size,
            rights: leaf.rights,
            caching: kind.caching(leaf.size.level(), leaf.step.entry),
        });
        Some(pages.collect())
    }
}

fn leaf(host: &Host, paging: &Paging, address: u64, access: Access) -> Option<SecondLevelLeaf> {
    let walk = walk(host, paging, address, access, Flags::Keep);
    let (leaf, last) = (walk.outcome.ok()?, *walk.path.last()?);
    let used = paging.format.used(leaf.entry);
    Some(SecondLevelLeaf {
        hpa: Hpa(leaf.address),
        size: leaf.size,
        rights: leaf.rights(),
        entry_address: Hpa(last.entry_address()),
        entry: leaf.entry,
        accessed: used.map(|used| used.accessed),
        written: used.map(|used| used.written),
        path: walk.path,
    })
}

/// The MMU, as it hears of slots.
struct SlotMmu<'a> {
    host: &'a Host,
    mmu: &'a mut SoftMmu,
    flushes: &'a mut Flushes,
}

impl KvmArch for SlotMmu<'_> {
    /// What goes or moves leaves the second level at once (rule Z3).
    fn flush_shadow_memslot(&mut self, _kernel: &KernelMemslots, slot: &Memslot) {
        self.flushes.after(self.mmu.zap(slot.gpa(), self.host));
    }

    /// A log that starts makes its pages fault on their next write, unless it starts with all of them dirty
    /// (rule D1); where one ends, large pages come back (rule D2).
    fn commit_memory_region(&mut self, kernel: &KernelMemslots, change: &SlotChange) {
        if let SlotChange::FlagsChanged { old, new } = change
            && (new.flags ^ old.flags).contains(SlotFlags::LOG_DIRTY_PAGES)
        {
            self.flushes.after(self.mmu.set_logging(&memslot(new), kernel.logs_start_dirty(), self.host));
        }
        let generation = kernel.generation() & !GENERATION_UPDATE;
        self.flushes.after(self.mmu.slots_changed(generation, self.host));
    }

    fn enable_log_dirty(&mut self, slot: &Memslot, first_page: u64, mask: u64) {
        let mut left = mask;
        while left != 0 {
            // Runs of pages, for a log is often dense.
            let start = left.trailing_zeros();
            let count = (left >> start).trailing_ones();
            if let Some(pages) = slot.pages(first_page + u64::from(start), count.into()) {
                // What was written before is read after this call.
                self.flushes.after(self.mmu.clear_dirty(pages, |_| {}, self.host));
            }
            left &= u64::MAX.checked_shl(start + count).unwrap_or(0);
        }
    }
}

/// The MMU, as it hears of the host (rule N1).
struct Notifier<'a> {
    memslots: &'a KernelMemslots,
    host: &'a Host,
    mmu: &'a mut SoftMmu,
    flushes: &'a mut Flushes,
}

impl Notifier<'_> {
    /// Where guests see `range`: once for each slot that has a part of it.
    fn seen_at(&self, range: AddrRange<Hva>) -> Vec<AddrRange<Gpa>> {
        let slots = self.memslots.slots().overlapping_hva(range);
        let part = |slot: &Memslot| {
            let part = slot.hva_range().intersection(range)?;
            AddrRange::inclusive(slot.gpa_of(part.first())?, slot.gpa_of(part.last())?)
        };
        slots.filter_map(part).collect()
    }
}

impl MmuNotifier for Notifier<'_> {
    fn invalidate_range_start(&mut self, range: AddrRange<Hva>) {
        for range in self.seen_at(range) {
            self.flushes.after(self.mmu.invalidate_begin(range, self.host));
        }
    }

    fn invalidate_range_end(&mut self, range: AddrRange<Hva>) {
        self.seen_at(range).iter().for_each(|_| self.mmu.invalidate_end());
    }
}

/// A slot as the MMU knows it.
pub(super) fn memslot(slot: &Memslot) -> ept::mmu::Memslot {
    ept::mmu::Memslot {
        base: slot.gpa().first(),
        bytes: slot.npages() << PageSize::Size4K.shift(),
        hva: slot.userspace_addr,
        readonly: slot.flags.contains(SlotFlags::READONLY),
        log_dirty: slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES),
    }
}

/// The slots as the MMU asks for them. One that is INVALID for a moment (rule K4) is seen by those who are told of
/// the change alone: who makes it holds the VM.
pub(super) struct Slots<'a> {
    pub(super) memslots: &'a KernelMemslots,
    /// Who asks.
    pub(super) vcpu: u32,
}

impl Memslots for Slots<'_> {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        let slot = match self.memslots.fault(0, gpa, Side::Shared, false) {
            SlotFault::Memory(slot) => slot,
            SlotFault::Retry => return SlotLookup::Invalid,
            SlotFault::Mmio => return SlotLookup::Hole,
            // Not met: this kernel has no private memory.
            SlotFault::MemoryFault => return SlotLookup::Hole,
        };
        SlotLookup::Slot(memslot(slot))
    }

    /// Into the vCPU's ring, or the slot's bitmap where there are no rings.
    fn mark_page_dirty(&self, gpa: Gpa) {
        let marked = self.memslots.mark_page_dirty(Some(self.vcpu), 0, gpa);
        debug_assert!(marked, "a vCPU with a full ring does not run");
    }

    fn generation(&self) -> Option<u64> {
        Some(self.memslots.generation()).filter(|generation| generation & GENERATION_UPDATE == 0)
    }
}

#[cfg(test)]
mod tests {
    use memory_model::Hva;

    use super::*;

    #[test]
    fn k4_a_slot_that_goes_or_moves_is_never_a_hole_before_it_has() {
        /// A vCPU that faults on guest page 1 at that moment.
        struct Fault(Vec<SlotLookup>);
        impl KvmArch for Fault {
            fn memslots_swapped(&mut self, memslots: &KernelMemslots, _as_id: u32) {
                self.0.push(Slots { memslots, vcpu: 0 }.slot(Gpa(0x1000)));
            }
        }
        let mut memslots = KernelMemslots::new();
        let mut region = kvm_bindings::kvm_userspace_memory_region {
            memory_size: 0x4000,
            userspace_addr: 0x70_0000,
            ..Default::default()
        };
        let mut fault = Fault(Vec::new());
        let there = ept::mmu::Memslot {
            base: Gpa(0),
            bytes: 0x4000,
            hva: Hva(0x70_0000),
            readonly: false,
            log_dirty: false,
        };
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Slot(there)]);
        region.guest_phys_addr = 0x1000;
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        let moved = ept::mmu::Memslot { base: Gpa(0x1000), ..there };
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Invalid, SlotLookup::Slot(moved)]);
        region.memory_size = 0;
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Invalid, SlotLookup::Hole]);
    }
}
