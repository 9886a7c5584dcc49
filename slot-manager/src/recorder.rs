//! An executor for tests: writes down what it is asked, and fails where it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_model::{AddrRange, Gpa};

use crate::{DirtyLog, DirtyMethod, Errno, Side, Slot, SlotError, SlotExecutor, SlotLimits, SlotOp};

/// Writes down each operation and passes it on to another executor, unless told to refuse it. Clones share
/// what they hold: keep one, and give the other to a [`SlotManager`](crate::SlotManager).
pub struct Recorder<E> {
    shared: Arc<Mutex<Shared<E>>>,
}

struct Shared<E> {
    inner: E,
    limits: SlotLimits,
    steps: Vec<SlotOp>,
    refusals: BTreeMap<usize, Errno>,
}

impl<E> Clone for Recorder<E> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<E: SlotExecutor> Recorder<E> {
    /// Records what `inner` is asked to do; has `inner`'s limits.
    pub fn new(inner: E) -> Self {
        let limits = inner.limits();
        Self::with_limits(inner, limits)
    }

    /// Records what `inner` is asked to do, and claims other limits.
    pub fn with_limits(inner: E, limits: SlotLimits) -> Self {
        let shared = Shared { inner, limits, steps: Vec::new(), refusals: BTreeMap::new() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Makes step `step` fail with `errno`. Steps count from 0, from the last [`Recorder::take`] on, refused
    /// ones included.
    pub fn refuse(&self, step: usize, errno: Errno) {
        self.lock().refusals.insert(step, errno);
    }

    /// What was asked since the last call of this, refused steps included; forgets it, and all refusals.
    pub fn take(&self) -> Vec<SlotOp> {
        let mut shared = self.lock();
        shared.refusals.clear();
        std::mem::take(&mut shared.steps)
    }

    /// Looks at the executor behind.
    pub fn with_inner<T>(&self, look: impl FnOnce(&E) -> T) -> T {
        look(&self.lock().inner)
    }

    /// Does something to the executor behind that no manager asks for: writes a page as the guest would, say.
    pub fn with_inner_mut<T>(&self, act: impl FnOnce(&mut E) -> T) -> T {
        act(&mut self.lock().inner)
    }

    fn lock(&self) -> MutexGuard<'_, Shared<E>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: SlotExecutor> SlotExecutor for Recorder<E> {
    fn limits(&self) -> SlotLimits {
        self.lock().limits
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        let mut shared = self.lock();
        let step = shared.steps.len();
        shared.steps.push(op.clone());
        match shared.refusals.get(&step) {
            Some(&errno) => Err(SlotError::refused(op, errno)),
            None => shared.inner.execute(op),
        }
    }

    fn dirty_method(&self) -> DirtyMethod {
        self.lock().inner.dirty_method()
    }

    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        self.lock().inner.with_log(act);
    }

    fn set_side(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        self.lock().inner.set_side(range, side)
    }

    fn punch_hole(&mut self, slot: &Slot, part: AddrRange<Gpa>) -> Result<(), Errno> {
        self.lock().inner.punch_hole(slot, part)
    }
}
