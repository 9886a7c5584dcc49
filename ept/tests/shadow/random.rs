//! Random guests with random tables, against the walker: what an access comes to, which frame it reaches, which flags it
//! leaves in the guest's tables. After each step the verifier and the counters are asked.

use ept::mmu::FaultOutcome;
use ept::{Access, Fault, Flags, Paging, Registers, Rights, walk};
use memory_model::{AddrRange, Gpa, PageSize};
use proptest::prelude::*;

use crate::world::*;

/// The guest's tables are among its first pages, as are the pages that it maps: it maps its tables, too.
const PAGES: u64 = 12;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A processor uses an address, after a flush if guest entries were changed without one.
    Access {
        cpu: usize,
        gva: usize,
        offset: u64,
        access: Access,
        flush: Flush,
    },
    /// A processor writes a guest entry through an address that maps it, or else the VMM does.
    Edit {
        page: u64,
        index: usize,
        entry: u64,
    },
    /// It does so by its own mapping, without a flush after it.
    Store {
        cpu: usize,
        gva: usize,
        index: usize,
        entry: u64,
    },
    /// A processor changes the entry that maps an address, by any mapping of its table; then one of them flushes and uses
    /// the address.
    Retarget {
        cpu: usize,
        gva: usize,
        entry: u64,
        user: usize,
        flush: Flush,
    },
    Invlpg {
        cpu: usize,
        gva: usize,
    },
    Load {
        cpu: usize,
        root: u64,
        controls: usize,
    },
    Zap {
        page: u64,
        count: u64,
    },
    Migrate {
        page: u64,
    },
    Log {
        on: bool,
    },
    Misaligned {
        page: u64,
        at: u64,
    },
}

/// How a guest makes a processor see its tables as they are.
#[derive(Clone, Copy, Debug)]
enum Flush {
    /// INVLPG of the address.
    Page,
    /// INVPCID of more than one address.
    All,
    /// MOV to CR3 of what it holds.
    Reload,
    /// A switch to no paging and back: the root is one of the previous ones meanwhile.
    Switch,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Off,
    Legacy32,
    Pae,
    Four,
    Five,
}

const CR4S: [u64; 4] = [0, CR4_SMEP, CR4_SMAP, CR4_PKE];

fn registers(mode: Mode, root: u64, controls: usize, world: &World) -> Registers {
    let wp = if controls & 4 == 0 { CR0_WP } else { 0 };
    let mut registers = Registers {
        cr0: 1 << 31 | 1 | wp,
        cr3: root * K4,
        cr4: CR4_PSE | CR4_PAE | CR4S[controls & 3],
        efer: EFER_NXE,
        ..Registers::default()
    };
    registers.keys.pkru = 0b11_10_01_00;
    match mode {
        Mode::Off => registers.cr0 = 0,
        Mode::Legacy32 => registers.cr4 &= !CR4_PAE,
        Mode::Pae => {
            for (n, pdpte) in registers.pdptes.iter_mut().enumerate() {
                // As MOV to CR3 loads them, but for bits that it would refuse.
                *pdpte = world.peek(root * K4 + n as u64 * 8) & (0xf_f000 | P);
            }
        }
        Mode::Four => registers.efer |= EFER_LME,
        Mode::Five => {
            registers.efer |= EFER_LME;
            registers.cr4 |= CR4_LA57;
        }
    }
    registers
}

/// Indices that addresses are made of, at each level.
const INDICES: [u64; 4] = [0, 1, 2, 511];

/// The 4K pages whose addresses are used.
fn gva(mode: Mode, n: usize) -> u64 {
    let at = |level: u32| INDICES[n >> (2 * (level - 1)) & 3];
    match mode {
        Mode::Off => (n as u64 % 64) * K4 * 5,
        Mode::Legacy32 | Mode::Pae => at(1) << 12 | at(2) << 21 | (at(3) & 3) << 30,
        Mode::Four => sign(at(1) << 12 | at(2) << 21 | (at(3) & 1) << 30 | (at(4) & 1) << 39, 48),
        Mode::Five => sign(
            at(1) << 12 | at(2) << 21 | (at(3) & 1) << 30 | (at(4) & 1) << 39 | (at(4) >> 1 & 1) << 48,
            57,
        ),
    }
}

