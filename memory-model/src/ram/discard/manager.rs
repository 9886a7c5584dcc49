//! The manager of one block's discards.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Discards, Listener, Parts, RamDiscardListener, Source};
use crate::{MemoryError, RamBlock};

/// Names a source of one block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiscardSourceId(u32);

impl fmt::Display for DiscardSourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Knows which parts of a block are populated. Parts are offsets in the block; a block without sources is
/// populated everywhere.
///
/// ```
/// use memory_model::RamBlock;
/// let block = RamBlock::anonymous("vmem", 0x80_0000)?;
/// let manager = block.discard_manager();
/// let vmem = manager.add_source(0x20_0000)?;
/// manager.populate(vmem, 0x20_0000..0x60_0000)?;
/// assert_eq!(manager.populated(0..0x80_0000), [0x20_0000..0x60_0000]);
/// manager.discard(vmem, 0x20_0000..0x40_0000)?;
/// assert_eq!(manager.discarded(0..0x80_0000), [0..0x40_0000, 0x60_0000..0x80_0000]);
/// # Ok::<(), memory_model::MemoryError>(())
/// ```
#[derive(Clone, Copy)]
pub struct RamDiscardManager<'a> {
    block: &'a RamBlock,
}

impl RamBlock {
    /// The manager of this block's discards.
    pub fn discard_manager(&self) -> RamDiscardManager<'_> {
        RamDiscardManager { block: self }
    }
}

