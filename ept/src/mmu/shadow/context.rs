//! A processor's view of the shadow: its paging, its root and the roots it had before.

use super::page::PageId;
use super::role::Mode;
use crate::paging::Paging;

/// How many roots besides the one in use a processor keeps (rule K5, `KVM_MMU_NUM_PREV_ROOTS`).
pub(super) const PREVIOUS_ROOTS: usize = 3;

/// What a root was made for (`kvm_mmu_root_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RootKey {
    pub mode: Mode,
    /// Guest-physical address of the guest's root table.
    pub table: u64,
    /// The registers that stand for it in PAE paging.
    pub pdptes: [u64; 4],
}

/// A root that a context holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub key: RootKey,
    pub page: PageId,
}

/// One virtual processor's part of the MMU (`kvm_mmu`). It holds on to its roots: [`Shadow::unload`] takes it back.
///
/// [`Shadow::unload`]: super::Shadow::unload
#[derive(Debug)]
pub struct ShadowContext {
    pub(super) guest: Option<Paging>,
    pub(super) current: Root,
    pub(super) previous: [Option<Root>; PREVIOUS_ROOTS],
    pub(super) paging: Paging,
}

impl ShadowContext {
    /// What the processor walks: from the guest's virtual addresses straight to the host's frames. It changes with every
    /// load and with every fault.
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The guest's own paging; `None` if it is off.
    pub fn guest(&self) -> Option<&Paging> {
        self.guest.as_ref()
    }

    pub(super) fn root(&self) -> PageId {
        self.current.page
    }

    /// All roots it holds, that in use first.
    pub(super) fn roots(&self) -> impl Iterator<Item = Root> {
        [Some(self.current)].into_iter().chain(self.previous).flatten()
    }
}
