//! The tree of regions. Rendering it is [`FlatView::render`](crate::FlatView::render)'s work.

mod edit;
mod journal;
mod place;
mod reach;
#[cfg(feature = "host")]
mod spaces;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::region::Attributes;
use crate::{DirtyClients, IommuOps, MemoryError, MmioOps, RamBlock, Region, RegionId, RegionKind};

use journal::Journal;
#[cfg(feature = "host")]
pub(crate) use journal::{Changes, Transaction};

/// The longest region: the whole 64-bit space.
const MAX_SIZE: u128 = 1 << 64;

/// QEMU's tree of `MemoryRegion`s: regions by id, each in at most one container, seen from a root.
///
/// Any region can be the root of an [`AddressSpace`](crate::AddressSpace); [`root`](Self::root) is the one
/// made with the tree.
///
/// ```
/// use memory_model::{FlatView, Gpa, Hva, RamBlock, RegionTree};
/// let mut tree = RegionTree::new("system", 1 << 64)?;
/// let ram = tree.ram("pc.ram", RamBlock::foreign("pc.ram", Hva(0x7000_0000_0000), 0x10_0000)?)?;
/// tree.add(tree.root(), 0, ram)?;
/// let rom = tree.alias("isa-bios", ram, 0x8_0000, 0x1000)?;
/// tree.set_readonly(rom, true)?;
/// tree.add_with_priority(tree.root(), 0xf000, rom, 1)?;
///
/// let view = FlatView::render(&tree)?;
/// let bios = view.find(Gpa(0xf008)).unwrap();
/// assert!(bios.readonly);
/// assert_eq!(bios.hva(Gpa(0xf008)), Some(Hva(0x7000_0008_0008)));
/// # Ok::<(), memory_model::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RegionTree {
    entries: Vec<Entry>,
    /// Indices of entries without a region.
    free: Vec<u32>,
    root: RegionId,
    /// How many placings there were; see [`Child::placed`](crate::region::Child::placed).
    placings: u64,
    /// Dirty logging is on for everything.
    global_log: bool,
    journal: Journal,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// The generation of the region that lives here.
    generation: u32,
    /// The generation of the region that comes next.
    next: u32,
    region: Option<Region>,
}

impl RegionTree {
    /// A tree whose root is a container of `size` bytes.
    pub fn new(root_name: &str, size: u128) -> Result<Self, MemoryError> {
        let mut tree = Self {
            entries: Vec::new(),
            free: Vec::new(),
            root: RegionId { index: 0, generation: 0 },
            placings: 0,
            global_log: false,
            journal: Journal::default(),
        };
        tree.root = tree.container(root_name, size)?;
        Ok(tree)
    }

    /// The region made with the tree.
    pub fn root(&self) -> RegionId {
        self.root
    }

    /// A region by its id.
    pub fn get(&self, id: RegionId) -> Result<&Region, MemoryError> {
        let entry = self.entries.get(id.index as usize).filter(|entry| entry.generation == id.generation);
        entry.and_then(|entry| entry.region.as_ref()).ok_or(MemoryError::NoSuchRegion(id))
    }

    /// All regions, placed or not.
    pub fn iter(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.entries.iter().zip(0..).filter_map(|(entry, index)| {
            Some((RegionId { index, generation: entry.generation }, entry.region.as_ref()?))
        })
    }

    /// Whether dirty logging is on for everything (QEMU's `global_dirty_tracking`).
    pub fn global_log(&self) -> bool {
        self.global_log
    }

    /// Creates a container.
    pub fn container(&mut self, name: &str, size: u128) -> Result<RegionId, MemoryError> {
        self.create(name, size, RegionKind::Container)
    }

