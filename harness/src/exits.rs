//! The exits of a run: how many of each kind, the last of them, and, if asked for, when each came.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use vcpu::Exit;

/// So many of the last exits are kept.
const LAST: usize = 16;
/// So many bytes of a port's data are kept of each.
const DATA: usize = 64;
/// The times of so many exits are kept: a guest can make them as fast as it can run.
const TIMES: usize = 1 << 20;

/// What a run came back for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exits {
    /// How many of each kind there were; see [`kind`](Self::kind).
    pub counts: BTreeMap<&'static str, u64>,
    /// The last of them, the oldest first.
    pub last: VecDeque<Exit>,
    /// When each came, after the start: of a machine that [records](crate::Machine::record) alone.
    pub times: Vec<(Duration, &'static str)>,
    /// The start, of such a machine.
    pub started: Option<Instant>,
}

impl Exits {
    /// With the time of each exit from now on.
    pub(crate) fn timed() -> Self {
        Self { started: Some(Instant::now()), ..Self::default() }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn note(&mut self, exit: &Exit) {
        let kind = Self::kind(exit);
        *self.counts.entry(kind).or_default() += 1;
        if let Some(started) = self.started.filter(|_| self.times.len() < TIMES) {
            self.times.push((started.elapsed(), kind));
        }
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(match exit {
            Exit::IoOut { port, size, data } if data.len() > DATA => {
                Exit::IoOut { port: *port, size: *size, data: data[..DATA].to_vec() }
            }
            exit => exit.clone(),
        });
    }

    /// The name that an exit is counted by: KVM's, in lower case.
    pub fn kind(exit: &Exit) -> &'static str {
        match exit {
            Exit::IoOut { .. } | Exit::IoIn { .. } => "io",
            Exit::MmioRead { .. } | Exit::MmioWrite { .. } => "mmio",
            Exit::Halt => "hlt",
            Exit::Shutdown => "shutdown",
            Exit::FailEntry { .. } => "fail entry",
            Exit::InternalError { .. } => "internal error",
            Exit::MemoryFault { .. } => "memory fault",
            Exit::DirtyRingFull => "dirty ring full",
            Exit::Unimplemented { .. } => "unimplemented",
            Exit::BudgetExceeded(_) => "budget",
            _ => "other",
        }
    }

    /// An exit in one line.
    pub fn line(exit: &Exit) -> String {
        match exit {
            Exit::IoOut { port, size, data } => {
                format!("out {port:#x}, {size} bytes: {}", hex(data))
            }
            Exit::IoIn { port, size, count } => format!("in {port:#x}, {count} x {size} bytes"),
            Exit::MmioRead { gpa, size } => format!("MMIO read of {size} bytes at {gpa}"),
            Exit::MmioWrite { gpa, data } => {
                format!("MMIO write of {:#x}, {} bytes, at {gpa}", data.value(), data.as_slice().len())
            }
            Exit::Unimplemented { rip, bytes, instruction } => {
                format!("unimplemented instruction `{instruction}` ({}) at {rip:#x}", hex(bytes))
            }
            Exit::MemoryFault { gpa: Some(gpa) } => format!("memory fault at {gpa}"),
            other => format!("{other:x?}"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}
