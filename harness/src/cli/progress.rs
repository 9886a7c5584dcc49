//! Where a long command is: one line that changes on a terminal, a plain line now and then elsewhere. Both on standard
//! error: what a command finds goes out as if this were not here.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// So often the line of a terminal changes.
const REDRAW: Duration = Duration::from_millis(200);
/// So long nothing is said elsewhere.
const SILENCE: Duration = Duration::from_secs(10);
/// Back to the first column, and the line is empty.
const ERASE: &str = "\r\x1b[K";

/// Told of each step before it is taken; gone when it is dropped.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    teller: Option<JoinHandle<()>>,
}

struct Shared {
    terminal: bool,
    now: Mutex<Now>,
    over: Condvar,
}

struct Now {
    step: usize,
    steps: usize,
    what: String,
    since: Instant,
    over: bool,
}

impl Progress {
    /// Of a command of so many steps.
    pub(crate) fn new(steps: usize) -> Self {
        let now = Now { step: 0, steps, what: String::new(), since: Instant::now(), over: false };
        let shared = Arc::new(Shared {
            terminal: io::stderr().is_terminal(),
            now: Mutex::new(now),
            over: Condvar::new(),
        });
        let told = shared.clone();
        Self { shared, teller: Some(thread::spawn(move || told.tell())) }
    }

    /// The next step.
    pub(crate) fn step(&self, what: String) {
        let mut now = self.shared.now();
        (now.step, now.what, now.since) = (now.step + 1, what, Instant::now());
        self.shared.draw(&now);
    }

    /// Makes room for what goes to standard output.
    pub(crate) fn clear(&self) {
        // Held, so that nothing is drawn in between.
        let _now = self.shared.now();
        if self.shared.terminal {
            say(ERASE);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.now().over = true;
        self.shared.over.notify_all();
        if let Some(teller) = self.teller.take() {
            // It does not panic: what it writes to may be gone.
            let _ = teller.join();
        }
        self.clear();
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws again and again until all is over.
    fn tell(&self) {
        let period = if self.terminal { REDRAW } else { SILENCE };
        let mut now = self.now();
        while !now.over {
            let (next, timeout) = self.over.wait_timeout(now, period).unwrap_or_else(PoisonError::into_inner);
            now = next;
            if timeout.timed_out() && !now.over && now.step > 0 {
                match self.terminal {
                    true => self.draw(&now),
                    false if now.since.elapsed() >= SILENCE => say(&format!("memvirt: {}\n", now.line())),
                    false => {}
                }
            }
        }
    }

    /// On a terminal alone.
    fn draw(&self, now: &Now) {
        if self.terminal {
            say(&format!("{ERASE}{}", now.line()));
        }
    }
}

impl Now {
    fn line(&self) -> String {
        let seconds = self.since.elapsed().as_secs();
        let time = if seconds > 0 { format!(", {seconds} s") } else { String::new() };
        format!("[{}/{}] {}{time}", self.step, self.steps, self.what)
    }
}

fn say(text: &str) {
    let mut out = io::stderr().lock();
    // Nobody is left to be told if this cannot be written.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
