//! What interrupts the processors of a PC, on one clock: local APICs, an I/O APIC, two 8259s and an 8254, as KVM has
//! them in the kernel (`KVM_CREATE_IRQCHIP`, `KVM_CREATE_PIT2`).
//!
//! ```text
//! 8254 --+-- line 0 --> 8259 pair --INTR--> LINT0 --> local APIC --> processor
//!        +-- pin 2 ---> I/O APIC --message----------> local APIC --> processor
//! local APIC --message (ICR)------------------------> local APIC
//! ```
//!
//! They belong to the VM. A processor reaches them through its [`Bus`](super::Bus), which lends them to it as
//! [`Interrupts`].
//!
//! **Time.** One tick of the clock is a nanosecond of the guest's, and an instruction takes one; the TSC, the timers of
//! the local APICs and the 8254 all run on it. While every processor sleeps the clock leaps to the next timer: nothing
//! ever waits, and two runs of a program take the same interrupts at the same instructions.
//!
//! Not here: BCD counts of the 8254; LINT0 and LINT1 as sources of their own, other than the 8259s' ExtINT; thermal and
//! performance interrupts; SMI.

mod ioapic;
mod lapic;
mod message;
mod pic;
mod pit;
mod registers;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use memory_model::Gpa;

use self::ioapic::IoApic;
use self::lapic::{Effect, LocalApic};
use self::message::{Delivery, Destination, Message};
use self::pic::Pics;
use self::pit::Pit;

pub use self::lapic::Refused;

/// The rate of the clock.
pub const TICKS_A_SECOND: u32 = 1_000_000_000;
/// No timer is due.
const NEVER: u64 = u64::MAX;
/// What is due later than this, in a hundred years, never is: no guest can make the clock overflow.
const END_OF_TIME: u64 = 1 << 62;

/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;
/// The local APIC's registers in x2APIC mode.
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;

/// The interrupt controllers and timers of one VM.
#[derive(Clone, Debug)]
pub struct Irqchip {
    clock: u64,
    /// When the first timer is due.
    due: u64,
    processors: Vec<Processor>,
    pics: Pics,
    pit: Pit,
    ioapic: IoApic,
}

/// What a processor does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Activity {
    Running,
    /// After `HLT`, with IF as it was.
    Halted {
        interruptible: bool,
    },
    WaitForSipi,
}

/// A processor, as those that interrupt it see it.
#[derive(Clone, Debug)]
struct Processor {
    apic: LocalApic,
    activity: Activity,
    nmi: bool,
    /// From an NMI to the next `IRET`.
    nmi_blocked: bool,
    init: bool,
    startup: Option<u8>,
}

/// What may be delivered to a processor before its next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// NMIs, as far as its own shadow goes.
    pub nmi: bool,
    /// External interrupts.
    pub interrupts: bool,
}

/// What comes to a processor before its next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// INIT: it starts anew, and waits for a SIPI unless it is the bootstrap processor.
    Init,
    /// SIPI: it starts in real mode at this page.
    Startup(u8),
    /// A non-maskable interrupt. Others are held back until [`Interrupts::unblock_nmi`].
    Nmi,
    /// An external interrupt with this vector, acknowledged.
    External(u8),
    /// It sleeps, and so do all others: the clock has leapt to the next timer.
    Leap,
    /// It sleeps, and only another processor, which is awake or will be, or a device can wake it.
    Asleep,
    /// All processors sleep, and no timer wakes any of them.
    AllAsleep,
}

impl Default for Irqchip {
    fn default() -> Self {
        Self::new()
    }
}

impl Irqchip {
    /// The chips of a machine without processors, as firmware leaves them: the 8259s at vectors 0x08 and 0x70 with all
    /// lines open, and all else as after reset.
    pub fn new() -> Self {
        Self {
            clock: 0,
            due: NEVER,
            processors: Vec::new(),
            pics: Pics::new(),
            pit: Pit::new(),
            ioapic: IoApic::new(),
        }
    }

    /// A further processor; its APIC ID is its index. The first one runs, the others wait for a SIPI.
    pub fn add_processor(&mut self) {
        let id = self.processors.len() as u32;
        self.processors.push(Processor {
            apic: LocalApic::new(id),
            activity: if id == 0 { Activity::Running } else { Activity::WaitForSipi },
            nmi: false,
            nmi_blocked: false,
            init: false,
            startup: None,
        });
    }

