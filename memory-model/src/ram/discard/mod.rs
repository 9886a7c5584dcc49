//! Which parts of a block are populated, and who hears when that changes (QEMU's `RamDiscardManager`).
//!
//! virtio-mem and its like plug and unplug memory inside a block. What is discarded must not be read, saved or
//! mapped for a device. Each device is a source with parts of its own; memory is populated where all sources
//! have it populated (rule R44).

mod claims;
mod manager;
mod parts;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use std::sync::Mutex;

pub use claims::{DiscardClaim, DiscardClaims, HeldClaim};
pub use manager::{DiscardSourceId, RamDiscardManager};
use parts::Parts;

use crate::Refusal;

/// Hears which parts of a block come and go (QEMU's `RamDiscardListener`). Parts are offsets in the block.
///
/// It must not ask the manager from inside: it would wait for itself.
pub trait RamDiscardListener: Send {
    /// Who this is, for error messages.
    fn name(&self) -> &str;
    /// `part` is about to be used. After an error it is not, and those told before are told that it is gone.
    fn populate(&mut self, part: Range<u64>) -> Result<(), Refusal>;
    /// `part` is gone.
    fn discard(&mut self, part: Range<u64>);
}

/// The discards of one block.
#[derive(Default)]
pub(super) struct Discards {
    next_source: u32,
    sources: Vec<Source>,
    listeners: Vec<Listener>,
}

struct Source {
    id: DiscardSourceId,
    granularity: u64,
    populated: Parts,
}

#[derive(Clone)]
struct Listener {
    listener: Arc<Mutex<dyn RamDiscardListener>>,
    /// What of the block it wants to hear about.
    window: Range<u64>,
}

impl Discards {
    /// Where all sources have the block, of `size` bytes, populated.
    fn populated(&self, size: u64) -> Parts {
        let all = Parts::whole(0..size);
        self.sources.iter().fold(all, |common, source| common.intersection(&source.populated))
    }
}
