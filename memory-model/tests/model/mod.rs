//! A naive model of the region tree, written from the rules and sharing no code with the crate: a list of
//! nodes, asked address by address.

pub mod devices;
pub mod drive;

use memory_model::DirtyClients;

/// A node of the model, named by its place in the list.
#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub size: u128,
    pub enabled: bool,
    pub readonly: bool,
    pub nonvolatile: bool,
    pub unmergeable: bool,
    pub romd: bool,
    pub log: DirtyClients,
    pub place: Option<Place>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Container,
    Ram,
    RomDevice,
    RamDevice,
    Mmio,
    Iommu,
    Reservation,
    Alias { target: usize, offset: u64 },
}

/// Where a node sits.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub parent: usize,
    pub offset: u64,
    pub priority: i32,
    /// Grows with every placing.
    pub stamp: u64,
}

/// What the guest finds at an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub node: usize,
    pub offset: u64,
    pub readonly: bool,
    pub nonvolatile: bool,
    pub unmergeable: bool,
    pub romd: bool,
    pub mask: DirtyClients,
    /// The nodes on the way: two ways to one region are not one piece.
    pub way: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub nodes: Vec<Option<Node>>,
    pub stamp: u64,
    pub global_log: bool,
}

impl Model {
    pub fn node(&self, id: usize) -> Option<&Node> {
        self.nodes.get(id)?.as_ref()
    }

    pub fn node_mut(&mut self, id: usize) -> &mut Node {
        self.nodes[id].as_mut().unwrap()
    }

    /// Rule R15: what is seen `at` bytes from the start of `id`.
    pub fn seen(&self, id: usize, at: u64) -> Option<Seen> {
        let mut way = Vec::new();
        self.look(id, at, &mut way)
    }

    fn look(&self, id: usize, at: u64, way: &mut Vec<usize>) -> Option<Seen> {
        let node = self.node(id).unwrap();
        if !node.enabled || u128::from(at) >= node.size {
            return None;
        }
        way.push(id);
        let seen = self.look_inside(id, node, at, way);
        way.pop();
        seen.map(|seen| Seen {
            readonly: seen.readonly || node.readonly,
            nonvolatile: seen.nonvolatile || node.nonvolatile,
            unmergeable: seen.unmergeable || node.unmergeable,
            ..seen
        })
    }

    fn look_inside(&self, id: usize, node: &Node, at: u64, way: &mut Vec<usize>) -> Option<Seen> {
        if let Kind::Alias { target, offset } = node.kind {
            return self.look(target, at.checked_add(offset)?, way);
        }
        for (child, place) in self.children(id) {
            let inside = at.checked_sub(place.offset).and_then(|at| self.look(child, at, way));
            if inside.is_some() {
                return inside;
            }
        }
        if node.kind == Kind::Container {
            return None;
        }
        let migrates = matches!(node.kind, Kind::Ram | Kind::RomDevice | Kind::Iommu);
        let everywhere =
            if self.global_log && migrates { DirtyClients::MIGRATION } else { DirtyClients::empty() };
        Some(Seen {
            node: id,
            offset: at,
            readonly: false,
            nonvolatile: false,
            unmergeable: false,
            romd: node.romd && node.kind == Kind::RomDevice,
            mask: node.log | everywhere,
            way: way.clone(),
        })
    }

    /// In descending priority, the last placed first (rules R9, R10).
    pub fn children(&self, id: usize) -> Vec<(usize, Place)> {
        let placed = self.nodes.iter().enumerate().filter_map(|(child, node)| {
            node.as_ref()?.place.filter(|place| place.parent == id).map(|place| (child, place))
        });
        let mut children: Vec<_> = placed.collect();
        children
            .sort_by_key(|(_, place)| (std::cmp::Reverse(place.priority), std::cmp::Reverse(place.stamp)));
        children
    }

    /// Whether `outer` is `inner` or shows it.
    pub fn shows(&self, outer: usize, inner: usize) -> bool {
        let below = |id: usize| match self.node(id).unwrap().kind {
            Kind::Alias { target, .. } => vec![target],
            _ => self.children(id).into_iter().map(|(child, _)| child).collect(),
        };
        outer == inner || below(outer).into_iter().any(|next| self.shows(next, inner))
    }

    /// The ranges that `id` shows between `first` and `last`: first address, last address, and what is there.
    pub fn ranges(&self, id: usize, first: u64, last: u64) -> Vec<(u64, u64, Seen)> {
        let mut ranges: Vec<(u64, u64, Seen)> = Vec::new();
        for at in first..=last {
            let Some(seen) = self.seen(id, at) else { continue };
            match ranges.last_mut() {
                Some((start, end, before)) if *end + 1 == at && joins(before, at - *start, &seen) => {
                    *end = at
                }
                _ => ranges.push((at, at, seen)),
            }
        }
        ranges
    }
}

/// Rule R17: whether `next`, `distance` bytes behind the start of a range, is of one piece with it. What
/// one way shows without a gap is of one piece even if it is unmergeable.
fn joins(start: &Seen, distance: u64, next: &Seen) -> bool {
    start.node == next.node
        && start.offset.checked_add(distance) == Some(next.offset)
        && (start.readonly, start.nonvolatile, start.romd, start.mask)
            == (next.readonly, next.nonvolatile, next.romd, next.mask)
        && start.unmergeable == next.unmergeable
        && (!start.unmergeable || start.way == next.way)
}
