//! The inside of a lab: the first process of its Linux.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

use super::{Message, Orders};

/// What to do is in this file.
pub(super) const ORDERS: &str = "/lab.json";
/// KVM's modules are in files of this folder, in the order of their names.
pub(super) const MODULES: &str = "/modules";
/// Where messages go.
const PORT: &str = "/dev/ttyS1";
const PORT_SPEED: u32 = 115_200;

/// `MODULE_INIT_COMPRESSED_FILE`: the kernel is to decompress a module.
const COMPRESSED_FILE: i32 = 4;

/// A file system, and where it is expected to be.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/dev/shm"),
];

/// Huge pages are for memory that asks for them: then what a guest gets does not depend on what is free.
const SETTINGS: [(&str, &str); 1] = [("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")];

/// The way out of a lab.
#[derive(Debug)]
pub struct Port(File);

impl Port {
    /// Sends a message.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_string(message).map_err(io::Error::other)?;
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}

/// Whether this process is the first one of a lab.
pub fn is_inside() -> bool {
    std::process::id() == 1 && Path::new(ORDERS).exists()
}

/// Makes the system fit for guests, lets `work` carry out its orders, and switches it off.
pub fn run(work: impl FnOnce(&Orders, &mut Port) -> io::Result<()>) -> io::Error {
    match prepare() {
        Ok((orders, mut port)) => {
            let done = work(&orders, &mut port);
            let trouble = done.err().map(|error| Message::Trouble(error.to_string()));
            let last = trouble.into_iter().chain([Message::End]);
            // Nobody is there to be told if this cannot be sent; the host sees that nothing came.
            for message in last {
                let _ = port.send(&message);
            }
            let _ = tcdrain(&port.0);
        }
        Err(error) => eprintln!("memvirt: {error}"),
    }
    match reboot(RebootCommand::PowerOff) {
        Ok(()) => io::Error::other("the machine was switched off, and goes on"),
        Err(error) => error.into(),
    }
}

fn prepare() -> io::Result<(Orders, Port)> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place)?;
        mount(kind, place, kind, MountFlags::empty(), None::<&CStr>)
            .map_err(|error| io::Error::other(format!("{place}: {error}")))?;
    }
    for (file, value) in SETTINGS {
        fs::write(file, value).map_err(|error| io::Error::other(format!("{file}: {error}")))?;
    }
    let mut modules: Vec<_> =
        fs::read_dir(MODULES)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    modules.sort();
    let mut port = Port(open_port()?);
    for module in modules {
        let is_plain = module.extension().is_some_and(|suffix| suffix == "ko");
        let flags = if is_plain { 0 } else { COMPRESSED_FILE };
        let inserted = finit_module(OwnedFd::from(File::open(&module)?), c"", flags);
        inserted.map_err(|error| {
            let error = io::Error::other(format!("{}: {error}", module.display()));
            // The console has the kernel's reason; this is the host's.
            let _ = port.send(&Message::Trouble(error.to_string()));
            error
        })?;
    }
    let orders: Orders = serde_json::from_slice(&fs::read(ORDERS)?)?;
    fs::create_dir_all(&orders.folder)?;
    std::env::set_current_dir(&orders.folder)?;
    port.send(&Message::Ready)?;
    Ok((orders, port))
}

/// The second serial port, as fast as it goes, and without a terminal's manners.
fn open_port() -> io::Result<File> {
    let port = OpenOptions::new().read(true).write(true).open(PORT)?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    settings.set_speed(PORT_SPEED)?;
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(port)
}
