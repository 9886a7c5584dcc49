//! Bytes as updates of an address space: after each of them the view is what the rules say, and what the
//! listeners were told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use memory_model::{
    AddressSpace, FlatRange, FlatView, Gpa, Hva, MemTxAttrs, MemTxError, MemoryError, MemoryListener,
    MmioOps, RamBlock, Refusal, RegionId, RegionKind, RegionTree,
};

/// Regions of one run at most, so that aliases of aliases cannot repeat them too often.
const MAX_REGIONS: usize = 16;

/// Does what the bytes say; panics if a rule is broken.
pub fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let size = if script.byte().is_multiple_of(8) { script.size() } else { 1 << 64 };
    let tree = RegionTree::new("root", size).expect("at most 2^64 bytes");
    let mut regions = vec![tree.root()];
    let space = AddressSpace::new("space", tree).expect("nothing is in it yet");
    let early = Mirror::listen(&space);
    while let Some(step) = script.next() {
        let before = space.view();
        // One in eight is refused, one in eight fails by itself.
        early.lock().expect("it does not panic").refuses = step >> 5 == 7;
        let outcome = space.update(|tree| {
            for _ in 0..=step % 4 {
                // An edit that is refused changes nothing, and the others go on.
                let _ = edit(tree, &mut script, &mut regions);
            }
            if step >> 5 == 6 { Err(Given::Up) } else { Ok(()) }
        });
        let view = space.view();
        if outcome.is_err() {
            assert!(view.same_as(&before), "an update that failed changed\n{before}to\n{view}");
        }
        space.with_tree(|tree| check(tree, &view)).expect("no update is open");
        assert!(early.lock().expect("it does not panic").shows(&view), "the listener heard of another view");
    }
    // Rule R29.
    assert!(Mirror::listen(&space).lock().expect("it does not panic").shows(&space.view()));
}

/// Why an update fails.
#[derive(Debug)]
enum Given {
    Up,
    Refused(#[expect(dead_code, reason = "for whoever reads the panic")] MemoryError),
}

impl From<MemoryError> for Given {
    fn from(error: MemoryError) -> Self {
        Self::Refused(error)
    }
}

/// Bytes as numbers of all kinds.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    /// Mostly pages that are near each other; else small, large, odd.
    fn number(&mut self) -> u64 {
        let byte = self.byte();
        let low = u64::from(byte & 0x1f);
        match byte >> 5 {
            0 => low,
            1 => 1 << (2 * low),
            2 => u64::MAX - (low << 10),
            _ => low << 12,
        }
    }

    /// Mostly a few pages, at times everything.
    fn size(&mut self) -> u128 {
        if self.byte().is_multiple_of(4) { 1 << 64 } else { u128::from(self.number()).max(1) }
    }

    /// Any region.
    fn region(&mut self, regions: &[RegionId]) -> RegionId {
        regions[usize::from(self.byte()) % regions.len()]
    }

    /// Any region, but mostly the root: what is in it can be seen.
    fn container(&mut self, regions: &[RegionId]) -> RegionId {
        if self.byte().is_multiple_of(2) { regions[0] } else { self.region(regions) }
    }
}

fn edit(
    tree: &mut RegionTree,
    script: &mut Script<'_>,
    regions: &mut Vec<RegionId>,
) -> Result<(), MemoryError> {
    let what = script.byte();
    let region = script.region(regions);
    let on = what & 0x80 != 0;
    match what % 16 {
        0..=2 => {
            let new = create(tree, script, region)?;
            let count = regions.len();
            // The oldest but the root make room.
            if count < MAX_REGIONS {
                regions.push(new)
            } else {
                regions[1 + usize::from(what) % (count - 1)] = new
            }
            let container = script.container(regions);
            tree.add_with_priority(container, script.number(), new, i32::from(what >> 6))
        }
        3 | 4 => {
            let container = script.container(regions);
            tree.add_with_priority(container, script.number(), region, i32::from(script.byte() as i8))
        }
        5 => tree.remove(region),
        6 => tree.set_offset(region, script.number()),
        7 => tree.set_size(region, script.size()),
        8 => tree.set_enabled(region, what >> 5 != 0),
        9 => tree.set_readonly(region, on),
        10 => tree.set_priority(region, i32::from(script.byte() as i8)),
        11 => tree.set_alias_offset(region, script.number()),
        12 => tree.set_nonvolatile(region, on),
        13 => tree.set_unmergeable(region, on),
        14 => tree.set_romd(region, on),
        _ => tree.destroy(region),
    }
}

fn create(tree: &mut RegionTree, script: &mut Script<'_>, target: RegionId) -> Result<RegionId, MemoryError> {
    let kind = script.byte();
    let pages = 0x1000 * (1 + u64::from(kind >> 3));
    let block = || RamBlock::foreign("block", Hva(0x7000_0000_0000), pages);
    match kind % 8 {
        0 | 1 => tree.container("container", script.size()),
        2 => tree.ram("ram", block()?),
        3 => tree.rom_device("rom device", block()?, Arc::new(Device)),
        4 => tree.mmio("mmio", script.size(), Arc::new(Device)),
        5 => tree.reservation("reservation", script.size()),
        _ => tree.alias("alias", target, script.number(), script.size()),
    }
}

