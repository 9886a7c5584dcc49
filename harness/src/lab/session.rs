//! A lab that is open: the emulator as a child process, what it says, and how long it may take.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use super::initramfs::{Archive, read};
use super::{Kernel, LabError, Message, Orders, init};

/// The files of a session's folder: the serial ports are pipes.
pub(super) const CONSOLE: &str = "console";
pub(super) const MESSAGES: &str = "messages";
pub(super) const INITRAMFS: &str = "initrd";

/// So many lines of the console are kept.
const KEPT: usize = 60;
/// So long a kernel that panics may go on about it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// An emulator that runs a lab. It is killed when this is dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    events: Receiver<Event>,
    /// Both pipes, so that they have a writer until the emulator has come and gone.
    writers: Vec<File>,
    console: VecDeque<String>,
    panic: Option<String>,
    at: String,
    deadline: Instant,
    budget: Duration,
    _folder: Folder,
}

#[derive(Debug)]
enum Event {
    Message(String),
    Console(String),
    Terminal(String),
    /// The emulator has let go of its terminal.
    Closed,
}

/// Why a lab ended before it was through.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}, {at}")]
pub struct Ended {
    /// What happened.
    pub why: String,
    /// How far it had come: at which guest, or after which line of a program.
    pub at: String,
    /// The last lines of its console.
    pub console: Vec<String>,
}

impl Session {
    /// Starts the emulator. All is to be done within the budget.
    pub fn start(orders: &Orders, kernel: &Kernel, budget: Duration) -> Result<Self, LabError> {
        let lab = orders.lab;
        if let Some(why) = lab.unavailable() {
            return Err(LabError::Unavailable(why));
        }
        let archive = archive(orders, kernel)?;
        Self::open(budget, |folder| {
            let initramfs = folder.join(INITRAMFS);
            fs::write(&initramfs, archive).map_err(LabError::file(initramfs))?;
            lab.emulator(folder, &kernel.image)
        })
    }

    /// Starts an emulator whose serial ports are the pipes of its folder.
    fn open(
        budget: Duration,
        emulator: impl FnOnce(&Path) -> Result<Command, LabError>,
    ) -> Result<Self, LabError> {
        let folder = Folder::new()?;
        let (sender, events) = channel();
        let console = listen(&folder.path.join(CONSOLE), &sender, Event::Console)?;
        let messages = listen(&folder.path.join(MESSAGES), &sender, Event::Message)?;
        let mut command = emulator(&folder.path)?;
        let terminal = Terminal::open().map_err(LabError::system("a pseudo-terminal"))?;
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, terminal.end().map_err(LabError::system("a pseudo-terminal"))?);
        }
        let child = command.spawn().map_err(|error| LabError::Program {
            command: command.get_program().to_string_lossy().into_owned(),
            how: format!("cannot be run: {error}"),
        })?;
        // Its ends of the terminal are the child's alone from here on.
        drop(command);
        terminal.listen(sender);
        Ok(Self {
            child,
            events,
            writers: vec![console, messages],
            console: VecDeque::new(),
            panic: None,
            at: "while Linux came up".to_owned(),
            deadline: Instant::now() + budget,
            budget,
            _folder: folder,
        })
    }

    /// The next message, or why there is none.
    pub fn next_message(&mut self) -> Result<Message, Ended> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Message(line)) => match serde_json::from_str(&line) {
                    Ok(message) => return Ok(self.heard(message)),
                    // The emulator has ended while it sent one: that is the reason, and follows.
                    Err(error) if error.is_eof() => self.keep(head(&line)),
                    Err(error) => {
                        let why = format!("{:?} is no message: {error}", head(&line));
                        return Err(self.ended(why));
                    }
                },
                Ok(Event::Console(line)) => self.console_line(line),
                Ok(Event::Terminal(line)) => self.keep(line),
                // With no writer left, the pipes end once what is in them was read.
                Ok(Event::Closed) => self.writers.clear(),
                Err(RecvTimeoutError::Timeout) => {
                    let over = format!("the budget of {} s ran out", self.budget.as_secs());
                    return Err(self.ended(over));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let how =
                        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                    return Err(self.ended(format!("the emulator ended ({how})")));
                }
            }
        }
    }

    fn heard(&mut self, message: Message) -> Message {
        match &message {
            Message::Ready => self.at = "once Linux had come up".to_owned(),
            Message::Begin(guest) => self.at = format!("at guest {guest}"),
            Message::Report(report) => self.at = format!("after guest {}", report.guest),
            Message::Line(line) => self.at = format!("after the line {:?}", head(line)),
            Message::Exit(_) | Message::Trouble(_) | Message::End => {}
        }
        message
    }

    fn console_line(&mut self, line: String) {
        if self.panic.is_none() && line.contains("Kernel panic") {
            self.panic = Some(line.clone());
            self.deadline = self.deadline.min(Instant::now() + LAST_WORDS);
        }
        self.keep(line);
    }

    fn keep(&mut self, line: String) {
        if self.console.len() == KEPT {
            self.console.pop_front();
        }
        self.console.push_back(line);
    }

    fn ended(&mut self, why: String) -> Ended {
        Ended {
            why: self.panic.take().unwrap_or(why),
            at: self.at.clone(),
            console: std::mem::take(&mut self.console).into(),
        }
    }
}

