//! What comes from a lab, and what the models here say to it.

use std::io::{self, Write};
use std::path::Path;

use harness::Verdict;
use harness::lab::{Comparison, Ended, GuestReport, Lab, Message, Session};
use harness::report::Page;

use super::Args;
use super::run;
use crate::cli::progress::Progress;
use crate::cli::run::{Options, Tally};
use crate::cli::source::Source;
use crate::cli::{Status, output};

pub(super) struct Visit<'a, W> {
    lab: Lab,
    options: &'a Options,
    report: Option<&'a Path>,
    page: Page,
    guests: Vec<Source>,
    out: &'a mut W,
    /// Until Linux is up, or the guests are through.
    progress: Option<Progress>,
    tally: Tally,
    status: Status,
}

impl<'a, W: Write> Visit<'a, W> {
    pub fn new(lab: Lab, args: &'a Args, guests: Vec<Source>, out: &'a mut W) -> Self {
        let guests = if args.program.is_empty() { guests } else { Vec::new() };
        let progress = Some(Progress::new(1 + guests.len()));
        Self {
            lab,
            options: &args.options,
            report: args.report.as_deref(),
            page: Page::default(),
            guests,
            out,
            progress,
            tally: Tally::default(),
            status: Status::AsExpected,
        }
    }

    /// Tells what comes, until the lab has ended.
    pub fn follow(mut self, session: &mut Session) -> io::Result<Status> {
        self.step(&"Linux");
        loop {
            let message = session.next_message();
            self.progress.iter().for_each(Progress::clear);
            match message {
                Ok(Message::End) => break,
                Ok(message) => self.tell(message)?,
                Err(ended) => return Ok(self.give_up(&ended)),
            }
        }
        self.progress = None;
        if !self.options.json {
            write!(self.out, "{}", self.tally.text())?;
        }
        Ok(self.status.max(self.save()))
    }

    fn save(&self) -> Status {
        self.report.map_or(Status::AsExpected, |path| output::save(path, &self.page))
    }

    fn step(&self, what: &dyn std::fmt::Display) {
        self.progress.iter().for_each(|progress| progress.step(format!("{what} in lab {}", self.lab)));
    }

    fn tell(&mut self, message: Message) -> io::Result<()> {
        match message {
            // A program tells itself where it is.
            Message::Ready if self.guests.is_empty() => self.progress = None,
            Message::Begin(guest) => self.step(&guest),
            Message::Report(report) => self.report(report)?,
            Message::Line(line) => writeln!(self.out, "{line}")?,
            Message::Exit(false) => self.becomes(Status::Failed),
            Message::Trouble(error) => self.trouble(&error),
            Message::Ready | Message::Exit(true) | Message::End => {}
        }
        Ok(())
    }

    fn report(&mut self, mut report: GuestReport) -> io::Result<()> {
        report.page.take().into_iter().for_each(|page| self.page.append(page));
        let text = self.text(&report);
        // The model took its time: progress was told meanwhile.
        self.progress.iter().for_each(Progress::clear);
        match text {
            Ok(text) => write!(self.out, "{text}")?,
            Err(error) => self.trouble(&error),
        }
        self.out.flush()?;
        self.tally.add(report.verdict);
        // A guest that cannot run there is trouble only for who has asked for it.
        let by_name = !self.options.guests.is_empty();
        self.becomes(Status::of(report.verdict, by_name));
        Ok(())
    }

    /// A report as `memvirt run` gives it, with what its model says to it.
    fn text(&mut self, report: &GuestReport) -> Result<String, String> {
        let guest = self.guests.iter().find(|guest| guest.name == report.guest);
        let Some(guest) = guest.filter(|_| report.verdict != Verdict::Skip) else {
            return Ok(report.text.clone());
        };
        let page = self.report.map(|_| &mut self.page);
        let (_, model) = run(guest, self.lab.model(), page)
            .map_err(|error| format!("{} on {}: {error}", guest.name, self.lab.model()))?;
        let found = Comparison::of(self.lab, &report.second_level, &model);
        if self.options.json {
            let mut line: serde_json::Value =
                serde_json::from_str(&report.text).map_err(|error| error.to_string())?;
            line["model"] = serde_json::to_value(found).map_err(|error| error.to_string())?;
            return Ok(format!("{line}\n"));
        }
        let shown = self.options.shows_chains() || !found.is_alike();
        Ok(if shown { format!("{}{found}", report.text) } else { report.text.clone() })
    }

    fn give_up(mut self, ended: &Ended) -> Status {
        self.progress = None;
        for line in &ended.console {
            eprintln!("     | {line}");
        }
        output::complain(&format!("lab {}: {ended}", self.lab));
        self.save().max(Status::Trouble)
    }

    fn trouble(&mut self, error: &str) {
        output::complain(&error);
        self.becomes(Status::Trouble);
    }

    fn becomes(&mut self, status: Status) {
        self.status = self.status.max(status);
    }
}
