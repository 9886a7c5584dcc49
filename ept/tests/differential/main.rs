//! The walker against a second one, over tables full of garbage.
//!
//! `MEMVIRT_WALKS` says how many walks each format does (a million in CI), `MEMVIRT_SEED` which.

mod draw;
mod entries;
mod garbage;
mod nested;
mod oracle;
mod subject;

use std::collections::BTreeMap;

use ept::{Flags, Mapped, lookup, translate, translate_many, walk};

use garbage::{Dice, Garbage, Make};
use oracle::{Ask, End, Reason, Used, Walked};
use subject::Machine;

/// So many walks in the same tables: what the first have written the others read.
const WALKS_A_TABLE: u64 = 64;

fn setting(name: &str, or: u64) -> u64 {
    std::env::var(name)
        .map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// How often walks ended in what way.
#[derive(Default)]
struct Seen(BTreeMap<String, u64>);

impl Seen {
    fn count(&mut self, walked: &Walked) {
        let name = match &walked.end {
            End::Page { bytes, .. } => format!("page {bytes:#x}"),
            End::PageFault(code) => format!("#PF {code:#x}"),
            End::Violation(bits) => format!("violation granting {:#x}", bits >> 3 & 0xf),
            End::Misconfigured(reasons) => match reasons[0] {
                Reason::M3(_) => "M3".to_string(),
                Reason::M4(_) => "M4".to_string(),
                reason => format!("{reason:?}"),
            },
            End::NotCanonical => "not canonical".to_string(),
            End::TooWide => "too wide".to_string(),
            End::NoMemory(_) => "no memory".to_string(),
        };
        self.name(name);
    }

    fn name(&mut self, name: String) {
        *self.0.entry(name).or_default() += 1;
    }

    /// Each of these has been seen often enough that the comparison proves something.
    fn includes<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let walks: u64 = self.0.values().sum();
        for name in names {
            let count = self.0.get(name).copied().unwrap_or(0);
            assert!(count > walks / 20_000, "{name}: {count} of {walks}; all: {:#?}", self.0);
        }
    }
}

/// Compares the two walkers on many walks of random machines.
fn compare(name: &str, make: Make, machine: fn(&mut Dice) -> Machine) -> Seen {
    let walks = setting("MEMVIRT_WALKS", 40_000);
    let mut dice = Dice(setting("MEMVIRT_SEED", 1));
    let mut seen = Seen::default();
    for _ in 0..walks.div_ceil(WALKS_A_TABLE) {
        let memory = Garbage::new(dice.number(), make);
        let machine = machine(&mut dice);
        for _ in 0..WALKS_A_TABLE {
            let (address, ask) = (draw::address(&mut dice, &machine), draw::ask(&mut dice, &machine));
            seen.count(&compare_one(&memory, &machine, address, ask));
        }
        let addresses: Vec<_> = (0..dice.roll(100)).map(|_| draw::address(&mut dice, &machine)).collect();
        compare_many(&memory, &machine, &addresses, draw::ask(&mut dice, &machine));
    }
    println!("{name}: {walks} walks, {:#?}", seen.0);
    seen
}

/// One walk three ways: with its path, without, and setting flags. Returns the oracle's.
fn compare_one(memory: &Garbage, machine: &Machine, address: u64, ask: Ask) -> Walked {
    let context = || format!("{address:#x}, {ask:?}, {machine:?}");
    let (paging, access) = (machine.paging(), subject::access(ask));
    let slow = machine.slow_walk(address, ask, |at| memory.get(at));

    let before = memory.written.borrow().clone();
    let fast = walk(memory, &paging, address, access, Flags::Keep);
    assert_ends(subject::end(fast.outcome), &slow.end, context);
    let path: Vec<_> = fast.path.iter().map(|step| (step.level, step.entry_address(), step.entry)).collect();
    let used: Vec<_> = slow.used.iter().map(|used| (used.level as u8, used.at, used.entry)).collect();
    assert_eq!(path, used, "{}", context());
    if let Machine::Ept(_) = machine {
        assert_eq!(fast.is_convertible(), oracle::ept::convertible(&slow), "V2: {}", context());
    }
    let short = translate(memory, &paging, address, access, Flags::Keep);
    assert_ends(subject::end(short), &slow.end, context);
    assert_found(lookup(memory, &paging, address), &slow, context);
    assert_eq!(*memory.written.borrow(), before, "a look has written: {}", context());

    let setting = translate(memory, &paging, address, access, Flags::Set);
    assert_ends(subject::end(setting), &slow.end, context);
    let expected = written(before, &slow.used, memory);
    assert_eq!(*memory.written.borrow(), expected, "A1, F4: {}", context());
    slow
}

/// A look-up finds the page of a walk, also where rights deny the access to it, and no other.
fn assert_found(found: Option<Mapped>, slow: &Walked, context: impl Fn() -> String) {
    let last = slow.used.last().map_or(0, |used| used.entry);
    let there = match slow.end {
        End::Page { address, bytes, .. } => {
            let page = found.map(|page| (page.address, page.size.bytes()));
            assert_eq!(page, Some((address, bytes)), "{}", context());
            true
        }
        // P without RSVD.
        End::PageFault(code) => code & 0b1001 == 1,
        End::Violation(_) => found.is_some() || last & 0b111 != 0,
        End::Misconfigured(_) | End::NotCanonical | End::TooWide | End::NoMemory(_) => false,
    };
    assert_eq!(found.map(|page| page.entry), there.then_some(last), "{}", context());
}

