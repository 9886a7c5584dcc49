//! Random guests: those that are built well have no finding, and where something is changed, the findings are those of
//! the slow verifier.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, SlotLookup, Tdp, TdpOptions,
};
use ept::verify::{DirtyLog, Guest, HostPage, Policy};
use ept::{
    Access, Attributes, EptCaps, FrameAllocator, Kind, Levels, Mapper, MemoryError, PhysMemory, Rights, Role,
    SparseMemory, mappings,
};
use memory_model::{Gpa, Hpa, Hva, PageSize};
use proptest::prelude::*;

use crate::oracle::{self, Broken};
use crate::world::*;

/// Numbers that tell nothing of each other (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// One time in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

const LOG: &[u64] = &[0x5555_aaaa_0f0f_1234, 0, u64::MAX, 0x8000_0000_0000_0001];

fn random_slots(world: &mut World, dice: &mut Dice) {
    for number in 0..1 + dice.below(4) {
        let base = number * 32 * M2 + dice.below(600) * K4;
        let bytes = (1 + dice.below(1500)) * K4;
        // With frames and HVA like the GPA, or not.
        let huge = !dice.one_in(3);
        let hva = 0x7f00_0000_0000 + number * G1 + if huge { base } else { base + dice.below(512) * K4 };
        let mut slot = slot(base, bytes, hva);
        slot.memslot.readonly = dice.one_in(5);
        if dice.one_in(4) {
            slot.memslot.log_dirty = true;
            slot.log = dice.pick(&[DirtyLog::Pml, DirtyLog::Bitmap(LOG)]);
        }
        world.slots.push(slot);
        let frames = G1 + number * 64 * M2;
        let pages = bytes / K4;
        let odd = dice.roll() | 1;
        for page in 0..pages {
            let hpa = match huge {
                true => frames + base % M2 + page * K4,
                false => frames + page.wrapping_mul(odd) % pages.next_power_of_two() * K4,
            };
            let mut host = HostPage::at(Hpa(hpa));
            if !huge && dice.one_in(50) {
                host = dice.pick(&[host.shared(), host.shared().read_only(), host.read_only()]);
            }
            world.host.set(hva + page * K4, host);
        }
    }
}

/// Leaves that the slots allow, of the sizes that they allow.
fn random_leaves(world: &mut World, dice: &mut Dice) {
    let (kind, format) = (world.kind(), world.roots[0].format);
    for slot in world.slots.clone() {
        let Memslot { base, bytes, hva, readonly, log_dirty } = slot.memslot;
        let mut at = 0;
        while at < bytes {
            let gpa = base.raw() + at;
            let congruent = gpa.is_multiple_of(M2) && (hva.raw() + at).is_multiple_of(M2) && at + M2 <= bytes;
            let frame = world.host.get(hva.raw() + at).hpa().unwrap().raw();
            let large = congruent && !log_dirty && frame.is_multiple_of(M2) && !dice.one_in(3);
            let size = if large { PageSize::Size2M } else { PageSize::Size4K };
            at += size.bytes();
            if dice.one_in(5) {
                continue;
            }
            let page = (gpa - base.raw()) / K4;
            let logged = match slot.log {
                DirtyLog::Bitmap(words) if log_dirty => {
                    words.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
                }
                _ => true,
            };
            let host = world.host.get(hva.raw() + gpa - base.raw());
            let mut rights = world.all();
            if readonly || !logged || host.is_read_only() || dice.one_in(3) {
                rights -= Rights::WRITE;
            }
            if dice.one_in(3) {
                rights -= Rights::EXEC;
            }
            let role = |role| format.bits(role, size.level(), true);
            let flags = dice.pick(&[0, role(Role::Accessed), role(Role::Accessed) | role(Role::Dirty)]);
            let attributes = Attributes { software: flags, ..Attributes::ram(kind, rights) };
            Mapper::new(&mut world.memory, world.roots[0]).map(gpa, frame, size, attributes).unwrap();
        }
    }
}

