//! The resolved text as a [`RegionTree`].

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec;

use super::line::{Kind, Line};
use super::resolve::{Resolved, resolve};
use super::syntax::{NodeId, Text};
use super::{HIDDEN, Mtree, MtreeError, MtreeProblem, Space, guess, same};
use crate::{Hva, MemTxAttrs, MemTxError, MemoryError, MmioOps, PageSize, RamBlock, RegionId, RegionTree};

/// A device of which only the place is known.
struct Unknown;

impl MmioOps for Unknown {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

pub(super) fn build(text: &Text<'_>) -> Result<Mtree, MtreeError> {
    let same = same::unify(text);
    let Resolved { targets, order } = resolve(text, &same)?;
    let refused = |id: NodeId| {
        let number = text.nodes[id].number;
        move |error| MtreeProblem::Refused(error).at(number)
    };
    let mut tree = RegionTree::new(HIDDEN, 1 << 64).map_err(refused(text.spaces[0].root))?;
    let mut regions = vec![tree.root(); text.nodes.len()];
    // Every region after what it shows: an alias finds its target, a container its children, and the tree's
    // check for cycles has nothing to search.
    for &id in &order {
        let target = targets[id].map(|target| regions[target]);
        regions[id] = create(&mut tree, text, id, target).map_err(refused(id))?;
        // The first printed becomes the newest, and so wins among equals.
        for &child in text.nodes[id].children.iter().rev() {
            let (offset, priority) = (text.offset(child), text.nodes[child].line.priority);
            tree.add_with_priority(regions[id], offset, regions[child], priority).map_err(refused(child))?;
        }
    }
    let unpaired = text.regions.iter().zip(&same).filter(|(block, same)| block.root == **same);
    for root in text.spaces.iter().chain(unpaired.map(|(block, _)| block)).map(|block| block.root) {
        let (offset, priority) = (text.offset(root), text.nodes[root].line.priority);
        if (offset, priority) != (0, 0) {
            // It sits in a container that was not printed.
            tree.add_with_priority(tree.root(), offset, regions[root], priority).map_err(refused(root))?;
        }
    }
    let spaces = text.spaces.iter().flat_map(|block| {
        let root = regions[block.root];
        block.names.iter().map(move |name| Space { name: name.to_string(), root })
    });
    Ok(Mtree { spaces: spaces.collect(), shown: same.iter().map(|&id| regions[id]).collect(), tree })
}

/// Creates the region of a line, not yet placed.
fn create(
    tree: &mut RegionTree,
    text: &Text<'_>,
    id: NodeId,
    target: Option<RegionId>,
) -> Result<RegionId, MemoryError> {
    let node = &text.nodes[id];
    let line = &node.line;
    let id = match (line.alias, target) {
        (Some(alias), Some(target)) => tree.alias(line.name, target, alias.offset, line.size)?,
        _ => match line.kind {
            Kind::Io if guess::is_container(line, !node.children.is_empty()) => {
                tree.container(line.name, line.size)?
            }
            Kind::Io => tree.mmio(line.name, line.size, Arc::new(Unknown))?,
            Kind::Ram | Kind::Rom => tree.ram(line.name, block(line)?)?,
            Kind::RomDevice => tree.rom_device(line.name, block(line)?, Arc::new(Unknown))?,
            Kind::RamDevice => tree.ram_device(line.name, block(line)?)?,
        },
    };
    if tree.get(id)?.size() != line.size {
        tree.set_size(id, line.size)?;
    }
    let rom = line.alias.is_none() && line.kind == Kind::Rom;
    tree.set_readonly(id, rom || line.alias.is_some() && guess::is_readonly_alias(line))?;
    tree.set_nonvolatile(id, line.nonvolatile)?;
    tree.set_enabled(id, line.enabled)?;
    Ok(id)
}

/// A block of whole pages with no memory behind it.
fn block(line: &Line<'_>) -> Result<Arc<RamBlock>, MemoryError> {
    let page = u128::from(PageSize::Size4K.bytes());
    let largest = u64::MAX - (PageSize::Size4K.bytes() - 1);
    let size = u64::try_from(line.size.next_multiple_of(page)).unwrap_or(largest);
    RamBlock::foreign(line.name, Hva(0), size)
}
