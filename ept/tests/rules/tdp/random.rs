//! Random operations against a plain model: pages, slots and logs as sets. After each step the verifier finds nothing.

use std::collections::BTreeSet;
use std::sync::Mutex;

use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, SlotLookup, Tdp, TdpOptions,
};
use ept::verify::{DirtyLog, Guest, HostMap, HostPage, Policy, Slot, Violation, verify};
use ept::{Access, EptCaps, Error, Flags, Format, Levels, MemoryError, PhysMemory, translate};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};
use proptest::prelude::*;

use super::arena::Arena;
use super::host::{G1, K4, M2, ept_format, npt, range};

/// 2 MiB of the host's process.
#[derive(Clone)]
struct Chunk {
    huge: bool,
    /// The frame of each page, and whether it may be written.
    pages: Vec<Option<(u64, bool)>>,
}

struct Host {
    tables: Arena,
    chunks: Mutex<Vec<Chunk>>,
    /// Where the next frames are.
    next: Mutex<u64>,
}

const CHUNKS: u64 = 8;
const RAM: u64 = 4 * G1;

impl Host {
    fn new() -> Self {
        let chunk = Chunk { huge: false, pages: vec![None; 512] };
        let chunks = Mutex::new(vec![chunk; CHUNKS as usize]);
        Self { tables: Arena::new(), chunks, next: Mutex::new(G1 / 4) }
    }

    fn new_frames(&self, size: PageSize) -> u64 {
        let mut next = self.next.lock().unwrap();
        let frame = next.next_multiple_of(size.bytes());
        // Small ones do not lie in a row.
        *next = frame + size.bytes() + if size == PageSize::Size4K { K4 } else { 0 };
        assert!(*next <= RAM);
        frame
    }

    /// The page around `hva`, faulted in.
    fn page(&self, hva: u64) -> (u64, bool, PageSize) {
        let (chunk, page) = (((hva - G1) / M2) as usize, (hva % M2 / K4) as usize);
        let chunk = &mut self.chunks.lock().unwrap()[chunk];
        let (frame, writable) =
            *chunk.pages[page].get_or_insert_with(|| (self.new_frames(PageSize::Size4K), true));
        (frame, writable, if chunk.huge { PageSize::Size2M } else { PageSize::Size4K })
    }
}

impl PhysMemory for Host {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.tables.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.tables.compare_exchange(address, current, new)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault> {
        let (frame, writable, size) = self.page(hva.raw());
        match write && !writable {
            true => Err(HostFault::Unmapped),
            false => Ok(HostFrame { hpa: Hpa(frame), size, writable }),
        }
    }
    fn allocate_table(&self) -> Option<u64> {
        self.tables.allocate()
    }
    fn free_table(&self, frame: u64) {
        self.tables.free(frame);
    }
}

impl HostMap for Host {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        let chunks = self.chunks.lock().unwrap();
        for (at, page) in (hva.raw()..).step_by(K4 as usize).zip(pages) {
            let chunk = &chunks[((at - G1) / M2) as usize];
            *page = match chunk.pages[(at % M2 / K4) as usize] {
                Some((frame, true)) => HostPage::at(Hpa(frame)),
                Some((frame, false)) => HostPage::at(Hpa(frame)).read_only(),
                None => HostPage::ABSENT,
            };
        }
    }
}

/// The slots that there can be: aligned, with odd edges, and where no page can be huge.
const PLACES: [(u64, u64, u64); 3] = [
    (M2, 3 * M2, G1),
    (16 * M2 + 3 * K4, 2 * M2, G1 + 3 * M2 + 3 * K4),
    (64 * G1 + K4, M2 + 5 * K4, G1 + 6 * M2),
];

