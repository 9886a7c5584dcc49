//! QEMU's `info mtree` text, both ways: a real QEMU's text becomes a tree, a tree becomes text.
//!
//! ```
//! use memory_model::mtree::Mtree;
//! let text = "\
//! address-space: memory
//!   0000000000000000-ffffffffffffffff (prio 0, i/o): system
//!     0000000000000000-0000000007ffffff (prio 0, ram): alias ram-below-4g @pc.ram 0000000000000000-0000000007ffffff
//!     00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
//!
//! memory-region: pc.ram
//!   0000000000000000-0000000007ffffff (prio 0, ram): pc.ram
//!
//! ";
//! let mtree = Mtree::parse(text.as_bytes())?;
//! assert_eq!(mtree.text(false).to_string(), text);
//! assert_eq!(mtree.flat_text()?.to_string(), "\
//! FlatView #0
//!  AS \"memory\", root: system
//!  Root memory region: system
//!   0000000000000000-0000000007ffffff (prio 0, ram): pc.ram
//!   00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
//!
//! ");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The way of the data: lines, blocks of nested lines, regions with their names resolved, a
//! [`RegionTree`]. All of `info mtree` is read, with and without `-D` (disabled regions) and `-o` (owners).
//! RAM has blocks without memory behind them; devices read as 0.
//!
//! # What the text does not say
//!
//! It is guessed, by these rules:
//!
//! - **Container or device.** Both are `i/o`. One with children is a pure container, but for `io`, `rtc`,
//!   `vga.mmio`, `bochs-display-mmio` and `gpex_mmio_window`, which show themselves in the gaps. One without
//!   children is a device, but for `system`, `smram`, `bus master container`, `device-memory`,
//!   `pci_bridge_io`, `pci_bridge_pci`, `gpex_mmio`, `e1000e-flash`, `pci-testdev-membar` and `cxl_host_reg`,
//!   which are empty containers. IOMMUs and reservations look like devices, and become devices.
//! - **Read-only aliases.** The text prints the type of the target. `pam-rom` is read-only.
//! - **Whether two lines are one region.** A region that an alias shows has a block `memory-region:` and is
//!   printed in its container too. A block and a region that look alike down to the last child are one;
//!   each region is paired once.
//! - **Which region an alias means.** Of the blocks with its target's name: the first that has the alias'
//!   owner, else the first printed; never one that holds the alias.
//! - **Who wins** among siblings that overlap at equal priority: the first printed. At one address that is
//!   the newest, so it is right; at different addresses the text does not tell.
//! - **Size.** A region of size 0 prints like one of size 1, and becomes one of size 1.
//! - **Regions left out.** Without `-D` a disabled region is left out, its children are not. A line more than
//!   one level below the last, or below an alias, is in such a region: a disabled one, `(hidden)`, is put
//!   there. A block without a root line has a disabled root.
//! - **Where a block starts.** At its region's own address, with its own priority, in its container. If that
//!   is not printed, the region is placed in the tree's own root, which no address space shows.
//!
//! Hostile text gives an error with its line. Bounded are the lines ([`MAX_LINE`]), the levels
//! ([`MAX_LEVEL`]), the regions ([`MAX_REGIONS`]), and what aliases make of them ([`MAX_NESTING`],
//! [`MAX_SEEN`]).

mod build;
mod error;
mod flat;
mod guess;
mod line;
mod print;
mod resolve;
mod same;
mod syntax;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use error::{MtreeError, MtreeProblem};

use crate::{MemoryError, RegionId, RegionTree};

/// The longest line, in bytes.
pub const MAX_LINE: usize = 4096;
/// The deepest level of a line.
pub const MAX_LEVEL: usize = 64;
/// The most regions of a text.
pub const MAX_REGIONS: usize = 1 << 16;
/// The longest way from a root down, through containers and aliases.
pub const MAX_NESTING: usize = 256;
/// The most regions that all address spaces together show, each counted as often as aliases repeat it.
pub const MAX_SEEN: u64 = 1 << 18;

/// What QEMU prints before a line whose address wraps around.
const WRAPS: &str = "[DETECTED OVERFLOW!] ";
/// The name of a region that the text left out.
const HIDDEN: &str = "(hidden)";

/// An address space by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Space {
    /// Not unique: QEMU calls each device's space by the device's kind.
    pub name: String,
    /// What it shows.
    pub root: RegionId,
}

/// A tree, the address spaces over it, and the order of their text.
#[derive(Clone, Debug)]
pub struct Mtree {
    tree: RegionTree,
    spaces: Vec<Space>,
    /// The regions that have a block `memory-region:`, in order.
    shown: Vec<RegionId>,
}

impl Mtree {
    /// Address spaces over a tree, in the order in which they are to be printed. Fails if a root is no region
    /// of the tree.
    pub fn new(tree: RegionTree, spaces: Vec<Space>) -> Result<Self, MemoryError> {
        spaces.iter().try_for_each(|space| tree.get(space.root).map(drop))?;
        let shown = print::shown_by_aliases(&tree, spaces.iter().map(|space| space.root));
        Ok(Self { tree, spaces, shown })
    }

    /// Reads the text of `info mtree`, with `-o` and `-D` or without.
    pub fn parse(text: &[u8]) -> Result<Self, MtreeError> {
        build::build(&syntax::Text::parse(text)?)
    }

    /// The regions of all address spaces.
    pub fn tree(&self) -> &RegionTree {
        &self.tree
    }

    /// The address spaces, as printed.
    pub fn spaces(&self) -> &[Space] {
        &self.spaces
    }

    /// The text of `info mtree`, or with the `disabled` regions that of `info mtree -D`.
    pub fn text(&self, disabled: bool) -> impl fmt::Display {
        print::Print { mtree: self, disabled }
    }

    /// The text of `info mtree -f`: every view once, with the address spaces that share it. The views are in
    /// the order of their first address space. Fails if a view is too large to be rendered.
    pub fn flat_text(&self) -> Result<impl fmt::Display, MemoryError> {
        flat::PrintFlat::render(self)
    }

    /// The address spaces grouped by what `key` makes of their roots, in order.
    fn by_root<K: Copy + Ord>(&self, key: impl Fn(RegionId) -> K) -> Vec<(K, Vec<&Space>)> {
        let mut groups = Vec::<(K, Vec<&Space>)>::new();
        let mut places = alloc::collections::BTreeMap::new();
        for space in &self.spaces {
            let key = key(space.root);
            let place = *places.entry(key).or_insert(groups.len());
            match groups.get_mut(place) {
                Some((_, spaces)) => spaces.push(space),
                None => groups.push((key, Vec::from([space]))),
            }
        }
        groups
    }
}
