//! A failure as its reader needs it: how to run it again, the program, what it was lowered to, what it did last.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, FastFormatter};

use crate::layout::{CODE, CODE_BYTES, HANDLERS, USER_BASE};
use crate::lower::Guest;
use crate::program::Program;
use crate::run::{Difference, Trace};

/// How many executed instructions are listed.
const LAST: usize = 24;

/// The report on a program that was shrunk.
pub fn report(column: &str, program: &Program, difference: &Difference) -> String {
    let guest = Guest::new(program);
    let trace = Trace::new(program, &guest);
    let mut text = format!("machine {column} and the model differ. Run it again:\n");
    let seed = program.seed;
    writeln!(text, "  MEMVIRT_SEED={seed:#x} MEMVIRT_GUESTS=1 cargo test -p vcpu --test random_guests\n")
        .ok();
    writeln!(text, "Shrunk: {program}").ok();
    writeln!(text, "Executed last:").ok();
    executed(&mut text, &guest, &trace, difference.at);
    writeln!(text, "\nInstruction {}: {}", difference.at, difference.what).ok();
    text
}

/// The instructions up to that one, by the model, with the host's events between them.
fn executed(text: &mut String, guest: &Guest, trace: &Trace, at: usize) {
    for index in at.saturating_sub(LAST)..=at.min(trace.states.len() - 1) {
        for (_, event) in trace.events.iter().filter(|(when, _)| *when == index) {
            writeln!(text, "          host: {event:x?}").ok();
        }
        let before = match index.checked_sub(1) {
            Some(before) => (&trace.states[before].regs, &trace.states[before].system),
            None => (&guest.regs, &guest.system),
        };
        let rip = before.0.rip;
        let step = guest.starts.iter().position(|&start| start == rip);
        if let Some(step) = step {
            writeln!(text, "        step {step}:").ok();
        }
        let ring = before.1.cpl();
        writeln!(text, "  {index:6} ring {ring} {rip:#12x}  {}", disassembly(guest, rip)).ok();
        let after = &trace.states[index];
        if (HANDLERS..HANDLERS + 0x1000).contains(&after.regs.rip)
            && !(HANDLERS..HANDLERS + 0x1000).contains(&rip)
        {
            writeln!(text, "          to the handler, CR2 {:#x}", after.system.cr2).ok();
        }
    }
}

/// The instruction at `rip`, if the image holds it.
fn disassembly(guest: &Guest, rip: u64) -> String {
    let user = USER_BASE + CODE..USER_BASE + CODE + CODE_BYTES;
    let address = if user.contains(&rip) { rip - USER_BASE } else { rip };
    let bytes =
        guest.image.iter().find_map(|(first, bytes)| bytes.get(address.checked_sub(*first)? as usize..));
    let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { return "a stub".to_owned() };
    let instruction = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    text
}
