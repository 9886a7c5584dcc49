//! The I/O APIC.

use super::*;

const PAGE: u64 = 0xfec0_0000;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

impl Machine {
    fn ioapic(&mut self, register: u32) -> u32 {
        let mut word = [0; 4];
        let mut interrupts = self.0.of(0, 0);
        interrupts.write_memory(Gpa(PAGE), &register.to_le_bytes());
        assert!(interrupts.read_memory(Gpa(PAGE + 0x10), &mut word));
        u32::from_le_bytes(word)
    }

    fn set_ioapic(&mut self, register: u32, value: u32) {
        let mut interrupts = self.0.of(0, 0);
        interrupts.write_memory(Gpa(PAGE), &register.to_le_bytes());
        interrupts.write_memory(Gpa(PAGE + 0x10), &value.to_le_bytes());
    }

    /// Where pin 20 goes, which no 8259 has.
    fn route(&mut self, low: u32, destination: u32) {
        self.set_ioapic(0x10 + 41, destination << 24);
        self.set_ioapic(0x10 + 40, low);
    }
}

#[test]
fn registers_keep_the_bits_they_have() {
    let mut machine = Machine::new(1);
    for (register, reads) in
        [(0, 0x0f00_0000), (1, 0x17_0011), (2, 0x0f00_0000), (0x10, 0x1_afff), (0x11, 0xff00_0000)]
    {
        machine.set_ioapic(register, u32::MAX);
        assert_eq!(machine.ioapic(register), reads, "{register:#x}");
    }
    assert_eq!((machine.ioapic(0x3e), machine.ioapic(0x40)), (MASKED, 0));
}

#[test]
fn an_edge_comes_once_and_is_lost_while_masked() {
    let mut machine = Machine::new(2);
    machine.route(0x60, 1);
    machine.0.set_line(20, true);
    machine.0.set_line(20, true);
    assert_eq!([machine.take(0), machine.take(1)], [None, Some(Event::External(0x60))]);
    machine.write(1, EOI, 0);
    assert_eq!(machine.take(1), None);
    machine.0.set_line(20, false);
    machine.route(MASKED | 0x60, 1);
    machine.0.set_line(20, true);
    machine.route(0x60, 1);
    assert_eq!(machine.take(1), None);
}

#[test]
fn a_level_comes_again_after_its_eoi_as_long_as_it_lasts() {
    let mut machine = Machine::new(1);
    machine.route(LEVEL | 0x60, 0);
    machine.0.set_line(20, true);
    assert_eq!(machine.ioapic(0x38) & REMOTE_IRR, REMOTE_IRR);
    assert_eq!(machine.take(0), Some(Event::External(0x60)));
    assert_eq!(machine.read(0, 0x180 + 0x30), 1, "TMR");
    machine.0.set_line(20, true);
    machine.write(0, EOI, 0);
    assert_eq!(machine.take(0), Some(Event::External(0x60)));
    machine.0.set_line(20, false);
    machine.write(0, EOI, 0);
    assert_eq!((machine.take(0), machine.ioapic(0x38) & REMOTE_IRR), (None, 0));
    // Masked while it is high, it comes when it is not any more.
    machine.route(MASKED | LEVEL | 0x60, 0);
    machine.0.set_line(20, true);
    assert_eq!(machine.take(0), None);
    machine.set_ioapic(0x38, LEVEL | 0x60);
    assert_eq!(machine.take(0), Some(Event::External(0x60)));
}

#[test]
fn line_0_is_pin_2() {
    let mut machine = Machine::new(1);
    machine.write(0, LVT_LINT0, 0x1_0000);
    machine.set_ioapic(0x14, 0x62);
    machine.set_ioapic(0x16, 0x63);
    machine.pulse(0);
    machine.pulse(3);
    machine.pulse(24);
    machine.pulse(255);
    assert_eq!(machine.take(0), Some(Event::External(0x63)));
    machine.write(0, EOI, 0);
    assert_eq!(machine.take(0), Some(Event::External(0x62)));
}