impl RamDiscardManager<'_> {
    /// Adds a source that populates and discards `granularity` bytes at a time (whole pages of the block).
    /// All of the block is discarded by it at first; listeners hear what that takes away.
    pub fn add_source(&self, granularity: u64) -> Result<DiscardSourceId, MemoryError> {
        if granularity == 0 || !granularity.is_multiple_of(self.block.page_size().bytes()) {
            let (block, page) = (self.block.name().to_string(), self.block.page_size().bytes());
            return Err(MemoryError::BlockSize { block, size: granularity, page });
        }
        let mut discards = self.lock();
        let id = DiscardSourceId(discards.next_source);
        let gone = discards.populated(self.block.max_size());
        discards.next_source = id.0.checked_add(1).expect("2^32 sources do not fit in memory");
        discards.sources.push(Source { id, granularity, populated: Parts::default() });
        tell_discarded(&discards.listeners, &gone);
        Ok(id)
    }

    /// Removes a source: what it alone kept discarded is populated, unless a listener refuses.
    pub fn remove_source(&self, source: DiscardSourceId) -> Result<(), MemoryError> {
        let mut discards = self.lock();
        let index = self.index(&discards, source)?;
        let before = discards.populated(self.block.max_size());
        let removed = discards.sources.remove(index);
        let new = discards.populated(self.block.max_size()).difference(&before);
        let answer = self.tell_populated(&discards.listeners, &new);
        if answer.is_err() {
            discards.sources.insert(index, removed);
        }
        answer
    }

    /// The smallest unit in which parts can come and go: what all sources' granularities have in common, or a
    /// page (rule R44).
    pub fn granularity(&self) -> u64 {
        let discards = self.lock();
        let common = discards.sources.iter().map(|source| source.granularity).reduce(greatest_common_divisor);
        common.unwrap_or(self.block.page_size().bytes())
    }

    /// Whether all of `part` is populated.
    pub fn is_populated(&self, part: Range<u64>) -> bool {
        self.lock().populated(self.block.max_size()).contains(&part)
    }

    /// The populated parts of `window`, ascending.
    pub fn populated(&self, window: Range<u64>) -> Vec<Range<u64>> {
        self.lock().populated(self.block.max_size()).within(&window)
    }

    /// The discarded parts of `window`, ascending.
    pub fn discarded(&self, window: Range<u64>) -> Vec<Range<u64>> {
        let populated = self.lock().populated(self.block.max_size());
        Parts::whole(0..self.block.max_size()).difference(&populated).within(&window)
    }

    /// Populates `part` (whole units of the source) for `source`. Listeners hear what is populated for all sources
    /// now; if one refuses, those before it hear that it is gone, and nothing has changed.
    pub fn populate(&self, source: DiscardSourceId, part: Range<u64>) -> Result<(), MemoryError> {
        let mut discards = self.lock();
        let index = self.index(&discards, source)?;
        self.block.check_units(&part, discards.sources[index].granularity)?;
        let before = discards.populated(self.block.max_size());
        let kept = discards.sources[index].populated.clone();
        discards.sources[index].populated.insert(part);
        let new = discards.populated(self.block.max_size()).difference(&before);
        let answer = self.tell_populated(&discards.listeners, &new);
        if answer.is_err() {
            discards.sources[index].populated = kept;
        }
        answer
    }

    /// Discards `part` (whole units of the source) for `source`: its pages go back to the host, and listeners hear
    /// what was populated for all sources until now. If the host refuses, nothing has changed.
    pub fn discard(&self, source: DiscardSourceId, part: Range<u64>) -> Result<(), MemoryError> {
        let mut discards = self.lock();
        let index = self.index(&discards, source)?;
        self.block.check_units(&part, discards.sources[index].granularity)?;
        self.block.discard(part.clone())?;
        let before = discards.populated(self.block.max_size());
        discards.sources[index].populated.remove(part);
        let gone = before.difference(&discards.populated(self.block.max_size()));
        tell_discarded(&discards.listeners, &gone);
        Ok(())
    }

    /// Adds a listener for `window`. It hears what is populated there now; if it refuses, it hears that what it
    /// had accepted is gone, and is not added.
    pub fn register<L: RamDiscardListener + 'static>(
        &self,
        listener: Arc<Mutex<L>>,
        window: Range<u64>,
    ) -> Result<(), MemoryError> {
        let mut discards = self.lock();
        let new = Listener { listener, window };
        let populated = discards.populated(self.block.max_size());
        self.tell_populated(core::slice::from_ref(&new), &populated)?;
        discards.listeners.push(new);
        Ok(())
    }

    /// Removes a listener, which hears everything go.
    pub fn unregister<L: RamDiscardListener + 'static>(&self, listener: &Arc<Mutex<L>>) {
        let mut discards = self.lock();
        let wanted: Arc<Mutex<dyn RamDiscardListener>> = listener.clone();
        let populated = discards.populated(self.block.max_size());
        let (gone, kept): (Vec<_>, Vec<_>) =
            discards.listeners.drain(..).partition(|known| Arc::ptr_eq(&known.listener, &wanted));
        discards.listeners = kept;
        tell_discarded(&gone, &populated);
    }

    /// Tells every listener of every new part; all or nobody.
    fn tell_populated(&self, listeners: &[Listener], new: &Parts) -> Result<(), MemoryError> {
        let calls: Vec<_> = listeners
            .iter()
            .flat_map(|one| new.within(&one.window).into_iter().map(move |part| (one, part)))
            .collect();
        for (told, (one, part)) in calls.iter().enumerate() {
            let mut listener = one.lock();
            let Err(source) = listener.populate(part.clone()) else { continue };
            let name = listener.name().to_string();
            drop(listener);
            calls[..told].iter().rev().for_each(|(one, part)| one.lock().discard(part.clone()));
            let (block, start, end) = (self.block.name().to_string(), part.start, part.end);
            return Err(MemoryError::Populate { block, listener: name, start, end, source });
        }
        Ok(())
    }

    fn index(&self, discards: &Discards, source: DiscardSourceId) -> Result<usize, MemoryError> {
        discards.sources.iter().position(|known| known.id == source).ok_or_else(|| {
            MemoryError::NoDiscardSource { block: self.block.name().to_string(), source_id: source.0 }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Discards> {
        self.block.host.discards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, dyn RamDiscardListener + 'static> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_discarded(listeners: &[Listener], gone: &Parts) {
    for one in listeners {
        gone.within(&one.window).into_iter().for_each(|part| one.lock().discard(part));
    }
}

fn greatest_common_divisor(one: u64, two: u64) -> u64 {
    if two == 0 { one } else { greatest_common_divisor(two, one % two) }
}
