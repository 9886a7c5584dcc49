//! Random guests on every machine and on a model that has no second level at all: they must not differ.
//!
//! A guest is made from a seed ([`generate`]): loads and stores of all sizes, also across pages; code that is called and
//! rewritten; edits of page tables at all levels, with what invalidates them; several address spaces; ring 0 and 3;
//! accesses that fault, are MMIO, or hit read-only memory. Between its instructions the host deletes and adds slots and
//! logs dirty pages ([`program::HostEvent`]).
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
//! | `MEMVIRT_VERIFY` | the verifier looks before every so-manieth instruction |
//!
//! A failure prints the one command that runs it again, and what is left of the program when all that does not matter is
//! taken away: its tables, its steps with the host's events, the instructions executed last, and the difference.

mod compact;
mod dice;
mod generate;
mod layout;
mod lower;
mod machine;
mod model;
mod program;
mod report;
mod run;
mod shrink;
mod tables;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vcpu::Exit;

use crate::lower::Guest;
use crate::machine::{COLUMNS, Column};
use crate::program::Program;
use crate::run::{Difference, Trace};

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
    host_events: u64,
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
        self.host_events += trace.events.len() as u64;
        self.astray += u64::from(*trace.end() != Exit::Halt);
    }
}

/// Where a machine differs from the model.
fn difference(column: &Column, program: &Program, verify: usize) -> Option<Difference> {
    let guest = Guest::new(program);
    let trace = Trace::new(program, &guest);
    trace.compare((column.new)(&guest).as_mut(), verify).err()
}

/// Runs one guest everywhere; the report on the first machine that differs.
fn check(seed: u64, verify: usize, done: &Mutex<Done>) -> Result<(), String> {
    let program = generate::generate(seed);
    let guest = Guest::new(&program);
    let trace = Trace::new(&program, &guest);
    done.lock().expect("nobody panics with it").count(&trace);
    for column in COLUMNS {
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
    let (guests, first) = (number("MEMVIRT_GUESTS", 60), number("MEMVIRT_SEED", 1));
    let verify = number("MEMVIRT_VERIFY", 16).max(1) as usize;
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (done, reports) = (Mutex::new(Done::default()), Mutex::new(Vec::new()));
    let work = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && number < guests
            && !failed.load(Ordering::Relaxed)
        {
            if let Err(report) = check(first.wrapping_add(number), verify, &done) {
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
    println!("{done:?}, on {} machines", COLUMNS.len());
    assert!(done.astray * 20 <= done.guests, "too many guests lose their way: {done:?}");
}
