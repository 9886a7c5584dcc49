//! The faults of a software machine, for who wants to see them one by one.

use std::time::Instant;

use crate::{FaultEvent, FaultRecord};

/// So many faults are kept: a guest can take them as fast as it can run.
const MOST: usize = 1 << 20;

/// Off until somebody asks for it.
#[derive(Default)]
pub(super) struct FaultLog {
    on: bool,
    record: FaultRecord,
}

impl FaultLog {
    /// Begins anew.
    pub(super) fn start(&mut self) {
        *self = Self { on: true, record: FaultRecord::default() };
    }

    /// What there is, if it is on.
    pub(super) fn record(&self) -> Option<&FaultRecord> {
        self.on.then_some(&self.record)
    }

    /// When a fault begins that is to be recorded.
    pub(super) fn begin(&self) -> Option<Instant> {
        self.on.then(Instant::now)
    }

    /// Takes in a fault that has begun then and ends now; `event` is all of it but how long it took.
    pub(super) fn end(&mut self, begun: Option<Instant>, event: impl FnOnce(Instant) -> Option<FaultEvent>) {
        let Some(begun) = begun else { return };
        let took = Some(begun.elapsed());
        let Some(event) = event(begun) else { return };
        if self.record.events.len() == MOST {
            self.record.unkept += 1;
            return;
        }
        self.record.events.push(FaultEvent { took, ..event });
    }
}