fn sign(address: u64, bits: u32) -> u64 {
    ((address << (64 - bits)) as i64 >> (64 - bits)) as u64
}

fn entry() -> impl Strategy<Value = u64> {
    let bit = |bit: u64, percent: u32| {
        prop::bool::weighted(f64::from(percent) / 100.0).prop_map(move |on| if on { bit } else { 0 })
    };
    let frame = prop_oneof![12 => 0..PAGES, 2 => Just(512), 1 => Just(SIZE / K4 + 1)];
    let bits = (bit(P, 90), bit(W, 80), bit(U, 80), bit(A, 50), bit(D, 50), bit(PS, 12), bit(NX, 10));
    (frame, bits, 0..4u64).prop_map(|(frame, (p, w, u, a, d, ps, nx), key)| {
        let frame = if ps != 0 { frame / 512 * 512 } else { frame };
        (frame * K4) | p | w | u | a | d | ps | nx | if p != 0 && nx == 0 { key << 59 } else { 0 }
    })
}

fn access() -> impl Strategy<Value = Access> {
    let does = prop_oneof![Just(Rights::READ), Just(Rights::WRITE), Just(Rights::EXEC)];
    (does, any::<bool>(), any::<bool>()).prop_map(|(does, user, ac)| Access { does, user, ac: ac && !user })
}

fn flush() -> impl Strategy<Value = Flush> {
    prop_oneof![Just(Flush::Page), Just(Flush::All), Just(Flush::Reload), Just(Flush::Switch)]
}

fn step() -> impl Strategy<Value = Step> {
    let (cpu, at) = (0..2usize, 0..256usize);
    prop_oneof![
        12 => (cpu.clone(), at.clone(), 0..8u64, access(), flush()).prop_map(|(cpu, gva, offset, access, flush)| Step::Access { cpu, gva, offset: offset * 8, access, flush }),
        6 => (0..PAGES, 0..4usize, entry()).prop_map(|(page, index, entry)| Step::Edit { page, index, entry }),
        6 => (cpu.clone(), at.clone(), 0..4usize, entry()).prop_map(|(cpu, gva, index, entry)| Step::Store { cpu, gva, index, entry }),
        6 => (cpu.clone(), at.clone(), entry(), cpu.clone(), flush()).prop_map(|(cpu, gva, entry, user, flush)| Step::Retarget { cpu, gva, entry, user, flush }),
        2 => (cpu.clone(), at).prop_map(|(cpu, gva)| Step::Invlpg { cpu, gva }),
        3 => (cpu, 0..PAGES, 0..8usize).prop_map(|(cpu, root, controls)| Step::Load { cpu, root, controls }),
        1 => (0..PAGES, 1..4u64).prop_map(|(page, count)| Step::Zap { page, count }),
        1 => (0..PAGES).prop_map(|page| Step::Migrate { page }),
        1 => any::<bool>().prop_map(|on| Step::Log { on }),
        1 => (0..PAGES, 0..K4 - 16).prop_map(|(page, at)| Step::Misaligned { page, at }),
    ]
}

/// An entry as the guest's paging mode has them.
fn fit(mode: Mode, index: usize, entry: u64) -> (u64, u64, bool) {
    let at = INDICES[index];
    match mode {
        Mode::Legacy32 => (at * 4, entry & 0xffff_ffff, true),
        Mode::Pae => (at * 8, entry & !(0xf << 59), false),
        _ => (at * 8, entry, false),
    }
}

struct Run {
    world: World,
    mode: Mode,
    /// Addresses for which a guest entry was changed without a flush may still translate as before.
    lazy: bool,
}

impl Run {
    fn page(&self, cpu: usize) -> Option<Paging> {
        self.world.contexts[cpu].guest().copied()
    }

    fn flush(&mut self, cpu: usize, gva: u64, flush: Flush) {
        let guest = self.page(cpu);
        match flush {
            Flush::Page => self.world.invlpg(cpu, gva),
            Flush::All => self.world.sync_roots(cpu),
            Flush::Reload => self.world.load(cpu, guest.as_ref()),
            Flush::Switch => {
                self.world.load(cpu, None);
                self.world.load(cpu, guest.as_ref());
            }
        }
    }

