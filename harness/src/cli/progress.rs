//! Where a long command is: one line that changes on a terminal, a plain line now and then elsewhere. Both on standard
//! error: what a command finds goes out as if this were not here.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::plain;
use rustix::termios::tcgetwinsize;

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

/// How progress is told.
#[derive(Clone, Copy)]
enum Style {
    /// One line, drawn again and again.
    Changing,
    /// A line more whenever a step has gone on for so long again.
    Lines(Duration),
}

struct Shared {
    style: Style,
    out: Mutex<Box<dyn Write + Send>>,
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
        // One that says it is dumb knows no sequences.
        let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        let changes = io::stderr().is_terminal() && !dumb;
        let style = if changes { Style::Changing } else { Style::Lines(SILENCE) };
        Self::told(steps, style, Box::new(io::stderr()))
    }

    fn told(steps: usize, style: Style, out: Box<dyn Write + Send>) -> Self {
        let now = Now { step: 0, steps, what: String::new(), since: Instant::now(), over: false };
        let shared =
            Arc::new(Shared { style, out: Mutex::new(out), now: Mutex::new(now), over: Condvar::new() });
        let teller = shared.clone();
        Self { shared, teller: Some(thread::spawn(move || teller.tell())) }
    }

    /// The next step.
    pub(crate) fn step(&self, what: String) {
        let mut now = self.shared.now();
        (now.step, now.what, now.since) = (now.step + 1, plain(&what), Instant::now());
        self.shared.draw(&now);
    }

    /// Makes room for what goes to standard output.
    pub(crate) fn clear(&self) {
        // Held, so that nothing is drawn in between.
        let _now = self.shared.now();
        if let Style::Changing = self.shared.style {
            self.shared.say(ERASE);
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
        let period = match self.style {
            Style::Changing => REDRAW,
            Style::Lines(silence) => silence,
        };
        let mut now = self.now();
        while !now.over {
            let (next, timeout) = self.over.wait_timeout(now, period).unwrap_or_else(PoisonError::into_inner);
            now = next;
            if timeout.timed_out() && !now.over && now.step > 0 {
                match self.style {
                    Style::Changing => self.draw(&now),
                    Style::Lines(silence) if now.since.elapsed() >= silence => {
                        self.say(&format!("memvirt: {}\n", now.line()));
                    }
                    Style::Lines(_) => {}
                }
            }
        }
    }

    /// On a terminal alone, and no more than goes into its line: a second one would not be erased.
    fn draw(&self, now: &Now) {
        if let Style::Changing = self.style {
            let columns = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
            // A terminal that does not say has none.
            let room = columns.checked_sub(1).unwrap_or(usize::MAX);
            let line: String = now.line().chars().take(room).collect();
            self.say(&format!("{ERASE}{line}"));
        }
    }

    fn say(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to be told if this cannot be written.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

impl Now {
    fn line(&self) -> String {
        let seconds = self.since.elapsed().as_secs();
        let time = if seconds > 0 { format!(", {seconds} s") } else { String::new() };
        format!("[{}/{}] {}{time}", self.step, self.steps, self.what)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Hands on each text that is written.
    struct Pipe(Sender<String>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(silence: Duration) -> (Progress, Receiver<String>) {
        let (texts, told) = channel();
        (Progress::told(2, Style::Lines(silence), Box::new(Pipe(texts))), told)
    }

    /// What is told next: late on a machine with much to do, but some day.
    fn next(told: &Receiver<String>) -> String {
        told.recv_timeout(Duration::from_secs(60)).expect("it is told")
    }

    #[test]
    fn in_a_pipe_a_step_that_goes_on_is_told_in_plain_lines_again_and_again() {
        let (progress, told) = lines(Duration::from_millis(1));
        progress.step("one on ept".to_owned());
        for _ in 0..3 {
            let line = next(&told);
            assert!(line.starts_with("memvirt: [1/2] one on ept") && line.ends_with('\n'), "{line:?}");
        }
        progress.step("two\x1b[2J on ept".to_owned());
        let later = std::iter::repeat_with(|| next(&told)).find(|line| !line.contains("[1/2]")).unwrap();
        assert_eq!(later, "memvirt: [2/2] two[2J on ept\n");
        drop(progress);
        assert!(told.iter().all(|line| line == later), "nothing but lines, and none after the end");
    }

    #[test]
    fn in_a_pipe_steps_that_are_short_are_not_told() {
        let (progress, told) = lines(Duration::from_secs(3600));
        progress.step("one".to_owned());
        progress.clear();
        progress.step("two".to_owned());
        drop(progress);
        assert_eq!(told.iter().count(), 0);
    }
}
