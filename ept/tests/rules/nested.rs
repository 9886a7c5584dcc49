//! Two-dimensional walks over tables made by hand.

use ept::{
    Access, Attributes, Controls, Cr3, Ept, EptCaps, Fault, Flags, Format, FrameAllocator, Ia32e, Kind,
    Levels, Mapper, MaxPhyAddr, MemoryError, Misconfiguration, NestedFault, NestedWalk, PageFaultCode,
    Paging, PhysMemory, Qualification, Rights, SparseMemory, nested_translate, nested_walk,
};
use memory_model::{Gpa, Gva, PageSize};

/// Where guest-physical 0 lies in the host.
pub const RAM: u64 = 0x4000_0000;
pub const GVA: Gva = Gva(0x40_0123);
pub const DATA: u64 = 0x1_8000;
pub const FULL: Rights = Rights::RWX.union(Rights::USER);

/// Guest-physical memory, at one stretch of the host's: where a guest builds its own tables.
struct GuestMemory<'a>(&'a mut SparseMemory, u64);

impl PhysMemory for GuestMemory<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.0.read_entry(address + RAM)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange(address + RAM, current, new)
    }
}

impl FrameAllocator for GuestMemory<'_> {
    fn allocate_table(&mut self) -> Option<u64> {
        self.1 += 0x1000;
        Some(self.1)
    }
    fn free_table(&mut self, _: u64) {}
}

pub struct World {
    pub memory: SparseMemory,
    pub guest: Paging,
    pub second: Paging,
}

/// A guest with one page, [`GVA`] to [`DATA`], whose 2 MiB of memory the second level maps in pages of `size`.
pub fn world(kind: Kind, levels: Levels, size: PageSize, ept_flags: bool) -> World {
    let processor = Ia32e::new(levels, MaxPhyAddr::MAX);
    let second = match kind {
        Kind::Ept => Format::ept(Ept {
            accessed_dirty: ept_flags,
            ..Ept::new(levels, EptCaps::all(), MaxPhyAddr::MAX)
        }),
        _ => Format::npt(processor),
    };
    world_of(second, processor, size)
}

pub fn world_of(second: Format, guest: Ia32e, size: PageSize) -> World {
    let mut memory = SparseMemory::allocating_from(0x10_0000);
    for page in 0..32 {
        memory.add_frame(RAM + page * 0x1000);
    }
    let second = Paging::new(second, memory.allocate_table().unwrap());
    let kind = second.format.kind();
    let rights = if kind == Kind::Ept { Rights::RWX } else { FULL };
    let mut mapper = Mapper::new(&mut memory, second);
    for gpa in (0..0x20_0000).step_by(size.bytes() as usize) {
        mapper.map(gpa, RAM + gpa, size, Attributes::ram(kind, rights)).unwrap();
    }
    let guest = Paging::ia32e(Cr3::new(0x1000, MaxPhyAddr::MAX).unwrap(), guest, Controls::WP);
    let mut guest_memory = GuestMemory(&mut memory, 0x1000);
    let page = Attributes::ram(Kind::Ia32e, FULL);
    Mapper::new(&mut guest_memory, guest).map(GVA.raw() & !0xfff, DATA, PageSize::Size4K, page).unwrap();
    World { memory, guest, second }
}

pub fn ept() -> World {
    world(Kind::Ept, Levels::Four, PageSize::Size4K, false)
}

impl World {
    /// With the fast walk beside it, which must come to the same.
    pub fn walk(&self, access: Access, flags: Flags) -> NestedWalk {
        let Self { memory, guest, second } = self;
        let quick = nested_translate(memory, Some(guest), second, GVA, access, Flags::Keep);
        let walk = nested_walk(memory, Some(guest), second, GVA, access, Flags::Keep);
        assert_eq!(quick, walk.outcome);
        nested_walk(memory, Some(guest), second, GVA, access, flags)
    }

