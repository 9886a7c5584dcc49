//! The walker against a second one, over memory full of garbage that is mostly plausible.

use crate::oracle::{self, Answer, Ask, Machine};
use ept::{
    Access, Controls, Cr3, EptCaps, Eptp, Fault, Flags, Ia32e, Levels, MaxPhyAddr, MemoryError, Paging,
    PhysMemory, Rights, SparseMemory, walk,
};
use proptest::prelude::*;

const FRAMES: u64 = 16;
const ROOT: u64 = 0x1000;

/// A good hash of two numbers (the finisher of SplitMix64).
fn hash(seed: u64, n: u64) -> u64 {
    let mut z = seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// An entry that mostly leads on, with up to two bits turned over.
fn garbage(machine: Machine, seed: u64, address: u64) -> u64 {
    let mut dice = (0..).map(|n| hash(hash(seed, address), n));
    let mut roll = move |sides: u64| dice.next().expect("endless") % sides;
    let large = roll(5) == 0;
    let rights = if roll(3) == 0 { roll(8) } else { 7 };
    let mut entry = rights | roll(FRAMES) << 12;
    if large {
        entry = rights | 1 << 7 | roll(1 << 14) << 30;
    }
    if machine.ept && roll(2) == 0 {
        entry |= roll(8) << 3;
    }
    if !machine.ept && roll(4) == 0 {
        entry |= 1 << 63;
    }
    for _ in 0..roll(3) {
        entry ^= 1 << roll(64);
    }
    if roll(16) == 0 { roll(u64::MAX) } else { entry }
}

fn memory(machine: Machine, seed: u64) -> SparseMemory {
    let mut memory = SparseMemory::default();
    for frame in 0..FRAMES {
        memory.add_frame(frame << 12);
    }
    for address in (0..FRAMES << 12).step_by(8) {
        memory.write_entry(address, garbage(machine, seed, address)).unwrap();
    }
    memory
}

pub fn paging(machine: Machine) -> Paging {
    let max_phy_addr = MaxPhyAddr::new(machine.width as u8).unwrap();
    let levels = if machine.levels == 5 { Levels::Five } else { Levels::Four };
    if machine.ept {
        let mut caps = EptCaps::all();
        caps.set(EptCaps::PAGE_1G, machine.page_1g);
        caps.set(EptCaps::PAGE_2M, machine.page_2m);
        caps.set(EptCaps::EXECUTE_ONLY, machine.execute_only);
        let eptp = Eptp::for_root(ROOT, levels, machine.flags, caps, max_phy_addr).unwrap();
        return Paging::ept(eptp, caps, max_phy_addr);
    }
    let mut controls = Controls::empty();
    controls.set(Controls::WP, machine.wp);
    controls.set(Controls::SMEP, machine.smep);
    controls.set(Controls::SMAP, machine.smap);
    let ia32e = Ia32e { levels, max_phy_addr, no_execute: machine.nxe, page_1g: machine.page_1g, amd: false };
    Paging::ia32e(Cr3::new(ROOT, max_phy_addr).unwrap(), ia32e, controls)
}

fn access(ask: Ask) -> Access {
    let mut does = Rights::empty();
    does.set(Rights::READ, ask.read);
    does.set(Rights::WRITE, ask.write);
    does.set(Rights::EXEC, ask.fetch);
    Access { does, user: ask.user, ac: ask.ac }
}

/// The crate's outcome in the oracle's words.
fn answer(outcome: Result<ept::Leaf, Fault>) -> Answer {
    match outcome {
        Ok(leaf) => {
            let has = |right| leaf.rights().contains(right);
            assert_eq!(leaf.frame & (leaf.size.bytes() - 1), 0);
            Answer::Page {
                address: leaf.address,
                bytes: leaf.size.bytes(),
                r: has(Rights::READ),
                w: has(Rights::WRITE),
                x: has(Rights::EXEC),
                u: has(Rights::USER),
            }
        }
        Err(Fault::PageFault { code }) => Answer::PageFault(code.bits()),
        Err(Fault::EptViolation { qualification }) => Answer::Violation(qualification.bits()),
        Err(Fault::EptMisconfiguration { .. }) => Answer::Misconfigured,
        Err(Fault::NonCanonical { .. } | Fault::TooWide { .. }) => Answer::BadAddress,
        Err(Fault::Memory(MemoryError::Absent { address })) => Answer::NoMemory(address),
        Err(other) => panic!("{other}"),
    }
}

prop_compose! {
    fn machines()(
        levels in 4..=5u32,
        width in prop::sample::select(vec![32, 36, 46, 48, 52u32]),
        bits in any::<[bool; 9]>(),
    ) -> Machine {
        let [ept, page_1g, page_2m, execute_only, flags, nxe, wp, smep, smap] = bits;
        // Only EPT can lack 2 MiB pages.
        let page_2m = page_2m || !ept;
        Machine { ept, levels, width, page_1g, page_2m, execute_only, flags, nxe, wp, smep, smap }
    }
}

prop_compose! {
    fn asks()(kind in 0..4, user: bool, ac: bool) -> Ask {
        Ask { read: kind % 2 == 0 && kind != 3, write: (1..3).contains(&kind), fetch: kind == 3, user, ac }
    }
}

prop_compose! {
    /// Mostly canonical for four or five levels.
    fn addresses()(raw: u64, shape in 0..8) -> u64 {
        match shape {
            0 => raw,
            1 => raw | 0xffff_8000_0000_0000,
            2 => raw & 0x01ff_ffff_ffff_ffff,
            _ => raw & 0x0000_7fff_ffff_ffff,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn two_walkers_agree_on_garbage(
        machine in machines(),
        seed: u64,
        tries in prop::collection::vec((addresses(), asks()), 96),
    ) {
        let memory = memory(machine, seed);
        let paging = paging(machine);
        for (address, ask) in tries {
            let slow = oracle::walk(machine, ROOT, address, ask, |at| memory.read_entry(at).ok());
            let fast = walk(&memory, &paging, address, access(ask), Flags::Keep);
            prop_assert_eq!(answer(fast.outcome), slow.answer, "{:x} {:?}", address, ask);
            let path: Vec<_> = fast.path.iter().map(|step| (step.entry_address(), step.entry)).collect();
            prop_assert_eq!(path, slow.entries);
        }
    }

    /// Rule A1, and F4 as this crate decides it: a faulting walk sets nothing.
    #[test]
    fn a1_flags_are_set_along_the_path_and_nowhere_else(
        machine in machines(),
        seed: u64,
        tries in prop::collection::vec((addresses(), asks()), 24),
    ) {
        let memory = memory(machine, seed);
        let paging = paging(machine);
        let (accessed, dirty) = match (machine.ept, machine.flags) {
            (true, false) => (0, 0),
            (true, true) => (1 << 8, 1 << 9),
            (false, _) => (1 << 5, 1 << 6),
        };
        let all = |memory: &SparseMemory| {
            (0..FRAMES << 12).step_by(8).map(|at| memory.read_entry(at).unwrap()).collect::<Vec<_>>()
        };
        let mut expected = all(&memory);
        for (address, ask) in tries {
            let slow = oracle::walk(machine, ROOT, address, ask, |at| Some(*expected.get(at as usize / 8)?));
            let fast = walk(&memory, &paging, address, access(ask), Flags::Set);
            prop_assert_eq!(answer(fast.outcome), slow.answer);
            if let Answer::Page { .. } = slow.answer {
                for &(at, _) in &slow.entries {
                    expected[at as usize / 8] |= accessed;
                }
                if ask.write {
                    expected[slow.entries.last().unwrap().0 as usize / 8] |= dirty;
                }
            }
        }
        prop_assert_eq!(all(&memory), expected);
    }
}

/// A sample of the garbage must reach every kind of answer, or the comparison above proves little.
#[test]
fn garbage_reaches_every_answer() {
    let mut seen = std::collections::BTreeMap::<_, u32>::new();
    for ept in [false, true] {
        let machine = Machine {
            ept,
            levels: 4,
            width: 46,
            page_1g: true,
            page_2m: true,
            execute_only: true,
            flags: true,
            nxe: true,
            wp: true,
            smep: true,
            smap: true,
        };
        let ask = Ask { read: false, write: true, fetch: false, user: true, ac: false };
        for n in 0..20_000 {
            let read = |at| (at < FRAMES << 12).then(|| garbage(machine, 1, at));
            let name = match oracle::walk(machine, ROOT, hash(7, n) >> 16, ask, read).answer {
                Answer::Page { bytes, .. } => format!("page {bytes:#x}"),
                Answer::PageFault(code) => format!("#PF {code:#x}"),
                Answer::Violation(bits) => format!("violation {:#x}", bits & 0x18),
                other => format!("{other:?}").split('(').next().unwrap().to_string(),
            };
            *seen.entry((ept, name)).or_default() += 1;
        }
    }
    let expected = [
        (false, "#PF 0x6"),
        (false, "#PF 0x7"),
        (false, "#PF 0xf"),
        (false, "BadAddress"),
        (false, "NoMemory"),
        (false, "page 0x1000"),
        (false, "page 0x200000"),
        (false, "page 0x40000000"),
        (true, "Misconfigured"),
        (true, "NoMemory"),
        (true, "page 0x1000"),
        (true, "page 0x200000"),
        (true, "page 0x40000000"),
        (true, "violation 0x0"),
        (true, "violation 0x8"),
    ];
    for (ept, name) in expected {
        let count = seen.get(&(ept, name.to_string())).copied().unwrap_or(0);
        assert!(count >= 20, "{name} seen {count} times (ept: {ept}); all: {seen:?}");
    }
}
