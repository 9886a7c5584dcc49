//! `info mtree -f`: what the address spaces show, as text (rule R45).

use alloc::vec::Vec;
use core::fmt;

use super::line::Kind;
use super::print::kind_word;
use super::{Mtree, Space};
use crate::flat::reduced_root;
use crate::{FlatRange, FlatView, MemoryError, RegionId, RegionTree};

/// See [`Mtree::flat_text`].
pub(super) struct PrintFlat<'a> {
    tree: &'a RegionTree,
    views: Vec<View<'a>>,
}

/// A view that several address spaces can share (rule R18).
struct View<'a> {
    spaces: Vec<&'a Space>,
    /// What their roots come to, if anything can be seen.
    root: Option<RegionId>,
    view: FlatView,
}

impl<'a> PrintFlat<'a> {
    pub(super) fn render(mtree: &'a Mtree) -> Result<Self, MemoryError> {
        let tree = &mtree.tree;
        let groups = mtree.by_root(|root| reduced_root(tree, root)).into_iter();
        let views = groups.map(|(root, spaces)| {
            let view = root.map(|root| FlatView::render_from(tree, root)).transpose()?.unwrap_or_default();
            Ok(View { spaces, root, view })
        });
        Ok(Self { tree, views: views.collect::<Result<_, _>>()? })
    }

    fn range(&self, f: &mut fmt::Formatter<'_>, range: &FlatRange) -> fmt::Result {
        let region = self.tree.at(range.region);
        let kind = if range.readonly { Kind::Rom.word() } else { kind_word(self.tree, region) };
        let nonvolatile = if range.nonvolatile { "nv-" } else { "" };
        write!(f, "  {:016x}-{:016x}", range.range.first().0, range.range.last().0)?;
        write!(f, " (prio {}, {nonvolatile}{kind}): {}", region.priority(), range.name)?;
        if range.offset != 0 {
            write!(f, " @{:016x}", range.offset)?;
        }
        writeln!(f)
    }
}

impl fmt::Display for PrintFlat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id| self.tree.at(id).name();
        for (number, View { spaces, root, view }) in self.views.iter().enumerate() {
            writeln!(f, "FlatView #{number}")?;
            for space in spaces {
                write!(f, " AS \"{}\", root: {}", space.name, name(space.root))?;
                if let Some(target) = self.tree.at(space.root).kind().alias_target() {
                    write!(f, ", alias {}", name(target))?;
                }
                writeln!(f)?;
            }
            writeln!(f, " Root memory region: {}", root.map_or("(none)", |root| name(root)))?;
            view.ranges().try_for_each(|range| self.range(f, range))?;
            if view.is_empty() {
                writeln!(f, "  No rendered FlatView")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