fn random_world(kind: Kind, seed: u64) -> (World, Dice) {
    let mut dice = Dice(seed);
    let mut world = World::empty(format(kind));
    random_slots(&mut world, &mut dice);
    random_leaves(&mut world, &mut dice);
    (world, dice)
}

/// Addresses of entries in use, of all levels.
fn entries(world: &World) -> Vec<u64> {
    let all = world.frames().into_iter().flat_map(|frame| (frame.raw()..).step_by(8).take(512));
    all.filter(|&entry| world.read(entry) != 0).collect()
}

fn mutate(world: &mut World, dice: &mut Dice) {
    let entries = entries(world);
    let (entry, other) = match entries[..] {
        [] => (world.roots[0].root, world.roots[0].root),
        _ => (dice.pick(&entries), dice.pick(&entries)),
    };
    let slot = dice.below(world.slots.len() as u64) as usize;
    let memslot = world.slots[slot].memslot;
    let hva = memslot.hva.raw() + dice.below(memslot.bytes / K4) * K4;
    match dice.below(12) {
        0..4 => world.flip(entry, 1 << dice.below(64)),
        4 => world.write(entry, dice.roll()),
        5 => world.write(entry, dice.roll() & 0xfff | (TABLES + dice.below(8) * K4)),
        6 => world.write(entry, world.read(other)),
        7 => world.write(entry, world.read(entry) ^ dice.below(1 << 20) << 12),
        8 => world.slots[slot].memslot.readonly ^= true,
        9 => world.slots[slot].memslot.bytes -= dice.below(memslot.bytes / K4) * K4,
        10 => {
            let page = HostPage::at(Hpa(dice.below(1 << 20) * K4));
            world.host.set(hva, dice.pick(&[page, page.shared(), HostPage::ABSENT, HostPage::UNKNOWN]));
        }
        _ => {
            let page = world.host.get(hva);
            world.host.set(hva, dice.pick(&[page.read_only(), page.device(), page.shared()]));
        }
    }
}

fn found(world: &World) -> Broken {
    let report = ept::verify::verify(&world.memory, &[world.guest()], ram(), usize::MAX).unwrap();
    assert_eq!(report.total(), report.findings.len() as u64);
    report.findings.iter().map(|found| (found.violation.invariant().number(), found.address.raw())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn guests_that_the_mapper_has_built_have_no_finding(kind in kinds(), seed: u64) {
        let (mut world, _) = random_world(kind, seed);
        let mut leaves = [0; 3];
        for page in mappings(&world.memory, &world.roots[0]) {
            leaves[page.size as usize] += 1;
        }
        world.leaves = Some(leaves);
        world.tables = Some(world.frames());
        let report = world.verify();
        prop_assert!(report.is_clean(), "{}", report);
        prop_assert_eq!(report.coverage.frames, leaves[0] + leaves[1] * 512);
    }

    #[test]
    fn what_is_changed_is_found_as_the_slow_verifier_finds_it(kind in kinds(), seed: u64, changes in 1..5) {
        let (mut world, mut dice) = random_world(kind, seed);
        prop_assert_eq!(oracle::broken(&world), Broken::new());
        for _ in 0..changes {
            mutate(&mut world, &mut dice);
        }
        prop_assert_eq!(found(&world), oracle::broken(&world));
        // In threads too, and kept within a limit.
        world.verify();
    }

    #[test]
    fn guests_that_the_tdp_mmu_has_built_have_no_finding(ept: bool, flags: bool, seed: u64) {
        tdp(ept, flags, seed);
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Ept), Just(Kind::Npt), Just(Kind::Ia32e)]
}

/// A host for the MMU: the same pages as the verifier's.
struct Frames {
    memory: RefCell<SparseMemory>,
    host: Host,
    size: PageSize,
}

impl PhysMemory for Frames {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.borrow().read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.memory.borrow().compare_exchange(address, current, new)
    }
}