    /// Changes the leaf of the second level for `gpa`.
    pub fn set_second_leaf(&self, gpa: Gpa, change: impl Fn(u64) -> u64) {
        let walk = ept::walk(&self.memory, &self.second, gpa.raw(), Access::READ, Flags::Keep);
        let leaf = walk.path.last().unwrap();
        self.memory.write_entry(leaf.entry_address(), change(leaf.entry)).unwrap();
    }

    /// Guest-physical address of the guest's entry at that level.
    pub fn guest_entry(&self, level: u8) -> Gpa {
        let path = self.walk(Access::READ, Flags::Keep).guest;
        Gpa(path.iter().find(|step| step.level == level).unwrap().entry_address())
    }

    pub fn set_guest_entry(&self, level: u8, change: impl Fn(u64) -> u64) {
        let at = self.guest_entry(level).raw() + RAM;
        self.memory.write_entry(at, change(self.memory.read_entry(at).unwrap())).unwrap();
    }

    pub fn protect(&mut self, gpa: Gpa, rights: Rights) {
        let _ = Mapper::new(&mut self.memory, self.second).protect(gpa.raw() & !0xfff, rights).unwrap();
    }

    pub fn unmap(&mut self, gpa: Gpa) {
        let _ = Mapper::new(&mut self.memory, self.second).unmap(gpa.raw() & !0xfff).unwrap();
    }
}

pub fn violation(bits: Qualification) -> Fault {
    Fault::EptViolation { qualification: bits }
}

pub const TABLE: Qualification = Qualification::LINEAR_VALID;
/// With what the guest's page grants: all.
pub const FINAL: Qualification = Qualification::LINEAR_VALID
    .union(Qualification::FINAL)
    .union(Qualification::GUEST_USER)
    .union(Qualification::GUEST_WRITABLE);

#[test]
fn d1_references_are_counted() {
    for (levels, size, references) in [
        (Levels::Four, PageSize::Size4K, 24),
        (Levels::Five, PageSize::Size4K, 35),
        (Levels::Four, PageSize::Size2M, 19),
    ] {
        let walk = world(Kind::Ept, levels, size, true).walk(Access::WRITE, Flags::Set);
        let leaf = walk.outcome.unwrap();
        assert_eq!(walk.references, references, "{levels:?} {size}");
        assert_eq!((leaf.gpa.raw(), leaf.hpa.raw()), (DATA + 0x123, RAM + DATA + 0x123));
        assert_eq!(leaf.rights(), FULL);
        assert_eq!(walk.guest.len(), levels as usize);
    }
}

#[test]
fn a_guest_without_paging_is_translated_once() {
    let world = ept();
    let walk = nested_walk(&world.memory, None, &world.second, Gva(DATA), Access::READ, Flags::Keep);
    assert_eq!((walk.outcome.unwrap().hpa.raw(), walk.references), (RAM + DATA, 4));
}

#[test]
fn d2_a_guest_fault_stays_in_the_guest() {
    let world = ept();
    world.set_guest_entry(2, |entry| entry & !2);
    let code = PageFaultCode::PRESENT | PageFaultCode::WRITE | PageFaultCode::USER;
    let denied = world.walk(Access::WRITE.by_user(), Flags::Set).outcome;
    assert_eq!(denied, Err(NestedFault::Guest(Fault::PageFault { code })));
    world.set_guest_entry(1, |_| 0);
    let absent = world.walk(Access::READ, Flags::Set).outcome;
    assert_eq!(absent, Err(NestedFault::Guest(Fault::PageFault { code: PageFaultCode::empty() })));
    let high = Gva(1 << 47);
    let walk = nested_walk(&world.memory, Some(&world.guest), &world.second, high, Access::READ, Flags::Keep);
    assert_eq!(walk.outcome, Err(NestedFault::Guest(Fault::NonCanonical { address: 1 << 47 })));
}

