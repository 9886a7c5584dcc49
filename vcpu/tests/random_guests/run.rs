//! A program on the model, then on a machine: what it should do, and where a machine does something else.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use memory_model::Gpa;
use vcpu::soft::cpu::Cpu;
use vcpu::{Budget, Entry, Exit, Limit, Regs, SystemRegs};

use crate::layout::{HANDLERS, PAGE, SLOTS};
use crate::lower::Guest;
use crate::machine::Machine;
use crate::model::Model;
use crate::program::{HostEvent, Program};

/// More instructions than any program has.
const BUDGET: usize = 20_000;

/// The state after one instruction.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub exit: Exit,
    pub regs: Regs,
    pub system: SystemRegs,
}

/// What a program does, by the model.
pub struct Trace {
    /// One for each instruction, and for each exception instead of one.
    pub states: Vec<State>,
    /// What the host does, and before which of them.
    pub events: Vec<(usize, HostEvent)>,
    /// For each [`HostEvent::Collect`] among them, and each slot that logs at the end: the pages that must be in the log.
    pub dirty: Vec<BTreeSet<u64>>,
    /// Slots that log at the end.
    pub logging: Vec<usize>,
    pub ram: Vec<u8>,
    /// Error codes of its page faults.
    pub codes: BTreeSet<u32>,
}

/// Where a machine and the model part.
pub struct Difference {
    /// The number of the instruction.
    pub at: usize,
    pub what: String,
}

fn unlimited() -> Budget {
    Budget::time(Duration::from_secs(600))
}

fn goes_on(exit: &Exit) -> bool {
    use Exit::{BudgetExceeded, IoOut, MemoryFault, MmioRead, MmioWrite};
    matches!(
        exit,
        BudgetExceeded(Limit::Instructions)
            | IoOut { .. }
            | MmioRead { .. }
            | MmioWrite { .. }
            | MemoryFault { .. }
    )
}

/// What the device says that is everywhere where no memory is.
fn answer(exit: &Exit, number: usize) -> Entry {
    match *exit {
        Exit::MmioRead { gpa: Gpa(gpa), size } => {
            let value = (gpa ^ (number as u64) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Entry::Data(value.to_le_bytes()[..size.into()].to_vec())
        }
        _ => Entry::Resume,
    }
}

/// Which host events come before an instruction.
struct Schedule<'a> {
    program: &'a Program,
    starts: &'a [u64],
    /// The step the guest is in, and how many instructions it has done there.
    step: Option<usize>,
    done: u32,
}

impl Schedule<'_> {
    /// Events before the instruction at `rip`.
    fn before(&mut self, rip: u64) -> Vec<HostEvent> {
        let next = self.step.map_or(0, |step| step + 1);
        let mut due = Vec::new();
        if self.starts[next.min(self.starts.len() - 1)] == rip && next < self.starts.len() {
            // What a short step left over happens now.
            due.extend(self.events(|after, done| after >= done));
            (self.step, self.done) = (Some(next), 0);
        }
        due.extend(self.events(|after, done| after == done));
        self.done += 1;
        due
    }

    fn events(&self, when: fn(u32, u32) -> bool) -> Vec<HostEvent> {
        let step = self.step.and_then(|step| self.program.steps.get(step));
        let events = step.into_iter().flat_map(|step| &step.events);
        events.filter(|&&(after, _)| when(after, self.done)).map(|&(_, event)| event).collect()
    }
}

impl Trace {
    /// Runs the program on the model.
    pub fn new(program: &Program, guest: &Guest) -> Self {
        let mut model = Model::new(&guest.image);
        let mut cpu = Cpu::new(guest.regs, guest.system);
        let mut schedule = Schedule { program, starts: &guest.starts, step: None, done: 0 };
        let (mut states, mut events, mut dirty) = (Vec::new(), Vec::new(), Vec::new());
        let budget = unlimited().instructions(1);
        let mut entry = Entry::Resume;
        while states.len() < BUDGET {
            for event in schedule.before(cpu.regs.rip) {
                if model.host(event) {
                    events.push((states.len(), event));
                    if let HostEvent::Collect(slot) = event {
                        dirty.push(model.collect(slot));
                    }
                }
            }
            let exit = cpu.run(&mut model, &entry, &budget).expect("every exit is answered as it should be");
            entry = answer(&exit, states.len());
            let kept = match exit {
                Exit::MemoryFault { gpa: Some(gpa) } => {
                    model.offset(gpa.0).map(|offset| offset as u64 & !(PAGE - 1))
                }
                _ => None,
            };
            if let Some(page) = kept.filter(|&page| model.host(HostEvent::Unprotect(page))) {
                // The host lets the guest have what it has just failed to get.
                events.push((states.len() + 1, HostEvent::Unprotect(page)));
            }
            let over = !goes_on(&exit);
            states.push(State { exit, regs: cpu.regs, system: cpu.system });
            if over {
                break;
            }
        }
        let logging: Vec<_> = model.logging().collect();
        dirty.extend(logging.iter().map(|&slot| model.collect(slot)));
        Self { states, events, dirty, logging, ram: model.ram, codes: model.codes }
    }

