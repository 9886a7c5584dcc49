//! The 8254.

use super::super::pit::Pit;
use super::*;

/// The time of so many counts: 1.193182 MHz.
fn after(counts: u64) -> u64 {
    (counts * 1_000_000_000).div_ceil(1_193_182)
}

fn load(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, now);
    for byte in count.to_le_bytes() {
        pit.write(0x40 + u16::from(channel), byte, now);
    }
}

/// The output after so many counts, as the data sheet draws it.
fn drawn(mode: u8, count: u64, done: u64) -> bool {
    let (mut high, mut left) = (mode != 0, count);
    for _ in 0..done {
        left -= 1;
        match mode {
            0 => high |= left == 0,
            // Low for the last count of a period.
            2 => high = left != 1,
            // Half of it, and the longer half high.
            _ => high = left > count / 2 || left == 0,
        }
        if left == 0 {
            left = if mode == 0 { u64::MAX } else { count };
        }
    }
    high
}

#[test]
fn outputs_are_as_drawn_and_interrupts_their_rising_edges() {
    for mode in [0, 2, 3] {
        for count in [2, 5, 6, 100] {
            let mut pit = Pit::new();
            pit.write(0x61, 1, 0);
            load(&mut pit, 2, mode, count, 0);
            load(&mut pit, 0, mode, count, 0);
            let mut edges = Vec::new();
            for done in 1..=3 * u64::from(count) {
                let out = pit.read(0x61, after(done)).unwrap() & 0x20 != 0;
                assert_eq!(out, drawn(mode, count.into(), done), "mode {mode}, {count}: {done}");
                assert!(!pit.advance(after(done) - 1), "one tick too early");
                if pit.advance(after(done)) {
                    edges.push(done);
                }
            }
            let rising = (1..=3 * u64::from(count))
                .filter(|&done| drawn(mode, count.into(), done) && !drawn(mode, count.into(), done - 1));
            assert_eq!(edges, rising.collect::<Vec<_>>(), "mode {mode}, {count}");
        }
    }
}

#[test]
fn counts_are_read_live_or_latched_low_byte_first() {
    let mut pit = Pit::new();
    load(&mut pit, 0, 2, 0x1234, 0);
    let word = |pit: &mut Pit, now| u16::from_le_bytes([(); 2].map(|()| pit.read(0x40, now).unwrap()));
    assert_eq!(word(&mut pit, after(0x34)), 0x1200);
    pit.write(0x43, 0, after(0x34));
    pit.write(0x43, 0, after(0x100));
    assert_eq!(word(&mut pit, after(0x200)), 0x1200, "the first latch stays until it is read");
    assert_eq!(word(&mut pit, after(0x200)), 0x1034);
    // One byte only.
    pit.write(0x43, 0x24, 0);
    pit.write(0x40, 0x12, 0);
    assert_eq!([pit.read(0x40, after(1)), pit.read(0x40, after(1))], [Some(0x11); 2]);
}

#[test]
fn read_back_gives_status_then_count() {
    let mut pit = Pit::new();
    pit.write(0x43, 0x36, 0);
    pit.write(0x43, 0xe2, 0);
    assert_eq!(pit.read(0x40, 0), Some(0xf6), "output high, no count yet, both bytes, mode 3");
    load(&mut pit, 0, 0, 100, 0);
    pit.write(0x43, 0xc2, after(99));
    let read = [(); 3].map(|()| pit.read(0x40, after(500)).unwrap());
    assert_eq!(read, [0x30, 1, 0]);
}

#[test]
fn the_gate_of_channel_2_stops_and_restarts() {
    let mut pit = Pit::new();
    load(&mut pit, 2, 0, 100, 0);
    assert_eq!(pit.read(0x61, after(200)).unwrap() & 0x2f, 0);
    pit.write(0x61, 3, after(200));
    assert_eq!(pit.read(0x61, after(250)).unwrap() & 0x2f, 3);
    pit.write(0x61, 0, after(250));
    pit.write(0x61, 1, after(1000));
    assert_eq!(pit.read(0x61, after(1000) + after(49)).unwrap() & 0x2f, 1);
    assert_eq!(pit.read(0x61, after(1000) + after(51)).unwrap() & 0x2f, 0x21);
    // A rising gate starts mode 2 anew.
    load(&mut pit, 2, 2, 100, 0);
    pit.write(0x61, 0, after(30));
    pit.write(0x61, 1, after(40));
    pit.write(0x43, 0x80, after(40) + after(10));
    assert_eq!(pit.read(0x42, 0), Some(90));
}

#[test]
fn channel_0_interrupts_through_line_0() {
    let mut machine = Machine::new(1);
    machine.output(0x43, 0x34);
    machine.output(0x40, 0xa9);
    machine.output(0x40, 0x04);
    assert_eq!(machine.0.of(0, 0).until_due(), after(0x4a9));
    assert_eq!(machine.0.of(0, after(0x4a9) - 1).take(ALL), None);
    assert_eq!(machine.0.of(0, after(0x4a9)).take(ALL), Some(Event::External(8)));
    machine.output(0x20, 0x20);
    assert_eq!(machine.0.of(0, after(2 * 0x4a9)).take(ALL), Some(Event::External(8)));
}
