//! The local APIC of one processor (SDM vol. 3A, chapter 12).

use super::message::{Delivery, Destination, Message};
use super::registers::{self, LVT_ENTRIES, LVT_ERROR, LVT_LINT0, LVT_TIMER, Register};
use super::timer::{Mode, Timer};
use super::vectors::{Vectors, class};

/// Bits of IA32_APIC_BASE.
mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLED: u64 = 1 << 11;
    pub const ADDRESS: u64 = !0xfff;
    pub const DEFAULT: u64 = 0xfee0_0000;
}

/// Of the version register: version 0x14, and the last entry of the local vector table.
const VERSION: u32 = 0x14 | (LVT_ENTRIES as u32 - 1) << 16;
const MASKED: u32 = 1 << 16;
/// Of SVR: the APIC accepts interrupts.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// What DFR holds in its low bits, and for the flat model.
const DFR_FIXED: u32 = 0x0fff_ffff;
const DFR_MODEL: u32 = 0xf000_0000;

/// Errors, as ESR shows them.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

/// Vectors below are the processor's own.
const FIRST_VECTOR: u8 = 16;

/// #GP(0): an access that the register, or the mode, does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// What a write asks of the other chips.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    None,
    Send(Message),
    /// A level-triggered interrupt is over.
    EndOfInterrupt(u8),
}

/// The state of a local APIC.
#[derive(Clone, Debug)]
pub(super) struct LocalApic {
    base: u64,
    /// After reset; in x2APIC mode, always.
    initial_id: u32,
    xapic_id: u8,
    tpr: u8,
    logical: u32,
    format: u32,
    spurious: u32,
    requested: Vectors,
    in_service: Vectors,
    level: Vectors,
    errors: u32,
    /// As the last write of ESR found them.
    error_status: u32,
    command: u64,
    lvt: [u32; LVT_ENTRIES],
    timer: Timer,
}

impl LocalApic {
    /// After power-up. Processor 0 is the bootstrap processor: the 8259s reach it through LINT0, in virtual-wire mode,
    /// as firmware leaves it.
    pub fn new(id: u32) -> Self {
        let bsp = if id == 0 { base::BSP } else { 0 };
        let mut apic = Self {
            base: base::DEFAULT | base::ENABLED | bsp,
            initial_id: id,
            xapic_id: id as u8,
            tpr: 0,
            logical: 0,
            format: u32::MAX,
            spurious: 0xff,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            errors: 0,
            error_status: 0,
            command: 0,
            lvt: [MASKED; LVT_ENTRIES],
            timer: Timer::default(),
        };
        if apic.is_bsp() {
            apic.lvt[LVT_LINT0] = 7 << 8;
        }
        apic
    }

    /// INIT: all but the base and the ID (SDM vol. 3A, 12.4.7.3).
    pub fn init(&mut self) {
        *self = Self { base: self.base, xapic_id: self.xapic_id, ..Self::new(self.initial_id) };
    }

    pub fn is_bsp(&self) -> bool {
        self.base & base::BSP != 0
    }

    pub fn is_enabled(&self) -> bool {
        self.base & base::ENABLED != 0
    }

    pub fn is_x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// Where its page is, in the mode that has one.
    pub fn page(&self) -> Option<u64> {
        (self.is_enabled() && !self.is_x2apic()).then_some(self.base & base::ADDRESS)
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    /// `allowed` are the bits of an address that the processor has; `x2apic` says whether it has that mode.
    pub fn set_base(&mut self, value: u64, allowed: u64, x2apic: bool) -> Result<(), Refused> {
        let mode = if x2apic { base::X2APIC } else { 0 };
        let legal = allowed & base::ADDRESS | base::BSP | base::ENABLED | mode;
        let (was, is) = (self.mode_bits(), value & (base::ENABLED | base::X2APIC));
        let both = base::ENABLED | base::X2APIC;
        // Figure 12-27: off, xAPIC, x2APIC, and back by way of off alone.
        let way = match (was, is) {
            (_, base::X2APIC) => false,
            (0, is) => is != both,
            (was, base::ENABLED) => was != both,
            _ => true,
        };
        if value & !legal != 0 || !way {
            return Err(Refused);
        }
        if is & base::ENABLED == 0 || was == 0 {
            // What it was is lost, but for the priority that CR8 shows.
            *self = Self { tpr: self.tpr, ..Self::new(self.initial_id) };
        }
        self.base = value;
        Ok(())
    }

    fn mode_bits(&self) -> u64 {
        self.base & (base::ENABLED | base::X2APIC)
    }

    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    pub fn id(&self) -> u32 {
        if self.is_x2apic() { self.initial_id } else { self.xapic_id.into() }
    }

    /// In x2APIC mode it follows from the ID: a cluster of sixteen, and one bit in it.
    fn logical_id(&self) -> u32 {
        match self.is_x2apic() {
            true => self.initial_id >> 4 << 16 | 1 << (self.initial_id & 15),
            false => self.logical >> 24,
        }
    }

    /// Whether a message that is for an ID, or for all, is for this one.
    pub fn is_meant(&self, message: &Message) -> bool {
        let broadcast = if message.x2apic { u32::MAX } else { 0xff };
        match message.destination {
            _ if !self.is_enabled() => false,
            Destination::Physical(id) => id == broadcast || id == self.id(),
            Destination::Logical(mask) => mask == broadcast || self.is_in(mask),
            Destination::Itself | Destination::All | Destination::Others => true,
        }
    }

    fn is_in(&self, mask: u32) -> bool {
        let id = self.logical_id();
        if self.is_x2apic() {
            return id >> 16 == mask >> 16 && id & mask & 0xffff != 0;
        }
        match self.format & DFR_MODEL {
            DFR_MODEL => id & mask != 0,
            // Clusters of four.
            0 => id >> 4 == mask >> 4 && id & mask & 0xf != 0,
            _ => false,
        }
    }

    /// The priority that interrupts must exceed (SDM vol. 3A, 12.8.3.1).
    pub fn ppr(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0);
        if class(self.tpr) >= class(in_service) { self.tpr } else { in_service & 0xf0 }
    }

