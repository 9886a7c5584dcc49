//! Look-up, render and commit.
//!
//! Look-ups run against vm-memory's `GuestMemoryMmap` in the same process, over the same ranges and
//! addresses. `cargo bench -p memory-model --bench view`.

mod paired;

use std::hint::black_box;
use std::time::{Duration, Instant};

use memory_model::{AddressSpace, FlatView, Gpa, Hva, MemoryError, RamBlock, RegionId, RegionTree};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

const RANGE: u64 = 0x1000;
const LOOKUPS: u32 = 1 << 14;
const ROUNDS: usize = 41;

fn main() {
    paired::head("look-up of a guest address, against vm-memory's find_region");
    for ranges in [9, 256, 4096] {
        for layout in [EVEN, UNEVEN] {
            for local in [false, true] {
                look_up(ranges, layout, local);
            }
        }
    }
    paired::head("snapshot and look-up, against GuestMemoryAtomic::memory and find_region");
    for ranges in [9, 256, 4096] {
        for layout in [EVEN, UNEVEN] {
            snapshot_and_look_up(ranges, layout);
        }
    }
    cost_against_size();
}

/// Where the ranges lie. No two touch, so that neither side can join them.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    start: fn(index: u64, count: u64) -> u64,
}

const EVEN: Layout = Layout { name: "even", start: |index, _| index * 0x1_0000 };

/// One half close together below 4 GiB, the other far above, with more and more room between them.
const UNEVEN: Layout = Layout {
    name: "uneven",
    start: |index, count| match index.checked_sub(count / 2) {
        None => 0xc000_0000 + index * 0x2000,
        Some(high) => 0x38_0000_0000 + high * high * 0x10_0000,
    },
};

/// A space of `count` RAM ranges, and the same in vm-memory.
fn ranges(count: u64, layout: Layout) -> (AddressSpace, GuestMemoryMmap<()>) {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    for index in 0..count {
        let block = RamBlock::foreign("ram", Hva(0x7000_0000_0000 + index * RANGE), RANGE).unwrap();
        let ram = tree.ram("ram", block).unwrap();
        tree.add(tree.root(), (layout.start)(index, count), ram).unwrap();
    }
    let theirs: Vec<_> =
        (0..count).map(|index| (GuestAddress((layout.start)(index, count)), RANGE as usize)).collect();
    (AddressSpace::new("memory", tree).unwrap(), GuestMemoryMmap::from_ranges(&theirs).unwrap())
}

/// Addresses inside the ranges: anywhere, or staying in one range for a while.
fn addresses(count: u64, layout: Layout, local: bool) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut range = 0;
    let address = |index: u32| {
        if !local || index.is_multiple_of(64) {
            range = next() % count;
        }
        (layout.start)(range, count) + next() % RANGE
    };
    (0..LOOKUPS).map(address).collect()
}

fn look_up(count: u64, layout: Layout, local: bool) {
    let (space, theirs) = ranges(count, layout);
    let (view, addresses) = (space.view(), addresses(count, layout, local));
    let row = format!("{count} {} ranges, {} addresses", layout.name, if local { "local" } else { "random" });
    let ours = || {
        for &address in &addresses {
            black_box(view.find(Gpa(address)).map(|range| range.range.first()));
        }
    };
    let peer = || {
        for &address in &addresses {
            black_box(theirs.find_region(GuestAddress(address)).map(|region| region.start_addr()));
        }
    };
    paired::compare(&row, Some(0.50), ROUNDS, LOOKUPS, ours, peer);
}

fn snapshot_and_look_up(count: u64, layout: Layout) {
    let (space, theirs) = ranges(count, layout);
    let (theirs, addresses) = (GuestMemoryAtomic::new(theirs), addresses(count, layout, false));
    let peer = || {
        for &address in &addresses {
            let memory = theirs.memory();
            black_box(memory.find_region(GuestAddress(address)).map(|region| region.start_addr()));
        }
    };
    let mut reader = space.reader();
    let by_reader = || {
        for &address in &addresses {
            black_box(reader.view().find(Gpa(address)).map(|range| range.range.first()));
        }
    };
    paired::compare(
        &format!("{count} {} ranges, by a reader", layout.name),
        Some(0.50),
        ROUNDS,
        LOOKUPS,
        by_reader,
        peer,
    );
    let by_arc = || {
        for &address in &addresses {
            black_box(space.view().find(Gpa(address)).map(|range| range.range.first()));
        }
    };
    paired::compare(
        &format!("{count} {} ranges, by an Arc of its own", layout.name),
        None,
        ROUNDS,
        LOOKUPS,
        by_arc,
        peer,
    );
}

/// A machine of `count` regions: RAM with a hole, and BARs behind two levels of bridges; one BAR to toggle.
fn machine(count: u64) -> (RegionTree, RegionId) {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let ram = tree.ram("ram", RamBlock::foreign("ram", Hva(0x7000_0000_0000), 1 << 40).unwrap()).unwrap();
    tree.add_with_priority(tree.root(), 0, ram, -1).unwrap();
    let pci = tree.container("pci", 1 << 64).unwrap();
    tree.add(tree.root(), 0, pci).unwrap();
    let mut bars = Vec::new();
    for index in 0..count {
        let bar = tree.reservation("bar", 0x1000).unwrap();
        tree.add(pci, 0x1_0000_0000 + index * 0x2000, bar).unwrap();
        bars.push(bar);
    }
    (tree, bars[bars.len() / 2])
}

fn cost_against_size() {
    println!(
        "\n{:<10} {:>14} {:>14} {:>8} {:>10}",
        "regions", "full render", "BAR toggled", "ratio", "target"
    );
    for count in [100, 1_000, 10_000] {
        let (tree, bar) = machine(count);
        let render = median(|| drop(black_box(FlatView::render(&tree).unwrap())));
        let space = AddressSpace::new("memory", tree).unwrap();
        let mut shown = true;
        let toggle = median(|| {
            shown = !shown;
            space.update(|tree| tree.set_enabled(bar, shown)).map_err(|_: MemoryError| ()).unwrap();
        });
        let ratio = render.as_secs_f64() / toggle.as_secs_f64();
        let target = if count == 10_000 { ">= 20x" } else { "-" };
        println!("{count:<10} {render:>14.2?} {toggle:>14.2?} {ratio:>7.0}x {target:>10}");
    }
}

/// The median time of a piece of work.
fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..101)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}
