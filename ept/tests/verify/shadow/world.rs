//! A guest with paging of its own, and a shadow built page by page.

use ept::verify::{DirtyLog, Guest, HostPage, Report, Shadow, Slot};
use ept::{
    Access, Attributes, Controls, Cr3, Flags, FrameAllocator, Ia32e, Kind, Levels, Mapper, MemoryError,
    Paging, PhysMemory, Rights, SparseMemory,
};
use memory_model::{Gpa, Gva, Hpa, PageSize};

use crate::world::*;

pub const FULL: Rights = Rights::RWX.union(Rights::USER);
/// The guest's tables lie in its first pages, the root in the second.
pub const ROOT: u64 = K4;
pub const TABLE_PAGES: u64 = 64;
/// Slots: small pages out of order, a large stretch in one piece, one to read only, one that is logged.
pub const SMALL: u64 = 0;
pub const SMALL_PAGES: u64 = 128;
pub const LARGE: u64 = 2 * M2;
pub const LARGE_BYTES: u64 = 4 * M2;
pub const READ_ONLY: u64 = 8 * M2;
pub const LOGGED: u64 = 9 * M2;
pub const HVA: u64 = 0x7f00_0000_0000;

/// A page of the guest, as its tables map it.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub gva: u64,
    pub gpa: u64,
    pub size: PageSize,
    pub rights: Rights,
    /// The guest has written it: D is set.
    pub dirty: bool,
}

pub fn page(gva: u64, gpa: u64) -> Page {
    Page { gva, gpa, size: PageSize::Size4K, rights: FULL, dirty: true }
}

pub struct ShadowWorld {
    /// Host, slots and memory; its root is the shadow's.
    pub world: World,
    pub guest: Paging,
    pub unsync: Vec<Gpa>,
    next_table: u64,
}

/// The guest's memory.
struct InGuest<'a> {
    memory: &'a mut SparseMemory,
    host: &'a Host,
    next: &'a mut u64,
}

impl InGuest<'_> {
    fn hpa(&self, gpa: u64) -> u64 {
        self.host.get(HVA + gpa).hpa().unwrap().raw() + gpa % K4
    }
}

impl PhysMemory for InGuest<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.read_entry(self.hpa(address))
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.memory.compare_exchange(self.hpa(address), current, new)
    }
}

impl FrameAllocator for InGuest<'_> {
    fn allocate_table(&mut self) -> Option<u64> {
        *self.next += K4;
        assert!(*self.next < TABLE_PAGES * K4);
        Some(*self.next)
    }
    fn free_table(&mut self, _: u64) {}
}

impl ShadowWorld {
    pub fn new(controls: Controls) -> Self {
        let mut world = World::empty(format(Kind::Ia32e));
        world.slots =
            [(SMALL, SMALL_PAGES * K4), (LARGE, LARGE_BYTES), (READ_ONLY, 4 * K4), (LOGGED, 4 * K4)]
                .map(|(base, bytes)| slot(base, bytes, HVA + base))
                .to_vec();
        world.slots[2].memslot.readonly = true;
        world.slots[3].memslot.log_dirty = true;
        world.slots[3].log = DirtyLog::Bitmap(&[0b1010]);
        for n in 0..SMALL_PAGES {
            let hpa = 0x2000_0000 + n * 7 % SMALL_PAGES * K4;
            world.host.map(HVA + n * K4, hpa, K4);
            if n < TABLE_PAGES {
                world.memory.add_frame(hpa);
            }
        }
        world.host.map(HVA + LARGE, 0x3000_0000, LARGE_BYTES);
        world.host.map(HVA + READ_ONLY, 0x2800_0000, 4 * K4);
        world.host.map(HVA + LOGGED, 0x2900_0000, 4 * K4);
        let guest = Paging::ia32e(Cr3::new(ROOT, WIDTH).unwrap(), Ia32e::new(Levels::Four, WIDTH), controls);
        Self { world, guest, unsync: Vec::new(), next_table: ROOT }
    }

    /// The guest maps a page and uses it.
    pub fn guest_maps(&mut self, page: Page) {
        let Page { gva, gpa, size, rights, dirty } = page;
        let Self { world, guest, next_table, .. } = self;
        let mut inside = InGuest { memory: &mut world.memory, host: &world.host, next: next_table };
        let flags = if dirty { 1 << 6 } else { 0 };
        let attributes = Attributes { software: flags, ..Attributes::ram(Kind::Ia32e, rights) };
        Mapper::new(&mut inside, *guest).map(gva, gpa, size, attributes).unwrap();
        let look = Paging { controls: Controls::empty(), ..*guest };
        ept::walk(&inside, &look, gva, Access::READ, Flags::Set).outcome.unwrap();
    }

