//! The listeners of all spaces of a tree, and how they are told a transaction.

use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::shared::{SpaceKey, State};
use crate::announce::{Announcement, Audience, Order};
use crate::{FlatView, MemoryError, MemoryListener, Refusal};

pub(super) type SharedListener = Arc<Mutex<dyn MemoryListener>>;

pub(super) struct Registered {
    pub(super) space: SpaceKey,
    priority: i32,
    listener: SharedListener,
}

impl Registered {
    pub(super) fn lock(&self) -> MutexGuard<'_, dyn MemoryListener + 'static> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refused(&self, source: Refusal) -> MemoryError {
        MemoryError::Listener { listener: self.lock().name().to_string(), source }
    }
}

/// Those listeners of one space that take part.
pub(super) struct Hearers<'a> {
    pub(super) space: SpaceKey,
    pub(super) listeners: &'a [&'a Registered],
}

impl Audience for Hearers<'_> {
    fn each(&mut self, order: Order, call: &mut dyn FnMut(&mut dyn MemoryListener)) {
        let own = self.listeners.iter().filter(|registered| registered.space == self.space);
        match order {
            Order::Forward => own.for_each(|registered| call(&mut *registered.lock())),
            Order::Reverse => own.rev().for_each(|registered| call(&mut *registered.lock())),
        }
    }
}

/// What one space announces.
pub(super) struct SpaceChange<'a> {
    pub(super) space: SpaceKey,
    pub(super) old: &'a FlatView,
    pub(super) announcement: Announcement<'a>,
}

impl SpaceChange<'_> {
    /// The way back.
    fn inverse(&self) -> SpaceChange<'_> {
        let new = self.announcement.view;
        let announcement = Announcement {
            coalesced_gone: self.announcement.coalesced_new.clone(),
            coalesced_new: self.announcement.coalesced_gone.clone(),
            ..Announcement::between(new, self.old)
        };
        SpaceChange { space: self.space, old: new, announcement }
    }
}

/// Tells all `listeners`, in order, all changes in one transaction. If one refuses, those that committed
/// before it are told the way back, and those that did not yet commit are told to forget.
pub(super) fn tell_all(listeners: &[&Registered], changes: &[SpaceChange<'_>]) -> Result<(), MemoryError> {
    tell(listeners, changes);
    for (index, registered) in listeners.iter().enumerate() {
        let Err(source) = registered.lock().commit() else { continue };
        listeners[index + 1..].iter().for_each(|later| later.lock().abort());
        let committed = &listeners[..index];
        tell(committed, &changes.iter().map(SpaceChange::inverse).collect::<Vec<_>>());
        for earlier in committed {
            // The way back leads to a state the listener held a moment ago. One that refuses even that
            // has said so in its own words; the first refusal is the one to report.
            let _ = earlier.lock().commit();
        }
        return Err(registered.refused(source));
    }
    Ok(())
}

fn tell(listeners: &[&Registered], changes: &[SpaceChange<'_>]) {
    listeners.iter().for_each(|registered| registered.lock().begin());
    for change in changes {
        change.announcement.tell(&mut Hearers { space: change.space, listeners });
    }
}

impl State {
    pub(super) fn register(
        &mut self,
        space: SpaceKey,
        listener: SharedListener,
        priority: i32,
    ) -> Result<(), MemoryError> {
        let registered = Registered { space, priority, listener };
        self.replay(&registered)?;
        let position = self.listeners.partition_point(|other| other.priority <= priority);
        self.listeners.insert(position, registered);
        Ok(())
    }

    /// Rule R29.
    fn replay(&self, registered: &Registered) -> Result<(), MemoryError> {
        let space = self.space(registered.space);
        let mut listener = registered.lock();
        let name: String = listener.name().to_string();
        listener.begin();
        if self.tree.global_log()
            && let Err(source) = listener.log_global_start()
        {
            listener.abort();
            return Err(MemoryError::GlobalLog { listener: name, source });
        }
        let view = space.published.load();
        let mut coalesced = space.events.coalesced().peekable();
        for range in view.ranges() {
            listener.region_add(range);
            while let Some(part) = coalesced.next_if(|part| part.first() <= range.range.last()) {
                listener.coalesced_add(part);
            }
            if !range.dirty_mask.is_empty() {
                listener.log_start(range, Default::default(), range.dirty_mask);
            }
        }
        if let Err(source) = listener.commit() {
            if self.tree.global_log() {
                listener.log_global_stop();
            }
            return Err(MemoryError::Listener { listener: name, source });
        }
        space.events.eventfds().for_each(|eventfd| listener.eventfd_add(eventfd));
        Ok(())
    }

    /// Rule R30.
    pub(super) fn unregister(
        &mut self,
        space: SpaceKey,
        listener: &SharedListener,
    ) -> Result<(), MemoryError> {
        let is_it = |other: &Registered| other.space == space && Arc::ptr_eq(&other.listener, listener);
        let Some(position) = self.listeners.iter().position(is_it) else { return Ok(()) };
        let registered = self.listeners.remove(position);
        let space = self.space(space);
        let view: Arc<FlatView> = space.published.load_full();
        let mut listener = registered.lock();
        listener.begin();
        let mut coalesced = space.events.coalesced().peekable();
        for range in view.ranges() {
            if !range.dirty_mask.is_empty() {
                listener.log_stop(range, range.dirty_mask, Default::default());
            }
            while let Some(part) = coalesced.next_if(|part| part.first() <= range.range.last()) {
                listener.coalesced_del(part);
            }
            listener.region_del(range);
        }
        let name = listener.name().to_string();
        let answer = listener.commit().map_err(|source| MemoryError::Listener { listener: name, source });
        space.events.eventfds().for_each(|eventfd| listener.eventfd_del(eventfd));
        answer
    }
}
