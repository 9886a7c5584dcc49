//! What a guest that did not pass has left behind: the code it was at, and what it had for memory.

use std::fmt;

use ept::{Access, Flags, Paging, translate};
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction};
use memory_model::{FlatRange, FlatView, Gpa};
use slot_manager::SlotRecord;
use vcpu::GuestTables;

use crate::machine::paging_of;
use crate::{HarnessError, Machine, Run};

/// So many instructions are shown before the one at RIP, and behind it.
const AROUND: usize = 4;
/// The longest instruction, in bytes.
const LONGEST: u64 = 15;
/// So many ranges of memory are shown.
const RANGES: usize = 64;

/// The code around RIP, and the memory map.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scene {
    /// Instructions in order.
    pub code: Vec<CodeLine>,
    /// The ranges of the flat view, a line each.
    pub memory: Vec<String>,
}

/// An instruction in the guest's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CodeLine {
    /// Where it begins.
    pub address: u64,
    /// The nearest symbol before it, and how far that is.
    pub symbol: Option<(String, u64)>,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its disassembly.
    pub text: String,
    /// RIP points to it.
    pub here: bool,
}

impl Scene {
    /// Looks at a machine after its run.
    pub(crate) fn of(machine: &mut Machine, run: &Run) -> Result<Self, HarnessError> {
        let system = machine.system_regs(run.vcpu)?;
        let bits = match system.cs {
            cs if cs.long => 64,
            cs if cs.db => 32,
            _ => 16,
        };
        let (paging, view) = (paging_of(&system)?, machine.view());
        let base = if bits == 64 { 0 } else { system.cs.base };
        let mut code = Code { paging, view: &view, base, bits }.around(run.regs.rip);
        for line in &mut code {
            let symbol = machine.image().symbol_at(line.address);
            line.symbol = symbol.map(|(name, offset)| (name.to_owned(), offset));
        }
        Ok(Self { code, memory: memory(machine, &view) })
    }
}

/// A guest's code, as its own tables show it.
struct Code<'a> {
    paging: Option<Paging>,
    view: &'a FlatView,
    base: u64,
    bits: u32,
}

impl Code<'_> {
    /// Instructions cannot be read backwards: from some byte before RIP they lead to it, and the furthest one is the most
    /// likely to be where the guest came from.
    fn around(&self, rip: u64) -> Vec<CodeLine> {
        let furthest = (LONGEST * AROUND as u64).min(rip);
        let before = (1..=furthest).rev().find_map(|back| self.leading_to(rip, rip - back));
        let mut lines = before.unwrap_or_default();
        lines.drain(..lines.len().saturating_sub(AROUND));
        lines.extend(self.from(rip).take(AROUND + 1));
        lines.iter_mut().for_each(|line| line.here = line.address == rip);
        lines
    }

    /// The instructions from `start` on, if one of them ends where RIP is.
    fn leading_to(&self, rip: u64, start: u64) -> Option<Vec<CodeLine>> {
        let lines: Vec<_> = self.from(start).take_while(|line| line.address < rip).collect();
        let last = lines.last()?;
        (last.address + last.bytes.len() as u64 == rip).then_some(lines)
    }

    /// Instructions, up to the first that is none.
    fn from(&self, start: u64) -> impl Iterator<Item = CodeLine> {
        let mut next = start;
        std::iter::from_fn(move || {
            let bytes = self.bytes(next);
            let mut instruction = Instruction::default();
            Decoder::with_ip(self.bits, &bytes, next, DecoderOptions::NONE).decode_out(&mut instruction);
            if instruction.is_invalid() {
                return None;
            }
            let mut text = String::new();
            FastFormatter::new().format(&instruction, &mut text);
            let (address, bytes) = (next, bytes[..instruction.len()].to_vec());
            next = instruction.next_ip();
            Some(CodeLine { address, symbol: None, bytes, text, here: false })
        })
    }

    /// As many bytes of an instruction as there are.
    fn bytes(&self, at: u64) -> Vec<u8> {
        let linear = self.base.wrapping_add(at);
        (0..LONGEST).map_while(|offset| self.byte(linear.wrapping_add(offset))).collect()
    }

    fn byte(&self, linear: u64) -> Option<u8> {
        let tables = GuestTables(self.view);
        // Whosever page it is.
        let access = Access { ac: true, ..Access::READ };
        let gpa = match &self.paging {
            Some(paging) => translate(&tables, paging, linear, access, Flags::Keep).ok()?.address,
            None => linear,
        };
        let range = self.view.find(Gpa(gpa))?;
        let mut byte = [0];
        range.ram()?.read(range.region_offset(Gpa(gpa))?, &mut byte).ok()?;
        Some(byte[0])
    }
}

fn memory(machine: &Machine, view: &FlatView) -> Vec<String> {
    let slots = machine.slots().lock().expect("no listener panics");
    let line = |range: &FlatRange| {
        let first = range.range.first();
        let kind = match (range.ram(), range.readonly) {
            (None, _) => "mmio",
            (Some(_), true) => "rom",
            (Some(_), false) => "ram",
        };
        let hva = range.hva(first).map_or_else(String::new, |hva| format!("HVA {hva}"));
        let slot =
            slots.registry().by_gpa(first).map_or_else(String::new, |slot| format!("slot {}", slot.id().0));
        let line =
            format!("{:<23}  {kind:<4}  {:<12}  {slot:<8}  {hva}", range.range.to_string(), range.name);
        line.trim_end().to_owned()
    };
    let mut lines: Vec<_> = view.ranges().take(RANGES).map(line).collect();
    if let Some(more) = view.len().checked_sub(RANGES).filter(|more| *more > 0) {
        lines.push(format!("... and {more} more"));
    }
    lines
}

impl fmt::Display for CodeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, symbol, bytes, text, here } = self;
        let mark = if *here { "=>" } else { "  " };
        let symbol = symbol.as_ref().map_or_else(String::new, |(name, offset)| format!("{name}+{offset:#x}"));
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "{mark} {address:#x}  {symbol:<16}  {:<30}  {text}", bytes.join(" "))
    }
}
