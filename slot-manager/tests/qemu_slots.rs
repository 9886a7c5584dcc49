//! QEMU's recorded slot calls: from the flat views before and after each step our plan gives the same calls, but
//! for the departures listed here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memory_model::{DirtyClients, FlatView, Hva, RamBlock, RegionId, RegionTree};
use slot_manager::{SlotFlags, SlotLimits, SlotOp, SlotRegistry, plan};

const LIMITS: SlotLimits = SlotLimits { count: 32764, max_bytes: SlotLimits::MAX_BYTES, readonly: true };

/// A call of `KVM_SET_USER_MEMORY_REGION`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    slot: u32,
    flags: u32,
    gpa: u64,
    size: u64,
    hva: u64,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, flags, gpa, size, hva } = self;
        write!(f, "Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={hva:#x}")
    }
}

impl Call {
    fn of(op: &SlotOp) -> Self {
        let region = op.to_region();
        let (flags, size) = (region.flags, region.memory_size);
        // A deletion's flags count for nothing; QEMU gives none.
        let flags = if size == 0 { 0 } else { flags };
        Self { slot: region.slot, flags, gpa: region.guest_phys_addr, size, hva: region.userspace_addr }
    }
}

/// One recorded machine.
struct Recording {
    folder: PathBuf,
    name: String,
    /// Each step with a state of its own: what its files are called, and its commits.
    steps: Vec<(String, Vec<Vec<Call>>)>,
    /// The host address of offset 0 of each region.
    bases: BTreeMap<String, u64>,
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("no number: {text}"))
}

/// `NAME.slots.txt`.
fn recording(path: &Path) -> Recording {
    let name = path.file_name().unwrap().to_str().unwrap().strip_suffix(".slots.txt").unwrap().to_string();
    let folder = path.parent().unwrap().to_path_buf();
    let mut recording = Recording { folder, name, steps: Vec::new(), bases: BTreeMap::new() };
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["#", "step", number, ..] => {
                let state = format!("step{}.flat", number.trim_end_matches(':'));
                recording.steps.push((state, Vec::new()));
            }
            ["#", "start:", ..] => recording.steps.push(("start.flat".into(), Vec::new())),
            ["#", "run:", ..] => recording.steps.push(("flat".into(), Vec::new())),
            ["#", "commit"] => recording.steps.last_mut().unwrap().1.push(Vec::new()),
            ["#", "base", address, ref region @ ..] => {
                recording.bases.insert(region.join(" "), hex(address));
            }
            ["kvm_set_user_memory", slot, flags, gpa, size, hva, "ret=0"] => {
                let field = |text: &str| hex(text.split_once('=').expect("NAME=VALUE").1);
                let slot = slot.strip_prefix("Slot#").unwrap().parse().unwrap();
                let call = Call {
                    slot,
                    flags: field(flags) as u32,
                    gpa: field(gpa),
                    size: field(size),
                    hva: field(hva),
                };
                recording.steps.last_mut().unwrap().1.last_mut().unwrap().push(call);
            }
            _ => {}
        }
    }
    let gone = GONE.iter().filter(|(name, ..)| *name == recording.name);
    recording.bases.extend(gone.map(|(_, region, base)| (region.to_string(), *base)));
    recording
}

/// Regions that had memory, but none any more when the bases were recorded.
const GONE: [(&str, &str, u64); 1] = [("pc-vga-kvm", "vga.rom", 0x7f60_dc20_0000)];

/// A piece of a view: what one line of `info mtree -f` says of memory.
struct Piece {
    gpa: u64,
    bytes: u64,
    region: String,
    offset: u64,
    readonly: bool,
}

impl Recording {
    /// Blocks with the recorded addresses; one for each region seen mapped.
    fn blocks(&self) -> BTreeMap<String, Arc<RamBlock>> {
        let block = |(name, &base): (&String, &u64)| {
            (name.clone(), RamBlock::foreign(name, Hva(base), 1 << 30).expect("whole pages"))
        };
        self.bases.iter().map(block).collect()
    }

    /// What a slot shows.
    fn piece(&self, call: &Call) -> Piece {
        let (region, base) =
            self.bases.iter().filter(|(_, base)| **base <= call.hva).max_by_key(|(_, base)| **base).unwrap();
        Piece {
            gpa: call.gpa,
            bytes: call.size,
            region: region.clone(),
            offset: call.hva - base,
            readonly: call.flags & SlotFlags::READONLY.bits() != 0,
        }
    }

    /// The memory of address space `memory` after a step.
    fn text_pieces(&self, state: &str) -> Option<Vec<Piece>> {
        let text = std::fs::read_to_string(self.folder.join(format!("{}.{state}.txt", self.name))).ok()?;
        let block = text.split("\n\n").find(|block| block.contains(" AS \"memory\","));
        Some(block.expect("there is a memory address space").lines().filter_map(piece_of_line).collect())
    }
}