impl HostFrames for Frames {
    fn host_frame(&self, hva: Hva, _: bool) -> Result<HostFrame, HostFault> {
        let page = self.host.get(hva.align_down(PageSize::Size4K).raw());
        let hpa = page.hpa().ok_or(HostFault::Unmapped)?;
        Ok(HostFrame { hpa, size: self.size, writable: !page.is_read_only() })
    }
    fn allocate_table(&self) -> Option<u64> {
        self.memory.borrow_mut().allocate_table()
    }
    fn free_table(&self, frame: u64) {
        self.memory.borrow_mut().free_table(frame);
    }
}

#[derive(Default)]
struct Logged {
    slots: Vec<Memslot>,
    dirty: RefCell<BTreeMap<u64, Vec<u64>>>,
}

impl Logged {
    fn holding(&self, gpa: Gpa) -> Option<Memslot> {
        self.slots.iter().copied().find(|slot| slot.hva_of(gpa).is_some())
    }
}

impl Memslots for Logged {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        self.holding(gpa).into()
    }
    fn mark_page_dirty(&self, gpa: Gpa) {
        let slot = self.holding(gpa).unwrap();
        let page = (gpa.raw() - slot.base.raw()) / K4;
        let mut dirty = self.dirty.borrow_mut();
        let words =
            dirty.entry(slot.base.raw()).or_insert_with(|| vec![0; (slot.bytes / K4 / 64) as usize + 1]);
        words[(page / 64) as usize] |= 1 << (page % 64);
    }
}

/// Faults on random pages, as KVM takes them; then slots, dirty log, host, counters and list of tables must all fit.
fn tdp(is_ept: bool, flags: bool, seed: u64) {
    let mut dice = Dice(seed);
    let format = if is_ept { ept(EptCaps::all(), Levels::Four, flags) } else { format(Kind::Npt) };
    let mut world = World::empty(format);
    random_slots(&mut world, &mut dice);
    let logged = Logged { slots: world.slots.iter().map(|slot| slot.memslot).collect(), ..Logged::default() };
    // Large host pages only where all slots have their frames in a row.
    let rows = world.slots.iter().all(|slot| {
        let Memslot { hva, bytes, .. } = slot.memslot;
        let first = world.host.get(hva.raw()).hpa().unwrap().raw();
        (0..bytes)
            .step_by(K4 as usize)
            .all(|at| world.host.get(hva.raw() + at) == HostPage::at(Hpa(first + at)))
    });
    let size = if rows { PageSize::Size2M } else { PageSize::Size4K };
    let memory = SparseMemory::allocating_from(TABLES);
    let frames = Frames { memory: RefCell::new(memory), host: world.host.clone(), size };
    let tdp = Tdp::new(format, TdpOptions::default(), &frames).unwrap();
    for _ in 0..dice.below(400) {
        let slot = dice.pick(&logged.slots);
        let gpa = slot.base.raw() + dice.below(slot.bytes / K4) * K4;
        let access = dice.pick(&[Access::READ, Access::WRITE, Access::FETCH]);
        let outcome = tdp.fault(Gpa(gpa), access, &logged, &frames).unwrap();
        assert!(!matches!(outcome, FaultOutcome::Mmio { .. }), "{outcome:?}");
    }
    let dirty = logged.dirty.borrow();
    for slot in &mut world.slots {
        if slot.memslot.log_dirty {
            let words = dirty.get(&slot.memslot.base.raw());
            slot.log = DirtyLog::Bitmap(words.map_or(&[], |words| words.clone().leak()));
        }
    }
    let stats = tdp.stats();
    let tables: Vec<_> = tdp.pages(&frames).unwrap().iter().map(|page| page.table).collect();
    let guest = Guest {
        roots: &[*tdp.paging()],
        policy: Policy { dirty_implies_accessed: true, ..Policy::kvm(format.kind()) },
        leaves: Some([stats.pages_4k, stats.pages_2m, stats.pages_1g]),
        tables: Some(&tables),
        ..world.guest()
    };
    let report = verify(&frames.memory.borrow(), &[guest]);
    assert!(report.is_clean(), "{report}");
}