    /// Whether it takes interrupts into IRR.
    pub fn accepts(&self) -> bool {
        self.is_enabled() && self.spurious & SOFTWARE_ENABLED != 0
    }

    /// Takes an interrupt into IRR.
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.accepts() {
            return;
        }
        if vector < FIRST_VECTOR {
            return self.report(RECEIVE_ILLEGAL_VECTOR);
        }
        self.requested.insert(vector);
        self.level.set(vector, level);
    }

    /// Whether IRR has anything.
    pub fn is_idle(&self) -> bool {
        self.requested.is_empty()
    }

    /// The interrupt that the processor would be given now.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest().filter(|_| self.is_enabled())?;
        (class(vector) > class(self.ppr())).then_some(vector)
    }

    /// The processor has taken `vector`.
    pub fn acknowledge(&mut self, vector: u8) {
        self.requested.remove(vector);
        self.in_service.insert(vector);
    }

    /// Whether the 8259s reach the processor: through LINT0, or because there is no APIC between them.
    pub fn passes_extint(&self) -> bool {
        let lint0 = self.lvt[LVT_LINT0];
        !self.is_enabled() || lint0 & MASKED == 0 && Delivery::of(lint0) == Delivery::ExtInt
    }

    fn report(&mut self, error: u32) {
        self.errors |= error;
        let entry = self.lvt[LVT_ERROR];
        // An entry with an illegal vector is no reason for another error.
        if entry & MASKED == 0 && entry as u8 >= FIRST_VECTOR {
            self.accept(entry as u8, false);
        }
    }

    fn mode(&self) -> Mode {
        Mode::of(self.lvt[LVT_TIMER])
    }

    /// When the timer interrupts next.
    pub fn due(&self) -> Option<u64> {
        self.timer.expires().filter(|_| self.lvt[LVT_TIMER] & MASKED == 0 && self.mode() != Mode::None)
    }

    /// Lets the time come up to `now`.
    pub fn advance(&mut self, now: u64) {
        let entry = self.lvt[LVT_TIMER];
        if self.timer.advance(self.mode(), now) && entry & MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }

    /// When the clock reaches the deadline; `None` where none is set, or the timer counts.
    pub fn deadline(&self) -> Option<u64> {
        self.timer.expires().filter(|_| self.mode() == Mode::Deadline)
    }

    pub fn set_deadline(&mut self, at: Option<u64>, now: u64) {
        if self.mode() == Mode::Deadline {
            self.timer.set_deadline(at);
            self.advance(now);
        }
    }

    /// Reads from the page: the bytes from `offset` on.
    pub fn read_page(&mut self, offset: u16, bytes: &mut [u8], now: u64) {
        let (number, first) = (u32::from(offset >> 4), usize::from(offset & 0xf));
        let value = match registers::readable(number, false) {
            Some(register) => self.read(register, now) as u32,
            None => {
                self.report(ILLEGAL_REGISTER);
                0
            }
        };
        let value = u128::from(value).to_le_bytes();
        for (byte, from) in bytes.iter_mut().zip(&value[first..]) {
            *byte = *from;
        }
    }

    /// Writes to the page: whole words at the start of a register.
    pub fn write_page(&mut self, offset: u16, bytes: &[u8], now: u64) -> Effect {
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else { return Effect::None };
        if offset & 0xf != 0 {
            return Effect::None;
        }
        match registers::writable(u32::from(offset >> 4), false) {
            Some((register, writable)) => {
                self.write(register, u64::from(u32::from_le_bytes(bytes) & writable), now)
            }
            None => {
                self.report(ILLEGAL_REGISTER);
                Effect::None
            }
        }
    }

    /// Reads the MSR 0x800 + `number`.
    pub fn read_msr(&self, number: u32, now: u64) -> Result<u64, Refused> {
        let register = registers::readable(number, true).filter(|_| self.is_x2apic()).ok_or(Refused)?;
        Ok(self.read(register, now))
    }

    /// Writes the MSR 0x800 + `number`.
    pub fn write_msr(&mut self, number: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        let (register, writable) =
            registers::writable(number, true).filter(|_| self.is_x2apic()).ok_or(Refused)?;
        let high = if register == Register::Command { u64::from(u32::MAX) << 32 } else { 0 };
        if value & !(high | u64::from(writable)) != 0 {
            return Err(Refused);
        }
        Ok(self.write(register, value, now))
    }

    fn read(&self, register: Register, now: u64) -> u64 {
        let value = match register {
            Register::Id if self.is_x2apic() => self.initial_id,
            Register::Id => u32::from(self.xapic_id) << 24,
            Register::Version => VERSION,
            Register::TaskPriority => self.tpr.into(),
            Register::ArbitrationPriority | Register::ProcessorPriority => self.ppr().into(),
            Register::LogicalDestination if self.is_x2apic() => self.logical_id(),
            Register::LogicalDestination => self.logical,
            Register::DestinationFormat => self.format,
            Register::Spurious => self.spurious,
            Register::InService(word) => self.in_service.word(word),
            Register::TriggerMode(word) => self.level.word(word),
            Register::Request(word) => self.requested.word(word),
            Register::ErrorStatus => self.error_status,
            Register::Command if self.is_x2apic() => return self.command,
            Register::Command => self.command as u32,
            Register::CommandHigh => (self.command >> 32) as u32,
            Register::Lvt(entry) => self.lvt[entry],
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.current(self.mode(), now),
            Register::Divide => self.timer.divide(),
            Register::EndOfInterrupt | Register::SelfIpi => 0,
        };
        value.into()
    }

    /// `value` has no bits that the register has not.
    fn write(&mut self, register: Register, value: u64, now: u64) -> Effect {
        let low = value as u32;
        match register {
            Register::Id => self.xapic_id = (low >> 24) as u8,
            Register::TaskPriority => self.tpr = low as u8,
            Register::EndOfInterrupt => return self.end_of_interrupt(),
            Register::LogicalDestination => self.logical = low,
            Register::DestinationFormat => self.format = low | DFR_FIXED,
            Register::Spurious => {
                self.spurious = low;
                if low & SOFTWARE_ENABLED == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            Register::ErrorStatus => self.error_status = std::mem::take(&mut self.errors),
            Register::Command => return self.send(value),
            Register::CommandHigh => self.command = self.command & u64::from(u32::MAX) | value << 32,
            Register::Lvt(entry) => self.set_lvt(entry, low),
            Register::InitialCount => self.timer.start(low, self.mode(), now),
            Register::Divide => self.timer.set_divide(low, self.mode(), now),
            Register::SelfIpi => return self.checked(Message::of_icr(1 << 18 | low, 0, true)),
            // The table has them read-only.
            Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::InService(_)
            | Register::TriggerMode(_)
            | Register::Request(_)
            | Register::CurrentCount => {}
        }
        Effect::None
    }

    fn set_lvt(&mut self, entry: usize, value: u32) {
        let old = self.mode();
        let forced = if self.spurious & SOFTWARE_ENABLED == 0 { MASKED } else { 0 };
        self.lvt[entry] = value | forced;
        self.timer.change_mode(old, self.mode());
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else { return Effect::None };
        self.in_service.remove(vector);
        if self.level.contains(vector) { Effect::EndOfInterrupt(vector) } else { Effect::None }
    }

    fn send(&mut self, value: u64) -> Effect {
        let x2apic = self.is_x2apic();
        // Delivery status: a message is there as soon as it is sent.
        let low = value as u32 & !(1 << 12);
        let destination = if x2apic { (value >> 32) as u32 } else { (self.command >> 56) as u32 };
        let high = if x2apic { value >> 32 } else { self.command >> 32 };
        self.command = high << 32 | u64::from(low);
        self.checked(Message::of_icr(low, destination, x2apic))
    }

    /// A message is sent unless its vector is illegal.
    fn checked(&mut self, message: Option<Message>) -> Effect {
        let Some(message) = message else { return Effect::None };
        let has_vector = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if has_vector && message.vector < FIRST_VECTOR {
            self.report(SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Send(message)
    }
}
