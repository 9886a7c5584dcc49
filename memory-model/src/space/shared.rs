//! What the address spaces of one tree share: the tree, the listeners, the lock.

use std::ops::{Deref, DerefMut};
use std::string::ToString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::vec::Vec;

use arc_swap::ArcSwap;

use super::events::Events;
use super::listeners::Registered;
use crate::flat::reduced_root;
use crate::{FlatView, MemoryError, RegionId, RegionTree};

/// Tells the address spaces of one tree apart.
pub(super) type SpaceKey = u64;

pub(super) struct Shared {
    state: Mutex<State>,
    /// Which thread holds the lock: a number of [`thread_number`], or 0.
    holder: AtomicUsize,
}

pub(super) struct State {
    pub(super) tree: RegionTree,
    pub(super) spaces: Vec<Space>,
    /// Of all spaces, in the order in which they are told what comes (rule R24).
    pub(super) listeners: Vec<Registered>,
    /// What every space shows that shows nothing.
    pub(super) empty: Arc<FlatView>,
    /// The guest runs; see [`AddressSpace::set_running`](super::AddressSpace::set_running).
    pub(super) running: bool,
    /// Logging everything ends as soon as the guest runs (rule R32).
    pub(super) stop_pending: bool,
    next_key: SpaceKey,
}

/// One address space, as its siblings know it.
pub(super) struct Space {
    pub(super) key: SpaceKey,
    pub(super) root: RegionId,
    pub(super) published: Arc<ArcSwap<FlatView>>,
    /// The eventfds and coalesced parts in sight.
    pub(super) events: Events,
    alive: Weak<()>,
}

/// The state, locked by this thread.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    holder: &'a AtomicUsize,
}

impl Shared {
    pub(super) fn new(tree: RegionTree) -> Self {
        let state = State {
            tree,
            spaces: Vec::new(),
            listeners: Vec::new(),
            empty: Arc::default(),
            running: true,
            stop_pending: false,
            next_key: 0,
        };
        Self { state: Mutex::new(state), holder: AtomicUsize::new(0) }
    }

    /// Locks, or says that this very thread holds the lock already; `name` is who asks.
    pub(super) fn lock(&self, name: &str) -> Result<Locked<'_>, MemoryError> {
        let me = thread_number();
        // Only this thread ever stores its own number, so no other order matters.
        if self.holder.load(Ordering::Relaxed) == me {
            return Err(MemoryError::NestedUpdate { space: name.to_string() });
        }
        // A panic inside an edit takes the edit back on its way out, so the state is whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.holder.store(me, Ordering::Relaxed);
        let mut locked = Locked { state, holder: &self.holder };
        locked.forget_dropped_spaces();
        Ok(locked)
    }
}

/// A number that no other living thread has, and never 0.
fn thread_number() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| core::ptr::from_ref(mark).addr())
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

impl Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl State {
    pub(super) fn add_space(
        &mut self,
        root: RegionId,
        alive: &Arc<()>,
    ) -> Result<(SpaceKey, Arc<ArcSwap<FlatView>>), MemoryError> {
        self.tree.get(root)?;
        let view = self.first_view(root)?;
        self.tree.use_as_root(root);
        self.next_key += 1;
        let key = self.next_key;
        let published = Arc::new(ArcSwap::new(view.clone()));
        self.spaces.push(Space {
            key,
            root,
            published: published.clone(),
            events: Events::seen(&self.tree, &view),
            alive: Arc::downgrade(alive),
        });
        Ok((key, published))
    }

    /// The view of a new space: that of another one if they come to the same.
    fn first_view(&self, root: RegionId) -> Result<Arc<FlatView>, MemoryError> {
        let Some(reduced) = reduced_root(&self.tree, root) else { return Ok(self.empty.clone()) };
        let same = |space: &&Space| reduced_root(&self.tree, space.root) == Some(reduced);
        match self.spaces.iter().find(same) {
            Some(space) => Ok(space.published.load_full()),
            None => Ok(Arc::new(FlatView::render_from(&self.tree, root)?)),
        }
    }

    pub(super) fn space(&self, key: SpaceKey) -> &Space {
        self.spaces.iter().find(|space| space.key == key).expect("a space that is asked is alive")
    }

    fn forget_dropped_spaces(&mut self) {
        let Self { tree, spaces, listeners, .. } = self;
        spaces.retain(|space| {
            let alive = space.alive.strong_count() > 0;
            if !alive {
                tree.release_root(space.root);
                listeners.retain(|registered| registered.space != space.key);
            }
            alive
        });
    }
}
