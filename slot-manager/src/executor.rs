//! Who carries slot operations out.

use memory_model::{AddrRange, Gpa};

use crate::{Capability, DirtyLog, DirtyMethod, Errno, Side, Slot, SlotError, SlotOp};

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
    /// Puts the pages of `range` on one side of their slots (`KVM_SET_MEMORY_ATTRIBUTES`), all of them or none.
    ///
    /// An executor without private memory leaves this as it is.
    fn set_side(&mut self, _range: AddrRange<Gpa>, _side: Side) -> Result<(), SlotError> {
        Err(SlotError::Missing { capability: Capability::MEMORY_ATTRIBUTES })
    }
    /// Gives the private pages of `part`, which lies in `slot`, back to the host. They read as zero afterwards.
    ///
    /// An executor without private memory leaves this as it is.
    fn punch_hole(&mut self, _slot: &Slot, _part: AddrRange<Gpa>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
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
    fn set_side(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        (**self).set_side(range, side)
    }
    fn punch_hole(&mut self, slot: &Slot, part: AddrRange<Gpa>) -> Result<(), Errno> {
        (**self).punch_hole(slot, part)
    }
}
