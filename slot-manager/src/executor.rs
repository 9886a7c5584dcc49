//! Who carries slot operations out.

use crate::{DirtyLog, DirtyMethod, SlotError, SlotOp};

/// What the kernel behind an executor can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotLimits {
    /// How many slots there can be; numbers run from 0 to one below.
    pub count: u32,
    /// The longest slot in bytes. Longer memory is cut into several (rule R3).
    pub max_bytes: u64,
    /// Whether slots can be read-only. If not, read-only memory gets no slot (rule R4).
    pub readonly: bool,
}

impl SlotLimits {
    /// The longest slot this crate makes: 2^31 - 1 pages are the kernel's limit, and cut down to whole GiB
    /// the next slot can still be mapped by the largest pages.
    pub const MAX_BYTES: u64 = (((1 << 31) - 1) << 12) & !((1 << 30) - 1);
}

/// A kernel's side of memory slots: real, in-process or a recorder.
pub trait SlotExecutor: Send {
    /// What it can do. Stays the same.
    fn limits(&self) -> SlotLimits;
    /// Does one operation. After an error nothing has changed.
    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError>;
    /// How it logs dirty pages: by bitmaps until it was told otherwise.
    fn dirty_method(&self) -> DirtyMethod;
    /// Has `act` do something with its dirty logs, once. They may lie behind a lock, so they are not handed out; and
    /// an executor around another one has this alone to pass on.
    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog));
}

impl<E: SlotExecutor + ?Sized> SlotExecutor for Box<E> {
    fn limits(&self) -> SlotLimits {
        (**self).limits()
    }
    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        (**self).execute(op)
    }
    fn dirty_method(&self) -> DirtyMethod {
        (**self).dirty_method()
    }
    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        (**self).with_log(act);
    }
}
