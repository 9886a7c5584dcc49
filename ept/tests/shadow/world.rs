//! A host, slots, a guest that writes its own tables, and processors whose accesses go through shadow tables.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use ept::mmu::shadow::ShadowPage;
use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, Shadow, ShadowContext, ShadowOptions,
    SlotLookup, Stats,
};
use ept::verify::{Guest, HostMap, HostPage, Policy, Report};
use ept::{
    Access, Flags, FrameAllocator, Kind, MaxPhyAddr, MemoryError, Paging, PhysMemory, Processor, Registers,
    Rights, SparseMemory, translate, walk,
};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

pub const K4: u64 = 0x1000;
pub const M2: u64 = 0x20_0000;
pub const WIDTH: MaxPhyAddr = MaxPhyAddr::new(40).unwrap();
pub const HVA: u64 = 0x7f00_0000_0000;
/// Tables of the MMU come from here on.
pub const TABLES: u64 = 0x10_0000;
/// Where the frames of the guest begin.
pub const FRAMES: u64 = 0x1_0000_0000;

/// Bits of a guest's entries.
pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const NX: u64 = 1 << 63;

pub const CR0_WP: u64 = 1 << 16;
pub const CR4_PSE: u64 = 1 << 4;
pub const CR4_PAE: u64 = 1 << 5;
pub const CR4_LA57: u64 = 1 << 12;
pub const CR4_SMEP: u64 = 1 << 20;
pub const CR4_SMAP: u64 = 1 << 21;
pub const CR4_PKE: u64 = 1 << 22;
pub const EFER_LME: u64 = 1 << 8;
pub const EFER_NXE: u64 = 1 << 11;

/// Frames behind each page of the guest: of 4K each, or in one large piece.
pub struct Host {
    pub memory: RefCell<SparseMemory>,
    pub pages: BTreeMap<u64, HostFrame>,
    pub tables: Cell<usize>,
    pub tables_left: Cell<usize>,
    /// Its pages are there before they are asked for, and it says so.
    pub tells: Cell<bool>,
    next_frame: u64,
}

impl PhysMemory for Host {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.borrow().read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.memory.borrow().compare_exchange(address, current, new)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault> {
        let found = self.pages.get(&hva.page_number()).copied().ok_or(HostFault::Unmapped)?;
        if write && !found.writable { Err(HostFault::Unmapped) } else { Ok(found) }
    }
    fn present_frame(&self, hva: Hva, write: bool) -> Option<HostFrame> {
        self.host_frame(hva, write).ok().filter(|_| self.tells.get())
    }
    fn allocate_table(&self) -> Option<u64> {
        self.tables_left.set(self.tables_left.get().checked_sub(1)?);
        self.tables.set(self.tables.get() + 1);
        self.memory.borrow_mut().allocate_table()
    }
    fn free_table(&self, frame: u64) {
        self.tables_left.set(self.tables_left.get() + 1);
        self.tables.set(self.tables.get() - 1);
        self.memory.borrow_mut().free_table(frame);
    }
}

/// The frames, as the verifier is told of them.
pub struct HostFramesOf<'a>(&'a BTreeMap<u64, HostFrame>);

impl HostMap for HostFramesOf<'_> {
    fn pages(&self, first: Hva, pages: &mut [HostPage]) {
        for (number, page) in (first.page_number()..).zip(pages) {
            *page = match self.0.get(&number) {
                Some(HostFrame { hpa, writable: true, .. }) => HostPage::at(*hpa),
                Some(HostFrame { hpa, .. }) => HostPage::at(*hpa).read_only(),
                None => HostPage::UNKNOWN,
            };
        }
    }
}

impl Host {
    /// Maps `bytes` at `hva` to new frames, in pages of that size.
    pub fn map(&mut self, hva: u64, bytes: u64, size: PageSize, writable: bool) {
        for page in (hva..hva + bytes).step_by(K4 as usize) {
            if size == PageSize::Size4K || page.is_multiple_of(size.bytes()) {
                self.next_frame = (self.next_frame + size.bytes()) & !(size.bytes() - 1);
            }
            let hpa = self.next_frame + page % size.bytes();
            self.pages.insert(page / K4, HostFrame { hpa: Hpa(hpa), size, writable });
            self.memory.borrow_mut().add_frame(hpa);
        }
    }

    /// Moves a page to another frame; a large host page around it is split first, and must be invalidated as a whole.
    pub fn migrate(&mut self, hva: u64) {
        let old = self.pages[&(hva / K4)];
        let large = AddrRange::page_of(Hva(hva), old.size);
        for page in large.page_starts(PageSize::Size4K) {
            self.pages.get_mut(&page.page_number()).unwrap().size = PageSize::Size4K;
        }
        self.map(hva & !(K4 - 1), K4, PageSize::Size4K, old.writable);
        let (memory, new) = (self.memory.borrow(), self.pages[&(hva / K4)]);
        for at in (0..K4).step_by(8) {
            let value = memory.read_entry(old.hpa.raw() + at).unwrap();
            memory.write_entry(new.hpa.raw() + at, value).unwrap();
        }
    }
}

