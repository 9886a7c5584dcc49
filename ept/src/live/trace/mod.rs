//! KVM's own account of what it does to its tables, and of the faults that make it do so: its trace events, of the threads that run
//! a VM.
//!
//! ```text
//! tracefs   events/kvmmmu/kvm_mmu_set_spte/format      the event's number, and its record's fields    tracefs.rs
//! perf      a watch of each event on each processor -> one ring for each processor -> samples         record.rs
//! Event     a leaf made, a leaf changed, a table gone, a range of the process unmapped                event.rs
//! VcpuFault a fault, and whether KVM counts it                                                        fault.rs
//! Replay    what leaves there must be after all that, against those that there are                   replay.rs
//! ```
//!
//! Leaves and events were seen to agree on `kvm_pvm` of Linux 6.18 (shadow MMU), and on `kvm_amd` and `kvm_intel` of Linux 6.1
//! (TDP MMU).

mod event;
mod fault;
mod record;
mod replay;
mod tracefs;

use alloc::string::ToString;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use self::event::Kinds;
pub use self::event::{Event, Happened};
pub use self::fault::VcpuFault;
use self::record::samples;
pub use self::replay::{Replay, TraceFinding};
use self::tracefs::Tracefs;
use super::sys::perf::{self, Ring};
use super::{Kernel, LiveError};

/// Records of a processor that are kept until they are taken: some 30,000 events.
const RING: usize = 2 << 20;

/// A recording of KVM's trace events: those of the thread that has started it and of the threads that this one makes from
/// then on. It costs nobody else anything, and ends when it is dropped.
///
/// What the kernel's own threads do is not in it. They work for all VMs, and no event of KVM's names its VM, so that theirs
/// could not be told apart. `khugepaged`, `kcompactd`, `kswapd` and `ksmd` take pages away to join, move, swap or merge them,
/// and so does any other process that needs memory; a worker of KVM's (`kvm-nx-lpage-recovery`) takes small leaves where large
/// ones may be. Leaves that have gone in this way are counted as [`Replay::unexplained`], and reported as not checked.
pub struct Trace {
    kinds: Kinds,
    rings: Vec<Ring>,
    watches: Vec<File>,
    events: Vec<Event>,
    /// The same time by both clocks: that of events, in nanoseconds, and the program's own.
    started: (u64, Instant),
    /// Samples taken so far, of events that are known here or not.
    samples: u64,
}

impl Trace {
    /// Starts to record, before any of the threads enters the guest. The error says what is missing.
    pub fn start() -> Result<Self, LiveError> {
        let kinds = Kinds::of(&Tracefs::open()?)?;
        let started = (perf::now(), Instant::now());
        let (mut rings, mut watches) = (Vec::new(), Vec::new());
        for cpu in online_cpus()? {
            let watch = |(id, only): (u16, Option<&CStr>)| {
                let watch = perf::watch(id.into(), cpu)?;
                only.map_or(Ok(()), |condition| perf::filter(&watch, condition))?;
                Ok(watch)
            };
            let of_cpu: io::Result<Vec<OwnedFd>> = kinds.watched().map(watch).collect();
            let ring = of_cpu.and_then(|of_cpu| {
                let (first, others) = of_cpu.split_first().ok_or(io::ErrorKind::NotFound)?;
                let ring = Ring::map(first, RING)?;
                others.iter().try_for_each(|other| perf::redirect(other, first))?;
                watches.extend(of_cpu.into_iter().map(File::from));
                Ok(ring)
            });
            rings.push(ring.map_err(|source| LiveError::NoPerf { source })?);
        }
        Ok(Self { kinds, rings, watches, events: Vec::new(), started, samples: 0 })
    }

    /// All that has happened so far, in order.
    pub fn events(&mut self) -> &[Event] {
        let known = self.events.len();
        for ring in &mut self.rings {
            for sample in samples(&ring.take()) {
                self.samples += 1;
                self.events.extend(self.kinds.event(&sample));
            }
        }
        self.events[known..].sort_by_key(|event| event.time);
        &self.events
    }

    /// How many faults went to KVM's tables so far, which it counts as `pf_taken`. `None` of `kvm_pvm`, which does not tell of
    /// faults.
    pub fn faults(&mut self, kernel: &Kernel) -> Option<u64> {
        fault::taken(self.events(), kernel.host.module, kernel.second_level())
    }

    /// Tells when an event happened.
    pub fn clock(&self) -> impl Fn(&Event) -> Instant + use<> {
        let (time, started) = self.started;
        move |event| started + Duration::from_nanos(event.time.saturating_sub(time))
    }

    /// How many events were not kept, because nobody has taken those before them in time.
    pub fn lost(&mut self) -> Result<u64, LiveError> {
        // Counted first: to take them may make more of them.
        let mut happened = 0;
        for mut watch in &self.watches {
            let mut count = [0; 8];
            watch.read_exact(&mut count).map_err(|source| LiveError::NoPerf { source })?;
            happened += u64::from_ne_bytes(count);
        }
        self.events();
        Ok(happened.saturating_sub(self.samples))
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, samples) = (self.events.len(), self.samples);
        f.debug_struct("Trace").field("events", &events).field("samples", &samples).finish_non_exhaustive()
    }
}

/// The numbers of the processors, such as `0-3,6`.
fn online_cpus() -> Result<Vec<u32>, LiveError> {
    const PATH: &str = "/sys/devices/system/cpu/online";
    let host = |source| LiveError::Host { path: PATH.to_string(), source };
    let text = fs::read_to_string(PATH).map_err(host)?;
    cpus_in(text.trim()).ok_or_else(|| host(io::ErrorKind::InvalidData.into()))
}

fn cpus_in(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_numbers_and_ranges() {
        assert_eq!(cpus_in("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(cpus_in("0").unwrap(), [0]);
        assert_eq!(cpus_in(""), None);
    }
}
