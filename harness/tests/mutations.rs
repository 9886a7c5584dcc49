//! Every expectation of every built-in guest can fail: with one thing of its manifest changed, it does not pass.

use guest_tests::{Action, EndingSpec, Holds, Image, Location, Manifest, Occasion, Page};
use harness::{Mmu, Verdict, run_guest};
use memory_model::PageSize;

/// Nothing that a guest leaves in its memory, and no page of a log.
const NOT_THERE: u64 = 0xdead_beef;

/// What is changed, and the manifest with it.
type Mutation = (String, Manifest);

fn mutations(manifest: &Manifest) -> Vec<Mutation> {
    let mut all = Vec::new();
    let mut change = |what: String, how: &dyn Fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        how(&mut changed);
        all.push((what, changed));
    };
    let expect = &manifest.expect;
    if expect.console.is_some() {
        change("console".into(), &|changed| changed.expect.console = Some("nothing of that".into()));
    }
    if expect.ending == EndingSpec::Exit {
        change("exit code".into(), &|changed| changed.expect.exit ^= 1);
        change("ending".into(), &|changed| changed.expect.ending = EndingSpec::Shutdown);
    }
    if let Some(faults) = expect.memory_faults {
        change("memory faults".into(), &move |changed| changed.expect.memory_faults = Some(faults + 1));
    }
    for index in 0..expect.mmio.as_ref().map_or(0, Vec::len) {
        change(format!("without MMIO access {index}"), &move |changed| {
            changed.expect.mmio.as_mut().map(|list| list.remove(index));
        });
    }
    for (index, pages) in expect.pages.iter().enumerate() {
        change(format!("region of pages {index}"), &move |changed| {
            changed.expect.pages[index].region = Some("nowhere".into());
        });
        if pages.holds.is_some() {
            change(format!("content of pages {index}"), &move |changed| {
                changed.expect.pages[index].holds = Some(Holds::Value(NOT_THERE));
            });
        }
        if let Some(leaf) = pages.leaf {
            let other = match leaf.0 {
                PageSize::Size4K => PageSize::Size2M,
                _ => PageSize::Size4K,
            };
            change(format!("leaf of pages {index}"), &move |changed| {
                changed.expect.pages[index].leaf = Some(Page(other));
            });
        }
        if pages.guest_page.is_some_and(|page| page.0 != PageSize::Size4K) {
            change(format!("guest page of pages {index}"), &move |changed| {
                changed.expect.pages[index].guest_page = Some(Page(PageSize::Size4K));
            });
        }
    }
    for index in 0..expect.same_page.len() {
        // The stack: never one of the two.
        change(format!("same page {index}"), &move |changed| {
            changed.expect.same_page[index].other = Location::Address(0xf_f000);
        });
    }
    for (index, step) in manifest.steps.iter().enumerate() {
        if let Action::Dirty { .. } = step.action {
            change(format!("dirty pages of step {index}"), &move |changed| {
                if let Action::Dirty { pages, .. } = &mut changed.steps[index].action {
                    pages.push(NOT_THERE);
                }
            });
        }
        change(format!("occasion of step {index}"), &move |changed| {
            changed.steps[index].on = Occasion::Bell(0xee);
        });
    }
    all
}

/// Whether the guest passes with that manifest, and nothing of it is left unchecked.
fn passes(name: &str, image: &Image, mut changed: Manifest) -> bool {
    // A guest that waits for what does not come need not do so for long.
    changed.budget.instructions = changed.budget.instructions.min(5_000_000);
    let image = image.clone().with_manifest(changed).unwrap();
    // One that cannot be carried out any more is noticed, too.
    let report = run_guest(name, &image, Mmu::Ept);
    report.is_ok_and(|report| report.verdict == Verdict::Pass && report.checks.unchecked == 0)
}

#[test]
fn every_expectation_can_fail() {
    let (mut survivors, mut count) = (Vec::new(), 0);
    for guest in guest_tests::built_in() {
        let image = Image::parse(guest.elf).unwrap();
        for (what, changed) in mutations(image.manifest()) {
            count += 1;
            if passes(guest.name, &image, changed) {
                survivors.push(format!("{}: {what}", guest.name));
            }
        }
    }
    assert!(count > 400, "only {count} changes");
    assert!(survivors.is_empty(), "these guests pass all the same:\n{}", survivors.join("\n"));
}

/// A step that does not happen at all: the guest itself, or a look, has to miss it.
#[test]
fn every_step_matters() {
    let mut survivors = Vec::new();
    for guest in guest_tests::built_in() {
        let image = Image::parse(guest.elf).unwrap();
        for (index, step) in image.manifest().steps.iter().enumerate() {
            // Counts are expectations; what happens between any two instructions is nothing the guest may notice.
            if matches!(step.action, Action::Faults { .. } | Action::Dirty { .. })
                || step.on == Occasion::Tick
            {
                continue;
            }
            let mut changed = image.manifest().clone();
            changed.steps.remove(index);
            if passes(guest.name, &image, changed) {
                survivors.push(format!("{}: step {index} on {}", guest.name, step.on));
            }
        }
    }
    assert!(survivors.is_empty(), "these guests pass without:\n{}", survivors.join("\n"));
}
