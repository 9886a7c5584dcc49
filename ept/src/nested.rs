//! The two-dimensional walk: a guest's tables, each of whose entries lies behind a second-level table.
//!
//! Every guest entry address, and the final guest-physical address, is translated first (rule D2). With guest
//! depth n and second-level depth m that is (n + 1)(m + 1) - 1 references: 24 for four levels each (rule D1).

use memory_model::{Gpa, Gva, Hpa};

use crate::access::{Access, Rights};
use crate::fault::{Fault, PageFaultCode, Qualification, violation};
use crate::format::{Caching, Cr3, Kind, MemoryType, Pat, PatType, effective_memory_type};
use crate::judge::{GUEST_FLAG_UPDATE, final_access, guest_table_access};
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::quick::{Ask, Near};
use crate::walk::{Entries, Failure, Flags, Leaf, Path, is_convertible, walk_entries, walk_into};

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
        let second = self.second.rights();
        self.guest.map_or(second, |guest| guest.rights() & (second | Rights::USER))
    }

    /// Rule MT1: the memory type of the access, with the guest's PAT and its CR0.CD. `None` in NPT, where the host's
    /// PAT counts too.
    pub fn memory_type(&self, guest_pat: Pat, cache_disable: bool) -> Option<MemoryType> {
        let Caching::Ept { memory_type, ignore_pat } = self.second.caching() else { return None };
        let pat = match self.guest.map(|guest| guest.caching()) {
            Some(Caching::Pat(index)) => guest_pat.get(index),
            _ => PatType::WriteBack,
        };
        Some(effective_memory_type(memory_type, ignore_pat, pat, cache_disable))
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

impl NestedWalk {
    /// Whether the walk ended with a violation that becomes a virtualization exception, if those are on (rule V2).
    pub fn is_convertible(&self) -> bool {
        match self.outcome {
            Err(NestedFault::Table { fault, .. } | NestedFault::Final { fault, .. }) => {
                is_convertible(&self.second, fault)
            }
            _ => false,
        }
    }
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
    let mut behind = Behind::new(memory, second, flags, Uncached);
    let mut path = Path::default();
    let outcome = behind.nested(guest, None, gva, access, &mut path);
    NestedWalk { guest: path, second: behind.path, references: behind.references, outcome }
}

/// The outcome of [`nested_walk`] alone: several times as fast, where entries are as they mostly are. What leads to
/// guest tables in the same 2 MiB is read once.
#[inline]
pub fn nested_translate(
    memory: &impl PhysMemory,
    guest: Option<&Paging>,
    second: &Paging,
    gva: Gva,
    access: Access,
    flags: Flags,
) -> Result<NestedLeaf, NestedFault> {
    match try_nested_translate(memory, guest, second, gva, access, flags) {
        Some(leaf) => Ok(leaf),
        None => nested_walk(memory, guest, second, gva, access, flags).outcome,
    }
}

/// The same, if nothing about the walk is unusual: nothing is refused, and no flag is left to set. It writes nothing, and
/// `None` says only that [`nested_walk`] knows more.
#[inline(always)]
pub fn try_nested_translate(
    memory: &impl PhysMemory,
    guest: Option<&Paging>,
    second: &Paging,
    gva: Gva,
    access: Access,
    flags: Flags,
) -> Option<NestedLeaf> {
    let load = |entry| memory.read_entry(entry).ok();
    let tables = ask_for_tables(second, flags)?;
    let mut near = Near::default();
    let entry = |gpa: Gpa| load(tables.descend_near(&mut near, gpa.raw(), load)?.address);
    try_nested_translate_by(entry, memory, guest, second, gva, access, flags)
}

/// The same for who remembers where the guest's tables lie, and found them by [`try_guest_table`]: `entry` reads their
/// entries.
#[inline(always)]
pub fn try_nested_translate_by(
    mut entry: impl FnMut(Gpa) -> Option<u64>,
    memory: &impl PhysMemory,
    guest: Option<&Paging>,
    second: &Paging,
    gva: Gva,
    access: Access,
    flags: Flags,
) -> Option<NestedLeaf> {
    // Rule X4 is for the exact walk.
    if second.format.has_guest_paging_verification() {
        return None;
    }
    let guest = match guest {
        None => None,
        Some(guest) => Some(Ask::new(guest, access, flags)?.descend(gva.raw(), |gpa| entry(Gpa(gpa)))?),
    };
    let gpa = guest.map_or(gva.raw(), |leaf| leaf.address);
    let access = final_access(&second.format, guest.as_ref(), access);
    let load = |entry| memory.read_entry(entry).ok();
    let second = Ask::new(second, access, flags)?.descend(gpa, load)?;
    Some(NestedLeaf { guest, gpa: Gpa(gpa), second, hpa: Hpa(second.address) })
}

/// The leaf that a walk of the guest's tables needs for the table at `gpa`, if nothing about it is unusual.
#[inline(always)]
pub fn try_guest_table(memory: &impl PhysMemory, second: &Paging, gpa: Gpa, flags: Flags) -> Option<Leaf> {
    ask_for_tables(second, flags)?.descend(gpa.raw(), |entry| memory.read_entry(entry).ok())
}

#[inline(always)]
fn ask_for_tables(second: &Paging, flags: Flags) -> Option<Ask<'_>> {
    Ask::new(second, guest_table_access(&second.format), flags)
}

