//! Which `memory-region:` block is which region: the text prints most of them twice.
//!
//! A region that some alias shows has a block of its own; if it also sits in a printed container, it is
//! printed there too, line for line. Blocks and regions that look alike are paired off, the largest blocks
//! first: what a block shares with another block is then found in the one that is kept.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::line::{Kind, Target};
use super::syntax::{NodeId, Text};

/// Everything printed of a region, with its children's shapes by number: equal shapes look alike.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shape<'a> {
    name: &'a str,
    offset: u64,
    size: u128,
    priority: i32,
    kind: Kind,
    nonvolatile: bool,
    alias: Option<Target<'a>>,
    enabled: bool,
    owner: &'a str,
    children: Vec<usize>,
}

/// For each `memory-region:` block the region it is: one printed elsewhere, or its own root.
pub(super) fn unify(text: &Text<'_>) -> Vec<NodeId> {
    let (shapes, sizes) = shapes(text);
    let mut unpaired = BTreeMap::<usize, VecDeque<NodeId>>::new();
    // The regions of a block are numbered in a row.
    let inside = |root: NodeId| root..root + sizes[root];
    for id in text.spaces.iter().flat_map(|space| inside(space.root)) {
        unpaired.entry(shapes[id]).or_default().push_back(id);
    }
    let mut same: Vec<_> = text.regions.iter().map(|block| block.root).collect();
    let mut largest_first: Vec<_> = (0..same.len()).collect();
    largest_first.sort_by_key(|&block| Reverse(sizes[same[block]]));
    for block in largest_first {
        let root = same[block];
        match unpaired.get_mut(&shapes[root]).and_then(VecDeque::pop_front) {
            Some(printed) => same[block] = printed,
            None => {
                for id in inside(root).skip(1) {
                    unpaired.entry(shapes[id]).or_default().push_back(id);
                }
            }
        }
    }
    same
}

/// The number of each region's shape, and how many regions it is with all below it.
fn shapes(text: &Text<'_>) -> (Vec<usize>, Vec<usize>) {
    let mut known = BTreeMap::new();
    let (mut shapes, mut sizes) = (vec![0; text.nodes.len()], vec![1; text.nodes.len()]);
    // A container is numbered before its children.
    for (id, node) in text.nodes.iter().enumerate().rev() {
        let line = &node.line;
        let shape = Shape {
            name: line.name,
            offset: text.offset(id),
            size: line.size,
            priority: line.priority,
            kind: line.kind,
            nonvolatile: line.nonvolatile,
            alias: line.alias,
            enabled: line.enabled,
            owner: line.owner,
            children: node.children.iter().map(|&child| shapes[child]).collect(),
        };
        let next = known.len();
        shapes[id] = *known.entry(shape).or_insert(next);
        sizes[id] += node.children.iter().map(|&child| sizes[child]).sum::<usize>();
    }
    (shapes, sizes)
}
