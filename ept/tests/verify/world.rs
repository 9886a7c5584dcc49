//! Guests whose tables are right, to be broken by the tests.

use std::collections::BTreeMap;

use ept::mmu::Memslot;
use ept::verify::{DirtyLog, Guest, HostMap, HostPage, Input, Invariant, Policy, Report, Slot, Verifier};
use ept::{
    Attributes, Ept, EptCaps, Format, FrameAllocator, Ia32e, Kind, Levels, Mapper, MaxPhyAddr, Paging,
    PhysMemory, Rights, SparseMemory, mappings,
};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

pub const K4: u64 = 0x1000;
pub const M2: u64 = 0x20_0000;
pub const G1: u64 = 0x4000_0000;
pub const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();
/// Formats of all kinds that can be a second level.
pub const KINDS: [Kind; 3] = [Kind::Ept, Kind::Npt, Kind::Ia32e];
/// Where tables lie.
pub const TABLES: u64 = 0x10_0000;

/// The host's RAM.
pub fn ram() -> AddrRange<Hpa> {
    AddrRange::new(Hpa(0), 16 << 30).unwrap()
}

/// What lies behind each page of a process, by 2 MiB.
#[derive(Clone, Debug, Default)]
pub struct Host(BTreeMap<u64, Vec<HostPage>>);

impl HostMap for Host {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        for (index, page) in (0..).zip(pages) {
            *page = self.get(hva.raw() + index * K4);
        }
    }
}

impl Host {
    pub fn get(&self, hva: u64) -> HostPage {
        self.0.get(&(hva / M2)).map_or(HostPage::ABSENT, |pages| pages[(hva % M2 / K4) as usize])
    }

    pub fn set(&mut self, hva: u64, page: HostPage) {
        let pages = self.0.entry(hva / M2).or_insert_with(|| vec![HostPage::ABSENT; 512]);
        pages[(hva % M2 / K4) as usize] = page;
    }

    /// Puts `bytes` of RAM from `hpa` on behind `hva`.
    pub fn map(&mut self, hva: u64, hpa: u64, bytes: u64) {
        (0..bytes).step_by(K4 as usize).for_each(|at| self.set(hva + at, HostPage::at(Hpa(hpa + at))));
    }
}

/// One guest, its tables and its host.
pub struct World {
    pub memory: SparseMemory,
    pub roots: Vec<Paging>,
    pub slots: Vec<Slot<'static>>,
    pub host: Host,
    pub policy: Policy<'static>,
    pub leaves: Option<[u64; 3]>,
    pub tables: Option<Vec<Hpa>>,
}

pub fn ept(caps: EptCaps, levels: Levels, flags: bool) -> Format {
    Format::ept(Ept { accessed_dirty: flags, ..Ept::new(levels, caps, WIDTH) })
}

pub fn format(kind: Kind) -> Format {
    let processor = Ia32e::new(Levels::Four, WIDTH);
    match kind {
        Kind::Ept => ept(EptCaps::all(), Levels::Four, true),
        Kind::Npt => Format::npt(processor),
        _ => Format::ia32e(processor),
    }
}

pub fn slot(base: u64, bytes: u64, hva: u64) -> Slot<'static> {
    Memslot { base: Gpa(base), bytes, hva: Hva(hva), readonly: false, log_dirty: false }.into()
}

impl World {
    /// No slot, and tables without an entry.
    pub fn empty(format: Format) -> Self {
        let mut memory = SparseMemory::allocating_from(TABLES);
        let root = memory.allocate_table().unwrap();
        let policy = Policy::strict(format.kind());
        let paging = Paging::new(format, root);
        let (slots, host) = (Vec::new(), Host::default());
        Self { memory, roots: vec![paging], slots, host, policy, leaves: None, tables: None }
    }

    /// A guest with leaves of all sizes: 4K from 0 (frames out of order), one of 2M and some 4K from 2 MiB, read-only at
    /// 8 MiB, logged at 10 MiB with pages 1 and 3 in the log, and one of 1G.
    pub fn new(kind: Kind) -> Self {
        Self::of(format(kind))
    }

    pub fn of(format: Format) -> Self {
        let mut world = Self::empty(format);
        world.slots = vec![
            slot(0, 16 * K4, 0x7f00_0000_0000),
            slot(M2, 2 * M2, 0x7f00_4000_0000),
            slot(4 * M2, 4 * K4, 0x7f00_8000_0000),
            slot(5 * M2, 4 * K4, 0x7f00_9000_0000),
            slot(G1, G1, 0x7f40_0000_0000),
        ];
        world.slots[2].memslot.readonly = true;
        world.slots[3].memslot.log_dirty = true;
        world.slots[3].log = DirtyLog::Bitmap(&[0b1010]);
        for page in 0..16 {
            world.host.map(0x7f00_0000_0000 + page * K4, 0x2000_0000 + (page * 7 % 16) * K4, K4);
        }
        world.host.map(0x7f00_4000_0000, 0x3000_0000, 2 * M2);
        world.host.map(0x7f00_8000_0000, 0x2800_0000, 4 * K4);
        world.host.map(0x7f00_9000_0000, 0x2900_0000, 4 * K4);
        world.host.map(0x7f40_0000_0000, 8 * G1, G1);
        let (all, read) = (world.all(), world.all() - Rights::WRITE);
        (0..16).filter(|&page| page != 5).for_each(|page| world.map(page * K4, PageSize::Size4K, all));
        world.map(M2, PageSize::Size2M, all);
        (0..512).for_each(|page| world.map(2 * M2 + page * K4, PageSize::Size4K, read));
        (0..4).for_each(|page| world.map(4 * M2 + page * K4, PageSize::Size4K, read));
        for page in 0..4 {
            world.map(5 * M2 + page * K4, PageSize::Size4K, if page % 2 == 1 { all } else { read });
        }
        world.map(G1, PageSize::Size1G, all);
        world.leaves = Some([15 + 512 + 4 + 4, 1, 1]);
        world
    }

