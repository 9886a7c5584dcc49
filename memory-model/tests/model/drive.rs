//! Random edits, made to the model and to the tree alike; both must agree on what is refused.

use std::sync::Arc;

use memory_model::{DirtyClients, Eventfd, Hva, MemoryError, RamBlock, RegionId, RegionTree};

use super::devices::{NoDevice, NoTranslation};
use super::{Kind, Model, Node, Place};

/// Addresses that the random trees use; [`RAM_SIZE`] and the roots reach further.
pub const UNIVERSE: u64 = 40;
pub const RAM_SIZE: u64 = 0x1000;

/// One edit, taken from random bytes.
pub type Bytes = [u8; 6];

/// Model and ids of the tree, side by side.
#[derive(Clone)]
pub struct Pair {
    pub model: Model,
    pub ids: Vec<RegionId>,
}

impl Pair {
    /// A pair of a root of 2^64 bytes and a container in it, where the edits happen.
    pub fn new(base: u64) -> (Self, RegionTree) {
        let mut tree = RegionTree::new("root", 1 << 64).unwrap();
        let mut pair = Self { model: Model::default(), ids: Vec::new() };
        pair.push(Kind::Container, 1 << 64, tree.root());
        let inner = tree.container("inner", UNIVERSE.into()).unwrap();
        pair.push(Kind::Container, UNIVERSE.into(), inner);
        tree.add(tree.root(), base, inner).unwrap();
        pair.place(1, Place { parent: 0, offset: base, priority: 0, stamp: 0 });
        (pair, tree)
    }

    fn push(&mut self, kind: Kind, size: u128, id: RegionId) {
        let node = Node {
            kind,
            size,
            enabled: true,
            readonly: false,
            nonvolatile: false,
            unmergeable: false,
            romd: true,
            log: DirtyClients::empty(),
            place: None,
        };
        self.model.nodes.push(Some(node));
        self.ids.push(id);
    }

    fn place(&mut self, child: usize, place: Place) {
        self.model.stamp += 1;
        let stamp = self.model.stamp;
        self.model.node_mut(child).place = Some(Place { stamp, ..place });
    }

    /// A living node, but not the root.
    fn pick(&self, byte: u8) -> usize {
        let living: Vec<_> = (1..self.ids.len()).filter(|&id| self.model.node(id).is_some()).collect();
        living[usize::from(byte) % living.len()]
    }

    /// Makes an edit. Whether the tree takes it must be what the model says.
    pub fn edit(&mut self, tree: &mut RegionTree, bytes: Bytes) {
        let [what, who, whom, at, size, flag] = bytes;
        let id = self.pick(who);
        let flag = flag % 3 == 0;
        let at = u64::from(at) % UNIVERSE;
        // The container in which everything happens stays where it is.
        let fixed = id == 1 && matches!(what % 26, 8..15 | 23);
        match what % 26 {
            _ if fixed => {}
            0..8 => self.create(tree, what, whom, at, size),
            8..11 => self.move_to(tree, id, at),
            11 => self.priority(tree, id, i32::from(size % 3) - 1),
            12 => self.remove(tree, id),
            13 => self.add(tree, self.pick(whom), at, id, i32::from(size % 3) - 1),
            14 => self.resize(tree, id, u128::from(size) % 24),
            15..18 => self.set(tree, id, flag, RegionTree::set_enabled, |node| &mut node.enabled),
            18 => self.set(tree, id, flag, RegionTree::set_readonly, |node| &mut node.readonly),
            19 => self.set(tree, id, flag, RegionTree::set_unmergeable, |node| &mut node.unmergeable),
            20 => match flag {
                true => self.romd(tree, id, at.is_multiple_of(2)),
                false => self.set(tree, id, at.is_multiple_of(2), RegionTree::set_nonvolatile, |node| {
                    &mut node.nonvolatile
                }),
            },
            21 => self.log(tree, id, DirtyClients::from_bits_truncate(size)),
            22 => self.alias_offset(tree, id, at),
            23 => self.destroy(tree, id),
            24 => self.eventfd(tree, id, at % 8, size),
            _ => self.coalesced(tree, id, at % 8, size),
        }
    }

    /// Creates a region and places it, as most regions are.
    fn create(&mut self, tree: &mut RegionTree, what: u8, whom: u8, at: u64, size: u8) {
        let name = format!("n{}", self.ids.len());
        let bytes = u128::from(size % 16 + 1);
        let block = || RamBlock::foreign(&name, Hva(0x7000_0000_0000), RAM_SIZE).unwrap();
        let target = self.pick(whom);
        let (kind, id) = match what % 8 {
            0 => (Kind::Container, tree.container(&name, bytes)),
            1 => (Kind::Ram, tree.ram(&name, block())),
            2 => match size % 3 {
                0 => (Kind::RomDevice, tree.rom_device(&name, block(), Arc::new(NoDevice))),
                1 => (Kind::RamDevice, tree.ram_device(&name, block())),
                _ => (Kind::Iommu, tree.iommu(&name, bytes, Arc::new(NoTranslation))),
            },
            3 => (Kind::Mmio, tree.mmio(&name, bytes, Arc::new(NoDevice))),
            4 => (Kind::Reservation, tree.reservation(&name, bytes)),
            _ => {
                let offset = u64::from(size / 16) % 8;
                (Kind::Alias { target, offset }, tree.alias(&name, self.ids[target], offset, bytes))
            }
        };
        let id = id.unwrap();
        let node = self.ids.len();
        let created = tree.get(id).unwrap().size();
        self.push(kind, created, id);
        if created == u128::from(RAM_SIZE) {
            self.resize(tree, node, bytes);
        }
        let parent = if whom.is_multiple_of(2) { 1 } else { self.pick(whom / 2) };
        self.add(tree, parent, at, node, i32::from(whom % 3) - 1);
    }