    /// Creates a region that shows a whole RAM block.
    pub fn ram(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MemoryError> {
        self.create(name, block.size().into(), RegionKind::Ram(block))
    }

    /// Creates memory that neither guest nor devices can write.
    pub fn rom(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MemoryError> {
        let id = self.ram(name, block)?;
        self.set_readonly(id, true)?;
        Ok(id)
    }

    /// Creates memory that is read directly, and written through `ops` (rule R7): flash, for instance.
    pub fn rom_device(
        &mut self,
        name: &str,
        block: Arc<RamBlock>,
        ops: Arc<dyn MmioOps>,
    ) -> Result<RegionId, MemoryError> {
        self.create(name, block.size().into(), RegionKind::RomDevice { block, ops })
    }

    /// Creates the mapped memory of a real device (rule R8).
    pub fn ram_device(&mut self, name: &str, block: Arc<RamBlock>) -> Result<RegionId, MemoryError> {
        self.create(name, block.size().into(), RegionKind::RamDevice(block))
    }

    /// Creates a device region.
    pub fn mmio(&mut self, name: &str, size: u128, ops: Arc<dyn MmioOps>) -> Result<RegionId, MemoryError> {
        self.create(name, size, RegionKind::Mmio(ops))
    }

    /// Creates a region that translates what reaches it.
    pub fn iommu(&mut self, name: &str, size: u128, ops: Arc<dyn IommuOps>) -> Result<RegionId, MemoryError> {
        self.create(name, size, RegionKind::Iommu(ops))
    }

    /// Creates a region that hides what is below it (rule R5).
    pub fn reservation(&mut self, name: &str, size: u128) -> Result<RegionId, MemoryError> {
        self.create(name, size, RegionKind::Reservation)
    }

    /// Creates an alias of `size` bytes of `target`, from `offset` on; what reaches past the target's
    /// end shows nothing (rule R3).
    pub fn alias(
        &mut self,
        name: &str,
        target: RegionId,
        offset: u64,
        size: u128,
    ) -> Result<RegionId, MemoryError> {
        self.get(target)?;
        self.create(name, size, RegionKind::Alias { target, offset })
    }

    /// Forgets a region that nothing refers to any more.
    pub fn destroy(&mut self, id: RegionId) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let children = region.children.first().map(|child| child.id);
        let user = region.container.or(children).or(region.aliases.first().copied());
        let user = match user {
            Some(user) => Some(self.name_of(user)),
            None if region.roots > 0 => Some("an address space".to_string()),
            None if id == self.root => Some("the tree".to_string()),
            None => None,
        };
        if let Some(user) = user {
            return Err(MemoryError::InUse { region: region.name.to_string(), user });
        }
        let region = self.take(id);
        self.journal.destroyed(id, region);
        Ok(())
    }

    fn create(&mut self, name: &str, size: u128, kind: RegionKind) -> Result<RegionId, MemoryError> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(MemoryError::BadSize { region: name.to_string(), size });
        }
        let region = Region {
            name: name.into(),
            kind,
            attributes: Attributes {
                size,
                offset: 0,
                priority: 0,
                enabled: true,
                readonly: false,
                nonvolatile: false,
                unmergeable: false,
                romd: true,
                dirty_log: DirtyClients::empty(),
            },
            container: None,
            placed: 0,
            children: Vec::new(),
            aliases: Vec::new(),
            roots: 0,
            eventfds: Vec::new(),
            coalesced: Vec::new(),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            u32::try_from(self.entries.len() - 1).expect("2^32 regions do not fit in memory")
        });
        let entry = &mut self.entries[index as usize];
        let id = RegionId { index, generation: entry.next };
        entry.next += 1;
        self.put(id, region);
        self.journal.created(id);
        Ok(id)
    }

    /// Lets a region live at its index.
    fn put(&mut self, id: RegionId, region: Region) {
        if let Some(target) = region.kind.alias_target() {
            self.at_mut(target).aliases.push(id);
        }
        let entry = &mut self.entries[id.index as usize];
        entry.generation = id.generation;
        entry.region = Some(region);
    }

    /// Takes a region out that nothing refers to.
    fn take(&mut self, id: RegionId) -> Region {
        let entry = &mut self.entries[id.index as usize];
        let region = entry.region.take().expect("checked by the caller");
        // An index whose generations are used up stays empty.
        if entry.next < u32::MAX {
            self.free.push(id.index);
        }
        if let Some(target) = region.kind.alias_target() {
            self.at_mut(target).aliases.retain(|&alias| alias != id);
        }
        region
    }

    /// A region that is known to live, as the ids inside the tree are.
    pub(crate) fn at(&self, id: RegionId) -> &Region {
        self.entries[id.index as usize].region.as_ref().expect("edits keep the ids inside the tree valid")
    }

    fn at_mut(&mut self, id: RegionId) -> &mut Region {
        self.entries[id.index as usize].region.as_mut().expect("edits keep the ids inside the tree valid")
    }

    fn name_of(&self, id: RegionId) -> String {
        self.at(id).name.to_string()
    }
}
