//! `info mtree`: the tree as text (rule R45).

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::line::Kind;
use super::{Mtree, WRAPS};
use crate::{Region, RegionId, RegionKind, RegionTree};

/// See [`Mtree::text`].
pub(super) struct Print<'a> {
    pub(super) mtree: &'a Mtree,
    pub(super) disabled: bool,
}

impl fmt::Display for Print<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (root, spaces) in self.mtree.by_root(|root| root) {
            spaces.iter().try_for_each(|space| writeln!(f, "address-space: {}", space.name))?;
            self.block(f, root)?;
        }
        for &id in &self.mtree.shown {
            writeln!(f, "memory-region: {}", self.mtree.tree.at(id).name())?;
            self.block(f, id)?;
        }
        Ok(())
    }
}

impl Print<'_> {
    /// A region with all that is in it; addresses count from the start of the block.
    fn block(&self, f: &mut fmt::Formatter<'_>, root: RegionId) -> fmt::Result {
        let tree = &self.mtree.tree;
        let mut todo = vec![(root, 0, 1)];
        while let Some((id, base, level)) = todo.pop() {
            let region = tree.at(id);
            let start = u64::wrapping_add(base, region.offset());
            if start < base || start.checked_add(region.last()).is_none() {
                f.write_str(WRAPS)?;
            }
            if region.enabled() || self.disabled {
                self.line(f, region, start, level)?;
            }
            todo.extend(
                printed_children(tree, region).into_iter().rev().map(|child| (child, start, level + 1)),
            );
        }
        writeln!(f)
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, region: &Region, start: u64, level: usize) -> fmt::Result {
        let tree = &self.mtree.tree;
        let last = start.wrapping_add(region.last());
        let nonvolatile = if region.nonvolatile() { "nv-" } else { "" };
        let kind = kind_word(tree, region);
        write!(f, "{:indent$}{start:016x}-{last:016x}", "", indent = 2 * level)?;
        write!(f, " (prio {}, {nonvolatile}{kind}): ", region.priority())?;
        match *region.kind() {
            RegionKind::Alias { target, offset } => {
                let end = offset.wrapping_add(region.last());
                let target = tree.at(target).name();
                write!(f, "alias {} @{target} {offset:016x}-{end:016x}", region.name())?;
            }
            _ => write!(f, "{}", region.name())?,
        }
        writeln!(f, "{}", if region.enabled() { "" } else { " [disabled]" })
    }
}

/// The children by address, then priority, then newest first.
fn printed_children(tree: &RegionTree, region: &Region) -> Vec<RegionId> {
    let mut children: Vec<_> = region.subregions().collect();
    // They come by priority, the newest first among equals, and the sort is stable.
    children.sort_by_key(|&child| tree.at(child).offset());
    children
}

/// The regions that aliases show, in the order in which a print of `roots` meets the aliases.
pub(super) fn shown_by_aliases(tree: &RegionTree, roots: impl Iterator<Item = RegionId>) -> Vec<RegionId> {
    let mut shown = Vec::new();
    let mut known = BTreeSet::new();
    roots.for_each(|root| meet_aliases(tree, root, &mut known, &mut shown));
    let mut printed = 0;
    while let Some(&next) = shown.get(printed) {
        printed += 1;
        meet_aliases(tree, next, &mut known, &mut shown);
    }
    shown
}

fn meet_aliases(
    tree: &RegionTree,
    from: RegionId,
    known: &mut BTreeSet<RegionId>,
    shown: &mut Vec<RegionId>,
) {
    let mut todo = vec![from];
    while let Some(id) = todo.pop() {
        let region = tree.at(id);
        if let Some(target) = region.kind().alias_target().filter(|&target| known.insert(target)) {
            shown.push(target);
        }
        todo.extend(printed_children(tree, region).into_iter().rev());
    }
}

/// The type of a region; that of an alias is its target's, at the end of the chain.
pub(super) fn kind_word(tree: &RegionTree, region: &Region) -> &'static str {
    let mut region = region;
    while let Some(target) = region.kind().alias_target() {
        region = tree.at(target);
    }
    let kind = match region.kind() {
        RegionKind::RamDevice(_) => Kind::RamDevice,
        RegionKind::RomDevice { .. } if region.romd() => Kind::RomDevice,
        RegionKind::Ram(_) if region.readonly() => Kind::Rom,
        RegionKind::Ram(_) => Kind::Ram,
        _ => Kind::Io,
    };
    kind.word()
}
