//! How a transfer is cut up for a device: against an oracle that knows only bytes, for every small case.

use std::sync::Arc;

use memory_model::{AccessError, AccessRules, AccessSizes, Endianness, Gpa, MemTxError};

use crate::device::{Call, Device, space_with};

const BYTES: usize = 48;

/// All pairs of a smallest and a largest size.
fn sizes() -> impl Iterator<Item = AccessSizes> {
    const SIZES: [u8; 4] = [1, 2, 4, 8];
    SIZES.into_iter().flat_map(|min| {
        SIZES.into_iter().filter(move |&max| min <= max).map(move |max| AccessSizes::new(min, max))
    })
}

fn all_rules() -> Vec<AccessRules> {
    let mut all = Vec::new();
    for valid in sizes().map(Some).chain([None]) {
        for implemented in sizes() {
            for flags in 0..8 {
                all.push(AccessRules {
                    valid,
                    implemented,
                    valid_unaligned: flags & 1 != 0,
                    implemented_unaligned: flags & 2 != 0,
                    endianness: if flags & 4 != 0 { Endianness::Big } else { Endianness::Little },
                    ..AccessRules::DEFAULT
                });
            }
        }
    }
    all
}

/// What a transfer ought to do, step by step: where each begins, its size, whether the device takes it.
fn expected_steps(rules: &AccessRules, mut offset: u64, mut len: usize) -> Vec<(u64, usize, bool)> {
    let mut steps = Vec::new();
    while len > 0 {
        let largest = rules.valid.map_or(4, |sizes| sizes.max().into());
        let fits = |size: &usize| {
            *size <= len
                && *size <= largest
                && (rules.implemented_unaligned || (offset as usize).is_multiple_of(*size))
        };
        let size = [8, 4, 2, 1].into_iter().find(fits).unwrap();
        let aligned = rules.valid_unaligned || (offset as usize).is_multiple_of(size);
        let in_bounds = rules
            .valid
            .is_none_or(|sizes| usize::from(sizes.min()) <= size && size <= usize::from(sizes.max()));
        steps.push((offset, size, aligned && in_bounds));
        offset += size as u64;
        len -= size;
    }
    steps
}

/// The sizes and places of the callbacks of one step, in order.
fn expected_calls(rules: &AccessRules, offset: u64, size: usize) -> Vec<(u64, u8)> {
    let width = size.max(rules.implemented.min().into()).min(rules.implemented.max().into());
    (0..size).step_by(width).map(|at| (offset + at as u64, width as u8)).collect()
}

fn expected_result(steps: &[(u64, usize, bool)]) -> Result<(), AccessError> {
    match steps.iter().find(|(_, _, taken)| !taken) {
        Some(&(offset, ..)) => Err(AccessError { gpa: Gpa(offset), source: MemTxError::Decode }),
        None => Ok(()),
    }
}

#[test]
fn r33_r34_r35_every_transfer_moves_the_bytes_that_an_oracle_of_bytes_moves() {
    let fresh: Vec<u8> = (0..BYTES as u8).map(|index| 0x80 | index).collect();
    let data: Vec<u8> = (1..=9).collect();
    for rules in all_rules() {
        let device = Arc::new(Device::new(rules, fresh.clone()));
        let view = space_with(device.clone()).view();
        for offset in 0..16 {
            for len in 1..=9 {
                let case = format!("{len} bytes at {offset}, {rules:?}");
                let steps = expected_steps(&rules, offset, len);
                let calls = steps.iter().filter(|step| step.2);
                let calls: Vec<_> =
                    calls.flat_map(|&(offset, size, _)| expected_calls(&rules, offset, size)).collect();

                let mut buf = vec![0xee; len];
                assert_eq!(view.bus().read(Gpa(offset), &mut buf), expected_result(&steps), "{case}");
                let bytes: Vec<u8> = steps
                    .iter()
                    .flat_map(|&(at, size, taken)| (at..at + size as u64).map(move |at| (at, taken)))
                    .map(|(at, taken)| if taken { fresh[at as usize] } else { 0 })
                    .collect();
                assert_eq!(buf, bytes, "{case}");
                let seen: Vec<_> = device.calls().iter().map(place).collect();
                assert_eq!(seen, calls, "{case}");

                assert_eq!(view.bus().write(Gpa(offset), &data[..len]), expected_result(&steps), "{case}");
                let mut bytes = fresh.clone();
                for &(at, size, _) in steps.iter().filter(|step| step.2) {
                    // What is wider than the access overwrites its neighbours with 0.
                    for (at, width) in expected_calls(&rules, at, size) {
                        bytes[at as usize..][..width.into()].fill(0);
                    }
                    let done = (at - offset) as usize;
                    bytes[at as usize..][..size].copy_from_slice(&data[done..done + size]);
                }
                assert_eq!(*device.bytes.lock().unwrap(), bytes, "{case}");
                let seen: Vec<_> = device.calls().iter().map(place).collect();
                assert_eq!(seen, calls, "{case}");
                device.bytes.lock().unwrap().copy_from_slice(&fresh);
            }
        }
    }
}

fn place(call: &Call) -> (u64, u8) {
    match *call {
        Call::Read { offset, size } | Call::Write { offset, size, .. } | Call::Asked { offset, size, .. } => {
            (offset, size)
        }
    }
}

#[test]
fn r34_eight_bytes_on_callbacks_of_four_are_two_calls() {
    let rules = AccessRules { valid: Some(AccessSizes::new(1, 8)), ..AccessRules::DEFAULT };
    let device = Device::counting(rules);
    let mut word = [0; 8];
    space_with(device.clone()).view().bus().read(Gpa(8), &mut word).unwrap();
    assert_eq!(word, [8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(device.calls(), [Call::Read { offset: 8, size: 4 }, Call::Read { offset: 12, size: 4 }]);
}

#[test]
fn r34_one_byte_on_callbacks_of_four_is_one_call_truncated() {
    for endianness in [Endianness::Little, Endianness::Big] {
        let rules = AccessRules { implemented: AccessSizes::new(4, 4), endianness, ..AccessRules::DEFAULT };
        let device = Device::counting(rules);
        let view = space_with(device.clone()).view();
        let mut byte = [0];
        view.bus().read(Gpa(5), &mut byte).unwrap();
        assert_eq!(byte, [5]);
        assert_eq!(device.calls(), [Call::Read { offset: 5, size: 4 }]);
        view.bus().write(Gpa(8), &[0xab]).unwrap();
        let value = if endianness == Endianness::Big { 0xab00_0000 } else { 0xab };
        assert_eq!(device.calls(), [Call::Write { offset: 8, size: 4, value }]);
    }
}

#[test]
fn r35_seven_bytes_at_offset_one_go_one_two_four() {
    let device = Device::counting(AccessRules::DEFAULT);
    let view = space_with(device.clone()).view();
    let mut bytes = [0; 7];
    view.bus().read(Gpa(1), &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7]);
    let steps = [(1, 1), (2, 2), (4, 4)].map(|(offset, size)| Call::Read { offset, size });
    assert_eq!(device.calls(), steps);
}
