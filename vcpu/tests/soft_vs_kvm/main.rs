//! The software CPU against a real processor: random instructions with random registers and memory, run
//! in ring 3 as the same guest image on `/dev/kvm` and on [`Cpu`]. Registers, flags, memory and exceptions
//! (vector, error code, RIP, CR2) must agree, but for what the SDM calls undefined.
//!
//! `MEMVIRT_SEED` repeats a run, `MEMVIRT_CASES` sets its length.

mod cases;
mod guest;
mod kvm;
mod soft;

use std::collections::BTreeMap;

use cases::{Case, FORMS, Generator};
use guest::{Image, Outcome};
use iced_x86::Mnemonic;

const CASES: u64 = 40_000;
const BATCH: usize = 1000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn random_instructions_agree_with_the_processor() {
    let mut processor = match kvm::Machine::new() {
        Ok(machine) => machine,
        Err(error) => {
            println!("not checked: {error}");
            return;
        }
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("MEMVIRT_SEED").unwrap_or(now.as_nanos() as u64);
    println!("MEMVIRT_SEED={seed}");
    let total = number("MEMVIRT_CASES").unwrap_or(CASES);

    let mut generator = Generator::new(seed);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut tried = 0;
    // A rare form may need a few more cases than asked for; a form that never comes ends the search.
    while tried < total || total >= CASES && !unseen(&seen).is_empty() && tried < 20 * total {
        tried += BATCH as u64;
        let batch: Vec<_> = (0..BATCH).map(|_| generator.case()).collect();
        for case in &batch {
            *seen.entry(format!("{:?}", case.instruction.mnemonic())).or_default() += 1;
        }
        let image = Image::new(&batch, &mut generator.random);
        if let Some(difference) = differ(&mut processor, &image, &batch) {
            // The first case may have gone wrong unseen, in memory: each one alone tells.
            let alone = batch.iter().find_map(|case| {
                let case = std::slice::from_ref(case);
                differ(&mut processor, &image.with_cases(case), case)
            });
            panic!("MEMVIRT_SEED={seed}\n{difference}\nalone: {alone:?}");
        }
    }
    if total >= CASES {
        assert!(unseen(&seen).is_empty(), "never tried: {:?}", unseen(&seen));
    }
    println!("{tried} cases, {} mnemonics agree", seen.len());
}

/// The forms that no case had.
fn unseen(seen: &BTreeMap<String, usize>) -> Vec<Mnemonic> {
    let forms = FORMS.iter().map(|form| form.mnemonic);
    forms.filter(|mnemonic| !seen.contains_key(&format!("{mnemonic:?}"))).collect()
}

/// Runs an image on both; the first difference, in words.
fn differ(processor: &mut kvm::Machine, image: &Image, cases: &[Case]) -> Option<String> {
    let (hard, soft) = (processor.run(image), soft::run(image));
    let (hard_memory, soft_memory) = match (hard, soft) {
        (Ok(hard), Ok(soft)) => (hard, soft),
        (hard, soft) => {
            let name = |result: Result<Vec<u8>, String>| result.err().unwrap_or("finished".to_owned());
            return Some(format!("processor: {}\nsoft CPU: {}", name(hard), name(soft)));
        }
    };
    for (index, case) in cases.iter().enumerate() {
        let (hard, soft) = (Outcome::of(&hard_memory, index), Outcome::of(&soft_memory, index));
        let undefined = if hard.exception.is_none() { case.undefined_flags } else { 0 };
        if hard.masked(undefined) != soft.masked(undefined) {
            return Some(format!("{case}\nprocessor:\n{hard}\nsoft CPU:\n{soft}"));
        }
    }
    let data = guest::DATA_RANGE;
    let at = (data.start..data.end).find(|&at| hard_memory[at] != soft_memory[at])?;
    let (hard, soft) = (hard_memory[at], soft_memory[at]);
    let case = cases.iter().map(Case::to_string).next().filter(|_| cases.len() == 1).unwrap_or_default();
    Some(format!("{case}\nmemory at {at:#x}: processor {hard:#x}, soft CPU {soft:#x}"))
}
