//! The tree of regions and its edits. Rendering it is [`FlatView::render`](crate::FlatView::render)'s work.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::{MemoryError, MmioOps, RamBlock, Region, RegionId, RegionKind};

/// The longest region: the whole 64-bit space.
const MAX_SIZE: u128 = 1 << 64;

/// QEMU's tree of `MemoryRegion`s: regions by id, each in at most one container, seen from a root.
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
/// let view = FlatView::render(&tree);
/// let bios = view.find(Gpa(0xf008)).unwrap();
/// assert!(bios.readonly);
/// assert_eq!(bios.hva(Gpa(0xf008)), Some(Hva(0x7000_0008_0008)));
/// # Ok::<(), memory_model::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RegionTree {
    regions: BTreeMap<RegionId, Region>,
    next_id: u32,
    root: RegionId,
}

impl RegionTree {
    /// A tree whose root is a container of `size` bytes.
    pub fn new(root_name: &str, size: u128) -> Result<Self, MemoryError> {
        let mut tree = Self { regions: BTreeMap::new(), next_id: 0, root: RegionId(0) };
        tree.root = tree.container(root_name, size)?;
        Ok(tree)
    }

    /// The region that the address space shows.
    pub fn root(&self) -> RegionId {
        self.root
    }

    /// A region by its id.
    pub fn get(&self, id: RegionId) -> Result<&Region, MemoryError> {
        self.regions.get(&id).ok_or(MemoryError::NoSuchRegion(id))
    }

    /// All regions, placed or not, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (RegionId, &Region)> {
        self.regions.iter().map(|(&id, region)| (id, region))
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

    /// Creates a device region.
    pub fn mmio(&mut self, name: &str, size: u128, ops: Arc<dyn MmioOps>) -> Result<RegionId, MemoryError> {
        self.create(name, size, RegionKind::Mmio(ops))
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

    /// Places `child` at priority 0.
    pub fn add(&mut self, container: RegionId, offset: u64, child: RegionId) -> Result<(), MemoryError> {
        self.add_with_priority(container, offset, child, 0)
    }

    /// Places `child` in `container`, `offset` bytes from its start. Where siblings overlap the higher
    /// priority is seen, and among equals the one added last (rules R9, R10).
    pub fn add_with_priority(
        &mut self,
        container: RegionId,
        offset: u64,
        child: RegionId,
        priority: i32,
    ) -> Result<(), MemoryError> {
        self.check_placing(container, child)?;
        let siblings = &self.get(container)?.subregions;
        let position = siblings
            .iter()
            .position(|&sibling| self.regions[&sibling].priority <= priority)
            .unwrap_or(siblings.len());
        self.get_mut(container)?.subregions.insert(position, child);
        let child = self.get_mut(child)?;
        child.container = Some(container);
        child.offset = offset;
        child.priority = priority;
        Ok(())
    }

    /// Takes `child` out of its container; it can be placed again.
    pub fn remove(&mut self, child: RegionId) -> Result<(), MemoryError> {
        let region = self.get(child)?;
        let container =
            region.container.ok_or_else(|| MemoryError::NotPlaced { region: region.name.to_string() })?;
        self.get_mut(container)?.subregions.retain(|&sibling| sibling != child);
        self.get_mut(child)?.container = None;
        Ok(())
    }

    /// Moves a placed region inside its container: it lands on top of its ties (rule R10).
    pub fn set_offset(&mut self, child: RegionId, offset: u64) -> Result<(), MemoryError> {
        let region = self.get(child)?;
        let (old, priority) = (region.offset, region.priority);
        let container =
            region.container.ok_or_else(|| MemoryError::NotPlaced { region: region.name.to_string() })?;
        if old != offset {
            self.remove(child)?;
            self.add_with_priority(container, offset, child, priority)?;
        }
        Ok(())
    }

    /// Shows or hides a region with all below it (rule R12).
    pub fn set_enabled(&mut self, id: RegionId, enabled: bool) -> Result<(), MemoryError> {
        self.get_mut(id)?.enabled = enabled;
        Ok(())
    }

    /// Makes a region, and all that is seen through it, read-only (rule R13).
    pub fn set_readonly(&mut self, id: RegionId, readonly: bool) -> Result<(), MemoryError> {
        self.get_mut(id)?.readonly = readonly;
        Ok(())
    }

    /// Forgets a region that nothing refers to any more.
    pub fn destroy(&mut self, id: RegionId) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let user = region.container.or(region.subregions.first().copied()).or_else(|| {
            let mut aliases = self.iter().filter(|(_, other)| other.kind.alias_target() == Some(id));
            aliases.next().map(|(alias, _)| alias)
        });
        if let Some(user) = user {
            let (region, user) = (region.name.to_string(), self.get(user)?.name.to_string());
            return Err(MemoryError::InUse { region, user });
        }
        self.regions.remove(&id);
        Ok(())
    }

    fn create(&mut self, name: &str, size: u128, kind: RegionKind) -> Result<RegionId, MemoryError> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(MemoryError::BadSize { region: name.to_string(), size });
        }
        let id = RegionId(self.next_id);
        self.next_id = self.next_id.checked_add(1).expect("2^32 regions do not fit in memory");
        let region = Region {
            name: name.into(),
            kind,
            size,
            offset: 0,
            priority: 0,
            enabled: true,
            readonly: false,
            container: None,
            subregions: Vec::new(),
        };
        self.regions.insert(id, region);
        Ok(id)
    }

    fn get_mut(&mut self, id: RegionId) -> Result<&mut Region, MemoryError> {
        self.regions.get_mut(&id).ok_or(MemoryError::NoSuchRegion(id))
    }

    fn check_placing(&self, container: RegionId, child: RegionId) -> Result<(), MemoryError> {
        let (parent, region) = (self.get(container)?, self.get(child)?);
        let (parent_name, region_name) = (parent.name.to_string(), region.name.to_string());
        if let Some(current) = region.container {
            let container = self.get(current)?.name.to_string();
            return Err(MemoryError::AlreadyPlaced { region: region_name, container });
        }
        if parent.kind.alias_target().is_some() {
            return Err(MemoryError::ChildOfAlias { alias: parent_name, region: region_name });
        }
        if self.shows(child, container) {
            return Err(MemoryError::Cycle { region: region_name, container: parent_name });
        }
        Ok(())
    }

    /// Whether `wanted` is `from` or can be seen through it, by children and aliases.
    fn shows(&self, from: RegionId, wanted: RegionId) -> bool {
        let mut seen = alloc::collections::BTreeSet::new();
        let mut todo = vec![from];
        while let Some(id) = todo.pop() {
            if id == wanted {
                return true;
            }
            if seen.insert(id) {
                let region = &self.regions[&id];
                todo.extend(region.kind.alias_target());
                todo.extend(&region.subregions);
            }
        }
        false
    }
}

impl RegionKind {
    fn alias_target(&self) -> Option<RegionId> {
        match self {
            Self::Alias { target, .. } => Some(*target),
            _ => None,
        }
    }
}