    /// All rights that the format has.
    pub fn all(&self) -> Rights {
        match self.kind() {
            Kind::Ept => Rights::RWX,
            _ => Rights::RWX | Rights::USER,
        }
    }

    pub fn kind(&self) -> Kind {
        self.roots[0].format.kind()
    }

    /// Maps a page to what the host has there.
    pub fn map(&mut self, gpa: u64, size: PageSize, rights: Rights) {
        let slot = self.slots.iter().find_map(|slot| slot.memslot.hva_of(Gpa(gpa))).unwrap();
        let frame = self.host.get(slot.raw()).hpa().unwrap();
        self.map_to(0, gpa, frame.raw(), size, rights);
    }

    pub fn map_to(&mut self, root: usize, gpa: u64, frame: u64, size: PageSize, rights: Rights) {
        let page = Attributes::ram(self.kind(), rights);
        Mapper::new(&mut self.memory, self.roots[root]).map(gpa, frame, size, page).unwrap();
    }

    /// The address of the leaf for `gpa`, under the first root.
    pub fn leaf(&self, gpa: u64) -> u64 {
        let covers = |page: &ept::Mapping| gpa.wrapping_sub(page.address) < page.size.bytes();
        mappings(&self.memory, &self.roots[0]).find(covers).unwrap().step.entry_address()
    }

    /// The address of the entry at that level on the way to `gpa`, under the first root.
    pub fn entry(&self, gpa: u64, level: u8) -> u64 {
        let mut table = self.roots[0].root;
        for at in (level + 1..=self.roots[0].format.levels()).rev() {
            table = self.read(table + index(gpa, at) * 8) & 0x000f_ffff_ffff_f000 & !self.policy.encryption;
        }
        table + index(gpa, level) * 8
    }

    pub fn read(&self, entry: u64) -> u64 {
        self.memory.read_entry(entry).unwrap()
    }

    pub fn write(&mut self, entry: u64, value: u64) {
        self.memory.write_entry(entry, value).unwrap();
    }

    /// Changes bits of an entry.
    pub fn flip(&mut self, entry: u64, bits: u64) {
        self.write(entry, self.read(entry) ^ bits);
    }

    pub fn guest(&self) -> Guest<'_> {
        Guest {
            process: 0,
            roots: &self.roots,
            shadows: &[],
            slots: &self.slots,
            host: &self.host,
            policy: self.policy,
            leaves: self.leaves,
            tables: self.tables.as_deref(),
            caches: None,
        }
    }

    pub fn verify(&self) -> Report {
        verify(&self.memory, &[self.guest()])
    }

    /// Where an entry is broken, the leaf below it is missing too: that is not what the test is about.
    pub fn verify_without_counts(&self) -> Report {
        verify(&self.memory, &[Guest { leaves: None, ..self.guest() }])
    }

    /// The frames of all tables, by the memory's own count.
    pub fn frames(&self) -> Vec<Hpa> {
        let frames = (TABLES..).step_by(K4 as usize).map(Hpa);
        frames.take_while(|frame| self.memory.read_entry(frame.raw()).is_ok()).collect()
    }
}

/// Verifies in one thread and in three: both must say the same.
pub fn verify(memory: &SparseMemory, guests: &[Guest<'_>]) -> Report {
    const MOST: usize = 1000;
    let report = ept::verify::verify(memory, guests, ram(), MOST).unwrap();
    let verifier = Verifier::new(memory, guests, ram(), MOST).unwrap();
    let parallel = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| verifier.work())).collect();
        verifier.report(threads.into_iter().map(|thread| thread.join().unwrap()))
    });
    assert_eq!(report.to_string(), parallel.to_string());
    report
}

pub fn index(gpa: u64, level: u8) -> u64 {
    gpa >> (12 + 9 * (level - 1)) & 0x1ff
}

/// The invariants broken, with their counts.
pub fn broken(report: &Report) -> Vec<(u8, u64)> {
    let counts = Invariant::ALL.map(|invariant| (invariant.number(), report.count(invariant)));
    counts.into_iter().filter(|&(_, count)| count > 0).collect()
}

/// The addresses of what was found.
pub fn addresses(report: &Report) -> Vec<u64> {
    report.findings.iter().map(|found| found.address.raw()).collect()
}

/// The one thing found, whose invariant and address must be these.
#[track_caller]
pub fn only(report: &Report, invariant: u8, address: u64) -> ept::verify::Finding {
    let [finding] = report.findings[..] else { panic!("{report}") };
    assert_eq!(
        (finding.violation.invariant().number(), finding.address),
        (invariant, Input::Gpa(Gpa(address))),
        "{report}"
    );
    assert_eq!(broken(report), [(invariant, 1)]);
    finding
}
