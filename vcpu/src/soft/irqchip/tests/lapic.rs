//! Registers, priorities and modes of the local APIC.

use proptest::prelude::*;

use super::super::lapic::LocalApic;
use super::*;

#[test]
fn registers_after_reset() {
    let mut machine = Machine(Irqchip::new());
    machine.0.add_processor();
    machine.0.add_processor();
    for (register, value) in [
        (0x20, 1 << 24),
        (0x30, 0x5_0014),
        (0x80, 0),
        (0xa0, 0),
        (0xd0, 0),
        (0xe0, u32::MAX),
        (0xf0, 0xff),
        (0x280, 0),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
        (0x380, 0),
        (0x390, 0),
        (0x3e0, 0),
    ] {
        assert_eq!(machine.read(1, register), value, "{register:#x}");
    }
    // The 8259s reach the bootstrap processor.
    assert_eq!(machine.read(0, LVT_LINT0), 0x700);
    assert_eq!([0, 1].map(|index| machine.msr(index, 0x1b)), [Some(0xfee0_0900), Some(0xfee0_0800)]);
}

#[test]
fn registers_keep_the_bits_they_have() {
    let mut machine = Machine::new(1);
    for (register, keeps) in [
        (0x20, 0xff00_0000),
        (0x30, 0),
        (0x80, 0xff),
        (0xd0, 0xff00_0000),
        (0xf0, 0x3ff),
        (0x310, 0xff00_0000),
        (0x320, 0x7_00ff),
        (0x330, 0x1_07ff),
        (0x350, 0x1_a7ff),
        (0x370, 0x1_00ff),
        (0x390, 0),
        (0x3e0, 0xb),
    ] {
        let before = machine.read(0, register);
        machine.write(0, register, u32::MAX);
        let expected = if keeps == 0 { before } else { keeps };
        assert_eq!(machine.read(0, register), expected, "{register:#x}");
    }
    // DFR has ones where it has no bits.
    machine.write(0, 0xe0, 0);
    assert_eq!(machine.read(0, 0xe0), 0x0fff_ffff);
}

#[test]
fn narrow_reads_see_a_part_and_narrow_writes_nothing() {
    let mut machine = Machine::new(1);
    let mut two = [0; 2];
    machine.0.of(0, 0).read_memory(Gpa(APIC + 0x32), &mut two);
    assert_eq!(two, [5, 0]);
    let mut eight = [0xff; 8];
    machine.0.of(0, 0).read_memory(Gpa(APIC + 0x30), &mut eight);
    assert_eq!(eight, [0x14, 0, 5, 0, 0, 0, 0, 0]);
    machine.0.of(0, 0).write_memory(Gpa(APIC + 0x80), &[0xff, 0xff]);
    machine.0.of(0, 0).write_memory(Gpa(APIC + 0x84), &[0xff; 4]);
    assert_eq!(machine.read(0, 0x80), 0);
}

#[test]
fn an_apic_that_software_disabled_accepts_nothing_and_masks_its_table() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_TIMER, 0x40);
    machine.write(0, SVR, 0xff);
    assert_eq!(machine.read(0, LVT_TIMER), 0x1_0040);
    machine.write(0, LVT_TIMER, 0x41);
    assert_eq!(machine.read(0, LVT_TIMER), 0x1_0041);
    machine.write(0, ICR, 1 << 18 | 0x50);
    machine.write(0, SVR, 0x1ff);
    assert_eq!(machine.take(0), None);
    machine.write(0, ICR, 1 << 18 | 0x50);
    assert_eq!(machine.take(0), Some(Event::External(0x50)));
}

#[test]
fn errors_are_seen_once_esr_is_written_and_interrupt() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_ERROR, 0xfe);
    // An illegal vector sent, and an illegal register.
    machine.write(0, ICR, 1 << 18 | 0xf);
    machine.read(0, 0x3f0);
    assert_eq!(machine.read(0, 0x280), 0);
    machine.write(0, 0x280, 0);
    assert_eq!(machine.read(0, 0x280), 0xa0);
    machine.write(0, 0x280, 0);
    assert_eq!(machine.read(0, 0x280), 0);
    assert_eq!(machine.take(0), Some(Event::External(0xfe)));
    assert_eq!(machine.take(0), None);
}

#[test]
fn the_base_moves_the_page_and_turns_it_off() {
    let mut machine = Machine::new(1);
    let reads = |machine: &mut Machine, at| machine.0.of(0, 0).read_memory(Gpa(at), &mut [0; 4]);
    assert!(machine.set_msr(0, 0x1b, 0x1_2345_6900));
    assert!(reads(&mut machine, 0x1_2345_6030) && !reads(&mut machine, APIC + 0x30));
    assert!(machine.set_msr(0, 0x1b, 0xfee0_0100));
    assert!(!reads(&mut machine, APIC + 0x30) && !machine.0.of(0, 0).is_enabled());
    // It starts anew; only the task priority was the processor's all the time.
    machine.0.of(0, 0).set_tpr(0x50);
    assert!(machine.set_msr(0, 0x1b, 0xfee0_0900));
    assert_eq!((machine.read(0, SVR), machine.read(0, 0x80)), (0xff, 0x50));
}

