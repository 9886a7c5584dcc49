//! Who gets what an APIC sends.

use super::*;

/// The processors that have taken an interrupt with `vector`.
fn takers(machine: &mut Machine, count: usize, vector: u8) -> Vec<usize> {
    let takers = (0..count).filter(|&index| {
        let taken = machine.take(index) == Some(Event::External(vector));
        if taken {
            machine.0.of(index, 0).take(NOTHING);
        }
        taken
    });
    takers.collect()
}

#[test]
fn destinations_of_the_page() {
    const LOGICAL: u32 = 1 << 11;
    for (low, destination, expected) in [
        (0, 0, vec![0]),
        (0, 2, vec![2]),
        (0, 3, vec![]),
        (0, 0xff, vec![0, 1, 2]),
        (1 << 18, 2, vec![0]),
        (2 << 18, 0, vec![0, 1, 2]),
        (3 << 18, 0, vec![1, 2]),
        // LDR of processor n is 1 << n.
        (LOGICAL, 0b110, vec![1, 2]),
        (LOGICAL, 0b1000, vec![]),
        (LOGICAL, 0xff, vec![0, 1, 2]),
        // Lowest priority: one of them.
        (1 << 8, 0xff, vec![0]),
    ] {
        let mut machine = Machine::new(3);
        for index in 0..3 {
            machine.write(index, 0xd0, 1 << (24 + index));
        }
        machine.write(0, ICR_HIGH, destination << 24);
        machine.write(0, ICR, low | 0x60);
        assert_eq!(takers(&mut machine, 3, 0x60), expected, "{low:#x} to {destination:#x}");
    }
}

#[test]
fn the_lowest_priority_is_taken() {
    let mut machine = Machine::new(3);
    for (index, tpr) in [0x40, 0x20, 0x30].into_iter().enumerate() {
        machine.write(index, 0x80, tpr);
    }
    machine.write(0, ICR, 2 << 18 | 1 << 8 | 0x60);
    assert_eq!(takers(&mut machine, 3, 0x60), [1]);
    // One that takes nothing is no candidate.
    machine.write(1, SVR, 0xff);
    machine.write(0, ICR, 2 << 18 | 1 << 8 | 0x61);
    assert_eq!(takers(&mut machine, 3, 0x61), [2]);
}

#[test]
fn clusters_of_four_and_of_sixteen() {
    let mut machine = Machine::new(2);
    for (index, id) in [0x21, 0x32].into_iter().enumerate() {
        machine.write(index, 0xe0, 0);
        machine.write(index, 0xd0, id << 24);
    }
    for (mask, expected) in
        [(0x2f, vec![0]), (0x32, vec![1]), (0x33, vec![1]), (0x31, vec![]), (0xff, vec![0, 1])]
    {
        machine.write(0, ICR_HIGH, mask << 24);
        machine.write(0, ICR, 1 << 11 | 0x60);
        assert_eq!(takers(&mut machine, 2, 0x60), expected, "{mask:#x}");
        (0..2).for_each(|index| machine.write(index, EOI, 0));
    }
    (0..2).for_each(|index| machine.enable_x2apic(index));
    for (mask, expected) in [(1u64, vec![0]), (3, vec![0, 1]), (0x1_0001, vec![]), (0xffff_ffff, vec![0, 1])]
    {
        assert!(machine.set_msr(0, 0x830, mask << 32 | 1 << 11 | 0x60));
        assert_eq!(takers(&mut machine, 2, 0x60), expected, "{mask:#x}");
        (0..2).for_each(|index| assert!(machine.set_msr(index, 0x80b, 0)));
    }
    // Self IPI leaves ICR alone.
    let icr = machine.msr(0, 0x830);
    assert!(machine.set_msr(0, 0x83f, 0x61));
    assert_eq!((takers(&mut machine, 2, 0x61), machine.msr(0, 0x830)), (vec![0], icr));
}

#[test]
fn an_nmi_is_latched_once_until_iret() {
    let mut machine = Machine::new(2);
    let send = |machine: &mut Machine| {
        machine.write(0, ICR_HIGH, 1 << 24);
        machine.write(0, ICR, 4 << 8);
    };
    send(&mut machine);
    assert_eq!(machine.0.of(1, 0).take(NOTHING), None);
    assert_eq!(machine.take(1), Some(Event::Nmi));
    send(&mut machine);
    send(&mut machine);
    assert_eq!(machine.take(1), None);
    machine.0.of(1, 0).unblock_nmi();
    assert_eq!(machine.take(1), Some(Event::Nmi));
    machine.0.of(1, 0).unblock_nmi();
    assert_eq!(machine.take(1), None);
}

#[test]
fn init_and_sipi_start_a_processor() {
    const INIT: u32 = 5 << 8;
    const SIPI: u32 = 6 << 8;
    let mut machine = Machine::new(1);
    machine.0.add_processor();
    // It waits from the start. A SIPI that comes before it looks is not lost, and only the first counts.
    assert_eq!(machine.take(1), Some(Event::Asleep));
    machine.write(0, ICR, 3 << 18 | INIT | 1 << 14);
    machine.write(0, ICR, 3 << 18 | SIPI | 0x12);
    assert_eq!([machine.take(1), machine.take(1)], [Some(Event::Init), Some(Event::Startup(0x12))]);
    machine.write(0, ICR, 3 << 18 | SIPI | 0x13);
    assert_eq!(machine.take(1), None);
    // INIT resets the APIC, but not its ID.
    machine.write(1, 0x20, 7 << 24);
    machine.write(1, 0x80, 0x20);
    machine.write(0, ICR, 3 << 18 | INIT | 1 << 14);
    assert_eq!([machine.take(1), machine.take(1)], [Some(Event::Init), Some(Event::Asleep)]);
    assert_eq!((machine.read(1, 0x20), machine.read(1, 0x80)), (7 << 24, 0));
    // De-assert does nothing.
    machine.write(0, ICR, 3 << 18 | INIT | 1 << 15);
    assert_eq!(machine.take(1), Some(Event::Asleep));
}

#[test]
fn a_bitmap_of_targets() {
    let mut machine = Machine::new(3);
    assert_eq!(machine.0.of(0, 0).send_ipis(0b11, 1, 0x60), Some(2));
    assert_eq!(takers(&mut machine, 3, 0x60), [1, 2]);
    assert_eq!(machine.0.of(0, 0).send_ipis(u128::MAX, u32::MAX, 0x60), Some(0));
    assert_eq!(machine.0.of(0, 0).send_ipis(1, 0, 1 << 18 | 0x60), None);
}