#[test]
fn d2_a_violation_on_each_guest_table_has_bit_8_clear() {
    for level in 1..=4 {
        let mut world = ept();
        let gpa = world.guest_entry(level);
        world.unmap(gpa);
        let fault = violation(Qualification::READ | TABLE);
        let walk = world.walk(Access::WRITE, Flags::Set);
        assert_eq!(walk.outcome, Err(NestedFault::Table { gpa, fault }), "level {level}");
        assert_eq!(walk.guest.len(), usize::from(4 - level));
    }
}

#[test]
fn d2_a_violation_on_the_final_access_has_bit_8_set() {
    let gpa = Gpa(DATA + 0x123);
    let cases = [
        (Access::READ, Qualification::READ),
        (Access::WRITE, Qualification::WRITE),
        (Access::FETCH, Qualification::FETCH),
        (Access::READ_WRITE, Qualification::READ | Qualification::WRITE),
    ];
    for (access, does) in cases {
        let mut world = ept();
        world.unmap(gpa);
        let fault = violation(does | FINAL);
        assert_eq!(world.walk(access, Flags::Set).outcome, Err(NestedFault::Final { gpa, fault }));
    }
}

#[test]
fn v1_the_qualification_shows_what_the_entries_grant() {
    let gpa = Gpa(DATA + 0x123);
    let mut world = ept();
    world.protect(gpa, Rights::READ | Rights::EXEC);
    let granted = Qualification::READABLE | Qualification::EXECUTABLE;
    let fault = violation(Qualification::WRITE | granted | FINAL);
    assert_eq!(world.walk(Access::WRITE, Flags::Keep).outcome, Err(NestedFault::Final { gpa, fault }));
    world.protect(gpa, Rights::READ);
    let fault = violation(Qualification::FETCH | Qualification::READABLE | FINAL);
    assert_eq!(world.walk(Access::FETCH, Flags::Keep).outcome, Err(NestedFault::Final { gpa, fault }));
    world.protect(gpa, Rights::EXEC);
    let fault = violation(Qualification::READ | Qualification::EXECUTABLE | FINAL);
    assert_eq!(world.walk(Access::READ, Flags::Keep).outcome, Err(NestedFault::Final { gpa, fault }));
}

#[test]
fn a2_with_ept_flags_a_guest_table_access_is_a_write() {
    let mut world = world(Kind::Ept, Levels::Four, PageSize::Size4K, true);
    assert!(world.walk(Access::READ, Flags::Set).outcome.is_ok());
    let gpa = world.guest_entry(3);
    world.protect(gpa, Rights::READ);
    let does = Qualification::READ | Qualification::WRITE;
    let fault = violation(does | Qualification::READABLE | TABLE);
    assert_eq!(world.walk(Access::READ, Flags::Keep).outcome, Err(NestedFault::Table { gpa, fault }));
}

#[test]
fn a2_with_ept_flags_a_walk_dirties_the_guest_tables_but_not_the_data_it_reads() {
    let world = world(Kind::Ept, Levels::Four, PageSize::Size4K, true);
    let walk = world.walk(Access::READ, Flags::Set);
    let flags = |gpa| {
        let leaf = ept::walk(&world.memory, &world.second, gpa, Access::READ, Flags::Keep).outcome.unwrap();
        (leaf.entry >> 8 & 1, leaf.entry >> 9 & 1)
    };
    for step in walk.guest.iter() {
        assert_eq!(flags(step.table), (1, 1));
    }
    assert_eq!(flags(DATA), (1, 0));
    assert_eq!(flags(DATA + 0x1000), (0, 0), "never used");
}

#[test]
fn a2_without_ept_flags_only_a_guest_flag_update_needs_w() {
    for level in 1..=4 {
        let mut world = ept();
        let gpa = world.guest_entry(level);
        world.protect(gpa, Rights::READ);
        let does = Qualification::READ | Qualification::WRITE;
        let fault = violation(does | Qualification::READABLE | TABLE);
        let refused = Err(NestedFault::Table { gpa, fault });
        assert_eq!(world.walk(Access::READ, Flags::Set).outcome, refused, "A at level {level}");
        world.set_guest_entry(level, |entry| entry | 1 << 5);
        assert!(world.walk(Access::READ, Flags::Set).outcome.is_ok(), "A is set already at level {level}");
        let write = world.walk(Access::WRITE, Flags::Set).outcome;
        assert_eq!(write.is_err(), level == 1, "D is set in the leaf alone");
    }
}