    fn add(&mut self, tree: &mut RegionTree, parent: usize, offset: u64, child: usize, priority: i32) {
        let answer = tree.add_with_priority(self.ids[parent], offset, self.ids[child], priority);
        let (model, node) = (&self.model, self.model.node(child).unwrap());
        let expected = if node.place.is_some() {
            Err("placed")
        } else if matches!(model.node(parent).unwrap().kind, Kind::Alias { .. }) {
            Err("alias")
        } else if model.shows(child, parent) {
            Err("cycle")
        } else {
            Ok(())
        };
        match (answer, expected) {
            (Ok(()), Ok(())) => self.place(child, Place { parent, offset, priority, stamp: 0 }),
            (Err(MemoryError::AlreadyPlaced { .. }), Err("placed"))
            | (Err(MemoryError::ChildOfAlias { .. }), Err("alias"))
            | (Err(MemoryError::Cycle { .. }), Err("cycle")) => {}
            (answer, expected) => panic!("adding {child} to {parent}: {answer:?}, not {expected:?}"),
        }
    }

    fn remove(&mut self, tree: &mut RegionTree, id: usize) {
        let placed = self.model.node_mut(id).place.take().is_some();
        assert_eq!(tree.remove(self.ids[id]).is_ok(), placed);
    }

    fn move_to(&mut self, tree: &mut RegionTree, id: usize, offset: u64) {
        let place = self.model.node(id).unwrap().place;
        assert_eq!(tree.set_offset(self.ids[id], offset).is_ok(), place.is_some());
        if let Some(place) = place.filter(|place| place.offset != offset) {
            self.place(id, Place { offset, ..place });
        }
    }

    fn priority(&mut self, tree: &mut RegionTree, id: usize, priority: i32) {
        let place = self.model.node(id).unwrap().place;
        assert_eq!(tree.set_priority(self.ids[id], priority).is_ok(), place.is_some());
        if let Some(place) = place.filter(|place| place.priority != priority) {
            self.place(id, Place { priority, ..place });
        }
    }

    fn resize(&mut self, tree: &mut RegionTree, id: usize, size: u128) {
        let answer = tree.set_size(self.ids[id], size);
        assert_eq!(answer.is_ok(), size > 0);
        if size > 0 {
            self.model.node_mut(id).size = size;
        }
    }

    fn set(
        &mut self,
        tree: &mut RegionTree,
        id: usize,
        on: bool,
        setter: impl FnOnce(&mut RegionTree, RegionId, bool) -> Result<(), MemoryError>,
        field: impl FnOnce(&mut Node) -> &mut bool,
    ) {
        setter(tree, self.ids[id], on).unwrap();
        *field(self.model.node_mut(id)) = on;
    }

    fn romd(&mut self, tree: &mut RegionTree, id: usize, on: bool) {
        let node = self.model.node_mut(id);
        assert_eq!(tree.set_romd(self.ids[id], on).is_ok(), node.kind == Kind::RomDevice);
        node.romd = on;
    }

    fn log(&mut self, tree: &mut RegionTree, id: usize, clients: DirtyClients) {
        tree.set_dirty_log(self.ids[id], clients).unwrap();
        self.model.node_mut(id).log = clients;
    }

    fn alias_offset(&mut self, tree: &mut RegionTree, id: usize, to: u64) {
        let answer = tree.set_alias_offset(self.ids[id], to);
        match &mut self.model.node_mut(id).kind {
            Kind::Alias { offset, .. } => *offset = to,
            _ => assert!(matches!(answer, Err(MemoryError::NotAlias { .. }))),
        }
    }

    /// What is seen of eventfds is told by the listener of a new space, which looks at everything.
    fn eventfd(&mut self, tree: &mut RegionTree, id: usize, offset: u64, size: u8) {
        let eventfd =
            Eventfd { offset, size: [0, 1, 2, 4, 8][usize::from(size % 5)], data: None, fd: id as i32 };
        let region = tree.get(self.ids[id]).unwrap();
        let known = region.eventfds().contains(&eventfd);
        let fits = u128::from(offset) + u128::from(eventfd.size.max(1)) <= region.size();
        match known {
            true => tree.del_eventfd(self.ids[id], eventfd).unwrap(),
            false => assert_eq!(tree.add_eventfd(self.ids[id], eventfd).is_ok(), fits),
        }
    }

    fn coalesced(&mut self, tree: &mut RegionTree, id: usize, offset: u64, size: u8) {
        let (len, region) = (u64::from(size % 8), tree.get(self.ids[id]).unwrap());
        let fits = len > 0 && u128::from(offset + len) <= region.size();
        match region.coalesced().is_empty() {
            true => assert_eq!(tree.add_coalesced(self.ids[id], offset, len).is_ok(), fits),
            false => tree.clear_coalesced(self.ids[id]).unwrap(),
        }
    }

    fn destroy(&mut self, tree: &mut RegionTree, id: usize) {
        let shown = self
            .model
            .nodes
            .iter()
            .flatten()
            .any(|node| matches!(node.kind, Kind::Alias { target, .. } if target == id));
        let placed = self.model.node(id).unwrap().place.is_some();
        let free = id != 1 && !placed && !shown && self.model.children(id).is_empty();
        let answer = tree.destroy(self.ids[id]);
        match (free, answer) {
            (true, Ok(())) => self.model.nodes[id] = None,
            (false, Err(MemoryError::InUse { .. })) => {}
            (_, answer) => panic!("destroying {id}: {answer:?}"),
        }
    }
}
