//! Bringing a vCPU back from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use crate::kvm::signal;

/// A handle by which any thread makes [`Vcpu::run`](crate::Vcpu::run) come back with
/// [`Exit::Kicked`](crate::Exit::Kicked).
///
/// A kick is a request, not a count: it stays until a run has answered it, and many kicks before that are
/// answered by one exit. A vCPU that is not running comes back at once from its next run. Other exits are
/// never lost to a kick, they come first.
///
/// No kick can be missed, and the kicker never waits. Each side writes its own word and then reads the
/// other's, in one total order:
///
/// ```text
/// kicker                        vCPU
/// requested = true              thread = tid
/// if thread: signal it          if requested: come back
/// ```
///
/// So either the vCPU sees the request, or the kicker sees the thread and signals it; and a signal that
/// arrives before the guest is entered makes KVM turn back at its door (`kvm_run.immediate_exit`).
#[derive(Clone, Default, Debug)]
pub struct Kick {
    shared: Arc<Shared>,
}

#[derive(Default, Debug)]
struct Shared {
    requested: AtomicBool,
    /// The thread to signal, while there is one; the software CPU looks at `requested` by itself.
    thread: AtomicI32,
}

impl Kick {
    /// Asks the vCPU to come back.
    pub fn kick(&self) {
        // Only the first of many kicks signals: real-time signals queue.
        if !self.shared.requested.swap(true, SeqCst) {
            match self.shared.thread.load(SeqCst) {
                0 => {}
                thread => signal::send(thread),
            }
        }
    }

    /// Whether a kick waits for its exit.
    pub(crate) fn is_requested(&self) -> bool {
        self.shared.requested.load(SeqCst)
    }

    /// Answers the kick, if there is one: the caller owes an [`Exit::Kicked`](crate::Exit::Kicked).
    pub(crate) fn take(&self) -> bool {
        self.is_requested() && self.shared.requested.swap(false, SeqCst)
    }

    /// Has kicks signal `thread` until the guard goes.
    pub(crate) fn signals(&self, thread: i32) -> Signals<'_> {
        self.shared.thread.store(thread, SeqCst);
        Signals(self)
    }
}

/// As long as it lives, kicks signal a thread.
pub(crate) struct Signals<'a>(&'a Kick);

impl Drop for Signals<'_> {
    fn drop(&mut self) {
        self.0.shared.thread.store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_stays_until_it_is_taken_and_is_taken_once() {
        let kick = Kick::default();
        assert!(!kick.take());
        kick.clone().kick();
        kick.kick();
        assert!(kick.is_requested());
        assert!(kick.take());
        assert!(!kick.take() && !kick.is_requested());
    }

    #[test]
    fn a_guard_withdraws_its_thread() {
        let kick = Kick::default();
        let guard = kick.signals(7);
        assert_eq!(kick.shared.thread.load(SeqCst), 7);
        drop(guard);
        assert_eq!(kick.shared.thread.load(SeqCst), 0);
    }
}