    /// How many #PF there were: each entry of the guest's handler comes from outside.
    pub fn page_faults(&self) -> u64 {
        let handler = |state: &State| state.regs.rip / PAGE == HANDLERS / PAGE;
        self.states.windows(2).filter(|pair| !handler(&pair[0]) && handler(&pair[1])).count() as u64
    }

    /// How the program ends.
    pub fn end(&self) -> &Exit {
        &self.states.last().expect("a program has an instruction").exit
    }

    /// Runs the same on a machine; the verifier looks at its tables before every `verify`-th instruction.
    pub fn compare(&self, machine: &mut dyn Machine, verify: usize) -> Result<(), Difference> {
        let budget = unlimited();
        let mut entry = Entry::Resume;
        let mut events = self.events.iter().peekable();
        let mut dirty = self.dirty.iter();
        for (at, expected) in self.states.iter().enumerate() {
            let differs = |what: String| Difference { at, what };
            while let Some((_, event)) = events.next_if(|(when, _)| *when == at) {
                machine.host(*event);
                if let HostEvent::Collect(slot) = *event {
                    let pages = dirty.next().expect("one for each");
                    logged(pages, &machine.collect(slot), slot).map_err(differs)?;
                }
                machine.verify().map_err(|report| differs(format!("after {event:?}: {report}")))?;
            }
            let exit = machine.step(entry, &budget);
            let (regs, system) = machine.state();
            let seen = State { exit, regs, system };
            if seen != *expected {
                return Err(differs(format!("expected {expected}\nseen {seen}")));
            }
            entry = answer(&seen.exit, at);
            if at % verify == 0 {
                machine.verify().map_err(|report| differs(format!("after this instruction: {report}")))?;
            }
        }
        let at = self.states.len() - 1;
        let differs = |what: String| Difference { at, what };
        machine.verify().map_err(|report| differs(format!("at the end: {report}")))?;
        self.same_memory(machine).map_err(differs)?;
        for &slot in &self.logging {
            let pages = dirty.next().expect("one for each");
            logged(pages, &machine.collect(slot), slot).map_err(differs)?;
        }
        Ok(())
    }

    fn same_memory(&self, machine: &dyn Machine) -> Result<(), String> {
        let mut seen = vec![0; self.ram.len()];
        machine.read(0, &mut seen);
        if seen == self.ram {
            return Ok(());
        }
        let words = self
            .ram
            .chunks(8)
            .zip(seen.chunks(8))
            .enumerate()
            .filter(|(_, (expected, seen))| expected != seen);
        let list: Vec<_> = words
            .take(8)
            .map(|(index, (expected, seen))| {
                let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                format!("{:#x}: expected {:#x}, seen {:#x}", 8 * index, word(expected), word(seen))
            })
            .collect();
        Err(format!("memory differs:\n{}", list.join("\n")))
    }
}

/// Whether every written page is in the log.
fn logged(written: &BTreeSet<u64>, log: &[u64], slot: usize) -> Result<(), String> {
    let missing = written.iter().find(|&&page| log[page as usize / 64] >> (page % 64) & 1 == 0);
    missing.map_or(Ok(()), |page| {
        let place = SLOTS[slot];
        Err(format!(
            "{:#x} of slot {} was written and is not in its dirty log",
            place.gpa + page * PAGE,
            place.name
        ))
    })
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SystemRegs { cr0, cr2, cr3, cr4, .. } = self.system;
        writeln!(f, "{:?}, ring {}", self.exit, self.system.cpl())?;
        writeln!(f, "cr0={cr0:x} cr2={cr2:x} cr3={cr3:x} cr4={cr4:x}")?;
        self.regs.fmt(f)
    }
}
