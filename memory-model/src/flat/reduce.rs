//! Roots that come to the same: address spaces that have them can share one view (rule R18).

use crate::{Region, RegionId, RegionKind, RegionTree};

/// The region that shows all that `root` shows, and nothing else; `None` if nothing can be seen.
///
/// Follows an alias of a whole region, and a container to its only enabled child, unless an attribute would
/// get lost on the way. Where the regions are placed does not matter, as a view starts at its root.
pub(crate) fn reduced_root(tree: &RegionTree, root: RegionId) -> Option<RegionId> {
    let mut id = root;
    loop {
        let region = tree.at(id);
        if !region.enabled() {
            return None;
        }
        if region.readonly() || region.nonvolatile() || region.unmergeable() {
            return Some(id);
        }
        id = match *region.kind() {
            RegionKind::Alias { target, offset: 0 } if region.size() >= tree.at(target).size() => target,
            RegionKind::Container => match only_enabled_child(tree, region) {
                Ok(child) if tree.at(child).offset() == 0 && tree.at(child).size() <= region.size() => child,
                Err(0) => return None,
                _ => return Some(id),
            },
            _ => return Some(id),
        }
    }
}

/// The only enabled child; else whether there is none (0) or more than one.
fn only_enabled_child(tree: &RegionTree, region: &Region) -> Result<RegionId, usize> {
    let mut enabled = region.subregions().filter(|&child| tree.at(child).enabled());
    match (enabled.next(), enabled.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(0),
        _ => Err(2),
    }
}