    /// What the shadow should grant for a page of the guest at `gpa`.
    pub fn shadow_rights(&self, page: Page, gpa: u64) -> Rights {
        let synced = gpa < TABLE_PAGES * K4;
        let logged = gpa / M2 == LOGGED / M2 && ((gpa - LOGGED) / K4).is_multiple_of(2);
        let read_only = gpa / M2 == READ_ONLY / M2;
        let withheld =
            if synced || logged || read_only || !page.dirty { Rights::WRITE } else { Rights::empty() };
        page.rights - withheld
    }

    /// Puts one leaf into the shadow: for 4K of a page, or all of a large one.
    pub fn shadow_maps(&mut self, page: Page, gva: u64, size: PageSize) {
        let gpa = page.gpa + (gva - page.gva);
        let frame = self.world.host.get(HVA + gpa).hpa().unwrap().raw();
        let rights = self.shadow_rights(page, gpa);
        self.world.map_to(0, gva, frame, size, rights);
    }

    /// The whole shadow, 4K by 4K; large pages as such if `large`.
    pub fn shadow(&mut self, pages: &[Page], large: impl Fn(&Page) -> bool) {
        for page in pages {
            let size = if large(page) { page.size } else { PageSize::Size4K };
            for gva in (page.gva..page.gva + page.size.bytes()).step_by(size.bytes() as usize) {
                self.shadow_maps(*page, gva, size);
            }
        }
    }

    pub fn of(controls: Controls, pages: &[Page]) -> Self {
        let mut world = Self::new(controls);
        pages.iter().for_each(|&page| world.guest_maps(page));
        world.shadow(pages, |page| page.size == PageSize::Size2M);
        world
    }

    /// Pages of all slots, and one of 2M.
    pub fn usual(controls: Controls) -> Self {
        Self::of(controls, &usual())
    }

    /// Where the host keeps the guest's entry of that level.
    pub fn guest_entry(&self, gva: u64, level: u8) -> u64 {
        let mut table = ROOT;
        for at in (level + 1..=4).rev() {
            table = self.world.read(self.hpa(table + index(gva, at) * 8)) & 0x000f_ffff_ffff_f000;
        }
        self.hpa(table + index(gva, level) * 8)
    }

    pub fn hpa(&self, gpa: u64) -> u64 {
        self.world.host.get(HVA + gpa).hpa().unwrap().raw() + gpa % K4
    }

    pub fn verify(&self) -> Report {
        self.with(&self.world.slots, |memory, guest| verify(memory, &[guest]))
    }

    /// With a guest made of it.
    pub fn with<T>(&self, slots: &[Slot<'_>], look: impl FnOnce(&SparseMemory, Guest<'_>) -> T) -> T {
        let shadow = Shadow { paging: self.world.roots[0], guest: self.guest, unsync: &self.unsync };
        let guest = Guest { roots: &[], shadows: &[shadow], slots, ..self.world.guest() };
        look(&self.world.memory, guest)
    }
}

pub const A: u64 = 0x40_0000;
pub const B: u64 = 0xffff_8000_0000_0000;
pub const BIG: u64 = 0x60_0000;

pub fn usual() -> Vec<Page> {
    let mut pages: Vec<_> = (0..8).map(|n| page(A + n * K4, (100 + n) * K4)).collect();
    pages[3].rights -= Rights::WRITE;
    pages[4].rights -= Rights::USER;
    pages[5].rights -= Rights::EXEC;
    pages[6].dirty = false;
    pages.push(Page { size: PageSize::Size2M, ..page(BIG, LARGE) });
    pages.push(page(B, READ_ONLY));
    pages.extend((0..4).map(|n| page(B + (1 + n) * K4, LOGGED + n * K4)));
    // One of its own tables.
    pages.push(page(B + 5 * K4, ROOT));
    // The same page again.
    pages.push(page(B + 6 * K4, 100 * K4));
    pages
}

/// The address of a finding in a shadow.
pub fn gva(address: u64) -> ept::verify::Input {
    ept::verify::Input::Gva(Gva(address))
}

pub fn host(hpa: u64) -> HostPage {
    HostPage::at(Hpa(hpa))
}