#[derive(Default)]
struct Slots {
    slots: [Option<Memslot>; 3],
    /// The dirty bitmaps: pages by address.
    log: Mutex<BTreeSet<u64>>,
    generation: u64,
}

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        self.slots.iter().flatten().copied().find(|slot| slot.hva_of(gpa).is_some()).into()
    }
    fn mark_page_dirty(&self, gpa: Gpa) {
        self.log.lock().unwrap().insert(gpa.align_down(PageSize::Size4K).raw());
    }
    fn generation(&self) -> Option<u64> {
        Some(self.generation)
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

struct Machine {
    host: Host,
    slots: Slots,
    tdp: Tdp,
    options: TdpOptions,
    dice: Dice,
    /// What should be in the logs.
    written: BTreeSet<u64>,
}

impl Machine {
    fn new(format: Format, options: TdpOptions, seed: u64) -> Self {
        let host = Host::new();
        let tdp = Tdp::new(format, options, &host).unwrap();
        let (slots, written) = (Slots::default(), BTreeSet::new());
        let mut machine = Self { host, slots, tdp, options, dice: Dice(seed), written };
        (0..3).for_each(|number| machine.toggle_slot(number));
        machine
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.dice.below(times) == 0
    }

    fn memslot(&mut self) -> Option<(usize, Memslot)> {
        let number = self.dice.below(3) as usize;
        Some((number, self.slots.slots[number]?))
    }

    /// Some pages of one slot.
    fn part(&mut self) -> Option<(Memslot, AddrRange<Gpa>)> {
        let (_, slot) = self.memslot()?;
        let pages = slot.bytes / K4;
        let first = self.dice.below(pages);
        let count = if self.one_in(3) { 1 } else { 1 + self.dice.below((pages - first).min(700)) };
        Some((slot, range(slot.base.raw() + first * K4, count * K4)))
    }

    fn toggle_slot(&mut self, number: usize) {
        let (base, bytes, hva) = PLACES[number];
        let all = range(base, bytes);
        self.slots.slots[number] = match self.slots.slots[number] {
            Some(_) => {
                self.tdp.zap(all, &self.host).unwrap();
                // The next slot's log knows nothing of this one's.
                self.tdp.clear_dirty(all, |_| {}, &self.host).unwrap();
                None
            }
            None => Some(Memslot {
                base: Gpa(base),
                bytes,
                hva: Hva(hva),
                readonly: self.one_in(6),
                log_dirty: false,
            }),
        };
        self.written.retain(|&page| !all.contains(Gpa(page)));
        self.slots.log.lock().unwrap().retain(|&page| !all.contains(Gpa(page)));
        self.slots.generation += 1;
        self.tdp.invalidate_mmio(self.slots.generation, &self.host).unwrap();
    }

    fn access(&mut self, gpa: u64, access: Access, moving: bool) {
        let expected = match self.slots.slot(Gpa(gpa)) {
            SlotLookup::Slot(slot) if access.writes() && slot.readonly => {
                Err(FaultOutcome::MmioReadonlyWrite { gpa: Gpa(gpa) })
            }
            SlotLookup::Slot(slot) => {
                let hva = slot.hva_of(Gpa(gpa)).unwrap();
                let (frame, writable, _) = self.host.page(hva.raw());
                match access.writes() && !writable {
                    true => Err(FaultOutcome::HostFault { gpa: Gpa(gpa), hva, fault: HostFault::Unmapped }),
                    false => Ok((frame + hva.raw() % K4, slot.log_dirty && access.writes())),
                }
            }
            _ => Err(FaultOutcome::Mmio { gpa: Gpa(gpa) }),
        };
        let mut exits = 0;
        let outcome = loop {
            let why = match translate(&self.host, self.tdp.paging(), gpa, access, Flags::Set) {
                Ok(leaf) => break Ok(leaf.address),
                Err(why) => why,
            };
            exits += 1;
            assert!(exits <= 4, "{why}");
            match self.tdp.exit(Gpa(gpa), why, &self.slots, &self.host) {
                Ok(FaultOutcome::Fixed { .. }) => {}
                Ok(outcome) => break Err(outcome),
                Err(error) => {
                    assert_eq!(error, Error::OutOfTables);
                    self.tdp.reclaim(&self.host).unwrap();
                }
            }
        };
        if moving && outcome == Err(FaultOutcome::Retry) {
            return;
        }
        assert_eq!(outcome, expected.map(|(hpa, _)| hpa), "{gpa:#x} {access:?}");
        if let Ok((_, true)) = expected {
            self.written.insert(gpa & !(K4 - 1));
        }
    }

    fn random_access(&mut self, moving: bool) {
        let access = [Access::READ, Access::WRITE, Access::WRITE, Access::FETCH][self.dice.below(4) as usize];
        let gpa = match self.memslot() {
            Some((_, slot)) => slot.base.raw() - 2 * K4 + self.dice.below(slot.bytes + 4 * K4),
            None => self.dice.below(2 * G1),
        };
        self.access(gpa, access, moving);
    }

    /// Host pages change: what they map goes before.
    fn host_event(&mut self) {
        let chunk = self.dice.below(CHUNKS) as usize;
        let (first, count) = match self.one_in(2) {
            true => (0, 512),
            false => (self.dice.below(500) as usize, 1 + self.dice.below(12) as usize),
        };
        let hva =
            AddrRange::new(Hva(G1 + chunk as u64 * M2 + first as u64 * K4), count as u128 * 0x1000).unwrap();
        let mut begun = 0;
        for slot in self.slots.slots.into_iter().flatten() {
            let all = AddrRange::new(slot.hva, slot.bytes.into()).unwrap();
            if let Some(part) = all.intersection(hva) {
                let gpa = slot.base.raw() + (part.first().raw() - slot.hva.raw());
                let part = AddrRange::new(Gpa(gpa), part.bytes()).unwrap();
                self.tdp.invalidate_begin(part, &self.host).unwrap();
                begun += 1;
            }
        }
        if self.one_in(2) {
            self.random_access(true);
        }
        let event = self.dice.below(6);
        let mut chunks = self.host.chunks.lock().unwrap();
        let Chunk { huge, pages } = &mut chunks[chunk];
        match event {
            // Collapsed, or moved whole.
            0 | 1 if count == 512 => {
                let frame = self.host.new_frames(PageSize::Size2M);
                *huge = true;
                pages
                    .iter_mut()
                    .enumerate()
                    .for_each(|(n, page)| *page = Some((frame + n as u64 * K4, true)));
            }
            // Split: the frames stay.
            2 if count == 512 => *huge = false,
            // Swapped out.
            3 => {
                *huge = false;
                pages[first..first + count].fill(None);
            }
            // mprotect.
            4 if count == 512 || !*huge => {
                pages[first..first + count].iter_mut().flatten().for_each(|(_, writable)| *writable ^= true);
            }
            // Migrated.
            _ => {
                *huge = false;
                for page in &mut pages[first..first + count] {
                    *page = Some((
                        self.host.new_frames(PageSize::Size4K),
                        page.is_none_or(|(_, writable)| writable),
                    ));
                }
            }
        }
        drop(chunks);
        (0..begun).for_each(|_| self.tdp.invalidate_end());
    }

    fn toggle_logging(&mut self) {
        let Some((number, mut slot)) = self.memslot() else { return };
        slot.log_dirty ^= true;
        let initially_set = self.one_in(2);
        self.slots.slots[number] = Some(slot);
        let all = range(slot.base.raw(), slot.bytes);
        self.tdp.set_logging(&slot, initially_set, &self.host).unwrap();
        let mut log = self.slots.log.lock().unwrap();
        for set in [&mut self.written, &mut *log] {
            set.retain(|&page| !all.contains(Gpa(page)));
            if slot.log_dirty && initially_set {
                set.extend(all.page_starts(PageSize::Size4K).map(Gpa::raw));
            }
        }
    }

    /// `KVM_GET_DIRTY_LOG`, or `KVM_CLEAR_DIRTY_LOG` of a part.
    fn collect(&mut self) {
        let Some((slot, part)) = self.part() else { return };
        if !slot.log_dirty {
            return;
        }
        let mut found = BTreeSet::new();
        if self.options.dirty_bits {
            self.tdp.clear_dirty(part, |gpa| _ = found.insert(gpa.raw()), &self.host).unwrap();
        } else {
            self.tdp.write_protect(part, &self.host).unwrap();
        }
        let mut log = self.slots.log.lock().unwrap();
        found.extend(log.extract_part(part));
        assert_eq!(found, self.written.extract_part(part));
    }

    fn age(&mut self) {
        let Some((_, part)) = self.part() else { return };
        let young = self.tdp.test_age(part, &self.host).unwrap();
        assert_eq!(self.tdp.age(part, &self.host), Ok(young));
        assert_eq!(self.tdp.test_age(part, &self.host), Ok(false));
        let gpa = part.first().raw();
        if !matches!(self.slots.slot(Gpa(gpa)), SlotLookup::Slot(_)) || self.one_in(2) {
            return;
        }
        self.access(gpa, Access::READ, false);
        assert_eq!(self.tdp.test_age(part, &self.host), Ok(true));
    }

    fn step(&mut self) {
        match self.dice.below(24) {
            0..14 => self.random_access(false),
            14..18 => self.host_event(),
            18 => self.toggle_logging(),
            19 | 20 => self.collect(),
            21 => self.age(),
            22 if self.one_in(2) => {
                let number = self.dice.below(3) as usize;
                self.toggle_slot(number);
            }
            22 => _ = self.tdp.reclaim(&self.host).unwrap(),
            _ => {
                if self.one_in(4) {
                    self.tdp.zap_all(&self.host).unwrap();
                }
            }
        }
    }

    /// The verifier, with all that it can be told.
    fn verify(&self) {
        let format = &self.tdp.paging().format;
        let stats = self.tdp.stats();
        let mut tables: Vec<Hpa> =
            self.tdp.pages(&self.host).unwrap().iter().map(|page| page.table).collect();
        tables.sort_unstable();
        assert_eq!(tables, self.host.tables.live());
        assert!(self.options.max_tables.is_none_or(|most| tables.len() as u64 <= most));
        let memslots: Vec<Memslot> = self.slots.slots.into_iter().flatten().collect();
        let log = self.slots.log.lock().unwrap();
        let bitmaps: Vec<Vec<u64>> = memslots.iter().map(|slot| bitmap(slot, &log)).collect();
        let by_d = self.options.dirty_bits && format.has_accessed_dirty();
        let slots: Vec<Slot<'_>> = memslots
            .iter()
            .zip(&bitmaps)
            .map(|(&memslot, bitmap)| Slot {
                memslot,
                log: if by_d { DirtyLog::Pml } else { DirtyLog::Bitmap(bitmap) },
            })
            .collect();
        let guest = Guest {
            process: 0,
            roots: &[*self.tdp.paging()],
            shadows: &[],
            slots: &slots,
            host: &self.host,
            policy: Policy::kvm(format.kind()),
            // Those whose rights are put away are no leaves to hardware.
            leaves: format.has_accessed_dirty().then_some([stats.pages_4k, stats.pages_2m, stats.pages_1g]),
            tables: Some(&tables),
            caches: None,
        };
        let ram = AddrRange::new(Hpa(0), RAM.into()).unwrap();
        let report = verify(&self.host, &[guest], ram, 10).unwrap();
        // What a log kept by D has all of from its start is not known to the verifier: there a large page may stay.
        let wrong = |found: &&ept::verify::Finding| {
            !(by_d && matches!(found.violation, Violation::LoggedLarge { .. }))
        };
        assert!(report.findings.iter().find(wrong).is_none(), "{report}");
    }
}

/// Takes the pages of a range out of a set.
trait ExtractPart {
    fn extract_part(&mut self, part: AddrRange<Gpa>) -> BTreeSet<u64>;
}

impl ExtractPart for BTreeSet<u64> {
    fn extract_part(&mut self, part: AddrRange<Gpa>) -> BTreeSet<u64> {
        let (inside, outside) = self.iter().partition(|&&page| part.contains(Gpa(page)));
        *self = outside;
        inside
    }
}

fn bitmap(slot: &Memslot, log: &BTreeSet<u64>) -> Vec<u64> {
    let mut words = vec![0; (slot.bytes / K4).div_ceil(64) as usize];
    for page in log.range(slot.base.raw()..slot.base.raw() + slot.bytes) {
        let page = (page - slot.base.raw()) / K4;
        words[(page / 64) as usize] |= 1 << (page % 64);
    }
    words
}

fn formats() -> impl Strategy<Value = Format> {
    let five = || {
        Format::ept(ept::Ept {
            accessed_dirty: true,
            ..ept::Ept::new(Levels::Five, EptCaps::all(), super::host::WIDTH)
        })
    };
    prop_oneof![
        Just(ept_format(true, EptCaps::all())),
        Just(ept_format(false, EptCaps::all())),
        Just(ept_format(true, EptCaps::all() - EptCaps::EXECUTE_ONLY)),
        Just(five()),
        Just(npt(Levels::Four)),
        Just(npt(Levels::Five)),
    ]
}

fn options() -> impl Strategy<Value = TdpOptions> {
    (any::<[bool; 4]>(), prop_oneof![Just(None), (5u64..20).prop_map(Some)]).prop_map(
        |([mmio_caching, nx_huge_pages, eager_page_split, dirty_bits], max_tables)| TdpOptions {
            mmio_caching,
            nx_huge_pages,
            eager_page_split,
            dirty_bits,
            max_tables,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_the_tables_are_those_of_the_model(
        format in formats(),
        options in options(),
        seed: u64,
        steps in 1..150usize,
    ) {
        let options = TdpOptions { dirty_bits: options.dirty_bits && format.has_accessed_dirty(), ..options };
        let mut machine = Machine::new(format, options, seed);
        for _ in 0..steps {
            machine.step();
            machine.verify();
        }
        machine.tdp.free(&machine.host).unwrap();
        prop_assert!(machine.host.tables.live().is_empty());
    }
}