/// A line such as `  0000-1fff (prio 0, ram): pc.ram @00c0 KVM`, unless it is of a device.
fn piece_of_line(line: &str) -> Option<Piece> {
    let (range, rest) = line.trim().split_once(" (prio ")?;
    let (kind, name) = rest.split_once("): ")?;
    let (first, last) = range.split_once('-')?;
    let kind = kind.split_once(", ")?.1;
    let name = name.trim_end_matches(" KVM");
    let (region, offset) = name.split_once(" @").map_or((name, 0), |(name, offset)| (name, hex(offset)));
    let (gpa, bytes) = (hex(first), hex(last) - hex(first) + 1);
    let readonly = kind == "rom" || kind == "romd";
    (kind != "i/o").then(|| Piece { gpa, bytes, region: region.to_string(), offset, readonly })
}

/// The view that shows just these pieces, each a range of its own as QEMU's are.
fn view(blocks: &BTreeMap<String, Arc<RamBlock>>, pieces: &[Piece]) -> FlatView {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let regions = blocks.iter().map(|(name, block)| (name.as_str(), tree.ram(name, block.clone()).unwrap()));
    let regions: BTreeMap<&str, RegionId> = regions.collect();
    if let Some(&vram) = regions.get("vga.vram") {
        tree.set_dirty_log(vram, DirtyClients::VGA).unwrap();
    }
    for piece in pieces {
        let window =
            tree.alias("piece", regions[piece.region.as_str()], piece.offset, piece.bytes.into()).unwrap();
        tree.set_readonly(window, piece.readonly).unwrap();
        tree.set_unmergeable(window, true).unwrap();
        tree.add(tree.root(), piece.gpa, window).unwrap();
    }
    FlatView::render(&tree).unwrap()
}

fn apply(slots: &mut BTreeMap<u32, Call>, calls: &[Call]) {
    for call in calls {
        match call.size {
            0 => drop(slots.remove(&call.slot)),
            _ => drop(slots.insert(call.slot, *call)),
        }
    }
}

/// The slots of a registry, as calls that would make them.
fn slots_of(registry: &SlotRegistry) -> BTreeMap<u32, Call> {
    let calls = registry.iter().map(|slot| Call::of(&SlotOp::Create(slot.clone())));
    calls.map(|call| (call.slot, call)).collect()
}

/// Where our slots are read-only and QEMU's are not, how often in all states: `pc.ram` behind an alias that shows it
/// read-only (PAM). We take READONLY from the range, so that the guest's write exits; QEMU takes it from the region
/// at the end, and the write sticks.
const READONLY_BY_ALIAS: [(&str, usize); 4] =
    [("pc-kvm", 2), ("pc-kvm-steps", 25), ("pc-vga-kvm", 3), ("q35-kvm", 2)];

#[test]
fn commit_by_commit_our_calls_are_qemus() {
    let Some(recordings) = recordings() else { return };
    let mut departures = BTreeMap::new();
    for path in recordings {
        let recording = recording(&path);
        let blocks = recording.blocks();
        let (mut registry, mut theirs) = (SlotRegistry::default(), BTreeMap::new());
        for (step, (state, recorded)) in recording.steps.iter().enumerate() {
            for (commit, calls) in recorded.iter().enumerate() {
                apply(&mut theirs, calls);
                let pieces: Vec<_> = theirs.values().map(|call| recording.piece(call)).collect();
                let plan = plan(&registry, &view(&blocks, &pieces), &LIMITS).unwrap();
                let ours: Vec<_> = plan.ops.iter().map(Call::of).collect();
                let place = (recording.name.as_str(), step, commit);
                assert_eq!(ours, *calls, "{place:?}");
                assert!(plan.ops.iter().all(|op| registry.apply(op)));
                assert_eq!(slots_of(&registry), theirs, "{place:?}");
            }
            // QEMU prints the view itself after most steps. There the slots are those of the view, but for
            // READONLY.
            let Some(pieces) = recording.text_pieces(state) else { continue };
            let plan = plan(&SlotRegistry::default(), &view(&blocks, &pieces), &LIMITS).unwrap();
            let ours: Vec<_> = plan.ops.iter().map(|op| Call { slot: 0, ..Call::of(op) }).collect();
            let mut shown: Vec<_> = theirs.values().map(|call| Call { slot: 0, ..*call }).collect();
            shown.sort_by_key(|call| call.gpa);
            assert_eq!(ours.len(), shown.len(), "{} {state}", recording.name);
            for (our, shown) in ours.iter().zip(&shown) {
                let piece = recording.piece(shown);
                let flips = our.flags ^ shown.flags;
                let by_alias =
                    flips == SlotFlags::READONLY.bits() && our.flags == flips && piece.region == "pc.ram";
                assert!(flips == 0 || by_alias, "{} {state}: {our:?}, QEMU {shown:?}", recording.name);
                *departures.entry(recording.name.clone()).or_insert(0) += usize::from(by_alias);
                assert_eq!(
                    Call { flags: 0, ..*our },
                    Call { flags: 0, ..*shown },
                    "{} {state}",
                    recording.name
                );
            }
        }
    }
    departures.retain(|_, count| *count > 0);
    let listed = READONLY_BY_ALIAS.iter().map(|(name, count)| (name.to_string(), *count));
    assert_eq!(departures, listed.collect());
}

/// The recordings, if they are here: they are no part of this repository.
fn recordings() -> Option<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/qemu");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("not checked: QEMU's slot calls: no folder {}", folder.display());
        return None;
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().is_some_and(|path| path.ends_with(".slots.txt")));
    paths.sort();
    assert!(!paths.is_empty(), "no recordings in {}", folder.display());
    Some(paths)
}
