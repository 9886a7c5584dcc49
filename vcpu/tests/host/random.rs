//! Random events against a plain model, with an MMU that listens.

use std::collections::HashMap;
use std::ops::Range;

use ept::mmu::{HostFault, HostFrame, HostFrames};
use memory_model::{AddrRange, Hpa, Hva, Pages};
use proptest::prelude::*;
use vcpu::soft::host::{Host, MmuNotifier, Protection};

use crate::model::{Model, State};
use crate::world::{M2, World};

/// Two pages of 2 MiB.
const PAGES: usize = 1024;

#[derive(Clone, Debug)]
enum Step {
    Touch { page: usize, write: bool },
    Write { page: usize, byte: u8 },
    Merge(usize, usize),
    BreakCow(usize),
    Poison(usize),
    SwapOut(Range<usize>),
    Migrate(Range<usize>),
    Collapse(Range<usize>),
    Split(Range<usize>),
    Discard(Range<usize>),
    Protect(Range<usize>, Protection),
}

/// Few pages, so that events meet; around the edges of large ones.
fn page() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![0, 1, 2, 510, 511, 512, 513, 700, 1022, 1023])
}

fn range() -> impl Strategy<Value = Range<usize>> {
    let length = prop::sample::select(vec![1, 2, 3, 511, 512, 1024]);
    (page(), length).prop_map(|(first, length)| first..PAGES.min(first + length))
}

fn step() -> impl Strategy<Value = Step> {
    use Protection::{None, ReadOnly, ReadWrite};
    let protection = prop::sample::select(vec![ReadWrite, ReadWrite, ReadWrite, ReadOnly, None]);
    prop_oneof![
        6 => (page(), any::<bool>()).prop_map(|(page, write)| Step::Touch { page, write }),
        6 => (page(), 0..3_u8).prop_map(|(page, byte)| Step::Write { page, byte }),
        6 => (page(), page()).prop_map(|(one, other)| Step::Merge(one, other)),
        2 => page().prop_map(Step::BreakCow),
        1 => page().prop_map(Step::Poison),
        2 => range().prop_map(Step::SwapOut),
        3 => range().prop_map(Step::Migrate),
        2 => (0..2_usize).prop_map(|first| Step::Collapse(first * 512..PAGES)),
        2 => range().prop_map(Step::Split),
        2 => range().prop_map(Step::Discard),
        2 => (range(), protection).prop_map(|(range, protection)| Step::Protect(range, protection)),
    ]
}

/// An MMU: what it was told by the host, until it is told that this is over.
struct Mmu<'a> {
    host: &'a Host,
    found: HashMap<Hva, HostFrame>,
    open: Vec<AddrRange<Hva>>,
}

impl Mmu<'_> {
    /// All that it has is as the host has it, too.
    fn assert_right(&self, when: &str) {
        for (&hva, found) in &self.found {
            assert_eq!(self.host.frame_of(hva), Some(found.hpa), "{hva}: frame, {when}");
            let now = self.host.host_frame(hva, false).expect("a page that may be read");
            assert!(now.writable || !found.writable, "{hva}: right to write, {when}");
            assert!(now.size >= found.size, "{hva}: {} in a mapping of {}, {when}", found.size, now.size);
        }
    }
}

impl MmuNotifier for Mmu<'_> {
    fn invalidate_range_start(&mut self, range: AddrRange<Hva>) {
        self.assert_right("before it was told");
        self.found.retain(|&hva, found| !AddrRange::page_of(hva, found.size).overlaps(range));
        self.open.push(range);
    }

    fn invalidate_range_end(&mut self, range: AddrRange<Hva>) {
        let open = self.open.iter().position(|&open| open == range);
        self.open.remove(open.expect("an end without a start"));
    }
}

