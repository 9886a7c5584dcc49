//! The map of a guest's memory as text that is the same in every run: GVA, GPA, region, slot, guest page, leaf. Host
//! addresses are not in it.

use std::fmt::Write;

use ept::Rights;
use memory_model::PageSize;
use slot_manager::SlotRecord;

use crate::inspect::letters;
use crate::pages::Pages;
use crate::{HarnessError, Machine};

/// Pages that follow each other in both columns, and have the rest in common.
struct Run {
    gva: u64,
    gpa: u64,
    bytes: u64,
    rest: [String; 4],
}

/// The map of a machine's memory as it is now, a line for each run of pages.
pub fn map_text(machine: &mut Machine) -> Result<String, HarnessError> {
    machine.observe(|observer| {
        let mut runs: Vec<Run> = Vec::new();
        Pages::new(observer).visit(|pages, place| {
            let range = place.range.map(|at| pages.ranges[at]);
            let slot = observer.slots.by_gpa(place.gpa).map(|slot| slot.id().0.to_string());
            let guest = place.guest.map(|page| kind(page.size, page.rights));
            // All of nested paging's leaves are a user's; a shadow's are if the guest's are.
            let shadow = pages.tables.is_some_and(|tables| tables.shadow);
            let shown = if shadow { Rights::all() } else { Rights::RWX };
            let leaf = place.leaf.map(|leaf| kind(leaf.size, leaf.rights & shown));
            let region = range.map(|range| range.name.to_string());
            let rest = [region, slot, guest, leaf].map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            match runs.last_mut() {
                Some(run)
                    if (run.gva + run.bytes, run.gpa + run.bytes) == (place.gva.0, place.gpa.0)
                        && run.rest == rest =>
                {
                    run.bytes += PageSize::Size4K.bytes();
                }
                _ => runs.push(Run {
                    gva: place.gva.0,
                    gpa: place.gpa.0,
                    bytes: PageSize::Size4K.bytes(),
                    rest,
                }),
            }
        });
        runs.iter().map(Run::line).collect()
    })
}

fn kind(size: PageSize, rights: Rights) -> String {
    let user = if rights.contains(Rights::USER) { "u" } else { "" };
    format!("{size} {}{user}", letters(rights))
}

impl Run {
    fn line(&self) -> String {
        let [region, slot, guest, leaf] = &self.rest;
        let last = self.gva + (self.bytes - 1);
        let mut line = format!("{:<23}", format!("{:#x}-{last:#x}", self.gva));
        let gpa = format!("{:#x}", self.gpa);
        // A string takes all that is written.
        let _ = write!(line, "  {gpa:<11}  {region:<12}  {slot:<4}  {guest:<8}  {leaf}");
        line.trim_end().to_owned() + "\n"
    }
}
