//! An address space: a tree, the view published from it, and those who listen to its changes.

mod commit;
mod events;
mod listeners;
mod logging;
mod shared;

use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, Cache};

use crate::{BounceBudget, FlatView, MemoryError, MemoryListener, RegionId, RegionTree};
use shared::{Locked, Shared, SpaceKey};

/// QEMU's `AddressSpace`: edits happen in transactions, readers take snapshots and never lock.
///
/// ```
/// use memory_model::{AddressSpace, Gpa, MemoryError, RamBlock, RegionTree};
/// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
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
    name: Arc<str>,
    published: Arc<ArcSwap<FlatView>>,
    shared: Arc<Shared>,
    key: SpaceKey,
    pub(crate) bounce: Arc<BounceBudget>,
    /// The last one gone tells the other spaces of the tree that this one is no more.
    _alive: Arc<()>,
}

impl AddressSpace {
    /// An address space that shows `tree` from its own root.
    pub fn new(name: &str, tree: RegionTree) -> Result<Self, MemoryError> {
        let root = tree.root();
        Self::join(name, Arc::new(Shared::new(tree)), root)
    }

    /// Another address space over the same tree, seen from `root`. All of a tree's spaces change in the same
    /// transactions, and those whose roots come to the same share one view (rule R18). Dropping a space takes
    /// it off the tree; its listeners hear nothing of that.
    pub fn sibling(&self, name: &str, root: RegionId) -> Result<Self, MemoryError> {
        Self::join(name, self.shared.clone(), root)
    }

    fn join(name: &str, shared: Arc<Shared>, root: RegionId) -> Result<Self, MemoryError> {
        let (name, alive) = (Arc::from(name), Arc::new(()));
        let mut state = shared.lock(&name)?;
        let (key, published) = state.add_space(root, &alive)?;
        drop(state);
        Ok(Self { name, published, shared, key, bounce: BounceBudget::new(), _alive: alive })
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The view in force: a snapshot that stays as it is, with the memory it shows (rule R19). Who looks often
    /// asks a [`reader`](Self::reader) instead, which costs a tenth.
    pub fn view(&self) -> Arc<FlatView> {
        self.published.load_full()
    }

    /// A reader that keeps the last view it saw, for those who look often.
    pub fn reader(&self) -> ViewReader {
        ViewReader(Cache::new(self.published.clone()))
    }

    /// Changes the tree in one transaction: what can have changed is rendered once, the listeners hear the
    /// difference once, and only then is it published. If `edit` or a listener fails, or `edit` panics,
    /// nothing has happened: the tree, the views and the listeners stand as before.
    ///
    /// Transactions nest by [`RegionTree::transaction`]; an update of a space of this tree inside `edit` or
    /// inside a listener's callback gives [`MemoryError::NestedUpdate`]. `edit` must not put another tree
    /// in the place of the one it is given.
    pub fn update<T, E: From<MemoryError>>(
        &self,
        edit: impl FnOnce(&mut RegionTree) -> Result<T, E>,
    ) -> Result<T, E> {
        self.lock()?.update(edit)
    }

    /// Reads the tree under the same lock as updates.
    pub fn with_tree<T>(&self, read: impl FnOnce(&RegionTree) -> T) -> Result<T, MemoryError> {
        Ok(read(&self.lock()?.tree))
    }

    /// The region this space shows.
    pub fn root(&self) -> Result<RegionId, MemoryError> {
        Ok(self.lock()?.space(self.key).root)
    }

    /// Adds a listener of priority 0.
    pub fn register<L: MemoryListener + 'static>(&self, listener: Arc<Mutex<L>>) -> Result<(), MemoryError> {
        self.register_with_priority(listener, 0)
    }

    /// Adds a listener. It hears the present view as if it had listened from the start (rule R29), and from
    /// then on its turn is given by its priority, and among equals by the order of registration (rule R24).
    pub fn register_with_priority<L: MemoryListener + 'static>(
        &self,
        listener: Arc<Mutex<L>>,
        priority: i32,
    ) -> Result<(), MemoryError> {
        self.lock()?.register(self.key, listener, priority)
    }

    /// Removes a listener, which hears everything go (rule R30).
    pub fn unregister<L: MemoryListener + 'static>(
        &self,
        listener: &Arc<Mutex<L>>,
    ) -> Result<(), MemoryError> {
        let listener: Arc<Mutex<dyn MemoryListener>> = listener.clone();
        self.lock()?.unregister(self.key, &listener)
    }

    fn lock(&self) -> Result<Locked<'_>, MemoryError> {
        self.shared.lock(&self.name)
    }
}

/// A reader of an address space's views that keeps the last one: as long as nothing changes, a look costs
/// one load. Each thread has its own.
///
/// ```
/// use memory_model::{AddressSpace, Gpa, MemoryError, RegionTree};
/// let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
/// let mut reader = space.reader();
/// assert!(reader.view().find(Gpa(0)).is_none());
/// space.update(|tree| {
///     let hole = tree.reservation("hole", 0x1000)?;
///     tree.add(tree.root(), 0, hole)
/// })?;
/// assert!(reader.view().find(Gpa(0)).is_some());
/// # Ok::<(), MemoryError>(())
/// ```
#[derive(Clone)]
pub struct ViewReader(Cache<Arc<ArcSwap<FlatView>>, Arc<FlatView>>);

impl ViewReader {
    /// The view in force.
    pub fn view(&mut self) -> &Arc<FlatView> {
        self.0.load()
    }
}
