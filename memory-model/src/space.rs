//! An address space: a tree, the view published from it, and those who listen to its changes.

use std::string::ToString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use arc_swap::ArcSwap;

use crate::{FlatView, MemoryError, MemoryListener, RegionTree};

type SharedListener = Arc<Mutex<dyn MemoryListener>>;

/// QEMU's `AddressSpace`: edits happen in transactions, readers take snapshots and never lock.
///
/// ```
/// use memory_model::{AddressSpace, Gpa, MemoryError, RamBlock, RegionTree};
/// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?);
/// let ram = space.update(|tree| {
///     let ram = tree.ram("ram", RamBlock::anonymous("ram", 0x20_0000)?)?;
///     tree.add(tree.root(), 0, ram)?;
///     Ok::<_, MemoryError>(ram)
/// })?;
/// let before = space.view();
/// space.update(|tree| tree.set_enabled(ram, false))?;
/// assert!(before.find(Gpa(0)).is_some(), "a snapshot keeps what it shows");
/// assert!(space.view().find(Gpa(0)).is_none());
/// # Ok::<(), MemoryError>(())
/// ```
pub struct AddressSpace {
    name: String,
    view: ArcSwap<FlatView>,
    state: Mutex<State>,
}

struct State {
    tree: RegionTree,
    listeners: Vec<SharedListener>,
}

impl AddressSpace {
    /// An address space that shows `tree` from its root.
    pub fn new(name: &str, tree: RegionTree) -> Self {
        let view = ArcSwap::from_pointee(FlatView::render(&tree));
        Self { name: name.to_string(), view, state: Mutex::new(State { tree, listeners: Vec::new() }) }
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The view in force: a snapshot that stays as it is, with the memory it shows (rule R19).
    pub fn view(&self) -> Arc<FlatView> {
        self.view.load_full()
    }

    /// Changes the tree in one transaction: the view is rendered once, the listeners hear the difference
    /// once, and only then is it published. If `edit` or a listener fails, or `edit` panics, nothing has
    /// happened: the tree, the view and the listeners stand as before.
    ///
    /// A listener must not update the space it listens to: it would wait for itself.
    pub fn update<T, E: From<MemoryError>>(
        &self,
        edit: impl FnOnce(&mut RegionTree) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.lock();
        let mut tree = state.tree.clone();
        let answer = edit(&mut tree)?;
        let (old, new) = (self.view(), FlatView::render(&tree));
        tell_all(&state.listeners, &old, &new)?;
        state.tree = tree;
        if !old.same_as(&new) {
            self.view.store(Arc::new(new));
        }
        Ok(answer)
    }

    /// Reads the tree under the same lock as updates.
    pub fn with_tree<T>(&self, read: impl FnOnce(&RegionTree) -> T) -> T {
        read(&self.lock().tree)
    }

    /// Adds a listener. It hears the present view as if it had listened from the start (rule R29).
    pub fn register<L: MemoryListener + 'static>(&self, listener: Arc<Mutex<L>>) -> Result<(), MemoryError> {
        let mut state = self.lock();
        let listener: SharedListener = listener;
        tell_all(std::slice::from_ref(&listener), &FlatView::default(), &self.view())?;
        state.listeners.push(listener);
        Ok(())
    }

    /// Removes a listener, which hears every range go (rule R30).
    pub fn unregister<L: MemoryListener + 'static>(
        &self,
        listener: &Arc<Mutex<L>>,
    ) -> Result<(), MemoryError> {
        let mut state = self.lock();
        let listener: SharedListener = listener.clone();
        let before = state.listeners.len();
        state.listeners.retain(|known| !Arc::ptr_eq(known, &listener));
        if state.listeners.len() < before {
            tell_all(&[listener], &self.view(), &FlatView::default())?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // An edit works on a copy, so a panic inside it leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells every listener, in order; if one refuses, those before it are told the way back.
fn tell_all(listeners: &[SharedListener], old: &FlatView, new: &FlatView) -> Result<(), MemoryError> {
    for (index, listener) in listeners.iter().enumerate() {
        let Err((name, source)) = tell(listener, old, new) else { continue };
        for earlier in listeners[..index].iter().rev() {
            // The way back leads to a state the listener held a moment ago. One that refuses even that
            // has said so in its own words; the first refusal is the one to report.
            let _ = tell(earlier, new, old);
        }
        return Err(MemoryError::Listener { listener: name, source });
    }
    Ok(())
}

fn tell(
    listener: &SharedListener,
    old: &FlatView,
    new: &FlatView,
) -> Result<(), (String, crate::listener::Refusal)> {
    let mut listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
    old.announce_change(new, &mut *listener).map_err(|source| (listener.name().to_string(), source))
}
