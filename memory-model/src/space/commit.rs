//! The end of a transaction: render, tell, publish.

use std::sync::Arc;
use std::vec::Vec;

use super::events::{Events, EventsChange};
use super::listeners::{Hearers, Registered, SpaceChange, tell_all};
use super::shared::{Space, SpaceKey, State};
use crate::announce::{Announcement, Audience, Order};
use crate::flat::reduced_root;
use crate::tree::{Changes, Transaction};
use crate::{AddrRange, FlatView, Gpa, MemoryError, RegionId, RegionTree};

impl State {
    /// See [`AddressSpace::update`](super::AddressSpace::update).
    pub(super) fn update<T, E: From<MemoryError>>(
        &mut self,
        edit: impl FnOnce(&mut RegionTree) -> Result<T, E>,
    ) -> Result<T, E> {
        let Self { tree, spaces, listeners, empty, .. } = self;
        listeners.iter().for_each(|registered| registered.lock().flush_coalesced());
        let mut transaction = Transaction::begin(tree);
        let answer = edit(transaction.tree())?;
        let steps = next_steps(&transaction, spaces, empty)?;
        tell_changes(listeners, &steps)?;
        transaction.commit();
        publish(spaces, listeners, steps);
        Ok(answer)
    }
}

/// How one space goes on.
struct Step {
    space: SpaceKey,
    old: Arc<FlatView>,
    new: Arc<FlatView>,
    events: Option<(Events, EventsChange)>,
}

impl Step {
    fn changes_view(&self) -> bool {
        !Arc::ptr_eq(&self.old, &self.new)
    }
}

/// What each space comes to show; spaces that show the same share it (rule R18).
fn next_steps(
    transaction: &Transaction<'_>,
    spaces: &[Space],
    empty: &Arc<FlatView>,
) -> Result<Vec<Step>, MemoryError> {
    let (tree, changes) = (transaction.tree_ref(), transaction.changes());
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let mut views: Vec<(RegionId, Arc<FlatView>)> = Vec::new();
    let mut steps = Vec::new();
    for space in spaces {
        let old = space.published.load_full();
        let new = match reduced_root(tree, space.root) {
            None => empty.clone(),
            Some(reduced) => match views.iter().find(|(root, _)| *root == reduced) {
                Some((_, view)) => view.clone(),
                None => {
                    let view = next_view(tree, changes, space.root, &old)?;
                    views.push((reduced, view.clone()));
                    view
                }
            },
        };
        let events = space.events.next(tree, changes, space.root, &old, &new);
        steps.push(Step { space: space.key, old, new, events });
    }
    Ok(steps)
}

fn next_view(
    tree: &RegionTree,
    changes: &Changes,
    root: RegionId,
    old: &Arc<FlatView>,
) -> Result<Arc<FlatView>, MemoryError> {
    let new = if changes.everything {
        FlatView::render_from(tree, root)?
    } else {
        let windows: Vec<AddrRange<Gpa>> = changes.windows_of(root).collect();
        if windows.is_empty() {
            return Ok(old.clone());
        }
        old.rerender(tree, root, windows)?
    };
    Ok(if old.same_as(&new) { old.clone() } else { Arc::new(new) })
}

/// Tells the listeners of every space whose view differs.
fn tell_changes(listeners: &[Registered], steps: &[Step]) -> Result<(), MemoryError> {
    let mut changes = Vec::new();
    for step in steps.iter().filter(|step| step.changes_view()) {
        let mut announcement = Announcement::between(&step.old, &step.new);
        if announcement.diff.is_empty() {
            // The same, shared with another space from now on.
            continue;
        }
        if let Some((_, events)) = &step.events {
            announcement.coalesced_gone.clone_from(&events.coalesced_gone);
            announcement.coalesced_new.clone_from(&events.coalesced_new);
        }
        changes.push(SpaceChange { space: step.space, old: &step.old, announcement });
    }
    let hearing = |space| changes.iter().any(|change| change.space == space);
    let listeners: Vec<_> = listeners.iter().filter(|registered| hearing(registered.space)).collect();
    tell_all(&listeners, &changes)
}

/// Lets readers see the new views, then tells what happens outside transactions (rules R21, R26).
fn publish(spaces: &mut [Space], listeners: &[Registered], steps: Vec<Step>) {
    for (space, step) in spaces.iter_mut().zip(&steps) {
        if step.changes_view() {
            space.published.store(step.new.clone());
        }
    }
    let listeners: Vec<&Registered> = listeners.iter().collect();
    for (space, step) in spaces.iter_mut().zip(steps) {
        let Some((events, change)) = step.events else { continue };
        space.events = events;
        let mut audience = Hearers { space: space.key, listeners: &listeners };
        let mut unchanged = Announcement::between(&step.old, &step.new);
        if unchanged.diff.is_empty() {
            unchanged.coalesced_gone = change.coalesced_gone;
            unchanged.coalesced_new = change.coalesced_new;
            unchanged.tell(&mut audience);
        }
        for eventfd in &change.eventfds_gone {
            audience.each(Order::Reverse, &mut |listener| listener.eventfd_del(eventfd));
        }
        for eventfd in &change.eventfds_new {
            audience.each(Order::Forward, &mut |listener| listener.eventfd_add(eventfd));
        }
    }
}
