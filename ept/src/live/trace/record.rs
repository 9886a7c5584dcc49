//! Records of perf events, as the kernel writes them (perf_event_open(2), "MMAP layout").

use crate::live::btf::Field;

const SAMPLE: u32 = 9;
const HEADER: usize = 8;
/// Process, thread and time of a sample, and the length of what follows.
const PREFIX: usize = 20;

/// What one of a trace event's occurrences has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sample<'a> {
    pub thread: u32,
    /// Nanoseconds.
    pub time: u64,
    /// The event's own record.
    raw: &'a [u8],
}

impl Sample<'_> {
    /// The number of the event (`common_type`).
    pub fn event(&self) -> Option<u16> {
        Some(self.get(Field { bit: 0, bits: 16 })? as u16)
    }

    pub fn get(&self, field: Field) -> Option<u64> {
        field.value(self.raw)
    }
}

/// The samples in what a ring has given: `{ type: u32, misc: u16, size: u16 }` and what the type wants. Other records are
/// passed over: how many samples were lost shows by the events' own counts.
pub(super) fn samples(mut bytes: &[u8]) -> impl Iterator<Item = Sample<'_>> {
    core::iter::from_fn(move || {
        loop {
            let (kind, size) = (u32_at(bytes, 0)?, u16_at(bytes, 6)?);
            let record = bytes.get(HEADER..size.into())?;
            bytes = &bytes[size.into()..];
            if kind == SAMPLE {
                return sample(record);
            }
        }
    })
}

fn sample(record: &[u8]) -> Option<Sample<'_>> {
    let time = record.get(8..16)?;
    let raw = record.get(PREFIX..)?.get(..u32_at(record, 16)? as usize)?;
    Some(Sample { thread: u32_at(record, 4)?, time: u64::from_ne_bytes(time.try_into().ok()?), raw })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