/// A batch of walks, against slow walks one after the other.
fn compare_many(memory: &Garbage, machine: &Machine, addresses: &[u64], ask: Ask) {
    let many = |flags| {
        let mut ends = Vec::new();
        let each = |outcome| ends.push(subject::end(outcome));
        translate_many(memory, &machine.paging(), addresses, subject::access(ask), flags, each);
        ends
    };
    let looks = many(Flags::Keep);
    let before = memory.written.borrow().clone();
    let mut expected = before.clone();
    let mut slow = Vec::new();
    for &address in addresses {
        let walked = machine.slow_walk(address, ask, |at| memory.get(at));
        expected = written(expected, &walked.used, memory);
        memory.written.replace(expected.clone());
        slow.push(walked.end);
    }
    memory.written.replace(before);
    let setting = many(Flags::Set);
    assert_eq!((looks.len(), setting.len()), (slow.len(), slow.len()));
    for ((&address, slow), (look, setting)) in addresses.iter().zip(&slow).zip(looks.into_iter().zip(setting))
    {
        let context = || format!("in a batch: {address:#x}, {ask:?}, {machine:?}");
        assert_ends(setting, slow, context);
        // A shadow-stack access may find a D that a walk before it has set.
        if !ask.shadow_stack {
            assert_ends(look, slow, context);
        }
    }
    assert_eq!(*memory.written.borrow(), expected, "a batch of {ask:?}, {machine:?}");
}

/// The crate tells one of the reasons for a misconfiguration.
fn assert_ends(fast: End, slow: &End, context: impl Fn() -> String) {
    if let (End::Misconfigured(one), End::Misconfigured(all)) = (&fast, slow) {
        assert!(all.contains(&one[0]), "{one:?} of {all:?}: {}", context());
    } else {
        assert_eq!(&fast, slow, "{}", context());
    }
}

/// What memory holds after a walk: an entry that was used twice gets the flags of both uses.
fn written(mut before: BTreeMap<u64, u64>, used: &[Used], memory: &Garbage) -> BTreeMap<u64, u64> {
    for Used { at, entry, after, .. } in used {
        let (word, flags) = (at & !7, (entry ^ after) << (8 * (at & 7)));
        if flags != 0 {
            let value = before.get(&word).copied().or_else(|| memory.original(word)).unwrap();
            before.insert(word, value | flags);
        }
    }
    before
}

#[test]
fn ept() {
    let seen = compare("EPT", garbage::ept, draw::ept);
    seen.includes(["page 0x1000", "page 0x200000", "page 0x40000000", "no memory", "too wide"]);
    seen.includes(["M1", "M2", "M3", "M4", "M5"]);
    for granting in ["0x0", "0x1", "0x3", "0x4", "0x5", "0x7", "0x8", "0xb", "0xc", "0xd", "0xf"] {
        seen.includes([format!("violation granting {granting}").as_str()]);
    }
}

#[test]
fn ia32e() {
    let seen = compare("IA-32e", garbage::ia32e, draw::ia32e);
    seen.includes(["page 0x1000", "page 0x200000", "page 0x40000000", "no memory", "not canonical"]);
    // Not present, reserved, and denied: with W, U, I, PK and SS.
    for code in [0x0, 0x2, 0x4, 0x6, 0x10, 0x14, 0x40, 0x46, 0x9, 0xb, 0xd, 0xf, 0x19, 0x1d, 0x49, 0x4f] {
        seen.includes([format!("#PF {code:#x}").as_str()]);
    }
    for code in [0x1, 0x3, 0x5, 0x7, 0x11, 0x15, 0x21, 0x23, 0x25, 0x27, 0x41, 0x43, 0x45, 0x47, 0x61, 0x67] {
        seen.includes([format!("#PF {code:#x}").as_str()]);
    }
}

#[test]
fn npt() {
    let seen = compare("NPT", garbage::ia32e, draw::npt);
    seen.includes(["page 0x1000", "page 0x200000", "page 0x40000000", "no memory", "too wide"]);
    seen.includes([
        "#PF 0x4", "#PF 0x6", "#PF 0x14", "#PF 0xd", "#PF 0xf", "#PF 0x1d", "#PF 0x5", "#PF 0x7", "#PF 0x15",
    ]);
}

#[test]
fn pae() {
    let seen = compare("PAE", garbage::pae, draw::pae);
    seen.includes(["page 0x1000", "page 0x200000", "no memory", "too wide"]);
    seen.includes(["#PF 0x0", "#PF 0x2", "#PF 0x4", "#PF 0x6", "#PF 0x10", "#PF 0x14"]);
    seen.includes(["#PF 0x9", "#PF 0xb", "#PF 0xd", "#PF 0xf", "#PF 0x19", "#PF 0x1d"]);
    seen.includes(["#PF 0x1", "#PF 0x3", "#PF 0x5", "#PF 0x7", "#PF 0x11", "#PF 0x15"]);
}

#[test]
fn legacy32() {
    let seen = compare("32-bit", garbage::legacy32, draw::legacy32);
    seen.includes(["page 0x1000", "page 0x400000", "no memory", "too wide"]);
    seen.includes(["#PF 0x0", "#PF 0x2", "#PF 0x4", "#PF 0x6", "#PF 0x10", "#PF 0x14"]);
    seen.includes(["#PF 0x9", "#PF 0xb", "#PF 0xd", "#PF 0xf", "#PF 0x19", "#PF 0x1d"]);
    seen.includes(["#PF 0x1", "#PF 0x3", "#PF 0x5", "#PF 0x7", "#PF 0x11"]);
}
