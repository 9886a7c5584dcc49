//! The chips, without a processor that executes anything.

mod ioapic;
mod lapic;
mod messages;
mod pic;
mod pit;
mod timer;

use memory_model::Gpa;

use super::{Event, Irqchip, Open};

const APIC: u64 = 0xfee0_0000;
const EOI: u64 = 0xb0;
const SVR: u64 = 0xf0;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;

const ALL: Open = Open { nmi: true, interrupts: true };
const NOTHING: Open = Open { nmi: false, interrupts: false };

/// A chip with its processors, all running and their APICs enabled.
struct Machine(Irqchip);

impl Machine {
    fn new(processors: usize) -> Self {
        let mut machine = Self(Irqchip::new());
        for index in 0..processors {
            machine.0.add_processor();
            machine.write(index, SVR, 0x1ff);
            if index > 0 {
                machine.write(0, ICR_HIGH, (index as u32) << 24);
                machine.write(0, ICR, 6 << 8 | 1);
                assert_eq!(machine.take(index), Some(Event::Startup(1)));
            }
        }
        machine
    }

    fn take(&mut self, index: usize) -> Option<Event> {
        self.0.of(index, 0).take(ALL)
    }

    fn read(&mut self, index: usize, register: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(self.0.of(index, 0).read_memory(Gpa(APIC + register), &mut bytes));
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, index: usize, register: u64, value: u32) {
        assert!(self.0.of(index, 0).write_memory(Gpa(APIC + register), &value.to_le_bytes()));
    }

    fn msr(&mut self, index: usize, msr: u32) -> Option<u64> {
        self.0.of(index, 0).read_msr(msr).unwrap().ok()
    }

    /// Whether the write was taken.
    fn set_msr(&mut self, index: usize, msr: u32, value: u64) -> bool {
        self.0.of(index, 0).write_msr(msr, value, (1 << 46) - 1, true).unwrap().is_ok()
    }

    fn enable_x2apic(&mut self, index: usize) {
        let base = self.msr(index, 0x1b).unwrap();
        assert!(self.set_msr(index, 0x1b, base | 0xc00));
    }

    fn input(&mut self, port: u16) -> u8 {
        let mut byte = [0];
        assert!(self.0.of(0, 0).read_ports(port, &mut byte));
        byte[0]
    }

    fn output(&mut self, port: u16, value: u8) {
        assert!(self.0.of(0, 0).write_ports(port, &[value]));
    }

    fn pulse(&mut self, line: u8) {
        self.0.set_line(line, true);
        self.0.set_line(line, false);
    }
}