#[test]
fn a_misconfiguration_is_told_apart_on_table_and_on_final_access() {
    for (level, is_final) in [(3, false), (1, true)] {
        let world = ept();
        let gpa = if is_final { Gpa(DATA + 0x123) } else { world.guest_entry(level) };
        let leaf = ept::walk(&world.memory, &world.second, gpa.raw(), Access::READ, Flags::Keep);
        let step = *leaf.path.last().unwrap();
        world.memory.write_entry(step.entry_address(), step.entry & !1).unwrap();
        let fault = Fault::EptMisconfiguration { reason: Misconfiguration::WriteWithoutRead };
        let expected = match is_final {
            true => NestedFault::Final { gpa, fault },
            false => NestedFault::Table { gpa, fault },
        };
        assert_eq!(world.walk(Access::READ, Flags::Keep).outcome, Err(expected));
    }
}

#[test]
fn m9_a_guest_physical_address_wider_than_the_table_is_distinct() {
    let world = ept();
    let wide = 1 << 48;
    world.set_guest_entry(1, |entry| entry & 0xfff | wide);
    let expected =
        NestedFault::Final { gpa: Gpa(wide + 0x123), fault: Fault::TooWide { address: wide + 0x123 } };
    assert_eq!(world.walk(Access::READ, Flags::Keep).outcome, Err(expected));
}

#[test]
fn a_second_level_table_outside_memory_is_distinct() {
    let world = ept();
    world.memory.write_entry(world.second.root, 0x9_0000_0000 | 7).unwrap();
    let gpa = world.guest.root;
    let fault = Fault::Memory(MemoryError::Absent { address: 0x9_0000_0000 });
    let found = world.walk(Access::READ, Flags::Keep).outcome;
    assert_eq!(found, Err(NestedFault::Table { gpa: Gpa(gpa), fault }));
}

/// Rules N2 and N4: the exact `exit_info_1`.
#[test]
fn n4_nested_page_faults_carry_exact_codes() {
    let gpa = Gpa(DATA + 0x123);
    let npt = || world(Kind::Npt, Levels::Four, PageSize::Size4K, false);
    let code = |world: &World, access| match world.walk(access, Flags::Keep).outcome {
        Err(NestedFault::Final { fault: Fault::PageFault { code }, .. }) => code.bits(),
        Err(NestedFault::Table { fault: Fault::PageFault { code }, .. }) => code.bits(),
        other => panic!("{other:?}"),
    };
    let mut world = npt();
    assert_eq!(world.walk(Access::WRITE, Flags::Keep).references, 24);
    world.protect(gpa, FULL - Rights::EXEC);
    assert_eq!(code(&world, Access::FETCH), 0x1_0000_0015);
    world.protect(gpa, FULL - Rights::USER);
    assert_eq!(code(&world, Access::READ), 0x1_0000_0005);
    world.protect(gpa, FULL - Rights::WRITE);
    assert_eq!(code(&world, Access::WRITE), 0x1_0000_0007);
    world.unmap(gpa);
    assert_eq!(code(&world, Access::READ), 0x1_0000_0004);

    let mut world = npt();
    let table = world.guest_entry(4);
    world.protect(table, FULL - Rights::WRITE);
    assert_eq!(code(&world, Access::READ), 0x2_0000_0007);

    let world = npt();
    let top = world.memory.read_entry(world.second.root).unwrap();
    world.memory.write_entry(world.second.root, top | 1 << 7).unwrap();
    assert_eq!(code(&world, Access::READ), 0x2_0000_000f);
}