/// Reads the four page-directory pointers that a MOV to CR3 loads in PAE paging. These are reads even where other
/// accesses to guest tables count as writes, and have no linear address (rule A2).
pub fn nested_pdptes(
    memory: &impl PhysMemory,
    second: &Paging,
    cr3: Cr3,
    flags: Flags,
) -> Result<[u64; 4], NestedFault> {
    let mut behind = Behind::new(memory, second, flags, Uncached);
    let mut pdptes = [0; 4];
    for (index, pdpte) in pdptes.iter_mut().enumerate() {
        let gpa = cr3.page_directory_pointers() + 8 * index as u64;
        let leaf = behind.second(gpa, Access::READ, Target::Register)?;
        *pdpte = behind.load(gpa, &leaf)?;
    }
    Ok(pdptes)
}

/// How a second level is walked: through memory each time, or through what a processor remembers.
pub(crate) trait SecondLevel {
    fn translate<M: PhysMemory>(
        &mut self,
        path: &mut Path,
        memory: &M,
        second: &Paging,
        gpa: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Leaf, Fault>;
}

/// Nothing is remembered.
struct Uncached;

impl SecondLevel for Uncached {
    fn translate<M: PhysMemory>(
        &mut self,
        path: &mut Path,
        memory: &M,
        second: &Paging,
        gpa: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Leaf, Fault> {
        walk_into(path, memory, second, gpa, access, flags)
    }
}

/// Guest-physical memory, seen through the second level.
pub(crate) struct Behind<'a, M, S> {
    memory: &'a M,
    second: &'a Paging,
    flags: Flags,
    through: S,
    path: Path,
    references: u32,
    /// All guest tables so far lie in pages with paging-write.
    pub(crate) verified: bool,
}

impl<'a, M: PhysMemory, S: SecondLevel> Behind<'a, M, S> {
    pub(crate) fn new(memory: &'a M, second: &'a Paging, flags: Flags, through: S) -> Self {
        Self { memory, second, flags, through, path: Path::default(), references: 0, verified: true }
    }

    pub(crate) fn nested(
        &mut self,
        guest: Option<&Paging>,
        from: Option<Start>,
        gva: Gva,
        access: Access,
        path: &mut Path,
    ) -> Result<NestedLeaf, NestedFault> {
        let leaf = match guest {
            None => None,
            Some(guest) => match walk_entries(self, guest, from, gva.raw(), access, self.flags, path) {
                Ok(leaf) => Some(leaf),
                Err(Failure::Event(fault)) => return Err(NestedFault::Guest(fault)),
                Err(Failure::Source(fault)) => return Err(fault),
            },
        };
        let gpa = leaf.map_or(gva.raw(), |leaf| leaf.address);
        let rights = leaf.map(|leaf| leaf.rights());
        let access = final_access(&self.second.format, leaf.as_ref(), access);
        let target = Target::Final(rights);
        let second = self.second(gpa, access, target)?;
        if !self.verified && self.second.format.verifies_guest_paging(&second) {
            // Rule X4.
            let fault = violation(access, second.rights());
            return Err(target.fault(
                self.second,
                gpa,
                with(fault, Qualification::GUEST_PAGING_VERIFICATION),
            ));
        }
        Ok(NestedLeaf { guest: leaf, gpa: Gpa(gpa), second, hpa: Hpa(second.address) })
    }

