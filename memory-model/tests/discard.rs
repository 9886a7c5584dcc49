//! Populated and discarded memory: sources, listeners, and claims that exclude each other.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memory_model::{DiscardClaim, DiscardClaims, MemoryError, RamBlock, RamDiscardListener, Refusal};
use proptest::prelude::*;

const SIZE: u64 = 0x10_0000;

/// Writes down what it hears, and refuses a part that holds `refuses`.
struct Recorder {
    name: &'static str,
    refuses: Option<u64>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl RamDiscardListener for Recorder {
    fn name(&self) -> &str {
        self.name
    }
    fn populate(&mut self, part: Range<u64>) -> Result<(), Refusal> {
        if self.refuses.is_some_and(|at| part.contains(&at)) {
            return Err("no room in the IOMMU".into());
        }
        self.heard.lock().unwrap().push(format!("{} + {:#x}..{:#x}", self.name, part.start, part.end));
        Ok(())
    }
    fn discard(&mut self, part: Range<u64>) {
        self.heard.lock().unwrap().push(format!("{} - {:#x}..{:#x}", self.name, part.start, part.end));
    }
}

type Heard = Arc<Mutex<Vec<String>>>;

fn recorder(name: &'static str, heard: &Heard, refuses: Option<u64>) -> Arc<Mutex<Recorder>> {
    Arc::new(Mutex::new(Recorder { name, refuses, heard: heard.clone() }))
}

fn take(heard: &Heard) -> Vec<String> {
    std::mem::take(&mut heard.lock().unwrap())
}

#[test]
fn a_source_populates_and_discards_and_listeners_hear_the_difference() {
    let block = RamBlock::anonymous("vmem", SIZE).unwrap();
    let manager = block.discard_manager();
    let vmem = manager.add_source(0x4000).unwrap();
    manager.populate(vmem, 0x4000..0xc000).unwrap();
    let heard = Heard::default();
    let vfio = recorder("vfio", &heard, None);
    manager.register(vfio.clone(), 0x8000..SIZE).unwrap();
    assert_eq!(take(&heard), ["vfio + 0x8000..0xc000"], "replay, clipped to the window");
    manager.populate(vmem, 0x8000..0x1_4000).unwrap();
    assert_eq!(take(&heard), ["vfio + 0xc000..0x14000"], "what was there already is not told again");
    block.write(0x8000, &[1]).unwrap();
    manager.discard(vmem, 0..0xc000).unwrap();
    assert_eq!(take(&heard), ["vfio - 0x8000..0xc000"]);
    let mut seen = [9];
    block.read(0x8000, &mut seen).unwrap();
    assert_eq!(seen, [0], "the pages went back to the host");
    assert_eq!(manager.populated(0..SIZE), vec![0xc000..0x1_4000; 1]);
    assert_eq!(manager.discarded(0..0x1_8000), [0..0xc000, 0x1_4000..0x1_8000]);
    manager.unregister(&vfio);
    assert_eq!(take(&heard), ["vfio - 0xc000..0x14000"]);
    manager.populate(vmem, 0..0x4000).unwrap();
    assert_eq!(take(&heard), [""; 0]);
}

#[test]
fn parts_must_be_whole_units_inside_the_block() {
    let block = RamBlock::anonymous("vmem", SIZE).unwrap();
    let manager = block.discard_manager();
    for granularity in [0, 0x800, 0x1800] {
        assert!(matches!(manager.add_source(granularity), Err(MemoryError::BlockSize { .. })));
    }
    let vmem = manager.add_source(0x4000).unwrap();
    for part in [0x1000..0x4000, 0..0x1000, SIZE..SIZE + 0x4000, Range { start: 0x8000, end: 0x4000 }] {
        let error = manager.populate(vmem, part.clone()).unwrap_err();
        assert!(matches!(error, MemoryError::DiscardRange { unit: 0x4000, .. }), "{part:?}: {error}");
        assert!(manager.discard(vmem, part).is_err());
    }
    manager.remove_source(vmem).unwrap();
    assert!(matches!(manager.populate(vmem, 0..0x4000), Err(MemoryError::NoDiscardSource { .. })));
}

#[test]
fn r44_no_source_is_populated_and_several_intersect() {
    let block = RamBlock::anonymous("vmem", SIZE).unwrap();
    let manager = block.discard_manager();
    assert!(manager.is_populated(0..SIZE));
    assert_eq!(manager.granularity(), 0x1000);
    let heard = Heard::default();
    manager.register(recorder("vfio", &heard, None), 0..SIZE).unwrap();
    let first = manager.add_source(0x4000).unwrap();
    manager.populate(first, 0..0x8000).unwrap();
    let second = manager.add_source(0x6000).unwrap();
    assert_eq!(manager.granularity(), 0x2000);
    manager.populate(second, 0x6000..0xc000).unwrap();
    assert_eq!(manager.populated(0..SIZE), vec![0x6000..0x8000; 1]);
    manager.discard(first, 0x4000..0x8000).unwrap();
    manager.remove_source(first).unwrap();
    assert_eq!(manager.populated(0..SIZE), vec![0x6000..0xc000; 1]);
    manager.remove_source(second).unwrap();
    assert!(manager.is_populated(0..SIZE));
    assert_eq!(
        take(&heard),
        [
            "vfio + 0x0..0x100000",
            "vfio - 0x0..0x100000",
            "vfio + 0x0..0x8000",
            "vfio - 0x0..0x8000",
            "vfio + 0x6000..0x8000",
            "vfio - 0x6000..0x8000",
            "vfio + 0x6000..0xc000",
            "vfio + 0x0..0x6000",
            "vfio + 0xc000..0x100000",
        ]
    );
}

#[test]
fn r44_a_listener_that_refuses_rolls_back_those_told_before() {
    let block = RamBlock::anonymous("vmem", SIZE).unwrap();
    let manager = block.discard_manager();
    let vmem = manager.add_source(0x1000).unwrap();
    let heard = Heard::default();
    for (name, refuses) in [("one", None), ("two", Some(0x5000)), ("three", None)] {
        manager.register(recorder(name, &heard, refuses), 0..SIZE).unwrap();
    }
    manager.populate(vmem, 0x3000..0x4000).unwrap();
    take(&heard);
    // Two new parts: the listener accepts the first.
    let error = manager.populate(vmem, 0x2000..0x6000).unwrap_err();
    assert_eq!(error.to_string(), "RAM block vmem: two refused the memory at 0x4000..0x6000");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no room in the IOMMU");
    assert_eq!(
        take(&heard),
        [
            "one + 0x2000..0x3000",
            "one + 0x4000..0x6000",
            "two + 0x2000..0x3000",
            "two - 0x2000..0x3000",
            "one - 0x4000..0x6000",
            "one - 0x2000..0x3000",
        ]
    );
    assert_eq!(manager.populated(0..SIZE), vec![0x3000..0x4000; 1], "nothing has changed");
    // The same while a source goes, and while a listener comes.
    assert!(matches!(manager.remove_source(vmem), Err(MemoryError::Populate { .. })));
    assert_eq!(manager.populated(0..SIZE), vec![0x3000..0x4000; 1]);
    take(&heard);
    assert!(manager.register(recorder("four", &heard, Some(0x3000)), 0..SIZE).is_err());
    manager.discard(vmem, 0x3000..0x4000).unwrap();
    assert_eq!(take(&heard), ["one - 0x3000..0x4000", "two - 0x3000..0x4000", "three - 0x3000..0x4000"]);
}

#[test]
fn r43_disabled_and_required_exclude_each_other() {
    use DiscardClaim::*;
    // As QEMU's ram_block_discard_*: each pair, whether the two can be held together.
    let together = [
        (Disabled, Disabled, true),
        (Disabled, UncoordinatedDisabled, true),
        (Disabled, Required, false),
        (Disabled, CoordinatedRequired, false),
        (UncoordinatedDisabled, UncoordinatedDisabled, true),
        (UncoordinatedDisabled, Required, false),
        (UncoordinatedDisabled, CoordinatedRequired, true),
        (Required, Required, true),
        (Required, CoordinatedRequired, true),
        (CoordinatedRequired, CoordinatedRequired, true),
    ];
    for (one, two, fits) in together {
        for (one, two) in [(one, two), (two, one)] {
            let claims = DiscardClaims::default();
            let first = claims.claim(one).unwrap();
            let second = claims.clone().claim(two);
            assert_eq!(second.is_ok(), fits, "{one:?} and {two:?}");
            if let Err(error) = &second {
                assert!(matches!(error, MemoryError::DiscardBusy { .. }), "{error}");
            }
            drop((first, second));
            assert!(!claims.is_held(one) && !claims.is_held(two), "a claim ends with its holder");
        }
    }
}

proptest! {
    /// Against one flag a page and source.
    #[test]
    fn r44_populated_is_the_intersection(
        steps in prop::collection::vec((0..3_usize, any::<bool>(), 0..32_u64, 0..32_u64), 1..40),
    ) {
        let block = RamBlock::anonymous("vmem", 32 * 0x1000).unwrap();
        let manager = block.discard_manager();
        let heard = Heard::default();
        manager.register(recorder("r", &heard, None), 0..32 * 0x1000).unwrap();
        let sources: Vec<_> = (0..3).map(|_| manager.add_source(0x1000).unwrap()).collect();
        let mut oracle = [[false; 32]; 3];
        for (source, populate, one, two) in steps {
            let (first, end) = (one.min(two), one.max(two));
            let part = first * 0x1000..end * 0x1000;
            if populate {
                manager.populate(sources[source], part).unwrap();
            } else {
                manager.discard(sources[source], part).unwrap();
            }
            oracle[source][first as usize..end as usize].fill(populate);
            let all: Vec<bool> = (0..32).map(|page| oracle.iter().all(|flags| flags[page])).collect();
            for page in 0..32 {
                prop_assert_eq!(manager.is_populated(page * 0x1000..(page + 1) * 0x1000), all[page as usize]);
            }
            let inside = |parts: &[Range<u64>], page: u64| parts.iter().any(|part| part.contains(&(page * 0x1000)));
            let (populated, discarded) = (manager.populated(0..u64::MAX), manager.discarded(0..u64::MAX));
            prop_assert!((0..32).all(|page| inside(&populated, page) == all[page as usize]));
            prop_assert!((0..32).all(|page| inside(&discarded, page) != all[page as usize]));
        }
        // What the listener heard adds up to the same.
        let mut flags = [false; 32];
        for line in take(&heard) {
            let (sign, part) = line.strip_prefix("r ").unwrap().split_once(' ').unwrap();
            let (start, end) = part.split_once("..").unwrap();
            let number = |text: &str| usize::from_str_radix(&text[2..], 16).unwrap() / 0x1000;
            for flag in &mut flags[number(start)..number(end)] {
                prop_assert_ne!(*flag, sign == "+", "told twice");
                *flag = sign == "+";
            }
        }
        prop_assert!((0..32).all(|page| flags[page] == oracle.iter().all(|flags| flags[page])));
    }
}
