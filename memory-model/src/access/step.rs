//! One step of a transfer, by what it meets.

use crate::access::place::Place;
use crate::access::{Bus, Step, Unassigned, dispatch, memory};
use crate::{AccessRules, FlatRange, Gpa, MemTxError, RegionKind};

impl Bus<'_> {
    pub(super) fn read_step(&self, place: Place<'_>, buf: &mut [u8]) -> Step {
        match place {
            Place::Region { range, offset, bytes } => match &range.kind {
                RegionKind::Mmio(ops) => dispatch::read(&**ops, offset, buf, self.attrs),
                RegionKind::RomDevice { ops, .. } if !range.romd => {
                    dispatch::read(&**ops, offset, buf, self.attrs)
                }
                RegionKind::RamDevice(block) => {
                    let step = exact_step(offset, bytes, buf.len());
                    (step, memory::read(block, offset, &mut buf[..step]))
                }
                RegionKind::Ram(block) | RegionKind::RomDevice { block, .. } => {
                    let step = buf.len().min(bytes);
                    (step, memory::read(block, offset, &mut buf[..step]))
                }
                kind => unreachable!("{kind:?} is nowhere in a flat view, or not where an access ends"),
            },
            Place::Nothing { gpa, bytes } => {
                let step = nothing_step(gpa, bytes, buf.len());
                buf[..step].fill(if self.unassigned == Unassigned::AllOnes { 0xff } else { 0 });
                (step, self.nothing())
            }
            Place::Failed(error) => {
                buf.fill(0);
                (buf.len(), Err(error))
            }
        }
    }

    pub(super) fn write_step(&self, place: Place<'_>, data: &[u8]) -> Step {
        match place {
            Place::Region { range, offset, bytes } => match &range.kind {
                RegionKind::Mmio(ops) | RegionKind::RomDevice { ops, .. } => {
                    dispatch::write(&**ops, offset, data, self.attrs)
                }
                _ if range.readonly => (data.len().min(bytes), Err(MemTxError::Decode)),
                _ => memory_step(range, offset, bytes, data),
            },
            Place::Nothing { gpa, bytes } => (nothing_step(gpa, bytes, data.len()), self.nothing()),
            Place::Failed(error) => (data.len(), Err(error)),
        }
    }

    fn nothing(&self) -> Result<(), MemTxError> {
        if self.unassigned == Unassigned::AllOnes { Ok(()) } else { Err(MemTxError::Decode) }
    }
}

/// A loader's write: memory of any kind takes it, and nothing else.
pub(super) fn load_step(place: Place<'_>, data: &[u8]) -> Step {
    match place {
        Place::Region { range, offset, bytes } if range.ram().is_some() => {
            memory_step(range, offset, bytes, data)
        }
        Place::Region { bytes, .. } | Place::Nothing { bytes, .. } => {
            (data.len().min(bytes), Err(MemTxError::Decode))
        }
        Place::Failed(error) => (data.len(), Err(error)),
    }
}

/// Writes memory, and notes it as dirty.
fn memory_step(range: &FlatRange, offset: u64, bytes: usize, data: &[u8]) -> Step {
    match &range.kind {
        RegionKind::RamDevice(block) => {
            let step = exact_step(offset, bytes, data.len());
            (step, memory::write(block, offset, &data[..step], range.dirty_mask))
        }
        RegionKind::Ram(block) | RegionKind::RomDevice { block, .. } => {
            let step = data.len().min(bytes);
            (step, memory::write(block, offset, &data[..step], range.dirty_mask))
        }
        kind => unreachable!("{kind:?} has no memory"),
    }
}

/// How far one access of a RAM device goes (rule R8), within its range.
fn exact_step(offset: u64, bytes: usize, len: usize) -> usize {
    AccessRules::ANY.transfer_step(offset, len.min(bytes)).into()
}

/// How far a step goes where nothing is, up to `bytes` from `gpa`. Like one that meets a device, an access of 4 bytes that
/// begins in a hole is not cut by what begins within it (rule R36).
fn nothing_step(gpa: Gpa, bytes: usize, len: usize) -> usize {
    if len <= bytes {
        return len;
    }
    let end = gpa.0.wrapping_add(bytes as u64);
    match bytes.checked_sub((end % 4) as usize) {
        Some(whole @ 1..) => whole,
        _ => AccessRules::DEFAULT.transfer_step(gpa.0, len).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r8_a_ram_device_is_accessed_by_widths_that_exist() {
        let steps = |mut offset: u64, len: usize| {
            let end = offset + len as u64;
            let mut steps = Vec::new();
            while offset < end {
                let bytes = (end - offset) as usize;
                steps.push(exact_step(offset, 0x1000 - offset as usize, bytes));
                offset += steps[steps.len() - 1] as u64;
            }
            steps
        };
        assert_eq!(steps(0, 8), [8]);
        assert_eq!(steps(1, 4), [4], "unaligned, but in one");
        assert_eq!(steps(1, 23), [8, 8, 4, 2, 1]);
        assert_eq!(exact_step(0xffd, 3, 8), 2, "not past the end");
    }

    #[test]
    fn r36_a_step_over_a_hole_goes_where_words_would() {
        // Against going there word by word, as if a device were asked each time.
        for start in 0..24_u64 {
            for bytes in 1..24 {
                for len in 1..48 {
                    let mut slow = 0;
                    while slow < len.min(bytes) {
                        let step = AccessRules::DEFAULT.transfer_step(start + slow as u64, len - slow);
                        slow += usize::from(step);
                    }
                    let mut fast = 0;
                    while fast < len.min(bytes) {
                        fast += nothing_step(Gpa(start + fast as u64), bytes - fast, len - fast);
                    }
                    assert_eq!(fast, slow, "{len} bytes at {start}, a hole of {bytes}");
                }
            }
        }
    }
}
