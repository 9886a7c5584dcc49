//! What a host can show of a running VM's inside, so that a translation can be compared with the truth.

use std::borrow::Cow;

use ept::Rights;
use memory_model::{Gpa, Gva, Hpa, Hva, PageSize};

use crate::soft::Verification;

/// What was seen of something. Not being able to look is not the same as having seen nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Witness<T> {
    /// It is there, like this.
    Seen(T),
    /// It is not there.
    Absent,
    /// This host does not show it, and why.
    NotShown(Cow<'static, str>),
}

impl<T> From<Option<T>> for Witness<T> {
    fn from(seen: Option<T>) -> Self {
        seen.map_or(Self::Absent, Self::Seen)
    }
}

/// The end of a second-level walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecondLevelLeaf {
    /// Where the guest-physical address lies.
    pub hpa: Hpa,
    /// The size of the page that maps it.
    pub size: PageSize,
    /// What all entries on the way grant together.
    pub rights: Rights,
    /// Where the leaf entry lies.
    pub entry_address: Hpa,
    /// The leaf entry.
    pub entry: u64,
}

/// The inside of a VM, as far as its host shows it.
pub trait HostView {
    /// The host-virtual address that the kernel's own memory slots give for `gpa`.
    fn slot_hva(&self, gpa: Gpa) -> Witness<Hva>;
    /// The frame behind a page of this process.
    fn frame(&self, hva: Hva) -> Witness<Hpa>;
    /// What the second-level table in use says of `gpa`; where that is a shadow table, of `gva`, as vCPU 0 translates
    /// it now. The guest's own tables lead from the one to the other.
    fn leaf(&self, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf>;
    /// Second-level faults taken so far, where the host counts them.
    fn violations(&self) -> Option<u64>;
    /// What is wrong with all of the second-level tables, and with what processors remember of them.
    fn verification(&self) -> Witness<Verification>;
}
