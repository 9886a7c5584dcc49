//! The timer of a local APIC, and the clock.

use super::*;

const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;

impl Machine {
    /// What processor 0 gets at that time.
    fn at(&mut self, now: u64) -> Option<Event> {
        let event = self.0.of(0, now).take(ALL);
        if event.is_some() {
            self.write(0, EOI, 0);
        }
        event
    }
}

#[test]
fn one_shot_ends_at_its_tick_and_once() {
    // Divide configuration: 2, 4, 8, 16, 32, 64, 128, 1.
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut machine = Machine::new(1);
        machine.write(0, LVT_TIMER, 0x40);
        machine.write(0, DIVIDE, code);
        machine.write(0, INITIAL, 1000);
        assert_eq!(machine.0.of(0, 0).until_due(), 1000 * divisor);
        assert_eq!(machine.at(1000 * divisor - 1), None);
        assert_eq!(machine.read(0, CURRENT), 1);
        assert_eq!(machine.at(1000 * divisor), Some(Event::External(0x40)));
        assert_eq!((machine.read(0, CURRENT), machine.read(0, INITIAL)), (0, 1000));
        assert_eq!(machine.at(u64::MAX - 1), None);
    }
}

#[test]
fn periodic_keeps_its_phase_when_late() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_TIMER, PERIODIC | 0x40);
    machine.write(0, DIVIDE, 11);
    machine.write(0, INITIAL, 100);
    assert_eq!(machine.at(100), Some(Event::External(0x40)));
    assert_eq!(machine.at(199), None);
    // Periods that nobody looked at are one interrupt.
    assert_eq!([machine.at(550), machine.at(599)], [Some(Event::External(0x40)), None]);
    assert_eq!(machine.at(600), Some(Event::External(0x40)));
    machine.write(0, INITIAL, 0);
    assert_eq!(machine.at(10_000), None);
}

#[test]
fn what_ends_while_masked_never_interrupts() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_TIMER, 0x1_0040);
    machine.write(0, DIVIDE, 11);
    machine.write(0, INITIAL, 100);
    assert_eq!(machine.at(200), None);
    machine.write(0, LVT_TIMER, 0x40);
    assert_eq!(machine.at(300), None);
}

#[test]
fn a_change_between_counts_goes_on_and_one_to_deadlines_stops() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_TIMER, 0x40);
    machine.write(0, DIVIDE, 11);
    machine.write(0, INITIAL, 100);
    machine.at(30);
    machine.write(0, LVT_TIMER, PERIODIC | 0x40);
    assert_eq!(machine.read(0, CURRENT), 70);
    machine.write(0, DIVIDE, 0);
    assert_eq!(machine.read(0, CURRENT), 70);
    assert_eq!([machine.at(169), machine.at(170)], [None, Some(Event::External(0x40))]);
    machine.write(0, LVT_TIMER, DEADLINE | 0x40);
    assert_eq!((machine.read(0, INITIAL), machine.read(0, CURRENT)), (0, 0));
    machine.write(0, INITIAL, 5);
    assert_eq!(machine.at(10_000), None);
}

#[test]
fn deadlines_in_the_past_interrupt_at_once() {
    let mut machine = Machine::new(1);
    machine.at(50);
    machine.0.of(0, 0).set_deadline(Some(60));
    assert_eq!(machine.0.of(0, 0).deadline(), None, "the timer counts");
    machine.write(0, LVT_TIMER, DEADLINE | 0x40);
    machine.0.of(0, 0).set_deadline(Some(60));
    assert_eq!(machine.0.of(0, 0).deadline(), Some(60));
    assert_eq!([machine.at(59), machine.at(60)], [None, Some(Event::External(0x40))]);
    assert_eq!(machine.0.of(0, 0).deadline(), None);
    machine.0.of(0, 0).set_deadline(Some(10));
    assert_eq!(machine.at(60), Some(Event::External(0x40)));
}

#[test]
fn the_clock_leaps_only_while_all_sleep() {
    let mut machine = Machine::new(2);
    machine.write(0, LVT_TIMER, 0x40);
    machine.write(0, INITIAL, 500);
    machine.0.of(0, 0).halt(true);
    assert_eq!(machine.take(0), Some(Event::Asleep));
    machine.0.of(1, 0).halt(true);
    // Processor 1 leaps for processor 0, and sleeps on.
    assert_eq!([machine.take(1), machine.take(1)], [Some(Event::Leap), Some(Event::Asleep)]);
    assert_eq!(machine.0.of(0, 0).now(), 1000);
    assert_eq!(machine.take(0), Some(Event::External(0x40)));
    // With interrupts off no timer can end the sleep.
    machine.write(0, EOI, 0);
    machine.write(0, INITIAL, 500);
    machine.0.of(0, 0).halt(false);
    assert_eq!(machine.0.of(0, 0).take(Open { nmi: true, interrupts: false }), Some(Event::Asleep));
    machine.0.of(1, 0).halt(false);
    assert_eq!([machine.take(0), machine.take(1)], [Some(Event::AllAsleep); 2]);
    assert_eq!(machine.0.of(0, 0).now(), 1000);
}

#[test]
fn no_deadline_takes_the_clock_to_its_end() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_TIMER, DEADLINE | 0x40);
    machine.0.of(0, 0).set_deadline(Some(u64::MAX - 1));
    machine.0.of(0, 0).halt(true);
    assert_eq!((machine.take(0), machine.0.of(0, 0).now()), (Some(Event::AllAsleep), 0));
}
