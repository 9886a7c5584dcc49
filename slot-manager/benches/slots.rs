//! What the slots cost: planning, look-ups, dirty logs, and the executor beside the bare ioctl.

#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvm_ioctls::Kvm;
use memory_model::{
    AddrRange, AddressSpace, DirtyClients, FlatRange, FlatView, Gpa, Hva, RamBlock, RegionTree,
};
use slot_manager::{
    KernelMemslots, KvmSlots, Slot, SlotExecutor, SlotFlags, SlotId, SlotLimits, SlotManager, SlotOp,
    SlotRecord, SlotRegistry, plan, plan_change,
};

const PAGE: u64 = 0x1000;
const MOST: u64 = 32764;
const LIMITS: SlotLimits =
    SlotLimits { count: MOST as u32, max_bytes: SlotLimits::MAX_BYTES, readonly: true };
const LOOK_UPS: u32 = 100_000;
/// The highest ratio of a look-up ...
const HALF: Option<f64> = Some(0.5);
/// ... and of what stands above a kernel's call.
const NEARLY_NOTHING: Option<f64> = Some(1.05);

fn main() {
    plans();
    look_ups();
    dirty_logs();
    executor();
}

/// Slots of two pages, with a page between one and the next, in the guest and on the host.
fn slot(index: u64, block: &Arc<RamBlock>) -> Slot {
    Slot {
        id: SlotId(index as u32),
        gpa: AddrRange::new(Gpa(index * 3 * PAGE), (2 * PAGE).into()).unwrap(),
        hva: Hva(block.hva().0 + index * 3 * PAGE),
        flags: SlotFlags::empty(),
        name: "ram".into(),
        block: block.clone(),
    }
}

fn block() -> Arc<RamBlock> {
    RamBlock::foreign("ram", Hva(0x7f00_0000_0000), 3 * PAGE * (MOST + 1)).unwrap()
}

fn registry(count: u64) -> SlotRegistry {
    let block = block();
    let mut registry = SlotRegistry::default();
    assert!((0..count).all(|index| registry.insert(slot(index, &block))));
    registry
}

/// A view with a range for each of those slots, and the range in the middle moved a page up.
fn view(count: u64, moved: bool) -> FlatView {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let ram = tree.ram("ram", block()).unwrap();
    for index in 0..count {
        let at = index * 3 * PAGE;
        let window = tree.alias("window", ram, at, (2 * PAGE).into()).unwrap();
        let shift = if moved && index == count / 2 { PAGE } else { 0 };
        tree.add(tree.root(), at + shift, window).unwrap();
    }
    FlatView::render(&tree).unwrap()
}

fn plans() {
    println!("\nplanning and building");
    let time = |what: &str, times: u32, work: &mut dyn FnMut()| {
        work();
        let start = Instant::now();
        (0..times).for_each(|_| work());
        println!("{what:<44} {:>12.2?}", start.elapsed() / times);
    };
    for count in [9, 509, MOST] {
        let (present, after) = (registry(count), view(count, true));
        let middle: FlatRange = after.ranges().nth(count as usize / 2).unwrap().clone();
        let gone = AddrRange::new(Gpa(count / 2 * 3 * PAGE), (2 * PAGE).into()).unwrap();
        time(&format!("plan one move among {count}"), 10_000, &mut || {
            black_box(plan_change(&present, &[gone], [&middle], &LIMITS).unwrap());
        });
        // A slot that goes and two that come, with the lowest free numbers.
        let half = |at| {
            let range = AddrRange::new(Gpa(at), PAGE.into()).unwrap();
            FlatRange { range, ..middle.clone() }
        };
        if count < MOST {
            let halves = [
                half(gone.first().0),
                FlatRange { offset: middle.offset + PAGE, ..half(gone.first().0 + PAGE) },
            ];
            time(&format!("plan one split among {count}"), 10_000, &mut || {
                black_box(plan_change(&present, &[gone], &halves, &LIMITS).unwrap());
            });
        }
    }
    let everything = view(MOST, false);
    time("plan 32764 slots from nothing", 10, &mut || {
        black_box(plan(&SlotRegistry::default(), &everything, &LIMITS).unwrap());
    });
    let ops = plan(&SlotRegistry::default(), &everything, &LIMITS).unwrap().ops;
    time("register 32764 slots", 10, &mut || {
        let mut registry = SlotRegistry::default();
        assert!(ops.iter().all(|op| registry.apply(op)));
    });
    time("register 32764 slots, last first", 3, &mut || {
        let mut registry = SlotRegistry::default();
        assert!(ops.iter().rev().all(|op| registry.apply(op)));
    });
}

