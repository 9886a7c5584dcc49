//! What comes between two instructions: INIT, SIPI, NMI and external interrupts, and the sleep of `HLT`
//! (SDM vol. 3A, 7.8, 7.9 and 12.4).

use crate::soft::Bus;
use crate::soft::irqchip::{Event, Interrupts, Open};
use crate::{DescriptorTable, Exit, Gpr, Limit, Regs, Segment, SystemRegs, cr0, rflags};

use super::Cpu;
use super::debug::DebugRegs;
use super::exceptions::Exception;
use super::exec::control_registers::LoadedPdptes;
use super::segments::REAL_MODE_LIMIT;
use super::step::Step;

/// What the last instruction holds back until the next one is over (SDM vol. 3A, 7.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// Interrupts: `STI` has set IF.
    Sti,
    /// The same, and traps: SS was loaded, and the stack pointer may follow.
    MovSs,
}

/// What comes of the time between two instructions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Boundary {
    /// The next instruction, and so many in all until a timer is due.
    Run(u64),
    /// A handler was entered, or time has passed: look again.
    Entered,
    /// The VMM must hear of something.
    Exit(Exit),
}

impl Cpu {
    /// Takes what interrupts the processor now.
    pub(super) fn boundary<B: Bus>(&mut self, bus: &mut B) -> Boundary {
        let Some(mut interrupts) = bus.interrupts(self.clock) else { return Boundary::Run(u64::MAX) };
        if !self.transactions.is_empty() {
            // An instruction is half done.
            return Boundary::Run(1);
        }
        let open = self.shadow == Shadow::None;
        let open = Open { nmi: open, interrupts: open && self.regs.rflags & rflags::IF != 0 };
        let Some(event) = interrupts.take(open) else { return Boundary::Run(interrupts.until_due()) };
        // What is taken takes its time; sleep has none of its own.
        let taken = u64::from(!matches!(event, Event::Leap | Event::Asleep | Event::AllAsleep));
        self.clock = interrupts.now() + taken;
        match event {
            Event::Leap => Boundary::Entered,
            Event::Asleep => Boundary::Exit(Exit::BudgetExceeded(Limit::Instructions)),
            Event::AllAsleep => Boundary::Exit(Exit::Halt),
            Event::Nmi => Step::new(self, bus).interrupt_by(Exception::NMI),
            Event::External(vector) => Step::new(self, bus).interrupt_by(Exception::external(vector)),
            Event::Init => {
                self.init();
                bus.invalidate_all();
                Boundary::Entered
            }
            Event::Startup(page) => {
                self.system.cs.selector = u16::from(page) << 8;
                self.system.cs.base = u64::from(page) << 12;
                self.regs.rip = 0;
                Boundary::Entered
            }
        }
    }

    /// What INIT leaves: real mode at the reset vector. The caches' bits of CR0, vectors and most MSRs stay
    /// (SDM vol. 3A, table 11-1).
    fn init(&mut self) {
        self.regs = Regs { rip: 0xfff0, rflags: rflags::FIXED, ..Regs::default() };
        self.regs[Gpr::Rdx] = self.cpuid.get(1, 0)[0].into();
        self.system = SystemRegs { cr0: self.system.cr0 & (cr0::CD | cr0::NW) | cr0::ET, ..after_reset() };
        self.debug = DebugRegs::default();
        self.pdptes = LoadedPdptes::default();
        self.shadow = Shadow::None;
        self.held_breakpoints = 0;
        self.unfinished = None;
    }
}

fn after_reset() -> SystemRegs {
    let segment = Segment { limit: REAL_MODE_LIMIT, present: true, ..Segment::default() };
    let code = Segment { selector: 0xf000, base: 0xffff_0000, kind: 0xb, code_or_data: true, ..segment };
    let data = Segment { kind: 3, code_or_data: true, ..segment };
    let table = DescriptorTable { base: 0, limit: REAL_MODE_LIMIT as u16 };
    SystemRegs {
        tr: Segment { kind: 0xb, ..segment },
        ldt: Segment { kind: 2, ..segment },
        gdt: table,
        idt: table,
        ..SystemRegs::with_segments(code, data)
    }
}

impl<B: Bus> Step<'_, B> {
    /// Lets the instruction do something with the interrupt controllers; CR8 then is what they say.
    pub(super) fn with_interrupts<T>(&mut self, act: impl FnOnce(&mut Interrupts<'_>) -> T) -> Option<T> {
        let mut interrupts = self.bus.interrupts(self.cpu.clock)?;
        let done = act(&mut interrupts);
        self.cpu.system.cr8 = u64::from(interrupts.tpr() >> 4);
        Some(done)
    }

    /// Enters the handler of what has interrupted the program.
    fn interrupt_by(mut self, event: Exception) -> Boundary {
        // In a repeated instruction, RF keeps its breakpoint from coming twice (SDM vol. 3B, 19.3.1.1).
        if self.cpu.unfinished.take().is_some() {
            self.cpu.regs.rflags |= rflags::RF;
        }
        self.raise(event).map_or(Boundary::Entered, Boundary::Exit)
    }

    /// `STI` or a load of SS holds back what comes between it and the next instruction; not one that is itself in such a
    /// shadow.
    pub(super) fn cast_shadow(&mut self, shadow: Shadow) {
        if self.shadowed != shadow {
            self.cpu.shadow = shadow;
        }
    }
}