    /// One translation of the second level.
    fn second(&mut self, gpa: u64, access: Access, target: Target) -> Result<Leaf, NestedFault> {
        let outcome =
            self.through.translate(&mut self.path, self.memory, self.second, gpa, access, self.flags);
        self.references += self.path.len() as u32;
        outcome.map_err(|fault| target.fault(self.second, gpa, fault))
    }

    /// Reads a guest's entry from where the second level puts it.
    fn load(&mut self, gpa: u64, leaf: &Leaf) -> Result<u64, NestedFault> {
        self.references += 1;
        let entry = self.memory.read_entry(leaf.address);
        entry.map_err(|error| NestedFault::Table { gpa: Gpa(gpa), fault: error.into() })
    }
}

impl<M: PhysMemory, S: SecondLevel> Entries for Behind<'_, M, S> {
    type Error = NestedFault;

    fn read(&mut self, gpa: u64) -> Result<u64, NestedFault> {
        let leaf = self.second(gpa, guest_table_access(&self.second.format), Target::Table)?;
        self.verified &= self.second.format.grants_paging_write(&leaf);
        self.load(gpa, &leaf)
    }

    /// Setting a flag goes to where the read went: no further reference is counted.
    fn compare_exchange(&mut self, gpa: u64, current: u64, new: u64) -> Result<bool, NestedFault> {
        let references = self.references;
        let leaf = self.second(gpa, GUEST_FLAG_UPDATE, Target::Table)?;
        self.references = references;
        let done = self.memory.compare_exchange(leaf.address, current, new);
        done.map_err(|error| NestedFault::Table { gpa: Gpa(gpa), fault: error.into() })
    }
}

/// What a second-level translation is for.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// A page-directory pointer, for a register.
    Register,
    /// A guest's entry.
    Table,
    /// The access itself; what the guest's tables grant, unless paging is off.
    Final(Option<Rights>),
}

impl Target {
    /// The fault with the bits that say what the translation was for.
    pub(crate) fn fault(self, second: &Paging, gpa: u64, fault: Fault) -> NestedFault {
        let gpa = Gpa(gpa);
        let bits = match self {
            Self::Register => Qualification::empty(),
            Self::Table => Qualification::LINEAR_VALID,
            Self::Final(guest) => {
                let told = second.format.advanced_exit_info();
                Qualification::LINEAR_VALID
                    | Qualification::FINAL
                    | if told { guest_rights(guest) } else { Qualification::empty() }
            }
        };
        let fault = match fault {
            Fault::PageFault { code } if second.format.kind() == Kind::Npt => {
                let target = match self {
                    Self::Register | Self::Table => PageFaultCode::NPT_TABLE,
                    Self::Final(_) => PageFaultCode::NPT_FINAL,
                };
                Fault::PageFault { code: code | target }
            }
            fault => with(fault, bits),
        };
        match self {
            Self::Register | Self::Table => NestedFault::Table { gpa, fault },
            Self::Final(_) => NestedFault::Final { gpa, fault },
        }
    }
}

/// Bits 11:9 of a qualification.
fn guest_rights(guest: Option<Rights>) -> Qualification {
    let rights = guest.unwrap_or(Rights::all());
    let mut bits = Qualification::empty();
    bits.set(Qualification::GUEST_USER, rights.contains(Rights::USER));
    bits.set(Qualification::GUEST_WRITABLE, rights.contains(Rights::WRITE));
    bits.set(Qualification::GUEST_NO_EXECUTE, !rights.contains(Rights::EXEC));
    bits
}

/// A violation with more bits; any other fault as it is.
fn with(fault: Fault, bits: Qualification) -> Fault {
    match fault {
        Fault::EptViolation { qualification } => Fault::EptViolation { qualification: qualification | bits },
        fault => fault,
    }
}