#[derive(Default)]
pub struct Slots {
    pub slots: Vec<Memslot>,
    pub dirty: RefCell<BTreeSet<Gpa>>,
    pub invalid: bool,
}

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        match self.slots.iter().copied().find(|slot| slot.hva_of(gpa).is_some()) {
            Some(_) if self.invalid => SlotLookup::Invalid,
            slot => slot.into(),
        }
    }
    fn mark_page_dirty(&self, gpa: Gpa) {
        self.dirty.borrow_mut().insert(gpa.align_down(PageSize::Size4K));
    }
}

/// The guest's memory, as the guest means it.
pub struct InGuest<'a>(pub &'a World);

impl InGuest<'_> {
    fn hpa(&self, gpa: u64) -> Result<u64, MemoryError> {
        let absent = MemoryError::Absent { address: gpa };
        let SlotLookup::Slot(slot) = self.0.slots.slot(Gpa(gpa)) else { return Err(absent) };
        let hva = slot.hva_of(Gpa(gpa)).ok_or(absent)?;
        let frame = self.0.host.host_frame(hva, false).map_err(|_| absent)?;
        Ok(frame.hpa.raw() | (gpa % K4))
    }
}

impl PhysMemory for InGuest<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.0.host.read_entry(self.hpa(address)?)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let SlotLookup::Slot(Memslot { readonly: false, .. }) = self.0.slots.slot(Gpa(address)) else {
            return Err(MemoryError::ReadOnly { address });
        };
        self.0.host.compare_exchange(self.hpa(address)?, current, new)
    }
}

pub struct World {
    pub host: Host,
    pub slots: Slots,
    pub shadow: Shadow,
    pub contexts: Vec<ShadowContext>,
}

pub const SIZE: u64 = 16 * M2;

impl World {
    /// 32 MiB of guest memory at 0, one processor.
    pub fn new(host_pages: PageSize) -> Self {
        Self::limited(host_pages, 10_000)
    }

    pub fn limited(host_pages: PageSize, max_tables: usize) -> Self {
        let mut host = Host {
            memory: RefCell::new(SparseMemory::allocating_from(TABLES)),
            pages: BTreeMap::new(),
            tables: Cell::new(0),
            tables_left: Cell::new(100_000),
            tells: Cell::new(false),
            next_frame: FRAMES,
        };
        host.map(HVA, SIZE, host_pages, true);
        let slot = Memslot { base: Gpa(0), bytes: SIZE, hva: Hva(HVA), readonly: false, log_dirty: false };
        let slots = Slots { slots: vec![slot], ..Slots::default() };
        let mut shadow = Shadow::new(ShadowOptions { max_phy_addr: WIDTH, max_tables });
        let contexts = vec![shadow.context(&host).unwrap()];
        Self { host, slots, shadow, contexts }
    }

    pub fn add_context(&mut self) {
        self.contexts.push(self.shadow.context(&self.host).unwrap());
    }

    pub fn paging(registers: &Registers) -> Option<Paging> {
        Paging::from_registers(registers, Processor::new(WIDTH)).unwrap()
    }

    pub fn load(&mut self, context: usize, guest: Option<&Paging>) {
        let Self { host, slots, shadow, contexts } = self;
        shadow.load(&mut contexts[context], guest, slots, host).unwrap();
    }

    pub fn invlpg(&mut self, context: usize, gva: u64) {
        let Self { host, slots, shadow, contexts } = self;
        shadow.invlpg(&mut contexts[context], gva, slots, host).unwrap();
    }

    /// INVPCID of more than one address.
    pub fn sync_roots(&mut self, context: usize) {
        let Self { host, slots, shadow, contexts } = self;
        shadow.sync_roots(&mut contexts[context], slots, host).unwrap();
    }

    pub fn try_fault(
        &mut self,
        context: usize,
        gva: u64,
        access: Access,
    ) -> Result<FaultOutcome, ept::Error> {
        let Self { host, slots, shadow, contexts } = self;
        shadow.fault(&mut contexts[context], gva, access, slots, host)
    }

    pub fn fault(&mut self, context: usize, gva: u64, access: Access) -> FaultOutcome {
        self.try_fault(context, gva, access).unwrap()
    }

    /// What hardware says of an access through the shadow.
    pub fn hardware(&self, context: usize, gva: u64, access: Access) -> Option<u64> {
        let paging = self.contexts[context].paging();
        translate(&self.host, paging, gva, access, Flags::Set).ok().map(|leaf| leaf.address)
    }

    /// An access of the guest: faults are taken until it goes through. The frame, or what stopped it.
    pub fn access(&mut self, context: usize, gva: u64, access: Access) -> Result<u64, FaultOutcome> {
        for _ in 0..8 {
            if let Some(hpa) = self.hardware(context, gva, access) {
                return Ok(hpa);
            }
            match self.fault(context, gva, access) {
                FaultOutcome::Fixed { .. } => {}
                outcome => return Err(outcome),
            }
        }
        panic!("{gva:#x} {access:?} faults for ever");
    }