    /// One access, against the walker over the guest's tables as they are.
    fn access(&mut self, cpu: usize, gva: u64, access: Access, flush: Flush) {
        let guest = self.page(cpu);
        if self.lazy {
            self.flush(cpu, gva, flush);
        }
        let expected = match &guest {
            Some(paging) => {
                walk(&InGuest(&self.world), paging, gva, access, Flags::Keep).outcome.map(|leaf| leaf.address)
            }
            None => Ok(gva),
        };
        let seen = self.world.access(cpu, gva, access);
        match (expected, seen) {
            (Ok(gpa), Ok(hpa)) => assert_eq!(hpa, self.world.hpa(gpa), "{gva:#x}"),
            (Ok(gpa), Err(FaultOutcome::WriteProtected { gpa: at })) => {
                assert!(access.writes());
                assert_eq!(at.raw(), gpa);
            }
            (Ok(gpa), Err(FaultOutcome::Mmio { gpa: at })) => {
                assert_eq!(at.raw(), gpa);
                assert!(gpa >= SIZE);
            }
            (Err(Fault::PageFault { code }), Err(FaultOutcome::Guest(seen))) => {
                assert_eq!(code, seen, "{gva:#x} {access:?}")
            }
            (Err(Fault::Memory(_)), Err(FaultOutcome::Guest(_))) => {}
            other => panic!("{gva:#x} {access:?}: {other:x?}"),
        }
        // Flags as hardware sets them.
        if let (Ok(_), Some(paging)) = (expected, &guest) {
            let walk = walk(&InGuest(&self.world), paging, gva, access, Flags::Keep);
            for (n, step) in walk.path.iter().enumerate() {
                assert!(step.entry & A != 0, "{:x?}", walk.path);
                let leaf = n + 1 == walk.path.len();
                assert!(!leaf || !access.writes() || step.entry & D != 0, "{:x?}", walk.path);
            }
        }
    }

    /// An address that maps the guest's last entry for `at`.
    fn alias_of_entry(&self, cpu: usize, at: u64) -> Option<u64> {
        let (guest, memory) = (self.page(cpu)?, InGuest(&self.world));
        let entry = walk(&memory, &guest, at, Access::READ, Flags::Keep).path.last()?.entry_address();
        (0..256).map(|n| gva(self.mode, n) + entry % K4).find(|&alias| {
            let found = walk(&memory, &guest, alias, Access::WRITE, Flags::Keep).outcome;
            found.is_ok_and(|leaf| leaf.address == entry)
        })
    }

    /// A store by a processor of an entry of eight bytes, or of half as many.
    fn store(&mut self, cpu: usize, at: u64, entry: u64, half: bool) {
        match self.world.access(cpu, at, Access::WRITE) {
            Ok(hpa) => {
                let memory = self.world.host.memory.borrow();
                let (at, shift) = (hpa & !7, (hpa & 4) * 8);
                let old = ept::PhysMemory::read_entry(&*memory, at).unwrap();
                let new = if half { old & !(0xffff_ffff << shift) | entry << shift } else { entry };
                memory.write_entry(at, new).unwrap();
                self.lazy = true;
            }
            Err(FaultOutcome::WriteProtected { gpa }) => {
                let gpa = gpa.raw();
                if half {
                    self.world.poke32(gpa, entry as u32)
                } else {
                    self.world.poke(gpa, entry)
                }
                let bytes = if half { 4 } else { 8 };
                self.world.shadow.track_write(Gpa(gpa), bytes, &self.world.host).unwrap();
            }
            Err(_) => {}
        }
    }

