//! The faults of a software machine, for who wants to see them one by one.

use std::time::Instant;

use crate::{FaultEvent, FaultRecord};

/// So many faults are kept: a guest can take them as fast as it can run.
const MOST: usize = 1 << 20;

/// Off until somebody asks for it.
#[derive(Default)]
pub(super) struct FaultLog {
    since: Option<Instant>,
    record: FaultRecord,
}

impl FaultLog {
    /// Begins anew.
    pub(super) fn start(&mut self) {
        *self = Self { since: Some(Instant::now()), record: FaultRecord::default() };
    }

    /// What there is, if it is on.
    pub(super) fn record(&self) -> Option<&FaultRecord> {
        self.since.map(|_| &self.record)
    }

    /// When a fault begins that is to be recorded.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.since.map(|_| Instant::now())
    }

    /// Takes in a fault that has begun then and ends now; `event` is all of it but the times.
    pub(super) fn end(&mut self, begun: Option<Instant>, event: impl FnOnce() -> Option<FaultEvent>) {
        let (Some(since), Some(begun)) = (self.since, begun) else { return };
        let took = Some(begun.elapsed());
        let Some(event) = event() else { return };
        if self.record.events.len() == MOST {
            self.record.unkept += 1;
            return;
        }
        self.record.events.push(FaultEvent { at: begun - since, took, ..event });
    }
}