    /// The chips as the processor `index` sees them, at the time `now` or later.
    pub fn of(&mut self, index: usize, now: u64) -> Interrupts<'_> {
        self.clock = self.clock.max(now);
        if self.clock >= self.due {
            self.advance();
        }
        Interrupts { chip: self, index }
    }

    /// Raises or lowers a line (`KVM_IRQ_LINE`): 0 to 15 are those of the 8259s and of the I/O APIC, where line 0 is pin
    /// 2; 16 to 23 the I/O APIC's alone.
    pub fn set_line(&mut self, line: u8, high: bool) {
        if line < 16 {
            self.pics.set_line(line, high);
        }
        let pin = if line == 0 { 2 } else { line };
        let message = self.ioapic.set_pin(pin.into(), high);
        self.deliver(None, message);
    }

    /// What timers have to do by now.
    #[cold]
    fn advance(&mut self) {
        for processor in &mut self.processors {
            processor.apic.advance(self.clock);
        }
        if self.pit.advance(self.clock) {
            self.set_line(0, true);
            self.set_line(0, false);
        }
        self.schedule();
    }

    fn schedule(&mut self) {
        let timers = self.processors.iter().filter_map(|processor| processor.apic.due());
        self.due = timers.chain(self.pit.due()).min().filter(|&due| due < END_OF_TIME).unwrap_or(NEVER);
    }

    fn deliver(&mut self, source: Option<usize>, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.send(source, &message);
        }
    }

    /// Takes a message to all of its destination, or to the one of them with the lowest priority.
    fn send(&mut self, source: Option<usize>, message: &Message) {
        let is_target = |index: usize, processor: &Processor| match message.destination {
            Destination::Itself => source == Some(index),
            Destination::Others => source != Some(index),
            _ => processor.apic.is_meant(message),
        };
        let all = self.processors.iter_mut().enumerate();
        let targets = all.filter(|(index, target)| is_target(*index, target)).map(|(_, target)| target);
        if message.delivery == Delivery::LowestPriority {
            let takers = targets.filter(|target| target.apic.accepts());
            takers.min_by_key(|target| target.apic.ppr()).into_iter().for_each(|one| one.receive(message));
        } else {
            targets.for_each(|target| target.receive(message));
        }
    }

    fn after(&mut self, source: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.send(Some(source), &message),
            Effect::EndOfInterrupt(vector) => {
                let again = self.ioapic.end_of_interrupt(vector);
                self.deliver(None, again);
            }
        }
    }

    /// Whether the processor has something to do, or will be woken.
    fn is_awake(&self, index: usize) -> bool {
        let processor = &self.processors[index];
        match processor.activity {
            Activity::Running => true,
            Activity::WaitForSipi => processor.startup.is_some(),
            Activity::Halted { interruptible } => {
                processor.init
                    || processor.nmi && !processor.nmi_blocked
                    || interruptible && (self.has_extint(index) || processor.apic.pending().is_some())
            }
        }
    }

    fn has_extint(&self, index: usize) -> bool {
        self.pics.asks() && self.processors[index].apic.passes_extint()
    }
}

impl Processor {
    fn receive(&mut self, message: &Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.apic.accept(message.vector, message.level),
            Delivery::Nmi => self.nmi = true,
            Delivery::Init => (self.init, self.startup) = (true, None),
            Delivery::Startup if self.init || self.activity == Activity::WaitForSipi => {
                self.startup = Some(message.vector);
            }
            // A processor that runs takes no SIPI; the 8259s have a wire of their own.
            Delivery::Startup | Delivery::ExtInt | Delivery::Other => {}
        }
    }
}

/// The interrupt controllers as one processor sees them.
#[derive(Debug)]
pub struct Interrupts<'a> {
    chip: &'a mut Irqchip,
    index: usize,
}