/// As much of a line as anybody reads.
fn head(line: &str) -> String {
    line.chars().take(200).collect()
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that is killed with this one, however that ends.
pub(super) fn child(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// All that the lab's Linux has.
fn archive(orders: &Orders, kernel: &Kernel) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    archive.this_program()?;
    for program in &orders.programs {
        archive.program(&orders.folder.join(program), program)?;
    }
    for (index, module) in kernel.modules(orders.lab)?.iter().enumerate() {
        let suffix = module.extension().and_then(OsStr::to_str).unwrap_or_default();
        archive.file(&Path::new(init::MODULES).join(format!("{index}.{suffix}")), &read(module)?);
    }
    for file in &orders.files {
        archive.file(&orders.folder.join(file), &read(file)?);
    }
    let orders = serde_json::to_vec(orders).expect("strings are always JSON");
    archive.file(Path::new(init::ORDERS), &orders);
    Ok(archive.finish())
}

/// Makes a pipe with a thread that reads it; gives its writer.
fn listen(path: &Path, sender: &Sender<Event>, event: fn(String) -> Event) -> Result<File, LabError> {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).map_err(LabError::system("a named pipe"))?;
    // Open for both, it waits for nobody.
    let writer = OpenOptions::new().read(true).write(true).open(path).map_err(LabError::file(path))?;
    let reader = File::open(path).map_err(LabError::file(path))?;
    let sender = sender.clone();
    thread::spawn(move || lines(reader, |line| sender.send(event(line)).is_ok()));
    Ok(writer)
}

/// Reads lines until there are no more, or nobody wants them. An emulator's output may be anything.
fn lines(reader: File, mut take: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !take(text) {
            break;
        }
        line.clear();
    }
}

/// A pseudo-terminal: Bochs does not begin without one.
struct Terminal(OwnedFd);

impl Terminal {
    fn open() -> rustix::io::Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        Ok(Self(terminal))
    }

    /// The emulator's end.
    fn end(&self) -> rustix::io::Result<Stdio> {
        ioctl_tiocgptpeer(&self.0, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .map(Stdio::from)
    }

    /// Keeps lines of text, and reads the rest so that nobody waits.
    fn listen(self, sender: Sender<Event>) {
        thread::spawn(move || {
            let is_text = |line: &str| !line.is_empty() && !line.contains(char::is_control);
            lines(File::from(self.0), |line| !is_text(&line) || sender.send(Event::Terminal(line)).is_ok());
            // Nobody may be waiting any more.
            let _ = sender.send(Event::Closed);
        });
    }
}