/// The same look-ups in a `BTreeMap` of slots by first address.
fn look_ups() {
    paired::head("look-up (peer: BTreeMap)");
    for count in [9, 509, MOST] {
        let registry = registry(count);
        let by_gpa: BTreeMap<Gpa, Slot> =
            registry.iter().map(|slot| (slot.gpa.first(), slot.clone())).collect();
        let by_hva: BTreeMap<Hva, Slot> = registry.iter().map(|slot| (slot.hva, slot.clone())).collect();
        // Without a pattern, and the same for both.
        let offsets: Vec<u64> =
            (0..u64::from(LOOK_UPS)).map(|index| scatter(index) % (count * 3 * PAGE)).collect();
        let base = block().hva().0;
        paired::compare(
            &format!("GPA among {count}"),
            HALF,
            15,
            LOOK_UPS,
            || {
                for &offset in &offsets {
                    black_box(registry.by_gpa(Gpa(offset)));
                }
            },
            || {
                for &offset in &offsets {
                    let found = by_gpa.range(..=Gpa(offset)).next_back();
                    black_box(found.filter(|(_, slot)| slot.gpa.contains(Gpa(offset))));
                }
            },
        );
        paired::compare(
            &format!("HVA among {count}"),
            HALF,
            15,
            LOOK_UPS,
            || {
                for &offset in &offsets {
                    black_box(registry.by_hva(Hva(base + offset)).next());
                }
            },
            || {
                for &offset in &offsets {
                    let found = by_hva.range(..=Hva(base + offset)).next_back();
                    black_box(found.filter(|(_, slot)| slot.hva_range().contains(Hva(base + offset))));
                }
            },
        );
    }
}

/// A number that tells nothing of the next one (splitmix64).
fn scatter(index: u64) -> u64 {
    let mixed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// 64 GiB in process: collecting through the manager beside the kernel's call alone.
fn dirty_logs() {
    paired::head("dirty log of 64 GiB (peer: the call alone)");
    let bytes = 64 << 30;
    let block = RamBlock::foreign("ram", Hva(0x7e00_0000_0000), bytes).unwrap();
    for percent in [1, 100] {
        let step = 100 / percent;
        let fill = |kernel: &KernelMemslots| {
            for page in (0..bytes / PAGE).step_by(step as usize) {
                assert!(kernel.mark_page_dirty(None, 0, Gpa(page * PAGE)));
            }
        };
        let recorder = slot_manager::Recorder::new(KernelMemslots::new());
        let manager = Arc::new(Mutex::new(SlotManager::new(recorder.clone())));
        let mut tree = RegionTree::new("system", 1 << 64).unwrap();
        let ram = tree.ram("ram", block.clone()).unwrap();
        tree.set_dirty_log(ram, DirtyClients::MIGRATION).unwrap();
        tree.add(tree.root(), 0, ram).unwrap();
        let space = AddressSpace::new("memory", tree).unwrap();
        space.register(manager.clone()).unwrap();
        let mut manager = manager.lock().unwrap();
        // The same log for both: where in the host's memory it lies makes a difference.
        let mut pairs = Vec::new();
        for _ in 0..11 {
            recorder.with_inner(fill);
            let start = Instant::now();
            let dirty = manager.collect_all_dirty().unwrap();
            let ours = start.elapsed();
            assert_eq!(dirty.count(), (bytes / PAGE).div_ceil(step));
            recorder.with_inner(fill);
            let start = Instant::now();
            let mut bitmap = vec![0; (bytes / PAGE / 64) as usize];
            recorder.with_inner_mut(|kernel| kernel.get_dirty_log(0, black_box(&mut bitmap))).unwrap();
            pairs.push((ours.as_secs_f64(), start.elapsed().as_secs_f64()));
        }
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = pairs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let [ours, peer] =
            [median(|pair| pair.0), median(|pair| pair.1)].map(|time| format!("{:.2} ms", time * 1e3));
        let (row, ratio) = (format!("{percent} % dirty"), median(|(ours, peer)| ours / peer));
        println!("{row:<44} {ours:>12} {peer:>12} {ratio:>7.2}x {:>10}", "<= 1.05x");
    }
}

/// Making and deleting a slot of a real VM by the executor, beside the bare ioctl.
fn executor() {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        println!("\nnot measured: the executor beside the bare ioctl: no /dev/kvm");
        return;
    };
    paired::head("create and delete a slot (peer: bare ioctls)");
    let vm = Arc::new(vm);
    let block = RamBlock::anonymous("ram", 256 * PAGE).unwrap();
    let slot = Slot { gpa: AddrRange::new(Gpa(0), (256 * PAGE).into()).unwrap(), ..slot(0, &block) };
    let (create, delete) = (SlotOp::Create(slot.clone()), SlotOp::Delete(slot));
    let mut slots = KvmSlots::new(vm.clone());
    let bare = |op: &SlotOp| {
        #[expect(unsafe_code, reason = "the bare ioctl is the peer")]
        // SAFETY: this VM has no vCPU, so nothing reaches the memory.
        unsafe { vm.set_user_memory_region(op.to_region()) }.unwrap();
    };
    let times = 200;
    paired::compare(
        "1 MiB",
        NEARLY_NOTHING,
        25,
        times,
        || {
            for _ in 0..times {
                slots.execute(&create).unwrap();
                slots.execute(&delete).unwrap();
            }
        },
        || {
            for _ in 0..times {
                bare(&create);
                bare(&delete);
            }
        },
    );
}
