//! How the vCPUs of a machine take turns: on one thread, so that two runs are the same.

use std::time::{Duration, Instant};

use guest_tests::Occasion;
use vcpu::{Budget, Entry, Exit, Limit};

use super::{Ending, Machine};
use crate::devices::Devices;
use crate::exits::Exits;
use crate::judge::Judge;
use crate::steps::is_known;
use crate::{HarnessError, PORT_BELL};

/// How long a vCPU runs before it is another one's turn: by instructions, or by time on one that does not count them.
const TURN: Slice = Slice { instructions: 256, time: Duration::from_micros(50) };
/// How long it runs from one tick to the next.
const TICK: Slice = Slice { instructions: 1009, time: Duration::from_micros(100) };
/// After so many ticks there are no more.
const MAX_TICKS: u8 = 255;
#[derive(Clone, Copy)]
struct Slice {
    instructions: u64,
    time: Duration,
}

/// What goes along with a run from its first turn to its last.
pub(super) struct Turns<'b> {
    pub devices: Devices,
    pub exits: Exits,
    /// What was found at bells and ticks.
    pub found: Judge,
    budget: &'b Budget,
    /// What each vCPU is entered with when its turn comes.
    entries: Vec<Entry>,
    /// Instructions.
    left: u64,
    /// When the present slice ends, where time measures it.
    slice_end: Option<Instant>,
}

impl<'b> Turns<'b> {
    pub fn new(devices: Devices, exits: Exits, vcpus: usize, budget: &'b Budget) -> Self {
        let (found, entries) = (Judge::default(), vec![Entry::Resume; vcpus]);
        Self { devices, exits, found, budget, entries, left: budget.instructions, slice_end: None }
    }
}

impl Machine {
    /// Runs the vCPUs in turn until one of them ends the run or all sleep for good: why, and which was the last.
    pub(super) fn take_turns(&mut self, turns: &mut Turns<'_>) -> Result<(Ending, usize), HarnessError> {
        for index in (0..self.vcpus.len()).cycle() {
            if let Some(ending) = self.turn(index, turns)? {
                return Ok((ending, index));
            }
        }
        unreachable!("a machine has a processor")
    }

    /// One turn, or what is left of it after an exit.
    fn turn(&mut self, index: usize, turns: &mut Turns<'_>) -> Result<Option<Ending>, HarnessError> {
        let several = self.vcpus.len() > 1;
        let ticking = turns.devices.ticks < MAX_TICKS && is_known(&self.image, Occasion::Tick);
        let slice = if several { Some(TURN) } else { ticking.then_some(TICK) };
        let vcpu = &mut self.vcpus[index];
        let instructions = slice.map_or(turns.left, |slice| slice.instructions.min(turns.left));
        let mut budget = turns.budget.instructions(instructions);
        if let Some(slice) = slice.filter(|_| !vcpu.counts_instructions()) {
            // An exit in between does not put it off.
            let end = *turns.slice_end.get_or_insert_with(|| Instant::now() + slice.time * self.pace);
            budget.deadline = budget.deadline.min(end);
        }
        let entry = std::mem::replace(&mut turns.entries[index], Entry::Resume);
        let exit = vcpu.run(entry, &budget)?;
        let slice_is_over = match exit {
            Exit::BudgetExceeded(Limit::Instructions) => {
                turns.left -= instructions;
                turns.left > 0
            }
            Exit::BudgetExceeded(Limit::WallClock) => budget.deadline < turns.budget.deadline,
            _ => false,
        };
        if slice_is_over || several {
            turns.slice_end = None;
        }
        if !slice_is_over {
            return self.serve(index, exit, turns);
        }
        if ticking {
            turns.devices.ticks += 1;
            self.act_on(Occasion::Tick, turns)?;
        }
        Ok(None)
    }

    /// Does what the vCPU came out for, or says that it was the last time.
    fn serve(
        &mut self,
        index: usize,
        exit: Exit,
        turns: &mut Turns<'_>,
    ) -> Result<Option<Ending>, HarnessError> {
        turns.exits.note(&exit);
        if let Some((line, high)) = Devices::interrupt_line(&exit) {
            self.vm.set_irq_line(line, high)?;
        }
        match &exit {
            Exit::IoOut { port: PORT_BELL, data, .. } => {
                for &number in data {
                    self.act_on(Occasion::Bell(number), turns)?;
                }
            }
            Exit::MemoryFault { .. } => {
                turns.devices.memory_faults += 1;
                if is_known(&self.image, Occasion::MemoryFault) {
                    self.act_on(Occasion::MemoryFault, turns)?;
                    return Ok(None);
                }
            }
            Exit::DirtyRingFull => {
                let mut slots = self.slots.lock().expect("no listener panics");
                slots.reap().map_err(HarnessError::DirtyRing)?;
                return Ok(None);
            }
            _ => {}
        }
        match turns.devices.serve(exit) {
            Ok(entry) => {
                turns.entries[index] = entry;
                Ok(None)
            }
            Err(ending) => Ok(Some(ending)),
        }
    }

    fn act_on(&mut self, on: Occasion, turns: &mut Turns<'_>) -> Result<(), HarnessError> {
        self.act(on, &mut turns.found)?;
        turns.devices.view = self.space.view();
        Ok(())
    }
}
