//! VM function 0, by which a guest changes its EPTP without an exit (rule IV6; SDM vol. 3C, "EPTP Switching").

use crate::error::Error;
use crate::format::{EptCaps, Eptp, MaxPhyAddr};
use crate::phys::{MemoryError, PhysMemory};

/// Entries of an EPTP list, which fills one 4 KiB page.
pub const EPTP_LIST_ENTRIES: u32 = 512;

/// Why VMFUNC exits (reason 59) and the EPTP stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VmFuncExit {
    /// ECX names no entry of the list.
    #[error("EPTP list has no entry {0}")]
    Index(u32),
    /// No VM entry would accept the entry.
    #[error("EPTP list entry {index}: {reason}")]
    Eptp {
        /// Its number.
        index: u32,
        /// What is wrong with it.
        reason: Error,
    },
    /// The entry has another number of levels than the EPTP in force.
    #[error("EPTP list entry {index}, {entry:?}, has another number of levels than {current:?}")]
    Levels {
        /// Its number.
        index: u32,
        /// The entry.
        entry: Eptp,
        /// What is in force.
        current: Eptp,
    },
    /// The list lies where no memory is.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The EPTP that VMFUNC with EAX = 0 and ECX = `index` puts in the place of `current`. With VPIDs on it forgets no
/// translation.
pub fn eptp_switching(
    memory: &impl PhysMemory,
    list: u64,
    index: u32,
    current: Eptp,
    caps: EptCaps,
    max_phy_addr: MaxPhyAddr,
) -> Result<Eptp, VmFuncExit> {
    if index >= EPTP_LIST_ENTRIES {
        return Err(VmFuncExit::Index(index));
    }
    let entry = memory.read_entry(list.wrapping_add(8 * u64::from(index)))?;
    let entry = Eptp::new(entry, caps, max_phy_addr).map_err(|reason| VmFuncExit::Eptp { index, reason })?;
    if entry.levels() != current.levels() {
        return Err(VmFuncExit::Levels { index, entry, current });
    }
    Ok(entry)
}
