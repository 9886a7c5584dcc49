//! The quick path: most instructions of most programs, decoded once, over pages at hand.
//!
//! It does what the exact interpreter does, instruction for instruction, and leaves to it whatever is unusual: other
//! instructions, exceptions, devices, accesses across pages. Such an instruction has then done nothing, and the exact
//! one starts it anew: so a quick one must be right only where it succeeds.
//!
//! - Code is decoded in blocks ([`block`]) that are compared with memory each time they are entered, and left after a
//!   store into their own page: so code that changes, under whatever address, is never run as it was.
//! - Pages ([`pages`]) are those that the bus gave, and are asked for again when it says that one may be another.
//! - Status flags ([`flags`]) are worked out when somebody asks.

mod block;
mod flags;
mod op;
mod ops;
mod pages;
mod translate;
mod wide;

use iced_x86::Instruction;
use memory_model::{Gva, RamPage};

use self::block::Blocks;
use self::op::{Core, Flow, Missing, Op};
use self::pages::Pages;
use super::Cpu;
use crate::soft::{AccessKind, Bus, Paging};

/// What is at hand. None of it is the processor's state: a copy starts without.
#[derive(Default)]
pub(super) struct Quick {
    blocks: Blocks,
    /// For supervisor and user accesses.
    pages: [Pages; 2],
    /// What the pages hold for.
    paging: Option<(Paging, u64)>,
}

impl Clone for Quick {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for Quick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quick").finish_non_exhaustive()
    }
}

impl Quick {
    /// Makes sure that the pages hold for accesses under `paging`.
    fn hold_for(&mut self, paging: &Paging, generation: u64) {
        let now = Some((Paging { user: false, ..*paging }, generation));
        if self.paging != now {
            self.paging = now;
            self.pages.iter_mut().for_each(Pages::forget_all);
        }
    }

    /// Lets go of a page that was invalidated.
    pub(super) fn forget_page(&mut self, gva: Gva) {
        self.pages.iter_mut().for_each(|pages| pages.forget(gva.raw()));
    }
}

/// How a stretch of quick instructions ended.
pub(super) struct Ran {
    /// Instructions done.
    pub count: u64,
    pub then: Then,
}

/// What comes after a stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// More of them: the budget is spent, or pages are to be asked for anew.
    Nothing,
    /// An instruction for the exact interpreter, decoded if it is known.
    Exact(Option<Instruction>),
}

/// Runs up to `budget` instructions in 64-bit mode; fewer if the next one is for the exact interpreter.
pub(super) fn run<B: Bus>(cpu: &mut Cpu, bus: &mut B, budget: u64) -> Ran {
    let paging = cpu.paging();
    let Cpu { quick, regs, system, .. } = cpu;
    quick.hold_for(&paging, bus.generation());
    let Quick { blocks, pages: [supervisor, user], .. } = &mut **quick;
    let (pages, others) = if paging.user { (user, supervisor) } else { (supervisor, user) };
    let mut core = Core::new(regs, system, pages);
    let ran = run_blocks(&mut core, blocks, &mut Source { bus, paging: &paging, others }, budget);
    core.leave(regs);
    cpu.retired += ran.count;
    cpu.clock += ran.count;
    ran
}

fn run_blocks<B: Bus>(core: &mut Core, blocks: &mut Blocks, source: &mut Source<'_, B>, budget: u64) -> Ran {
    let mut left = budget;
    while left > 0 {
        let Some(page) = fetch_page(core.pages, core.rip, source) else {
            return Ran { count: budget - left, then: Then::Exact(None) };
        };
        let (rip, code) = (core.rip, page.hva());
        let block = blocks.get(rip, page);
        core.code = code;
        let ops = &block.ops[..block.ops.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let (done, end) = run_ops(core, ops, source);
        left -= done as u64;
        if matches!(end, End::Through | End::Refused) {
            core.rip = core.rip.wrapping_add(done.checked_sub(1).map_or(0, |last| ops[last].end.into()));
        }
        let then = match end {
            End::Refused => Then::Exact(None),
            End::Through if done == block.ops.len() => block.then,
            End::Through | End::Branch => Then::Nothing,
            End::Flushed => return Ran { count: budget - left, then: Then::Nothing },
        };
        if then != Then::Nothing && left > 0 {
            return Ran { count: budget - left, then };
        }
    }
    Ran { count: budget, then: Then::Nothing }
}

/// The page that RIP is in.
#[inline(always)]
fn fetch_page<'p, B: Bus>(pages: &'p mut Pages, rip: u64, source: &mut Source<'_, B>) -> Option<&'p RamPage> {
    if pages.fetch.get(rip, 1).is_none() && !source.bring(pages, rip, AccessKind::Fetch) {
        return None;
    }
    pages.fetch.get(rip, 1)
}

/// How a block was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// RIP is where the instruction put it.
    Branch,
    /// The next instruction follows.
    Through,
    /// The next instruction is one that could not be done.
    Refused,
    /// As by a branch, and no page at hand may be used any more.
    Flushed,
}

/// Does instructions, and says how many.
#[inline(always)]
fn run_ops<B: Bus>(core: &mut Core, ops: &[Op], source: &mut Source<'_, B>) -> (usize, End) {
    let (mut done, mut missed) = (0, None);
    loop {
        let (more, flow) = run_straight(core, &ops[done..]);
        done += more;
        match flow {
            Flow::Next => return (done, End::Through),
            Flow::Branch => return (done + 1, End::Branch),
            Flow::Stale => return (done + 1, End::Through),
            Flow::Invalidated if source.invalidate(core) => return (done + 1, End::Flushed),
            Flow::Invalidated => return (done + 1, End::Branch),
            Flow::Missed => {
                let missing = core.missing.take();
                // The same access again: it crosses the end of a page.
                let Some(Missing { address, kind }) = missing.filter(|_| missing != missed) else {
                    return (done, End::Refused);
                };
                if !source.bring(core.pages, address, kind) {
                    return (done, End::Refused);
                }
                missed = missing;
            }
        }
    }
}

/// Does instructions as long as each is followed by the next: how many were, and what came of the one after.
#[inline(always)]
fn run_straight(core: &mut Core, ops: &[Op]) -> (usize, Flow) {
    for (done, op) in ops.iter().enumerate() {
        let flow = (op.run)(core, op);
        if flow != Flow::Next {
            return (done, flow);
        }
    }
    (ops.len(), Flow::Next)
}

/// Where pages come from.
struct Source<'a, B> {
    bus: &'a mut B,
    paging: &'a Paging,
    /// Those at hand for the other privilege.
    others: &'a mut Pages,
}

impl<B: Bus> Source<'_, B> {
    /// Whether the page is at hand now.
    #[cold]
    fn bring(&mut self, pages: &mut Pages, address: u64, kind: AccessKind) -> bool {
        let Some(page) = self.bus.page(self.paging, Gva(address), kind) else { return false };
        pages.of(kind).put(address, page);
        true
    }

    /// Lets go of the page that was invalidated; whether all the others must go too.
    fn invalidate(&mut self, core: &mut Core) -> bool {
        let generation = self.bus.generation();
        self.bus.invalidate_page(Gva(core.invalid));
        core.pages.forget(core.invalid);
        self.others.forget(core.invalid);
        self.bus.generation() != generation
    }
}