impl Interrupts<'_> {
    fn processor(&mut self) -> &mut Processor {
        &mut self.chip.processors[self.index]
    }

    /// The time: one tick is a nanosecond.
    pub fn now(&self) -> u64 {
        self.chip.clock
    }

    /// Ticks until a timer is due; at least one.
    pub fn until_due(&self) -> u64 {
        self.chip.due.saturating_sub(self.chip.clock).max(1)
    }

    /// What comes before the next instruction, the most important first (SDM vol. 3A, table 7-2). It is taken.
    pub fn take(&mut self, open: Open) -> Option<Event> {
        let asks = self.chip.pics.asks();
        let processor = self.processor();
        let is_quiet = processor.activity == Activity::Running
            && processor.apic.is_idle()
            && !(processor.init || processor.nmi || asks);
        if is_quiet { None } else { self.take_some(open) }
    }

    fn take_some(&mut self, open: Open) -> Option<Event> {
        let extint = self.chip.has_extint(self.index);
        let processor = self.processor();
        if std::mem::take(&mut processor.init) {
            processor.apic.init();
            (processor.nmi, processor.nmi_blocked) = (false, false);
            let bsp = processor.apic.is_bsp();
            processor.activity = if bsp { Activity::Running } else { Activity::WaitForSipi };
            self.chip.schedule();
            return Some(Event::Init);
        }
        if processor.activity == Activity::WaitForSipi {
            let Some(page) = processor.startup.take() else { return Some(self.sleep()) };
            processor.activity = Activity::Running;
            return Some(Event::Startup(page));
        }
        let event = if processor.nmi && !processor.nmi_blocked && open.nmi {
            (processor.nmi, processor.nmi_blocked) = (false, true);
            Event::Nmi
        } else if extint && open.interrupts {
            Event::External(self.chip.pics.acknowledge())
        } else if let Some(vector) = processor.apic.pending().filter(|_| open.interrupts) {
            processor.apic.acknowledge(vector);
            Event::External(vector)
        } else if matches!(processor.activity, Activity::Halted { .. }) {
            return Some(self.sleep());
        } else {
            return None;
        };
        self.wake();
        Some(event)
    }

    /// Timers can wake a processor that takes interrupts, once no other one has anything to do.
    fn sleep(&mut self) -> Event {
        let chip = &mut *self.chip;
        if (0..chip.processors.len()).any(|index| chip.is_awake(index)) {
            return Event::Asleep;
        }
        let wakes = |processor: &Processor| processor.activity == Activity::Halted { interruptible: true };
        let any_wakes = chip.due != NEVER && chip.processors.iter().any(wakes);
        match (any_wakes, wakes(&chip.processors[self.index])) {
            (false, _) => Event::AllAsleep,
            (true, false) => Event::Asleep,
            (true, true) => {
                chip.clock = chip.clock.max(chip.due);
                chip.advance();
                Event::Leap
            }
        }
    }

    /// `HLT`, with IF as it is.
    pub fn halt(&mut self, interruptible: bool) {
        self.processor().activity = Activity::Halted { interruptible };
    }

    /// Something that no chip knows of ends its `HLT`: a trap.
    pub fn wake(&mut self) {
        self.processor().activity = Activity::Running;
    }

    /// `IRET`: the next NMI may come.
    pub fn unblock_nmi(&mut self) {
        self.processor().nmi_blocked = false;
    }

    /// The APICs whose IDs are `first` plus the bits of `targets` get the interrupt that the low half of an ICR
    /// describes: how many there are. `None` if that names a destination of its own.
    pub fn send_ipis(&mut self, targets: u128, first: u32, icr: u32) -> Option<i64> {
        let message = Message::of_icr(icr, 0, true)?;
        if message.destination != Destination::Physical(0) {
            return None;
        }
        let is_target = |processor: &&mut Processor| {
            let number = processor.apic.id().checked_sub(first).filter(|&number| number < 128);
            number.is_some_and(|number| targets >> number & 1 != 0)
        };
        let mut sent = 0;
        for target in self.chip.processors.iter_mut().filter(is_target) {
            target.receive(&message);
            sent += 1;
        }
        Some(sent)
    }

    /// The task priority: CR8 is its upper half.
    pub fn tpr(&mut self) -> u8 {
        self.processor().apic.tpr()
    }

    /// Sets it.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.processor().apic.set_tpr(tpr);
    }

    /// IA32_APIC_BASE.EN, which CPUID shows.
    pub fn is_enabled(&mut self) -> bool {
        self.processor().apic.is_enabled()
    }

    /// Reads an MSR; `None` if it is not one of theirs.
    pub fn read_msr(&mut self, msr: u32) -> Option<Result<u64, Refused>> {
        let now = self.now();
        let apic = &mut self.processor().apic;
        apic.advance(now);
        match msr {
            APIC_BASE => Some(Ok(apic.base())),
            X2APIC_FIRST..=X2APIC_LAST => Some(apic.read_msr(msr - X2APIC_FIRST, now)),
            _ => None,
        }
    }

    /// Writes an MSR; `None` if it is not one of theirs. `addresses` are the bits of a physical address, and `x2apic` says
    /// whether CPUID has that mode.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        addresses: u64,
        x2apic: bool,
    ) -> Option<Result<(), Refused>> {
        let (now, index) = (self.now(), self.index);
        let apic = &mut self.processor().apic;
        apic.advance(now);
        let done = match msr {
            APIC_BASE => apic.set_base(value, addresses, x2apic),
            X2APIC_FIRST..=X2APIC_LAST => {
                apic.write_msr(msr - X2APIC_FIRST, value, now).map(|effect| self.chip.after(index, effect))
            }
            _ => return None,
        };
        self.chip.schedule();
        Some(done)
    }

    /// When the deadline of IA32_TSC_DEADLINE is, as a time of the clock.
    pub fn deadline(&mut self) -> Option<u64> {
        let now = self.now();
        let apic = &mut self.processor().apic;
        apic.advance(now);
        apic.deadline()
    }

    /// Sets it, or disarms the timer. One that has passed interrupts at once.
    pub fn set_deadline(&mut self, at: Option<u64>) {
        let now = self.now();
        self.processor().apic.set_deadline(at, now);
        self.chip.schedule();
    }

    /// Reads memory; `false` if neither APIC is there.
    pub fn read_memory(&mut self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        let now = self.now();
        let apic = &mut self.processor().apic;
        let (page, offset) = (gpa.raw() & !0xfff, gpa.raw() & 0xfff);
        if apic.page() == Some(page) {
            apic.advance(now);
            apic.read_page(offset as u16, bytes, now);
            return true;
        }
        if page != ioapic::PAGE {
            return false;
        }
        let value = self.chip.ioapic.read(offset & !3).to_le_bytes();
        bytes.fill(0);
        for (byte, from) in bytes.iter_mut().zip(&value[offset as usize & 3..]) {
            *byte = *from;
        }
        true
    }

    /// Writes memory; `false` if neither APIC is there.
    pub fn write_memory(&mut self, gpa: Gpa, bytes: &[u8]) -> bool {
        let (now, index) = (self.now(), self.index);
        let apic = &mut self.processor().apic;
        let (page, offset) = (gpa.raw() & !0xfff, gpa.raw() & 0xfff);
        if apic.page() == Some(page) {
            apic.advance(now);
            let effect = apic.write_page(offset as u16, bytes, now);
            self.chip.after(index, effect);
            self.chip.schedule();
            return true;
        }
        if page != ioapic::PAGE {
            return false;
        }
        let mut word = [0; 4];
        for (to, byte) in word.iter_mut().zip(bytes) {
            *to = *byte;
        }
        let message = self.chip.ioapic.write(offset, u32::from_le_bytes(word));
        self.chip.deliver(None, message);
        true
    }

    /// Reads ports from `first` on, a byte each; `false` if the first is not one of theirs.
    pub fn read_ports(&mut self, first: u16, bytes: &mut [u8]) -> bool {
        let now = self.now();
        let chip = &mut *self.chip;
        let mut read = |port| chip.pics.read(port).or_else(|| chip.pit.read(port, now));
        let Some(byte) = read(first) else { return false };
        bytes[0] = byte;
        for (port, byte) in (first..=u16::MAX).zip(bytes).skip(1) {
            *byte = read(port).unwrap_or(0xff);
        }
        true
    }

    /// Writes ports from `first` on, a byte each; `false` if the first is not one of theirs.
    pub fn write_ports(&mut self, first: u16, bytes: &[u8]) -> bool {
        let now = self.now();
        let chip = &mut *self.chip;
        let mut taken = true;
        for (port, &byte) in (first..=u16::MAX).zip(bytes) {
            let known = chip.pics.write(port, byte) || chip.pit.write(port, byte, now);
            taken &= known || port != first;
            if !taken {
                return false;
            }
        }
        chip.schedule();
        true
    }
}
