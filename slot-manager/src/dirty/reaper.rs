//! A thread that empties dirty rings before they are full.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{SlotExecutor, SlotManager};

/// Reaps the rings of a VM now and then, so that vCPUs that write much seldom exit with a full ring. What it
/// finds waits in the manager. Ends when it is dropped.
///
/// A ring can be full all the same: then the vCPU comes back with `KVM_EXIT_DIRTY_RING_FULL`, and whoever runs
/// it calls [`SlotManager::reap`] before it goes on.
pub struct Reaper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Reaps every `period`. An error ends it: whoever collects next meets it again.
    pub fn spawn<E: SlotExecutor + 'static>(manager: Arc<Mutex<SlotManager<E>>>, period: Duration) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (stopped, changed) = &*told;
            let mut guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                // Not held over the reaping: whoever stops us must not wait for the manager.
                drop(guard);
                if manager.lock().unwrap_or_else(PoisonError::into_inner).reap().is_err() {
                    return;
                }
                let again = stopped.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = changed.wait_timeout_while(again, period, |stopped| !*stopped);
                guard = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let (stopped, changed) = &*self.stop;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is the manager's, whose mutex is poisoned by it.
            let _ = thread.join();
        }
    }
}
