//! A guest in a thread of its own, and how others stop it for a moment.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vcpu::{Budget, Entry, Exit, Kick, Vcpu};

/// Who runs the guest, and who wants it stopped.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    wanted: bool,
    stopped: bool,
    pauses: u64,
    done: bool,
}

impl Gate {
    /// Returns when the guest is out, and lets it in again when the answer is dropped.
    pub fn pause(self: &Arc<Self>, kick: &Kick) -> Paused {
        let mut state = self.state.lock().unwrap();
        state.wanted = true;
        state.pauses += 1;
        kick.kick();
        drop(self.changed.wait_while(state, |state| !state.stopped).unwrap());
        Paused(self.clone())
    }

    /// How often it was stopped.
    pub fn pauses(&self) -> u64 {
        self.state.lock().unwrap().pauses
    }

    /// Whether the guest has come out for good.
    pub fn is_done(&self) -> bool {
        self.state.lock().unwrap().done
    }

    /// Brings the guest out for good.
    pub fn end(&self, kick: &Kick) {
        self.state.lock().unwrap().done = true;
        kick.kick();
    }

    /// Runs the guest until it is brought out, or `serve` does not know what to do with an exit of it: that exit.
    /// While `serve` is busy the guest counts as stopped, so it may wait for one who waits for that.
    pub fn run(
        &self,
        vcpu: &mut dyn Vcpu,
        mut serve: impl FnMut(Exit) -> ControlFlow<Exit, Entry>,
    ) -> Option<Exit> {
        let mut entry = Entry::Resume;
        loop {
            let exit = vcpu.run(entry, &Budget::time(Duration::from_secs(60))).unwrap();
            self.set_stopped();
            entry = match exit {
                Exit::Kicked => Entry::Resume,
                exit => match serve(exit) {
                    ControlFlow::Continue(entry) => entry,
                    ControlFlow::Break(exit) => {
                        // Nobody must wait for a guest that is gone.
                        self.state.lock().unwrap().done = true;
                        return Some(exit);
                    }
                },
            };
            if !self.stand_by() {
                return None;
            }
        }
    }

    fn set_stopped(&self) {
        self.state.lock().unwrap().stopped = true;
        self.changed.notify_all();
    }

    /// The guest stays out as long as that is wanted. Whether it goes on.
    fn stand_by(&self) -> bool {
        let state = self.state.lock().unwrap();
        let mut state = self.changed.wait_while(state, |state| state.wanted).unwrap();
        state.stopped = state.done;
        !state.done
    }
}

/// Until it is dropped the guest is out.
pub struct Paused(Arc<Gate>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().wanted = false;
        self.0.changed.notify_all();
    }
}
