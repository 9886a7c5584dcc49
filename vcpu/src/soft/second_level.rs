//! The MMU of a software VM, whichever it is.

use ept::mmu::{Stats, Tdp, Zapped};
use ept::{Access, Flags, walk};
use memory_model::{AddrRange, Gpa, Hpa};

use super::frames::FrameTable;
use super::options::SoftOptions;
use crate::{SecondLevelLeaf, VcpuError};

/// KVM's MMU of a VM. What it changes for all processors it says: `true` if they must flush before the guest goes on.
#[derive(Debug)]
pub enum SoftMmu {
    /// Tables from guest-physical addresses to the host's, beside the guest's own.
    Tdp(Tdp),
}

impl SoftMmu {
    pub(super) fn new(options: &SoftOptions, frames: &FrameTable) -> Result<Self, VcpuError> {
        Ok(Self::Tdp(Tdp::new(options.second_level.format(), frames)?))
    }

    /// KVM's counters.
    pub fn stats(&self) -> Stats {
        let Self::Tdp(tdp) = self;
        tdp.stats()
    }

    pub(super) fn leaf(&self, gpa: Gpa, frames: &FrameTable) -> Option<SecondLevelLeaf> {
        let Self::Tdp(tdp) = self;
        let walk = walk(frames, tdp.paging(), gpa.raw(), Access::READ.by_user(), Flags::Keep);
        let (leaf, last) = (walk.outcome.ok()?, *walk.path.last()?);
        Some(SecondLevelLeaf {
            hpa: Hpa(leaf.address),
            size: leaf.size,
            rights: leaf.rights(),
            entry_address: Hpa(last.entry_address()),
            entry: leaf.entry,
        })
    }

    /// Takes all leaves of `range` away.
    pub(super) fn zap(&mut self, range: AddrRange<Gpa>, frames: &FrameTable) -> bool {
        let Self::Tdp(tdp) = self;
        must_flush(tdp.zap(range, frames))
    }

    /// Lets the next write to each page of `range` fault.
    pub(super) fn write_protect(&mut self, range: AddrRange<Gpa>, frames: &FrameTable) -> bool {
        let Self::Tdp(tdp) = self;
        must_flush(tdp.write_protect(range, frames))
    }
}

/// These changes allocate nothing and read only tables that this VM allocated.
fn must_flush(zapped: Result<Zapped, ept::Error>) -> bool {
    let zapped = zapped.expect("the second level's own tables are in the frame table");
    zapped != Zapped::default()
}