    fn step(&mut self, step: Step) {
        let mode = self.mode;
        match step {
            Step::Access { cpu, gva: n, offset, access, flush } => {
                self.access(cpu, gva(mode, n) + offset, access, flush)
            }
            Step::Edit { page, index, entry } => {
                let (offset, entry, half) = fit(mode, index, entry);
                let gpa = page * K4 + offset;
                if half {
                    self.world.poke32(gpa, entry as u32)
                } else {
                    self.world.poke(gpa, entry)
                }
                let bytes = if half { 4 } else { 8 };
                self.world.shadow.track_write(Gpa(gpa), bytes, &self.world.host).unwrap();
            }
            Step::Store { cpu, gva: n, index, entry } => {
                let (offset, entry, half) = fit(mode, index, entry);
                self.store(cpu, gva(mode, n) + offset, entry, half);
            }
            Step::Retarget { cpu, gva: n, entry, user, flush } => {
                let at = gva(mode, n);
                for cpu in [cpu, user] {
                    self.access(cpu, at, Access::READ, flush);
                }
                if let Some(alias) = self.alias_of_entry(cpu, at) {
                    let (_, entry, half) = fit(mode, 0, entry | P | A);
                    self.store(cpu, alias, entry, half);
                    self.access(user, at, Access::READ, flush);
                }
            }
            Step::Invlpg { cpu, gva: n } => self.world.invlpg(cpu, gva(mode, n)),
            Step::Load { cpu, root, controls } => {
                let registers = registers(mode, root, controls, &self.world);
                self.world.load(cpu, World::paging(&registers).as_ref());
            }
            Step::Zap { page, count } => self.world.zap(page * K4, count * K4),
            Step::Migrate { page } => {
                let World { host, shadow, .. } = &mut self.world;
                let size = host.pages[&((HVA + page * K4) / K4)].size;
                let range = AddrRange::page_of(Gpa(page * K4), size);
                shadow.invalidate_begin(range, host).unwrap();
                host.migrate(HVA + page * K4);
                shadow.invalidate_end();
            }
            Step::Log { on } => {
                self.world.slots.slots[0].log_dirty = on;
                let range = AddrRange::new(Gpa(0), SIZE.into()).unwrap();
                self.world.shadow.set_logging(range, on, &self.world.host).unwrap();
            }
            Step::Misaligned { page, at } => {
                let gpa = (page * K4 + at) & !7;
                self.world.poke(gpa, 0);
                self.world.shadow.track_write(Gpa(gpa + 1), 7, &self.world.host).unwrap();
            }
        }
    }
}

fn run(mode: Mode, host: PageSize, limit: usize, first: Vec<(u64, usize, u64)>, steps: Vec<Step>) {
    let world = World::limited(host, limit);
    world.host.tells.set(limit.is_multiple_of(2));
    for (page, index, entry) in first {
        let (offset, entry, half) = fit(mode, index, entry);
        if half {
            world.poke32(page * K4 + offset, entry as u32)
        } else {
            world.poke(page * K4 + offset, entry)
        }
    }
    let mut run = Run { world, mode, lazy: false };
    run.world.add_context();
    for cpu in 0..2 {
        run.step(Step::Load { cpu, root: cpu as u64, controls: 0 });
    }
    for step in steps {
        run.step(step);
        run.world.check();
    }
    run.world.finish();
}

/// Entries of all tables. In order, three tables in a row are of one level and point to the three after them, so that
/// those at the end are of level 1 alone and go unsync.
fn tables() -> impl Strategy<Value = Vec<(u64, usize, u64)>> {
    let entries = prop::collection::vec(entry(), (PAGES * 4) as usize);
    (entries, any::<bool>()).prop_map(|(entries, in_order)| {
        let place = |(n, entry): (u64, u64)| {
            let (page, frame) = (n / 4, entry >> 12 & 0xff_ffff);
            let next = (page / 3 + 1) * 3;
            let entry = match in_order && next < PAGES {
                true => entry & !(0xff_ffff << 12 | PS) | (next + frame % 3) << 12,
                false => entry,
            };
            (page, n as usize % 4, entry)
        };
        (0..).zip(entries).map(place).collect()
    })
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        1 => Just(Mode::Off),
        3 => Just(Mode::Legacy32),
        3 => Just(Mode::Pae),
        4 => Just(Mode::Four),
        2 => Just(Mode::Five),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_random_guest_sees_what_its_tables_say(
        mode in mode(),
        host in prop_oneof![Just(PageSize::Size4K), Just(PageSize::Size2M)],
        limit in prop_oneof![Just(1), Just(12), Just(10_000)],
        tables in tables(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(mode, host, limit, tables, steps);
    }
}
