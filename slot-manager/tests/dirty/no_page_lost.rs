//! A guest that writes while logs are taken and slots split, merge and move.

use std::collections::BTreeSet;

use memory_model::{DirtyClients, Hva};
use proptest::collection::vec;
use proptest::prelude::*;
use slot_manager::{DirtyMethod, Errno};

use crate::machine::{Machine, PAGES, WINDOW, pages};

#[derive(Clone, Debug)]
enum Step {
    /// The guest writes to these pages, here or in the window.
    Write(u64, u64),
    Collect(u64, u64),
    CollectAll,
    Reap,
    /// Covers pages from there on, or uncovers them: a slot splits or two merge.
    Cover(Option<u64>),
    MoveWindow(u64),
    /// The same with the call of that number failing.
    FailingMove(u64, usize),
    /// Shifts all of RAM onto its own old place.
    Shift(u64),
    Log(bool),
}

fn any_step() -> impl Strategy<Value = Step> {
    let page = prop_oneof![3 => 0..PAGES + 4, 1 => WINDOW..WINDOW + 60];
    prop_oneof![
        12 => (page.clone(), 1..9u64).prop_map(|(page, count)| Step::Write(page, count)),
        4 => (page, 1..90u64).prop_map(|(page, count)| Step::Collect(page, count)),
        1 => Just(Step::CollectAll),
        1 => Just(Step::Reap),
        3 => proptest::option::of(0..PAGES).prop_map(Step::Cover),
        2 => (0..20u64).prop_map(Step::MoveWindow),
        1 => (0..20u64, 0..6usize).prop_map(|(to, step)| Step::FailingMove(to, step)),
        1 => (0..4u64).prop_map(Step::Shift),
        1 => any::<bool>().prop_map(Step::Log),
    ]
}

fn any_method() -> impl Strategy<Value = DirtyMethod> {
    prop_oneof![
        Just(DirtyMethod::Bitmap),
        Just(DirtyMethod::ManualProtect { initially_set: false }),
        Just(DirtyMethod::ManualProtect { initially_set: true }),
        Just(DirtyMethod::Ring { bytes: 4096 }),
    ]
}

/// What the guest has written and nobody has collected.
#[derive(Default)]
struct Account {
    owed: BTreeSet<Hva>,
    /// Written since everything was last collected: what was written here and in the window comes twice, and what
    /// was written before a log ended comes or not.
    may_come: BTreeSet<Hva>,
}

impl Account {
    fn write(&mut self, pages: impl Iterator<Item = Hva>) {
        for page in pages {
            self.owed.insert(page);
            self.may_come.insert(page);
        }
    }

    /// Strikes out what was collected. Only a log that starts full may tell of pages that nobody wrote.
    fn settle(&mut self, collected: Vec<Hva>, method: DirtyMethod) -> Result<(), TestCaseError> {
        for page in collected {
            self.owed.remove(&page);
            let full = method == DirtyMethod::ManualProtect { initially_set: true };
            prop_assert!(full || self.may_come.contains(&page), "{page} was not written");
        }
        Ok(())
    }

    fn settle_all(&mut self, collected: Vec<Hva>, method: DirtyMethod) -> Result<(), TestCaseError> {
        self.settle(collected, method)?;
        prop_assert!(self.owed.is_empty(), "lost: {:?}", self.owed);
        self.may_come.clear();
        Ok(())
    }
}

fn move_window(machine: &Machine, to: u64) -> Result<(), memory_model::MemoryError> {
    machine.space.update(|tree| {
        tree.set_enabled(machine.device, true)?;
        tree.set_offset(machine.window, (WINDOW + to) * crate::machine::PAGE)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_page_written_while_logged_is_collected(method in any_method(), steps in vec(any_step(), 1..60)) {
        let machine = Machine::new(method);
        let mut account = Account::default();
        for step in steps {
            match step {
                Step::Write(page, count) => {
                    account.write((page..page + count).filter_map(|page| machine.write(page)));
                }
                Step::Collect(page, count) => account.settle(machine.collect(pages(page, count)), method)?,
                Step::CollectAll => {
                    account.settle_all(machine.collect_all(), method)?;
                }
                Step::Reap => machine.manager().reap().unwrap(),
                Step::Cover(at) => {
                    let cover = machine.space.update(|tree| {
                        tree.set_enabled(machine.device, at.is_some())?;
                        tree.set_offset(machine.device, at.unwrap_or(0) * crate::machine::PAGE)
                    });
                    cover.unwrap();
                }
                Step::MoveWindow(to) => move_window(&machine, to).unwrap(),
                Step::FailingMove(to, at) => {
                    machine.kernel.take();
                    machine.kernel.refuse(at, Errno::ENOMEM);
                    let _ = move_window(&machine, to);
                    machine.kernel.take();
                }
                Step::Shift(to) => {
                    let shift = |tree: &mut memory_model::RegionTree| tree.set_offset(machine.ram, to * crate::machine::PAGE);
                    machine.space.update(shift).unwrap();
                }
                Step::Log(on) => {
                    let clients = if on { DirtyClients::VGA } else { DirtyClients::empty() };
                    machine.space.update(|tree| tree.set_dirty_log(machine.ram, clients)).unwrap();
                    if !on {
                        account.owed.clear();
                    }
                }
            }
        }
        account.settle_all(machine.collect_all(), method)?;
        prop_assert!(machine.collect_all().is_empty(), "collected twice");
    }
}
