//! The soft CPU against the processor that runs this test: each case is one integer instruction of 64-bit
//! code, of vectors too, with random operands, executed natively in ring 3 and by [`Cpu`](vcpu::soft::cpu::Cpu). Registers,
//! XMM registers, RIP, flags, memory and the vector of an exception must agree, but for what the manuals leave undefined.
//!
//! - [`forms`]: which instructions there are, by the assembler's own tables. An instruction that is added to
//!   the CPU needs no word here.
//! - [`draw`], [`address`], [`random`]: a case of a form.
//! - [`native`]: the processor's outcome; [`soft`]: the soft CPU's; [`compare`]: what may differ.
//!
//! Forms that the soft CPU or this processor does not have are named, and count as nothing.
//!
//! `MEMVIRT_CASES` sets the number of cases: a million is a thorough run. `MEMVIRT_SEED` repeats a run, and
//! the seed that a failure names repeats that case alone, with `MEMVIRT_CASES=1`. Addresses through FS
//! depend on where this thread keeps its own data, which differs from run to run.

mod address;
mod case;
mod compare;
mod draw;
mod forms;
mod layout;
mod native;
mod random;
mod soft;

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use iced_x86::Code;

use case::{Case, End, describe};
use native::Processor;
use random::Random;
use soft::Machine;

/// Enough to meet each form a few dozen times.
const CASES: u64 = 40_000;
/// Failures that are told; one a form.
const TOLD: usize = 12;

/// Vector of #UD.
const INVALID_OPCODE: u8 = 6;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How often each form came, by what became of it.
#[derive(Default)]
struct Tally {
    agreed: BTreeMap<Code, u64>,
    exceptions: BTreeMap<u8, u64>,
    unimplemented: BTreeMap<Code, u64>,
    not_encodable: BTreeMap<Code, u64>,
    failures: BTreeMap<Code, String>,
}

#[test]
fn each_integer_instruction_agrees_with_the_processor() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("MEMVIRT_SEED").unwrap_or(now.as_nanos() as u64);
    let cases = number("MEMVIRT_CASES").unwrap_or(CASES);
    println!("MEMVIRT_SEED={seed}");

    let (here, elsewhere): (Vec<_>, Vec<_>) =
        forms::all().into_iter().partition(|&form| forms::offered(form, native::cpuid));
    let mut processor = Processor::new().expect("memory at fixed addresses, and signal handlers");
    let mut machine = Machine::new(&processor);
    let mut tally = Tally::default();
    let start = Instant::now();
    for seed in (0..cases).map(|case| seed.wrapping_add(case)) {
        let mut random = Random::new(seed);
        let form = random.pick(&here);
        match draw::case(form, &mut random, processor.fs_base) {
            Some(case) => try_case(&case, seed, &mut processor, &mut machine, &mut tally),
            None => *tally.not_encodable.entry(form).or_default() += 1,
        }
        if tally.failures.len() == TOLD {
            break;
        }
    }
    tally.report(&elsewhere, start);
    let failures: Vec<_> = tally.failures.into_values().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn try_case(case: &Case, seed: u64, processor: &mut Processor, machine: &mut Machine, tally: &mut Tally) {
    let soft = machine.run(case, false);
    // #UD of what the soft CPU's CPUID does not offer is right, but nothing to compare.
    let refused = soft.as_ref().is_some_and(|soft| soft.end == End::Exception(INVALID_OPCODE));
    let offered = !refused || forms::offered(case.form, |leaf| machine.cpuid(leaf));
    let Some(soft) = soft.filter(|_| offered) else {
        *tally.unimplemented.entry(case.form).or_default() += 1;
        return;
    };
    let native = processor.run(case);
    if let End::Exception(vector) = native.end {
        *tally.exceptions.entry(vector).or_default() += 1;
    }
    // Its quick path does the same, where it takes it.
    let quick = machine.run(case, true).unwrap_or_else(|| soft.clone());
    let soft = if compare::agree(case, &native, &soft) { quick } else { soft };
    if compare::agree(case, &native, &soft) && compare::is_expected(case, &native.end) {
        *tally.agreed.entry(case.form).or_default() += 1;
        return;
    }
    let text = || {
        let [native, soft] = [&native, &soft].map(|outcome| describe(case, outcome));
        format!("\nMEMVIRT_SEED={seed} MEMVIRT_CASES=1\n{case}processor: {native}soft CPU: {soft}")
    };
    tally.failures.entry(case.form).or_insert_with(text);
}

impl Tally {
    fn report(&self, elsewhere: &[Code], start: Instant) {
        let names = |forms: &mut dyn Iterator<Item = &Code>| {
            forms.map(|form| format!("{form:?}")).collect::<Vec<_>>().join(" ")
        };
        let agreed: u64 = self.agreed.values().sum();
        let seconds = start.elapsed().as_secs_f64();
        println!("{agreed} cases of {} forms agree, in {seconds:.1} s", self.agreed.len());
        println!("exceptions that agree, by vector: {:?}", self.exceptions);
        println!("not there yet: {}", names(&mut self.unimplemented.keys()));
        println!("not in this build's assembler: {}", names(&mut self.not_encodable.keys()));
        println!("not on this processor: {}", names(&mut elsewhere.iter()));
    }
}