/// Makes the step in both; the answers are the same.
fn make(step: &Step, world: &World, model: &mut Model, mmu: &mut Mmu<'_>) {
    let host = &world.host;
    let at = |page: usize| world.hva((page as u64) << 12);
    let range = |pages: &Range<usize>| world.range((pages.start as u64) << 12, (pages.len() as u64) << 12);
    match step.clone() {
        Step::Touch { page, write } => touch(page, write, world, model, mmu).map(drop).unwrap_or(()),
        Step::Write { page, byte } => {
            if touch(page, true, world, model, mmu) == Err(HostFault::CopyOnWrite) {
                assert_eq!(host.break_cow(at(page), mmu), model.break_cow(page));
            }
            if let Ok(found) = touch(page, true, world, model, mmu) {
                host.write(found.hpa, &[byte; 0x1000]).unwrap();
                model.pages[page].byte = byte;
            }
        }
        Step::Merge(one, other) => {
            assert_eq!(host.merge(at(one), at(other), mmu), model.merge(one, other));
        }
        Step::BreakCow(page) => assert_eq!(host.break_cow(at(page), mmu), model.break_cow(page)),
        Step::Poison(page) => {
            host.poison(at(page), mmu);
            model.poison(page);
        }
        Step::SwapOut(pages) => {
            host.swap_out(range(&pages), mmu);
            model.swap_out(pages);
        }
        Step::Migrate(pages) => {
            host.migrate(range(&pages), mmu);
            model.migrate(pages);
        }
        Step::Collapse(pages) => {
            host.collapse(range(&pages), mmu);
            model.collapse(pages);
        }
        Step::Split(pages) => {
            host.split(range(&pages), mmu);
            model.split(pages);
        }
        Step::Discard(pages) => {
            host.discard(range(&pages), mmu).unwrap();
            model.discard(pages);
        }
        Step::Protect(pages, protection) => {
            host.protect(range(&pages), protection, mmu);
            model.protect(pages, protection);
        }
    }
}

fn touch(
    page: usize,
    write: bool,
    world: &World,
    model: &mut Model,
    mmu: &mut Mmu<'_>,
) -> Result<HostFrame, HostFault> {
    let hva = world.hva((page as u64) << 12);
    let found = world.host.host_frame(hva, write);
    assert_eq!(found.map(|found| (found.size, found.writable)), model.touch(page, write), "page {page}");
    if let Ok(found) = found {
        mmu.found.insert(hva, found);
    }
    found
}

/// Each page is as the model has it; `frames` says where the model's frames were seen.
fn compare(world: &World, model: &Model, frames: &mut HashMap<u32, Hpa>) {
    let mut live = HashMap::new();
    for (number, page) in model.pages.iter().enumerate() {
        let offset = (number as u64) << 12;
        let byte = world.block.load_u64(offset).unwrap();
        assert_eq!(byte, u64::from(page.byte) * 0x0101_0101_0101_0101, "bytes of page {number}");
        let hpa = world.host.frame_of(world.hva(offset));
        match (page.state, hpa) {
            (State::Mapped { frame, .. }, Some(hpa)) => {
                assert_eq!(*frames.entry(frame).or_insert(hpa), hpa, "page {number} changed its frame");
                assert_eq!(*live.entry(hpa).or_insert(frame), frame, "page {number} shares its frame");
            }
            (state, hpa) => assert!(hpa.is_none(), "page {number} is {state:?} and has {hpa:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn events_do_what_they_say_and_who_listens_has_nothing_stale(
        steps in prop::collection::vec(step(), 1..60),
        // With few frames, those that were given back come again.
        small_frames in prop::sample::select(vec![1 << 20, 1100]),
    ) {
        let world = World::on(Host::with_frames([small_frames, 64, 0]), 2 * M2, Pages::Thp);
        let mut model = Model::new(PAGES);
        let mut mmu = Mmu { host: &world.host, found: HashMap::new(), open: Vec::new() };
        let mut frames = HashMap::new();
        for step in &steps {
            make(step, &world, &mut model, &mut mmu);
            assert!(mmu.open.is_empty(), "a start without an end");
            mmu.assert_right("afterwards");
            compare(&world, &model, &mut frames);
            world.host.check().unwrap();
        }
    }
}
