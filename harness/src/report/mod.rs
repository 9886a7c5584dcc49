//! A page for people: one HTML file that needs no network, with all that was found of each guest on each machine.
//!
//! Four columns GVA, GPA, HVA, HPA to scale; the walk of any page with its entries decoded; faults over time; machines
//! side by side.
//!
//! ```
//! use harness::{Mmu, Verdict, report::Page};
//! let guest = guest_tests::built_in().find(|guest| guest.name == "huge_page").unwrap();
//! let image = guest_tests::Image::parse(guest.elf)?;
//! let mut page = Page::default();
//! for mmu in [Mmu::Ept, Mmu::Shadow] {
//!     assert_eq!(page.run_guest(guest.name, &image, mmu)?.verdict, Verdict::Pass);
//! }
//! let html = page.html();
//! assert!(html.starts_with("<!doctype html>") && html.contains("huge_page"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | what |
//! |---|---|
//! | `run.rs` | one guest on one machine |
//! | `memory.rs`, `columns.rs` | its pages: pieces that follow each other, in a few letters each |
//! | `format.rs` | what the bits of entries mean |
//! | `page.html`, `page.css`, `js/*.js` | the page itself; its data is JSON in a script element |

mod columns;
mod format;
mod memory;
mod run;

use guest_tests::Image;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::run::RunData;
use crate::{HarnessError, Machine, Mmu, Report, judge};

/// A page in the making. It may go to another process, to be joined there with others.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Page {
    runs: Vec<Value>,
}

impl Page {
    /// Does what [`run_guest`](crate::run_guest) does, records it, and shows all of it.
    pub fn run_guest(&mut self, name: &str, image: &Image, mmu: Mmu) -> Result<Report, HarnessError> {
        let mut machine = Machine::build(image.clone(), mmu.create_vm(image)?)?;
        machine.record();
        let run = machine.run()?;
        let report = judge(name, mmu, &mut machine, run)?;
        self.add_machine(&report, &mut machine)?;
        Ok(report)
    }

    /// Adds a machine after its run, and what was found of it.
    pub fn add_machine(&mut self, report: &Report, machine: &mut Machine) -> Result<(), HarnessError> {
        let started = report.run.as_ref().and_then(|run| run.exits.started);
        let data = RunData::new(machine.image().manifest(), report).with_machine(machine, started)?;
        self.push(&data);
        Ok(())
    }

    /// Adds a guest of which nothing else is there: one that could not run.
    pub fn add_report(&mut self, report: &Report, image: &Image) {
        self.push(&RunData::new(image.manifest(), report));
    }

    /// Adds all that another page has.
    pub fn append(&mut self, mut other: Self) {
        self.runs.append(&mut other.runs);
    }

    fn push(&mut self, data: &RunData) {
        self.runs.push(serde_json::to_value(data).expect("strings and numbers are always JSON"));
    }

    /// The whole page.
    pub fn html(&self) -> String {
        const SCRIPTS: [&str; 8] = [
            include_str!("js/data.js"),
            include_str!("js/dom.js"),
            include_str!("js/layout.js"),
            include_str!("js/map.js"),
            include_str!("js/walk.js"),
            include_str!("js/faults.js"),
            include_str!("js/compare.js"),
            include_str!("js/main.js"),
        ];
        let page = include_str!("page.html").replace("/*style*/", include_str!("page.css"));
        let page = page.replace("/*script*/", &SCRIPTS.concat());
        // Nothing that a guest's names hold can end the script element.
        let runs = self.runs.iter().map(|run| run.to_string().replace('<', "\\u003c"));
        page.replace("/*data*/", &format!("[{}]", runs.collect::<Vec<_>>().join(",\n")))
    }
}
