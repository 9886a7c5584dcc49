//! The two-dimensional walk: a guest's tables, each of whose entries lies behind a second-level table.
//!
//! Every guest entry address, and the final guest-physical address, is translated first (rule D2). With guest
//! depth n and second-level depth m that is (n + 1)(m + 1) - 1 references: 24 for four levels each (rule D1).

use memory_model::{Gpa, Gva, Hpa};

use crate::access::{Access, Rights};
use crate::fault::{Fault, PageFaultCode, Qualification};
use crate::format::Kind;
use crate::phys::PhysMemory;
use crate::walk::{Entries, Failure, Flags, Leaf, Paging, Path, walk_entries, walk_into};

/// Why a two-dimensional walk has no translation, told apart as the processor tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NestedFault {
    /// The guest's own tables refuse: the guest gets the fault, its VMM sees nothing.
    #[error("in the guest: {0}")]
    Guest(Fault),
    /// The second level refuses an access to one of the guest's tables.
    #[error("guest table at {gpa}: {fault}")]
    Table {
        /// Address of the guest's entry.
        gpa: Gpa,
        /// The exit, its bits for a table access set.
        fault: Fault,
    },
    /// The second level refuses the access itself. Whether that is MMIO is for the caller to find out: it is, if
    /// no slot holds `gpa`.
    #[error("access to {gpa}: {fault}")]
    Final {
        /// The guest-physical address.
        gpa: Gpa,
        /// The exit, its bits for a final access set.
        fault: Fault,
    },
}

/// A two-dimensional translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedLeaf {
    /// GVA to GPA; `None` while the guest has paging off.
    pub guest: Option<Leaf>,
    /// What the guest's tables made of the address.
    pub gpa: Gpa,
    /// GPA to HPA.
    pub second: Leaf,
    /// The host-physical address.
    pub hpa: Hpa,
}

impl NestedLeaf {
    /// What both levels grant together. EPT has no USER right, so there the guest's decides.
    pub fn rights(&self) -> Rights {
        match self.guest {
            Some(guest) => guest.rights & (self.second.rights | Rights::USER),
            None => self.second.rights,
        }
    }
}

/// A two-dimensional walk: how far it came, and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct NestedWalk {
    /// The guest's entries, root first; tables and entries are guest-physical.
    pub guest: Path,
    /// The second-level walk of the last translation: of the final address, or of the one that failed.
    pub second: Path,
    /// Entries read from memory, in both dimensions.
    pub references: u32,
    /// The translation, or the event raised.
    pub outcome: Result<NestedLeaf, NestedFault>,
}

/// Walks for one access at `gva`. `memory` is the host's; `guest` is `None` while the guest has paging off (CR0.PG).
pub fn nested_walk(
    memory: &impl PhysMemory,
    guest: Option<&Paging>,
    second: &Paging,
    gva: Gva,
    access: Access,
    flags: Flags,
) -> NestedWalk {
    let mut behind = Behind { memory, second, flags, path: Path::default(), references: 0 };
    let mut path = Path::default();
    let outcome = behind.nested(guest, gva, access, &mut path);
    NestedWalk { guest: path, second: behind.path, references: behind.references, outcome }
}

/// Guest-physical memory, seen through the second level.
struct Behind<'a, M> {
    memory: &'a M,
    second: &'a Paging,
    flags: Flags,
    path: Path,
    references: u32,
}

impl<M: PhysMemory> Behind<'_, M> {
    fn nested(
        &mut self,
        guest: Option<&Paging>,
        gva: Gva,
        access: Access,
        path: &mut Path,
    ) -> Result<NestedLeaf, NestedFault> {
        let leaf = match guest {
            None => None,
            Some(guest) => match walk_entries(self, guest, gva.raw(), access, self.flags, path) {
                Ok(leaf) => Some(leaf),
                Err(Failure::Event(fault)) => return Err(NestedFault::Guest(fault)),
                Err(Failure::Source(fault)) => return Err(fault),
            },
        };
        let gpa = leaf.map_or(gva.raw(), |leaf| leaf.address);
        let second = self.second(gpa, access, Target::Final)?;
        Ok(NestedLeaf { guest: leaf, gpa: Gpa(gpa), second, hpa: Hpa(second.address) })
    }

    /// One translation of the second level.
    fn second(&mut self, gpa: u64, access: Access, target: Target) -> Result<Leaf, NestedFault> {
        let outcome = walk_into(&mut self.path, self.memory, self.second, gpa, access, self.flags);
        self.references += self.path.len() as u32;
        outcome.map_err(|fault| target.fault(self.second.format.kind(), Gpa(gpa), fault))
    }
}

impl<M: PhysMemory> Entries for Behind<'_, M> {
    type Error = NestedFault;

    fn read(&mut self, gpa: u64) -> Result<u64, NestedFault> {
        let leaf = self.second(gpa, self.second.format.guest_table_access(), Target::Table)?;
        self.references += 1;
        self.memory.read_entry(leaf.address).map_err(|error| Target::Table.memory(gpa, error.into()))
    }

    /// Setting a flag in a guest entry is a read-modify-write and needs W, whatever rule A2 says of reads. It goes to
    /// where the read went: no further reference is counted.
    fn compare_exchange(&mut self, gpa: u64, current: u64, new: u64) -> Result<bool, NestedFault> {
        let references = self.references;
        let leaf = self.second(gpa, Access::READ_WRITE, Target::Table)?;
        self.references = references;
        let done = self.memory.compare_exchange(leaf.address, current, new);
        done.map_err(|error| Target::Table.memory(gpa, error.into()))
    }
}

/// What a second-level translation is for.
#[derive(Clone, Copy)]
enum Target {
    Table,
    Final,
}

impl Target {
    /// The fault with the bits that say what the translation was for.
    fn fault(self, kind: Kind, gpa: Gpa, mut fault: Fault) -> NestedFault {
        match (&mut fault, kind) {
            (Fault::EptViolation { qualification }, _) => {
                *qualification |= Qualification::LINEAR_VALID;
                qualification.set(Qualification::FINAL, matches!(self, Self::Final));
            }
            (Fault::PageFault { code }, Kind::Npt) => {
                *code |= match self {
                    Self::Table => PageFaultCode::NPT_TABLE,
                    Self::Final => PageFaultCode::NPT_FINAL,
                };
            }
            _ => {}
        }
        self.memory(gpa.raw(), fault)
    }

    fn memory(self, gpa: u64, fault: Fault) -> NestedFault {
        let gpa = Gpa(gpa);
        match self {
            Self::Table => NestedFault::Table { gpa, fault },
            Self::Final => NestedFault::Final { gpa, fault },
        }
    }
}
