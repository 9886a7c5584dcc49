//! Random guests on every machine and on a model that has no second level at all: they must not differ.
//!
//! A guest is made from a seed ([`generate`]): loads and stores of all sizes, also across pages; code that is called and
//! rewritten; edits of page tables at all levels, with what invalidates them; several address spaces; ring 0 and 3;
//! accesses that fault, are MMIO, or hit read-only memory. Between its instructions the host deletes and adds slots, logs
//! dirty pages, swaps, migrates, merges, collapses, splits, protects and discards ([`program::HostEvent`]).
//!
//! ```text
//! seed -> generate -> Program -> lower -> Guest -> model   -> Trace     what every instruction must leave behind
//!                        ^                 '-----> machine -> compare   a Difference, or none
//!                        '------- shrink <----------------------'
//! ```
//!
//! After every instruction registers and exits are compared; after every few the verifier looks at the second-level
//! tables; at the end all of memory is compared, A and D flags and the guest's own log of its faults with it. What was
//! written while a slot logs must be in its dirty log.
//!
//! | variable | what |
//! |---|---|
//! | `MEMVIRT_GUESTS` | how many guests |
//! | `MEMVIRT_SEED` | the first one's seed; the others' follow |
//! | `MEMVIRT_MACHINE` | only machines with this in their names |
//! | `MEMVIRT_VERIFY` | after how many instructions the verifier looks, besides after every event of the host |
//!
//! A failure prints the one command that runs it again, and what is left of the program when all that does not matter is
//! taken away: its tables, its steps with the host's events, the instructions executed last, and the difference.

mod dice;
mod generate;
mod kernel;
mod layout;
mod lower;
mod machine;
mod model;
mod program;
mod report;
mod run;
mod shrink;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vcpu::Exit;

use crate::lower::Guest;
use crate::machine::{COLUMNS, Column};
use crate::program::Program;
use crate::run::{Difference, State, Trace};

/// A number from the environment, decimal or with `0x`.
fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// What the guests have done, all together.
#[derive(Debug, Default)]
struct Done {
    guests: u64,
    instructions: u64,
    page_faults: u64,
    mmio: u64,
    memory_faults: u64,
    host_events: u64,
    /// Error codes of the page faults.
    codes: BTreeSet<u32>,
    /// What happened on the host, by name.
    events: BTreeMap<String, u64>,
    /// Guests that did not come to their end, but shut down or lost their way.
    astray: u64,
}

impl Done {
    fn count(&mut self, trace: &Trace) {
        self.guests += 1;
        self.instructions += trace.states.len() as u64;
        self.page_faults += trace.page_faults();
        let mmio = |exit: &Exit| matches!(exit, Exit::MmioRead { .. } | Exit::MmioWrite { .. });
        self.mmio += trace.states.iter().filter(|state| mmio(&state.exit)).count() as u64;
        let kept = |state: &&State| matches!(state.exit, Exit::MemoryFault { .. });
        self.memory_faults += trace.states.iter().filter(kept).count() as u64;
        self.host_events += trace.events.len() as u64;
        self.codes.extend(&trace.codes);
        for (_, event) in &trace.events {
            let name = format!("{event:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
            *self.events.entry(name).or_default() += 1;
        }
        self.astray += u64::from(*trace.end() != Exit::Halt);
    }
}

/// Error codes that a run of some guests meets, each with the bits that count: accesses of both rings to absent pages and
/// to pages without the right, an entry with reserved bits, a fetch.
const MET: [(u32, u32); 9] = [
    (0x1f, 0x0),
    (0x1f, 0x2),
    (0x1f, 0x3),
    (0x1f, 0x4),
    (0x1f, 0x5),
    (0x1f, 0x6),
    (0x1f, 0x7),
    (0x08, 0x8),
    (0x10, 0x10),
];

/// Where a machine differs from the model.
fn difference(column: &Column, program: &Program, verify: usize) -> Option<Difference> {
    let guest = Guest::new(program);
    let trace = Trace::new(program, &guest);
    trace.compare((column.new)(&guest).as_mut(), verify).err()
}

/// Runs one guest everywhere; the report on the first machine that differs.
fn check(seed: u64, columns: &[&Column], verify: usize, done: &Mutex<Done>) -> Result<(), String> {
    let program = generate::generate(seed);
    let guest = Guest::new(&program);
    let trace = Trace::new(&program, &guest);
    done.lock().expect("nobody panics with it").count(&trace);
    for column in columns {
        if trace.compare((column.new)(&guest).as_mut(), verify).is_err() {
            let small = shrink::shrink(&program, |program| difference(column, program, 1).is_some());
            let difference = difference(column, &small, 1).expect("it fails");
            return Err(report::report(column.name, &small, &difference));
        }
    }
    Ok(())
}

#[test]
fn guests_do_the_same_on_every_machine_and_on_the_model() {
    let (guests, first) = (number("MEMVIRT_GUESTS", 100), number("MEMVIRT_SEED", 1));
    let verify = number("MEMVIRT_VERIFY", 16).max(1) as usize;
    let wanted = std::env::var("MEMVIRT_MACHINE").unwrap_or_default();
    let columns: Vec<_> = COLUMNS.iter().filter(|column| column.name.contains(&wanted)).collect();
    assert!(!columns.is_empty(), "no machine is called {wanted:?}");
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (done, reports) = (Mutex::new(Done::default()), Mutex::new(Vec::new()));
    let work = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && number < guests
            && !failed.load(Ordering::Relaxed)
        {
            if let Err(report) = check(first.wrapping_add(number), &columns, verify, &done) {
                failed.store(true, Ordering::Relaxed);
                reports.lock().expect("nobody panics with it").push(report);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (done, reports) =
        (done.into_inner().expect("all are done"), reports.into_inner().expect("all are done"));
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
    println!("{done:x?}, on {} machines", columns.len());
    if guests >= 60 {
        let met = |(bits, code): (u32, u32)| done.codes.iter().any(|met| met & bits == code);
        let missing = MET.into_iter().find(|&code| !met(code));
        assert_eq!(missing, None, "no guest met this page fault");
        assert!(done.memory_faults > 0 && done.mmio > 0 && done.host_events > 0, "{done:?}");
    }
    assert!(done.astray * 20 <= done.guests, "too many guests lose their way: {done:?}");
}
