//! Who needs that memory can be discarded, and who needs that it is not (rule R43).

use alloc::sync::Arc;
use std::sync::{Mutex, PoisonError};

use crate::MemoryError;

/// What somebody needs of discards on a machine (QEMU's `ram_block_discard_disable` and `..._require`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardClaim {
    /// No discards at all: memory is pinned, and whoever pinned it does not listen.
    Disabled,
    /// None but those that listeners are told of: memory is pinned by one who listens.
    UncoordinatedDisabled,
    /// Discards must work, and listeners are not told (a balloon).
    Required,
    /// Discards must work, and listeners are told (virtio-mem).
    CoordinatedRequired,
}

impl DiscardClaim {
    const ALL: [Self; 4] =
        [Self::Disabled, Self::UncoordinatedDisabled, Self::Required, Self::CoordinatedRequired];

    /// Those that cannot be held beside it.
    fn excludes(self) -> &'static [Self] {
        match self {
            Self::Disabled => &[Self::Required, Self::CoordinatedRequired],
            Self::UncoordinatedDisabled => &[Self::Required],
            Self::Required => &[Self::Disabled, Self::UncoordinatedDisabled],
            Self::CoordinatedRequired => &[Self::Disabled],
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Disabled => "memory that must not be discarded",
            Self::UncoordinatedDisabled => "memory that must not be discarded unannounced",
            Self::Required => "a device that discards memory unannounced",
            Self::CoordinatedRequired => "a device that discards memory",
        }
    }
}

/// The claims held on one machine's memory. Clones share them.
///
/// ```
/// use memory_model::{DiscardClaim, DiscardClaims, MemoryError};
/// let claims = DiscardClaims::default();
/// let balloon = claims.claim(DiscardClaim::Required)?;
/// assert!(matches!(claims.claim(DiscardClaim::Disabled), Err(MemoryError::DiscardBusy { .. })));
/// drop(balloon);
/// claims.claim(DiscardClaim::Disabled)?;
/// # Ok::<(), MemoryError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct DiscardClaims {
    /// How many hold each claim, in the order of `DiscardClaim::ALL`.
    held: Arc<Mutex<[usize; DiscardClaim::ALL.len()]>>,
}

impl DiscardClaims {
    /// Holds `claim` as long as the answer lives; busy if somebody holds one that excludes it.
    pub fn claim(&self, claim: DiscardClaim) -> Result<HeldClaim, MemoryError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = claim.excludes().iter().find(|&&other| held[other as usize] != 0) {
            return Err(MemoryError::DiscardBusy { wanted: claim.describe(), held: other.describe() });
        }
        held[claim as usize] += 1;
        Ok(HeldClaim { claims: self.clone(), claim })
    }

    /// Whether somebody holds `claim`.
    pub fn is_held(&self, claim: DiscardClaim) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)[claim as usize] != 0
    }
}

/// A claim, held until it is dropped.
#[derive(Debug)]
pub struct HeldClaim {
    claims: DiscardClaims,
    claim: DiscardClaim,
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        self.claims.held.lock().unwrap_or_else(PoisonError::into_inner)[self.claim as usize] -= 1;
    }
}
