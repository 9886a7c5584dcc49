//! The 8259s.

use super::*;

/// With these first vectors, and these modes in ICW4.
fn machine(modes: u8) -> Machine {
    let mut machine = Machine::new(1);
    for (port, vector, wiring) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
        machine.output(port, 0x11);
        machine.output(port + 1, vector);
        machine.output(port + 1, wiring);
        machine.output(port + 1, modes);
    }
    machine
}

const MODES_8086: u8 = 1;
const END: u8 = 0x20;

#[test]
fn firmware_leaves_its_vectors_and_open_lines() {
    let mut machine = Machine::new(1);
    machine.pulse(11);
    assert_eq!(machine.take(0), Some(Event::External(0x73)));
    machine.pulse(0);
    assert_eq!(machine.take(0), Some(Event::External(0x08)));
    assert_eq!([0x21, 0xa1].map(|port| machine.input(port)), [0, 0]);
}

#[test]
fn lower_lines_go_first_and_are_held_back_while_served() {
    let mut machine = machine(MODES_8086);
    machine.pulse(4);
    machine.pulse(1);
    machine.pulse(6);
    assert_eq!(machine.input(0x20), 0b0101_0010, "IRR");
    assert_eq!(machine.take(0), Some(Event::External(0x21)));
    assert_eq!(machine.take(0), None);
    machine.output(0x20, 0x0b);
    assert_eq!(machine.input(0x20), 0b10, "ISR");
    machine.output(0x20, END);
    assert_eq!(machine.take(0), Some(Event::External(0x24)));
    // A specific EOI of another line changes nothing.
    machine.output(0x20, 0x61);
    assert_eq!(machine.take(0), None);
    machine.output(0x20, 0x64);
    assert_eq!(machine.take(0), Some(Event::External(0x26)));
}

#[test]
fn the_second_is_on_line_2_of_the_first() {
    let mut machine = machine(MODES_8086);
    machine.pulse(3);
    machine.pulse(12);
    machine.pulse(8);
    assert_eq!(machine.take(0), Some(Event::External(0x28)));
    // Both serve: the other lines of the second are below.
    assert_eq!(machine.take(0), None);
    machine.output(0xa0, END);
    assert_eq!(machine.take(0), None);
    machine.output(0x20, END);
    assert_eq!(machine.take(0), Some(Event::External(0x2c)));
    machine.output(0xa0, END);
    machine.output(0x20, END);
    assert_eq!(machine.take(0), Some(Event::External(0x23)));
}

#[test]
fn masks_hold_back_and_keep() {
    let mut machine = machine(MODES_8086);
    machine.output(0x21, 0b10);
    machine.pulse(1);
    assert_eq!(machine.take(0), None);
    machine.output(0x21, 0);
    assert_eq!(machine.take(0), Some(Event::External(0x21)));
    machine.output(0x20, END);
    // The cascade's mask is that of all lines of the second.
    machine.output(0x21, 0b100);
    machine.pulse(14);
    assert_eq!(machine.take(0), None);
    machine.output(0x21, 0);
    assert_eq!(machine.take(0), Some(Event::External(0x2e)));
}

#[test]
fn edges_come_once_and_levels_as_long_as_they_last() {
    let mut machine = machine(MODES_8086);
    machine.output(0x4d0, 0xff);
    machine.output(0x4d1, 0xff);
    assert_eq!([0x4d0, 0x4d1].map(|port| machine.input(port)), [0xf8, 0xde]);
    for (line, again) in [(1, false), (5, true)] {
        machine.0.set_line(line, true);
        let vector = Event::External(0x20 + line);
        assert_eq!(machine.take(0), Some(vector));
        machine.output(0x20, END);
        assert_eq!(machine.take(0), again.then_some(vector), "line {line}");
        machine.0.set_line(line, false);
        machine.output(0x20, END);
        assert_eq!(machine.take(0), None);
    }
}

#[test]
fn automatic_ends_and_rotation() {
    let mut machine = machine(MODES_8086 | 2);
    machine.output(0x20, 0x80);
    for line in [2 - 1, 3, 4] {
        machine.pulse(line);
    }
    assert_eq!(machine.take(0), Some(Event::External(0x21)));
    // Line 1 is the last now.
    machine.pulse(1);
    for line in [3, 4, 1] {
        assert_eq!(machine.take(0), Some(Event::External(0x20 + line)));
    }
    // Set priority: line 5 is the last, 6 the first.
    machine.output(0x20, 0x00);
    machine.output(0x20, 0xc5);
    machine.pulse(0);
    machine.pulse(6);
    assert_eq!([machine.take(0), machine.take(0)], [0x26, 0x20].map(|vector| Some(Event::External(vector))));
}

#[test]
fn a_rotating_end_makes_the_line_last() {
    let mut machine = machine(MODES_8086);
    machine.pulse(1);
    assert_eq!(machine.take(0), Some(Event::External(0x21)));
    machine.output(0x20, 0xa0);
    machine.pulse(0);
    machine.pulse(3);
    assert_eq!(machine.take(0), Some(Event::External(0x23)));
}

#[test]
fn special_modes_let_more_in() {
    // Special mask mode: a masked line that is served holds nothing back.
    let mut masked = machine(MODES_8086);
    masked.pulse(1);
    assert_eq!(masked.take(0), Some(Event::External(0x21)));
    masked.pulse(4);
    masked.output(0x21, 0b10);
    assert_eq!(masked.take(0), None);
    masked.output(0x20, 0x68);
    assert_eq!(masked.take(0), Some(Event::External(0x24)));
    // Special fully nested mode: the second may interrupt itself.
    for (modes, expected) in [(MODES_8086, None), (MODES_8086 | 0x10, Some(Event::External(0x29)))] {
        let mut nested = machine(modes);
        nested.pulse(12);
        assert_eq!(nested.take(0), Some(Event::External(0x2c)));
        nested.pulse(9);
        assert_eq!(nested.take(0), expected);
    }
}

#[test]
fn a_poll_acknowledges() {
    let mut machine = machine(MODES_8086);
    machine.pulse(5);
    machine.output(0x20, 0x0c);
    assert_eq!(machine.input(0x20), 0x85);
    assert_eq!(machine.take(0), None);
    machine.output(0x20, END);
    machine.output(0x20, 0x0c);
    assert_eq!(machine.input(0x20), 0);
}

#[test]
fn only_an_open_lint0_lets_them_through() {
    let mut machine = machine(MODES_8086);
    machine.pulse(1);
    machine.write(0, LVT_LINT0, 0x1_0700);
    assert_eq!(machine.take(0), None);
    machine.write(0, LVT_LINT0, 0x400);
    assert_eq!(machine.take(0), None);
    machine.write(0, LVT_LINT0, 0x700);
    // The task priority is none of the 8259s' business.
    machine.write(0, 0x80, 0xff);
    assert_eq!(machine.0.of(0, 0).take(Open { nmi: true, interrupts: false }), None);
    assert_eq!(machine.take(0), Some(Event::External(0x21)));
}