/// A folder of its own, gone when the session is: also one that is killed, or interrupted at the terminal.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Removes it when its standard input ends, as it does with this process.
    remover: Child,
}

impl Folder {
    fn new() -> Result<Self, LabError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("memvirt-lab-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(LabError::file(&path))?;
        let mut remover = Command::new("sh");
        remover.args(["-c", r#"cat > /dev/null; rm -rf -- "$0""#]).arg(&path);
        // Of no group that a terminal interrupts.
        remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let remover = remover.spawn().map_err(|error| {
            let _ = fs::remove_dir(&path);
            LabError::system("sh")(error)
        })?;
        Ok(Self { path, remover })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        // What is left of a temporary folder hurts nobody.
        let _ = self.remover.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script in an emulator's place, in whose folder it runs.
    fn session(script: &str, budget: Duration) -> Session {
        let emulator = |folder: &Path| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(script).current_dir(folder);
            Ok(command)
        };
        Session::open(budget, emulator).unwrap()
    }

    /// All messages, and what came then.
    fn hear(mut session: Session) -> (Vec<Message>, Ended) {
        let mut messages = Vec::new();
        loop {
            match session.next_message() {
                Ok(message) => messages.push(message),
                Err(ended) => return (messages, ended),
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    const READY: &str = r#"echo '"ready"' > messages; echo '{"begin":"first_touch"}' > messages; "#;

    fn begun() -> Vec<Message> {
        vec![Message::Ready, Message::Begin("first_touch".to_owned())]
    }

    #[test]
    fn an_emulator_that_dies_is_told_with_its_last_words() {
        let (messages, ended) = hear(session(&format!("{READY} echo no memory left; exit 3"), LONG));
        assert_eq!(messages, begun());
        assert_eq!(ended.to_string(), "the emulator ended (exit status: 3), at guest first_touch");
        assert_eq!(ended.console, ["no memory left"]);
    }

    #[test]
    fn one_that_hangs_is_killed_when_the_budget_ends() {
        let session = session(&format!("{READY} exec sleep 1000"), Duration::from_secs(1));
        let (folder, start) = (session._folder.path.clone(), Instant::now());
        let (messages, ended) = hear(session);
        assert_eq!(messages, begun());
        assert_eq!(ended.to_string(), "the budget of 1 s ran out, at guest first_touch");
        assert!(start.elapsed() < LONG && !folder.exists());
    }

    #[test]
    fn a_panic_ends_a_lab_whose_emulator_goes_on() {
        let script =
            "echo 'Kernel panic - not syncing' > console; echo ' at ffffffff' > console; exec sleep 1000";
        let (messages, ended) = hear(session(script, LONG));
        assert_eq!(messages, []);
        assert_eq!(ended.to_string(), "Kernel panic - not syncing, while Linux came up");
        assert_eq!(ended.console, ["Kernel panic - not syncing", " at ffffffff"]);
    }

    #[test]
    fn what_is_no_message_is_shown() {
        let (_, ended) = hear(session("echo '{begin' > messages; exec sleep 1000", LONG));
        assert!(ended.why.starts_with(r#""{begin" is no message: "#), "{ended}");
    }

    #[test]
    fn a_message_that_is_cut_off_is_not_the_reason() {
        let (_, ended) = hear(session("printf '{\"begin\":\"fir' > messages; exit 3", LONG));
        assert_eq!(ended.why, "the emulator ended (exit status: 3)");
        assert_eq!(ended.console, ["{\"begin\":\"fir"]);
    }

    #[test]
    fn a_folder_goes_when_nobody_holds_it_any_more() {
        let mut folder = Folder::new().unwrap();
        fs::write(folder.path.join("file"), "text").unwrap();
        // As it does when this process ends, however it ends.
        drop(folder.remover.stdin.take());
        assert!(folder.remover.wait().unwrap().success() && !folder.path.exists());
    }
}
