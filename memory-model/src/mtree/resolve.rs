//! Which region each alias shows, and an order in which the tree can be built.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::slice;

use super::line::Target;
use super::syntax::{NodeId, Text};
use super::{MAX_NESTING, MAX_SEEN, MtreeError, MtreeProblem};

/// The text with its names replaced by regions.
pub(super) struct Resolved {
    /// What each alias shows; `None` for other regions.
    pub(super) targets: Vec<Option<NodeId>>,
    /// All regions, each after those it shows: its children or its target.
    pub(super) order: Vec<NodeId>,
}

/// Follows every address space down, then every block of the text. `same` tells which region a block is.
pub(super) fn resolve(text: &Text<'_>, same: &[NodeId]) -> Result<Resolved, MtreeError> {
    let mut by_name = BTreeMap::<_, Vec<_>>::new();
    for (block, &region) in text.regions.iter().zip(same) {
        by_name.entry(block.names[0]).or_default().push(region);
    }
    let count = text.nodes.len();
    let mut walk = Walk {
        text,
        by_name,
        visits: vec![Visit::None; count],
        seen: vec![Seen::default(); count],
        resolved: Resolved { targets: vec![None; count], order: Vec::with_capacity(count) },
    };
    let mut seen = 0_u64;
    for space in &text.spaces {
        walk.down_from(space.root)?;
        seen = seen.saturating_add(walk.seen[space.root].regions);
        if seen > MAX_SEEN {
            return Err(MtreeProblem::TooManySeen.at(text.nodes[space.root].number));
        }
    }
    for &region in same {
        walk.down_from(region)?;
    }
    Ok(walk.resolved)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    None,
    /// On the way down: an alias that showed it would show itself.
    Open,
    Done,
}

/// How much a rendering meets from a region on, with all repetitions behind aliases.
#[derive(Clone, Copy, Default)]
struct Seen {
    regions: u64,
    nesting: usize,
}

struct Walk<'t, 'a> {
    text: &'t Text<'a>,
    /// The regions that aliases may mean, as printed.
    by_name: BTreeMap<&'a str, Vec<NodeId>>,
    visits: Vec<Visit>,
    seen: Vec<Seen>,
    resolved: Resolved,
}

impl Walk<'_, '_> {
    fn down_from(&mut self, root: NodeId) -> Result<(), MtreeError> {
        let mut path = Vec::new();
        self.enter(root, &mut path)?;
        while let Some((id, next)) = path.last_mut() {
            let id = *id;
            if let Some(&below) = self.below(id).get(*next) {
                *next += 1;
                self.enter(below, &mut path)?;
            } else {
                self.leave(id)?;
                path.pop();
            }
        }
        Ok(())
    }

    /// What a region shows.
    fn below(&self, id: NodeId) -> &[NodeId] {
        match &self.resolved.targets[id] {
            Some(target) => slice::from_ref(target),
            None => &self.text.nodes[id].children,
        }
    }

    fn enter(&mut self, id: NodeId, path: &mut Vec<(NodeId, usize)>) -> Result<(), MtreeError> {
        let node = &self.text.nodes[id];
        match self.visits[id] {
            Visit::Done => return Ok(()),
            Visit::Open => return Err(MtreeProblem::Cycle { region: node.line.name.into() }.at(node.number)),
            Visit::None => self.visits[id] = Visit::Open,
        }
        if let Some(target) = node.line.alias {
            let target = self.choose(id, target).map_err(|problem| problem.at(node.number))?;
            self.resolved.targets[id] = Some(target);
        }
        path.push((id, 0));
        Ok(())
    }

    fn leave(&mut self, id: NodeId) -> Result<(), MtreeError> {
        let mut seen = Seen { regions: 1, nesting: 1 };
        for &below in self.below(id) {
            let below = self.seen[below];
            seen.regions = seen.regions.saturating_add(below.regions);
            seen.nesting = seen.nesting.max(below.nesting + 1);
        }
        if seen.nesting > MAX_NESTING {
            return Err(MtreeProblem::TooNested.at(self.text.nodes[id].number));
        }
        self.seen[id] = seen;
        self.visits[id] = Visit::Done;
        self.resolved.order.push(id);
        Ok(())
    }

    /// The region an alias means: of those with the name, one that does not hold the alias, with the alias'
    /// owner if there is one, else the first printed.
    fn choose(&self, alias: NodeId, target: Target<'_>) -> Result<NodeId, MtreeProblem> {
        let named = self.by_name.get(target.name).map_or(&[][..], Vec::as_slice);
        if named.is_empty() {
            return Err(MtreeProblem::UnknownTarget { target: target.name.into() });
        }
        let possible = || named.iter().copied().filter(|&region| self.visits[region] != Visit::Open);
        let owner = |id: NodeId| self.text.nodes[id].line.owner;
        let own = possible().find(|&region| owner(region) == owner(alias));
        let cycle = || MtreeProblem::Cycle { region: target.name.into() };
        own.or_else(|| possible().next()).ok_or_else(cycle)
    }
}
