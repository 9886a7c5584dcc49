//! The two-dimensional walk against the slow one.

use std::cell::Cell;

use ept::{Flags, NestedFault, NestedLeaf, nested_translate, nested_walk};
use memory_model::Gva;

use crate::draw;
use crate::garbage::{self, Dice, Garbage, Make};
use crate::oracle::nested::{Nested, NestedEnd};
use crate::oracle::{Ask, End};
use crate::subject::{self, Machine};
use crate::{Seen, WALKS_A_TABLE, setting};

fn nested_end(outcome: Result<NestedLeaf, NestedFault>) -> NestedEnd {
    match outcome {
        Ok(leaf) => NestedEnd::Page(leaf.gpa.raw(), leaf.hpa.raw()),
        Err(NestedFault::Guest(fault)) => NestedEnd::Guest(subject::end(Err(fault))),
        Err(NestedFault::Table { gpa, fault }) => NestedEnd::Table(gpa.raw(), subject::end(Err(fault))),
        Err(NestedFault::Final { gpa, fault }) => NestedEnd::Final(gpa.raw(), subject::end(Err(fault))),
    }
}

/// Of several things wrong with an entry the crate tells one: the oracle is left with that.
fn settle(slow: NestedEnd, fast: &NestedEnd) -> NestedEnd {
    let one = |slow, fast: &End| match (slow, fast) {
        (End::Misconfigured(all), End::Misconfigured(one)) if all.contains(&one[0]) => {
            End::Misconfigured(one.clone())
        }
        (slow, _) => slow,
    };
    match (slow, fast) {
        (NestedEnd::Table(gpa, slow), NestedEnd::Table(_, fast)) => NestedEnd::Table(gpa, one(slow, fast)),
        (NestedEnd::Final(gpa, slow), NestedEnd::Final(_, fast)) => NestedEnd::Final(gpa, one(slow, fast)),
        (slow, _) => slow,
    }
}

fn compare_one(memory: &Garbage, guest: Option<&Machine>, second: &Machine, gva: u64, ask: Ask) -> NestedEnd {
    let (guest_paging, paging) = (guest.map(Machine::paging), second.paging());
    let fast =
        |flags| nested_walk(memory, guest_paging.as_ref(), &paging, Gva(gva), subject::access(ask), flags);
    let short = |flags| {
        let access = subject::access(ask);
        nested_end(nested_translate(memory, guest_paging.as_ref(), &paging, Gva(gva), access, flags))
    };
    let slow = |set_flags| {
        let nested = Nested {
            cells: memory,
            guest,
            second,
            set_flags,
            references: Cell::new(0),
            verified: Cell::new(true),
        };
        (nested.walk(gva, ask), nested.references.get())
    };
    let context = || format!("{gva:#x}, {ask:?}, {guest:?}, {second:?}");

    let look = fast(Flags::Keep);
    let (end, references) = slow(false);
    let end = settle(end, &nested_end(look.outcome));
    assert_eq!(nested_end(look.outcome), end, "{}", context());
    assert_eq!(short(Flags::Keep), end, "without the path: {}", context());
    assert_eq!(look.references, references, "{}", context());

    let before = memory.written.borrow().clone();
    let (end, _) = slow(true);
    let expected = memory.written.replace(before);
    let setting = if gva & 0x1000 == 0 { nested_end(fast(Flags::Set).outcome) } else { short(Flags::Set) };
    let end = settle(end, &setting);
    assert_eq!(setting, end, "setting flags: {}", context());
    // What is written as it was is not written here, and nothing else may differ.
    let written = memory.written.borrow();
    for (&at, &value) in &expected {
        assert_eq!(memory.get(at), Some(value), "{at:#x}: {}", context());
    }
    assert!(written.keys().all(|at| expected.contains_key(at)), "{}", context());
    end
}

fn compare(
    name: &str,
    make: Make,
    guest: fn(&mut Dice) -> Machine,
    second: fn(&mut Dice) -> Machine,
) -> Seen {
    let walks = setting("MEMVIRT_WALKS", 40_000).div_ceil(4);
    let mut dice = Dice(setting("MEMVIRT_SEED", 1));
    let mut seen = Seen::default();
    for _ in 0..walks.div_ceil(WALKS_A_TABLE) {
        let memory = Garbage::new(dice.number(), make);
        let (guest, second) = (guest(&mut dice), second(&mut dice));
        for _ in 0..WALKS_A_TABLE {
            let paged = !dice.one_in(16);
            let gva = draw::address(&mut dice, if paged { &guest } else { &second });
            let ask = Ask { guest_flag: false, ..draw::ask(&mut dice, &guest) };
            let end = compare_one(&memory, paged.then_some(&guest), &second, gva, ask);
            seen.name(match end {
                NestedEnd::Page(..) => "page".to_string(),
                NestedEnd::Guest(end) => format!("guest: {}", kind(&end)),
                NestedEnd::Table(_, end) => format!("table: {}", kind(&end)),
                NestedEnd::Final(_, end) => format!("final: {}", kind(&end)),
            });
        }
    }
    println!("{name}: {walks} walks, {:#?}", seen.0);
    seen
}

fn kind(end: &End) -> &'static str {
    match end {
        End::Violation(bits) if bits & 1 << 15 != 0 => "guest paging not verified",
        End::Page { .. } => "page",
        End::PageFault(_) => "page fault",
        End::Violation(_) => "violation",
        End::Misconfigured(_) => "misconfigured",
        End::NotCanonical => "not canonical",
        End::TooWide => "too wide",
        End::NoMemory(_) => "no memory",
    }
}

const EPT: [&str; 8] = [
    "page",
    "guest: page fault",
    "table: violation",
    "table: misconfigured",
    "table: no memory",
    "final: violation",
    "final: misconfigured",
    "final: no memory",
];
const NPT: [&str; 6] = [
    "page",
    "guest: page fault",
    "table: page fault",
    "table: no memory",
    "final: page fault",
    "final: no memory",
];

#[test]
fn d2_x4_ia32e_through_ept() {
    let seen = compare("IA-32e through EPT", garbage::nested, draw::ia32e, draw::ept);
    seen.includes(EPT);
    seen.includes(["final: guest paging not verified"]);
}

#[test]
fn d2_ia32e_through_npt() {
    compare("IA-32e through NPT", garbage::nested, draw::ia32e, draw::npt).includes(NPT);
}

#[test]
fn d2_pae_through_ept() {
    compare("PAE through EPT", garbage::nested_pae, draw::pae, draw::ept).includes(EPT);
}

#[test]
fn d2_32_bit_through_npt() {
    compare("32-bit through NPT", garbage::nested32, draw::legacy32, draw::npt).includes(NPT);
}
