//! The I/O APIC (82093AA): 24 pins, and where the interrupt of each goes.

use super::message::{Delivery, Destination, Message};

/// Where its registers are.
pub(super) const PAGE: u64 = 0xfec0_0000;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const PINS: usize = 24;
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;
const LAST_ENTRY: u8 = FIRST_ENTRY + 2 * PINS as u8 - 1;
const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;
/// The bits of the ID that can be written.
const ID_BITS: u32 = 0x0f00_0000;

/// Bits of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger, mask and destination.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

#[derive(Clone, Debug)]
pub(super) struct IoApic {
    id: u32,
    selected: u8,
    entries: [u64; PINS],
    /// The pins as they are.
    pins: u32,
}

impl IoApic {
    /// All pins are masked.
    pub fn new() -> Self {
        Self { id: 0, selected: 0, entries: [entry::MASKED; PINS], pins: 0 }
    }

    fn is_high(&self, pin: usize) -> bool {
        self.pins >> pin & 1 != 0
    }

    /// A pin goes high or low: the message that this sends.
    pub fn set_pin(&mut self, pin: usize, high: bool) -> Option<Message> {
        if pin >= PINS {
            return None;
        }
        let was_high = self.is_high(pin);
        self.pins = self.pins & !(1 << pin) | u32::from(high) << pin;
        let rises = high && !was_high;
        let is_level = self.entries[pin] & entry::LEVEL != 0;
        if rises || high && is_level { self.fire(pin) } else { None }
    }

    /// What the pin sends, unless it is masked, or its last interrupt is not over.
    fn fire(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.entries[pin];
        if *entry & (entry::MASKED | entry::REMOTE_IRR) != 0 {
            return None;
        }
        let level = *entry & entry::LEVEL != 0;
        if level {
            *entry |= entry::REMOTE_IRR;
        }
        let to = (*entry >> 56) as u32;
        let destination =
            if *entry & entry::LOGICAL != 0 { Destination::Logical(to) } else { Destination::Physical(to) };
        let delivery = Delivery::of(*entry as u32);
        Some(Message { vector: *entry as u8, delivery, destination, level, x2apic: false })
    }

    /// A level-triggered interrupt is over: what is still high interrupts again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if *entry as u8 == vector && *entry & entry::LEVEL != 0 && *entry & entry::REMOTE_IRR != 0 {
                *entry &= !entry::REMOTE_IRR;
                again.extend(self.refire(pin));
            }
        }
        again
    }

    /// A level-triggered pin that is high.
    fn refire(&mut self, pin: usize) -> Option<Message> {
        let waits = self.is_high(pin) && self.entries[pin] & entry::LEVEL != 0;
        if waits { self.fire(pin) } else { None }
    }

    /// A word at `offset` of the page.
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.selected) {
            (SELECT, selected) => selected.into(),
            (WINDOW, ID | ARBITRATION) => self.id,
            (WINDOW, VERSION) => VERSION_VALUE,
            (WINDOW, selected @ FIRST_ENTRY..=LAST_ENTRY) => {
                let entry = self.entries[usize::from(selected - FIRST_ENTRY) / 2];
                (if selected % 2 == 0 { entry } else { entry >> 32 }) as u32
            }
            _ => 0,
        }
    }

    /// Writes a word: the message that this sends, where a pin that was masked is high.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match (offset, self.selected) {
            (SELECT, _) => self.selected = value as u8,
            (WINDOW, ID) => self.id = value & ID_BITS,
            (WINDOW, selected @ FIRST_ENTRY..=LAST_ENTRY) => {
                let pin = usize::from(selected - FIRST_ENTRY) / 2;
                let (shift, half) =
                    if selected % 2 == 0 { (0, u64::from(u32::MAX)) } else { (32, u64::MAX << 32) };
                let writable = entry::WRITABLE & half;
                let entry = &mut self.entries[pin];
                *entry = *entry & !writable | u64::from(value) << shift & writable;
                if *entry & entry::LEVEL == 0 {
                    *entry &= !entry::REMOTE_IRR;
                }
                return self.refire(pin);
            }
            _ => {}
        }
        None
    }
}
