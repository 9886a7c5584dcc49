//! Dirty logging of everything, and bringing dirty bits up to date (rules R31, R32).

use std::string::ToString;

use super::AddressSpace;
use super::shared::State;
use crate::{AddrRange, DirtySync, Gpa, MemoryError, RegionId};

impl AddressSpace {
    /// Switches logging of everything that can be migrated on, for all spaces of the tree (QEMU's
    /// `memory_global_dirty_log_start`). Each listener is started, lowest priority first; if one refuses,
    /// those before it are stopped again, last first, and all is as before (rule R31).
    pub fn start_global_log(&self) -> Result<(), MemoryError> {
        let mut state = self.lock()?;
        if state.stop_pending {
            state.stop_global_log()?;
        }
        if state.tree.global_log() { Ok(()) } else { state.start_global_log() }
    }

    /// Switches it off. While the guest does not run this waits until it does (rule R32).
    pub fn stop_global_log(&self) -> Result<(), MemoryError> {
        let mut state = self.lock()?;
        if !state.tree.global_log() {
            return Ok(());
        }
        state.stop_pending = !state.running;
        if state.running { state.stop_global_log() } else { Ok(()) }
    }

    /// Says whether the guest runs; at first it does. Carries out a stop of the log that waited for it.
    pub fn set_running(&self, running: bool) -> Result<(), MemoryError> {
        let mut state = self.lock()?;
        state.running = running;
        if running && state.stop_pending { state.stop_global_log() } else { Ok(()) }
    }

    /// Has every listener bring the dirty bits of what is logged up to date: range by range, or all at once,
    /// as it does it.
    pub fn sync_dirty_log(&self, last_stage: bool) -> Result<(), MemoryError> {
        let state = self.lock()?;
        let view = self.view();
        for registered in state.listeners.iter().filter(|registered| registered.space == self.key) {
            let mut listener = registered.lock();
            match listener.dirty_sync() {
                DirtySync::None => {}
                DirtySync::Global => listener.log_sync_global(last_stage),
                DirtySync::Ranges => {
                    let logged = view.ranges().filter(|range| !range.dirty_mask.is_empty());
                    logged.for_each(|range| listener.log_sync(range));
                }
            }
        }
        Ok(())
    }

    /// Tells every listener that the dirty bits of `len` bytes at `offset` of a region were taken, wherever
    /// those bytes are seen.
    pub fn clear_dirty_log(&self, region: RegionId, offset: u64, len: u64) -> Result<(), MemoryError> {
        let state = self.lock()?;
        let outside = |_| {
            let region = state.tree.at(region).name().to_string();
            MemoryError::OutOfRegion { region, offset, len }
        };
        let size = state.tree.get(region)?.size();
        let end = u128::from(offset) + u128::from(len);
        let wanted = (len > 0 && end <= size).then(|| AddrRange::new(Gpa(offset), len.into())).flatten();
        let wanted = wanted.ok_or(()).map_err(outside)?;
        for range in self.view().ranges().filter(|range| range.region == region) {
            let shown = AddrRange::new(Gpa(range.offset), range.range.bytes());
            let Some(part) = shown.and_then(|shown| shown.intersection(wanted)) else { continue };
            let first = Gpa(range.range.first().0 + (part.first().0 - range.offset));
            let window = AddrRange::new(first, part.bytes()).and_then(|window| range.clip(window));
            let Some(clipped) = window else { continue };
            for registered in state.listeners.iter().filter(|registered| registered.space == self.key) {
                registered.lock().log_clear(&clipped);
            }
        }
        Ok(())
    }
}

impl State {
    fn start_global_log(&mut self) -> Result<(), MemoryError> {
        for (index, registered) in self.listeners.iter().enumerate() {
            let started = registered.lock().log_global_start();
            if let Err(source) = started {
                self.stop_listeners(index);
                let listener = registered.lock().name().to_string();
                return Err(MemoryError::GlobalLog { listener, source });
            }
        }
        let switched = self.update(|tree| {
            tree.set_global_log(true);
            Ok::<_, MemoryError>(())
        });
        switched.inspect_err(|_| self.stop_listeners(self.listeners.len()))
    }

    fn stop_global_log(&mut self) -> Result<(), MemoryError> {
        self.update(|tree| {
            tree.set_global_log(false);
            Ok::<_, MemoryError>(())
        })?;
        self.stop_pending = false;
        self.stop_listeners(self.listeners.len());
        Ok(())
    }

    /// Stops the first `count` listeners, last first.
    fn stop_listeners(&self, count: usize) {
        self.listeners[..count].iter().rev().for_each(|registered| registered.lock().log_global_stop());
    }
}