#[test]
fn modes_change_as_figure_12_27_has_it() {
    const OFF: u64 = 0;
    const ON: u64 = 0x800;
    const X2: u64 = 0xc00;
    const BAD: u64 = 0x400;
    for (from, to, legal) in [
        (OFF, OFF, true),
        (OFF, ON, true),
        (OFF, X2, false),
        (OFF, BAD, false),
        (ON, OFF, true),
        (ON, ON, true),
        (ON, X2, true),
        (ON, BAD, false),
        (X2, OFF, true),
        (X2, ON, false),
        (X2, X2, true),
        (X2, BAD, false),
    ] {
        let mut apic = LocalApic::new(0);
        let base = 0xfee0_0100;
        if from != ON {
            apic.set_base(base | from, u64::MAX, true).unwrap();
        }
        assert_eq!(apic.set_base(base | to, u64::MAX, true).is_ok(), legal, "{from:#x} -> {to:#x}");
        assert_eq!(apic.base(), base | if legal { to } else { from });
    }
    let mut apic = LocalApic::new(0);
    assert!(apic.set_base(0xfee0_0c00, u64::MAX, false).is_err());
    for reserved in [1, 1 << 9, 1 << 46] {
        assert!(apic.set_base(0xfee0_0800 | reserved, (1 << 46) - 1, true).is_err(), "{reserved:#x}");
    }
}

#[test]
fn x2apic_registers_refuse_what_they_have_not() {
    let mut machine = Machine::new(2);
    assert_eq!(machine.msr(1, 0x803), None, "not in xAPIC mode");
    machine.enable_x2apic(1);
    assert!(!machine.0.of(1, 0).read_memory(Gpa(APIC + 0x30), &mut [0; 4]));
    let readable = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x828, 0x830, 0x838, 0x839, 0x83e];
    let ranges = [0x810..=0x827, 0x832..=0x837];
    for msr in 0x800..=0x8ff {
        let legal = readable.contains(&msr) || ranges.iter().any(|range| range.contains(&msr));
        assert_eq!(machine.msr(1, msr).is_some(), legal, "read of {msr:#x}");
    }
    let writable = [
        (0x808, 0xff),
        (0x80b, 0),
        (0x80f, 0x3ff),
        (0x828, 0),
        (0x832, 0x7_00ff),
        (0x833, 0x1_07ff),
        (0x834, 0x1_07ff),
        (0x835, 0x1_a7ff),
        (0x836, 0x1_a7ff),
        (0x837, 0x1_00ff),
        (0x838, 0xffff_ffff),
        (0x83e, 0xb),
        (0x83f, 0xff),
    ];
    for msr in (0x800..=0x8ff).filter(|&msr| msr != 0x830) {
        let bits = writable.iter().find(|(known, _)| *known == msr).map(|(_, bits)| *bits);
        assert_eq!(machine.set_msr(1, msr, 0), bits.is_some(), "write of {msr:#x}");
        for bit in 0..64 {
            let legal = bits.is_some_and(|bits: u64| bits >> bit & 1 != 0);
            assert_eq!(machine.set_msr(1, msr, 1 << bit), legal, "write of bit {bit} of {msr:#x}");
        }
    }
    assert_eq!([machine.msr(1, 0x802), machine.msr(1, 0x80d)], [Some(1), Some(2)]);
}

/// What the processor has asked for and what it serves, kept as lists.
#[derive(Default)]
struct Oracle {
    requested: Vec<u8>,
    in_service: Vec<u8>,
    tpr: u8,
}

impl Oracle {
    /// SDM vol. 3A, 12.8.3.1 and 12.8.4.
    fn pending(&self) -> Option<u8> {
        let threshold =
            self.in_service.iter().chain([&self.tpr]).map(|priority| priority / 16).max().unwrap();
        self.requested.iter().copied().max().filter(|vector| vector / 16 > threshold)
    }
}

#[derive(Clone, Debug)]
enum Action {
    Accept(u8),
    Acknowledge,
    EndOfInterrupt,
    SetTpr(u8),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (16u8..).prop_map(Action::Accept),
        Just(Action::Acknowledge),
        Just(Action::EndOfInterrupt),
        any::<u8>().prop_map(Action::SetTpr),
    ]
}

proptest! {
    #[test]
    fn the_highest_class_above_what_is_served_goes_first(actions in prop::collection::vec(action(), 1..64)) {
        let mut machine = Machine::new(1);
        let mut oracle = Oracle::default();
        for action in actions {
            match action {
                Action::Accept(vector) => {
                    machine.write(0, ICR, 1 << 18 | u32::from(vector));
                    if !oracle.requested.contains(&vector) {
                        oracle.requested.push(vector);
                    }
                }
                Action::Acknowledge => {
                    let expected = oracle.pending();
                    prop_assert_eq!(machine.take(0), expected.map(Event::External));
                    if let Some(vector) = expected {
                        oracle.requested.retain(|&other| other != vector);
                        oracle.in_service.push(vector);
                    }
                }
                Action::EndOfInterrupt => {
                    machine.write(0, EOI, 0);
                    let highest = oracle.in_service.iter().copied().max();
                    oracle.in_service.retain(|&vector| Some(vector) != highest);
                }
                Action::SetTpr(tpr) => {
                    machine.write(0, 0x80, tpr.into());
                    oracle.tpr = tpr;
                }
            }
            prop_assert_eq!(machine.0.of(0, 0).take(NOTHING), None);
            for (first, list) in [(0x100, &oracle.in_service), (0x200, &oracle.requested)] {
                for word in 0..8u64 {
                    let of_word = list.iter().filter(|&&vector| u64::from(vector) / 32 == word);
                    let expected: u32 = of_word.map(|vector| 1 << (vector % 32)).sum();
                    prop_assert_eq!(machine.read(0, first + 16 * word), expected);
                }
            }
        }
    }
}