struct Device;

impl MmioOps for Device {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

/// A listener that keeps what it was told.
#[derive(Default)]
struct Mirror {
    ranges: BTreeMap<Gpa, FlatRange>,
    before: BTreeMap<Gpa, FlatRange>,
    refuses: bool,
}

impl Mirror {
    fn listen(space: &AddressSpace) -> Arc<Mutex<Self>> {
        let mirror = Arc::new(Mutex::new(Self::default()));
        space.register(mirror.clone()).expect("it does not refuse");
        mirror
    }

    fn shows(&self, view: &FlatView) -> bool {
        self.ranges.len() == view.len()
            && self.ranges.values().zip(view.ranges()).all(|(told, is)| told.same_as(is))
    }
}

impl MemoryListener for Mirror {
    fn name(&self) -> &str {
        "mirror"
    }
    fn begin(&mut self) {
        self.before = self.ranges.clone();
    }
    fn region_del(&mut self, range: &FlatRange) {
        let gone = self.ranges.remove(&range.range.first());
        assert!(gone.is_some_and(|gone| gone.same_as(range)), "{range} was not there (rule R27)");
    }
    fn region_nop(&mut self, range: &FlatRange) {
        let kept = self.ranges.get(&range.range.first());
        assert!(kept.is_some_and(|kept| kept.same_as(range)), "{range} was not there");
    }
    fn region_add(&mut self, range: &FlatRange) {
        let old = self.ranges.insert(range.range.first(), range.clone());
        assert!(old.is_none(), "{range} was there (rule R27)");
    }
    fn commit(&mut self) -> Result<(), Refusal> {
        if self.refuses {
            self.abort();
            return Err("not today".into());
        }
        Ok(())
    }
    fn abort(&mut self) {
        self.ranges = self.before.clone();
    }
}

/// The view is well formed, what a render from nothing gives, and what the rules say at each edge.
fn check(tree: &RegionTree, view: &FlatView) {
    let full = FlatView::render(tree).expect("there are few regions");
    assert!(view.same_as(&full), "an update gave\n{view}and a full render\n{full}");
    for (range, next) in view.ranges().zip(view.ranges().skip(1)) {
        assert!(range.range.last() < next.range.first(), "{range} and {next} are out of order (rule R16)");
        assert!(!could_merge(range, next), "{range} and {next} are one (rule R17)");
    }
    for (id, region) in tree.iter() {
        let priorities =
            region.subregions().map(|child| tree.get(child).expect("the tree's own id").priority());
        assert!(priorities.rev().is_sorted(), "the children of {id} are out of order (rule R9)");
    }
    let edges = view.ranges().flat_map(|range| [range.range.first().0, range.range.last().0]);
    for edge in edges.chain([0, u64::MAX]) {
        for address in [edge.wrapping_sub(1), edge, edge.wrapping_add(1)] {
            let found = view.find(Gpa(address)).map(|range| Seen {
                region: range.region,
                offset: range.offset + (address - range.range.first().0),
                readonly: range.readonly,
                nonvolatile: range.nonvolatile,
            });
            let expected = seen(tree, tree.root(), 0, address.into());
            assert_eq!(found, expected, "{address:#x} in\n{view} (rule R15)");
        }
    }
}

fn could_merge(range: &FlatRange, next: &FlatRange) -> bool {
    range.range.touches(next.range)
        && range.region == next.region
        && u128::from(range.offset) + range.range.bytes() == next.offset.into()
        && (range.readonly, range.nonvolatile, range.romd) == (next.readonly, next.nonvolatile, next.romd)
        && !range.unmergeable
        && !next.unmergeable
}

#[derive(PartialEq, Debug)]
struct Seen {
    region: RegionId,
    offset: u64,
    readonly: bool,
    nonvolatile: bool,
}

/// What is seen of `id`, whose first byte is at `start`, at `address`: rule R15, by itself.
fn seen(tree: &RegionTree, id: RegionId, start: i128, address: i128) -> Option<Seen> {
    let region = tree.get(id).expect("the tree's own id");
    if !region.enabled() || address < start || address >= start + region.size() as i128 {
        return None;
    }
    let below = match *region.kind() {
        RegionKind::Alias { target, offset } => seen(tree, target, start - i128::from(offset), address),
        _ => region.subregions().find_map(|child| {
            let offset = tree.get(child).expect("the tree's own id").offset();
            seen(tree, child, start + i128::from(offset), address)
        }),
    };
    let own = || {
        let offset = (address - start) as u64;
        Seen { region: id, offset, readonly: false, nonvolatile: false }
    };
    let seen = below.or_else(|| region.kind().terminates().then(own))?;
    let (readonly, nonvolatile) =
        (seen.readonly || region.readonly(), seen.nonvolatile || region.nonvolatile());
    Some(Seen { readonly, nonvolatile, ..seen })
}
