//! What the host does while a guest runs: the steps of its manifest, each at its occasion.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use guest_tests::{Action, Change, Image, Location, MemoryEvent, Occasion, Rights, StepSpec};
use memory_model::{DirtyClients, Gpa, PageSize, Protection, RamBlock, RegionId, RegionTree};
use vcpu::HostEvent;
use vm_memory::{Bytes, GuestAddress};

use crate::judge::Judge;
use crate::{HarnessError, Machine};

/// Who wants to know of the writes that a step logs.
const LOGGER: DirtyClients = DirtyClients::VGA;

/// What was done so far.
#[derive(Default)]
pub(crate) struct Done {
    /// The occasions there were.
    occasions: BTreeSet<Occasion>,
    /// Second-level faults up to the last count.
    faults: u64,
    /// Memory whose protection is not as it was at first.
    protected: Vec<(Arc<RamBlock>, Range<u64>)>,
}

/// Whether anything is to be done or looked at then.
pub(crate) fn is_known(image: &Image, on: Occasion) -> bool {
    occasions(image).any(|known| known == on)
}

fn occasions(image: &Image) -> impl Iterator<Item = Occasion> {
    let (steps, expect) = (&image.manifest().steps, &image.manifest().expect);
    let pages = expect.pages.iter().filter_map(|pages| pages.when);
    let same = expect.same_page.iter().filter_map(|same| same.when);
    let absent = expect.absent.iter().filter_map(|absent| absent.when);
    steps.iter().map(|step| step.on).chain(pages).chain(same).chain(absent)
}

impl Machine {
    /// Does the steps of an occasion, then looks at what must hold.
    pub(crate) fn act(&mut self, on: Occasion, judge: &mut Judge) -> Result<(), HarnessError> {
        if !is_known(&self.image, on) {
            judge
                .check("steps", false, || format!("the guest rang {on}, of which the manifest says nothing"));
            return Ok(());
        }
        let steps: Vec<_> =
            self.image.manifest().steps.iter().filter(|step| step.on == on).cloned().collect();
        let is_change = |step: &StepSpec| matches!(step.action, Action::Change { .. });
        for run in steps.chunk_by(|one, next| is_change(one) && is_change(next)) {
            match &run[0].action {
                Action::Change { .. } => self.change_regions(run)?,
                Action::Dirty { region, pages } => self.take_dirty(on, region, pages, judge)?,
                Action::Memory { at, size, event } => self.change_memory(at, *size, *event)?,
                Action::Store { at, value } => self.store(at, *value)?,
                Action::Faults { most } => self.count_faults(on, *most, judge),
            }
        }
        let first_time = self.done.occasions.insert(on);
        judge.look(self, Some(on), first_time)
    }

    /// After the last exit: all that was to happen has happened, and this process may reach its memory again.
    pub(crate) fn settle(&mut self, judge: &mut Judge) -> Result<(), HarnessError> {
        for (block, part) in std::mem::take(&mut self.done.protected) {
            self.vm.host_event(&block, part, HostEvent::Protect(Protection::ReadWrite))?;
        }
        let known: BTreeSet<_> = occasions(&self.image).collect();
        for on in known.difference(&self.done.occasions) {
            judge.check("steps", false, || format!("there was no {on}"));
        }
        Ok(())
    }

    /// All in one transaction.
    fn change_regions(&mut self, steps: &[StepSpec]) -> Result<(), HarnessError> {
        let regions = &self.regions;
        self.space.update(|tree| {
            for step in steps {
                if let Action::Change { region, change } = &step.action {
                    change_region(tree, regions[region], *change)?;
                }
            }
            Ok(())
        })
    }

    fn take_dirty(
        &mut self,
        on: Occasion,
        region: &str,
        expected: &[u64],
        judge: &mut Judge,
    ) -> Result<(), HarnessError> {
        let id = self.regions[region];
        let block =
            self.space.with_tree(|tree| tree.get(id).map(|region| region.kind().ram().cloned()))??;
        let block = block.expect("the manifest was checked: the region has memory of its own");
        self.space.sync_dirty_log(true)?;
        let taken = block.snapshot_and_clear_dirty(0..block.size(), LOGGER);
        self.space.clear_dirty_log(id, 0, block.size())?;
        let found: Vec<u64> = taken.pages().map(|offset| offset >> PageSize::Size4K.shift()).collect();
        judge.check(&format!("{on}, dirty pages of {region}"), found == expected, || {
            format!("expected {expected:?}, found {found:?}")
        });
        Ok(())
    }

    fn change_memory(&mut self, at: &Location, size: u64, event: MemoryEvent) -> Result<(), HarnessError> {
        let first = Gpa(self.image.resolve(at)?);
        let view = self.space.view();
        let found = view.find(first).and_then(|range| {
            let left = range.range.last().0 - first.0 + 1;
            (size <= left).then_some(())?;
            range.ram().cloned().zip(range.region_offset(first))
        });
        let (block, offset) = found.ok_or(HarnessError::NoMemory { gpa: first, size })?;
        let part = offset..offset + size;
        let event = match event {
            MemoryEvent::Discard => HostEvent::Discard,
            MemoryEvent::Migrate => HostEvent::Migrate,
            MemoryEvent::Protect(rights) => {
                let inside = |other: &Range<u64>| part.start <= other.start && other.end <= part.end;
                let protected = &mut self.done.protected;
                protected.retain(|(other, range)| !Arc::ptr_eq(other, &block) || !inside(range));
                if protection(rights) != Protection::ReadWrite {
                    protected.push((block.clone(), part.clone()));
                }
                HostEvent::Protect(protection(rights))
            }
        };
        Ok(self.vm.host_event(&block, part, event)?)
    }

    fn store(&mut self, at: &Location, value: u64) -> Result<(), HarnessError> {
        let gpa = Gpa(self.image.resolve(at)?);
        let stored = self.space.view().write_slice(&value.to_le_bytes(), GuestAddress(gpa.0));
        stored.map_err(|_| HarnessError::NoMemory { gpa, size: 8 })
    }

    fn count_faults(&mut self, on: Occasion, most: u64, judge: &mut Judge) {
        let what = format!("{on}, second-level faults");
        let Some(now) = self.vm.violations() else {
            return judge.not_checked(&what, "this host does not count second-level faults");
        };
        let faults = now - std::mem::replace(&mut self.done.faults, now);
        judge.check(&what, faults <= most, || format!("at most {most}, found {faults}"));
    }
}

fn change_region(tree: &mut RegionTree, id: RegionId, change: Change) -> Result<(), HarnessError> {
    match change {
        Change::Enabled(enabled) => tree.set_enabled(id, enabled),
        Change::Gpa(gpa) => tree.set_offset(id, gpa),
        Change::Priority(priority) => tree.set_priority(id, priority),
        Change::Readonly(readonly) => tree.set_readonly(id, readonly),
        Change::Direct(direct) => tree.set_romd(id, direct),
        Change::Offset(offset) => tree.set_alias_offset(id, offset),
        Change::Size(size) => tree.set_size(id, size.into()),
        Change::Logged(logged) => tree.set_dirty_log(id, if logged { LOGGER } else { DirtyClients::empty() }),
    }?;
    Ok(())
}

fn protection(rights: Rights) -> Protection {
    match rights {
        Rights { write: true, .. } => Protection::ReadWrite,
        Rights { read: true, .. } => Protection::ReadOnly,
        _ => Protection::None,
    }
}