    /// A store of eight bytes by the guest: plain, or emulated where its page is write-protected.
    pub fn store(
        &mut self,
        context: usize,
        gva: u64,
        access: Access,
        value: u64,
    ) -> Result<(), FaultOutcome> {
        match self.access(context, gva, access) {
            Ok(hpa) => self.host.memory.borrow().write_entry(hpa, value).unwrap(),
            Err(FaultOutcome::WriteProtected { gpa }) => self.emulate(gpa.raw(), value),
            Err(outcome) => return Err(outcome),
        }
        Ok(())
    }

    /// An emulated write of eight bytes.
    pub fn emulate(&mut self, gpa: u64, value: u64) {
        self.poke(gpa, value);
        self.shadow.track_write(Gpa(gpa), 8, &self.host).unwrap();
    }

    /// Writes the guest's memory without telling anyone.
    pub fn poke(&self, gpa: u64, value: u64) {
        let memory = InGuest(self);
        let hpa = memory.hpa(gpa & !7).unwrap();
        self.host.memory.borrow().write_entry(hpa, value).unwrap();
    }

    pub fn poke32(&self, gpa: u64, value: u32) {
        let both = self.peek(gpa & !7);
        let shift = (gpa & 4) * 8;
        self.poke(gpa & !7, both & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    pub fn peek(&self, gpa: u64) -> u64 {
        InGuest(self).read_entry(gpa & !7).unwrap()
    }

    pub fn hpa(&self, gpa: u64) -> u64 {
        InGuest(self).hpa(gpa).unwrap()
    }

    /// The rights that the shadow grants for an address, if it maps it.
    pub fn granted(&self, context: usize, gva: u64) -> Option<Rights> {
        let paging = Paging { controls: ept::Controls::empty(), ..*self.contexts[context].paging() };
        walk(&self.host, &paging, gva, Access::READ, Flags::Keep).outcome.ok().map(|leaf| leaf.rights())
    }

    pub fn zap(&mut self, gpa: u64, bytes: u64) {
        self.shadow.zap(AddrRange::new(Gpa(gpa), bytes.into()).unwrap(), &self.host).unwrap();
    }

    /// Counters against tables.
    pub fn check(&self) {
        assert_eq!(self.shadow.table_bytes(), self.host.tables.get() as u64 * K4, "tables");
        let pages: Vec<&ShadowPage> = self.shadow.shadow_pages().collect();
        let mut leaves = [0; 3];
        for page in &pages {
            let entries = (0..512).map(|n| self.host.read_entry(page.entry_address(n)).unwrap());
            let present = entries.filter(|entry| entry & P != 0).collect::<Vec<_>>();
            assert_eq!(present.len(), usize::from(page.used), "{:?}", page.role);
            let level = page.role.level;
            let is_leaf = |entry: &&u64| level == 1 || **entry & PS != 0;
            if level <= 3 {
                leaves[usize::from(level - 1)] += present.iter().filter(is_leaf).count() as u64;
            }
        }
        let Stats { pages_4k, pages_2m, pages_1g, .. } = self.shadow.stats();
        assert_eq!(leaves, [pages_4k, pages_2m, pages_1g]);
        let unsync = pages.iter().filter(|page| page.unsync).count() as u64;
        assert_eq!(unsync, self.shadow.shadow_stats().mmu_unsync);
        let report = self.verify();
        assert!(
            report.findings.is_empty(),
            "{:#?}",
            report.findings.iter().map(|f| f.to_string()).collect::<Vec<_>>()
        );
    }

    /// What the verifier says of the roots in use.
    pub fn verify(&self) -> Report {
        let unsync: Vec<Gpa> = self.shadow.unsync_tables().collect();
        let shadows: Vec<_> = self
            .contexts
            .iter()
            .filter(|context| !self.shadow.is_obsolete(context))
            .filter_map(|context| {
                let guest = *context.guest()?;
                Some(ept::verify::Shadow { paging: *context.paging(), guest, unsync: &unsync })
            })
            .collect();
        let slots: Vec<_> = self.slots.slots.iter().map(|&slot| slot.into()).collect();
        let guest = Guest {
            process: 0,
            roots: &[],
            shadows: &shadows,
            slots: &slots,
            host: &HostFramesOf(&self.host.pages),
            policy: Policy::kvm(Kind::Ia32e),
            leaves: None,
            tables: None,
            caches: None,
        };
        let ram = AddrRange::new(Hpa(0), 1 << 34).unwrap();
        ept::verify::verify(&self.host, &[guest], ram, 20).unwrap()
    }

    /// Gives everything back, and sees that nothing is left.
    pub fn finish(mut self) {
        for context in std::mem::take(&mut self.contexts) {
            self.shadow.unload(context, &self.host).unwrap();
        }
        self.shadow.zap_all(&self.host).unwrap();
        assert_eq!(self.shadow.shadow_pages().count(), 0);
        assert_eq!(self.host.tables.get(), 0);
    }
}

/// A 64-bit guest whose tables lie from 1 MiB on.
pub fn long_mode(cr3: u64) -> Registers {
    Registers {
        cr0: 1 << 31 | 1 | CR0_WP,
        cr3,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_NXE,
        ..Registers::default()
    }
}
