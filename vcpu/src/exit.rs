//! Why a vCPU came back, what it is answered, and how long it may run: owned, plain values.

use std::fmt;
use std::time::{Duration, Instant};

use memory_model::Gpa;

/// Up to eight bytes of an MMIO access, little endian.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct MmioData {
    bytes: [u8; 8],
    len: u8,
}

impl MmioData {
    /// The bytes of an access; `None` unless there are 1 to 8.
    pub fn new(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len()).filter(|slot| !slot.is_empty())?.copy_from_slice(data);
        Some(Self { bytes, len: data.len() as u8 })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The bytes as a number.
    pub fn value(&self) -> u64 {
        u64::from_le_bytes(self.bytes)
    }
}

impl fmt::Debug for MmioData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({} bytes)", self.value(), self.len)
    }
}

/// Which budget ran out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// [`Budget::instructions`].
    Instructions,
    /// [`Budget::deadline`].
    WallClock,
}

/// Why the vCPU came back to its VMM.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// `OUT` or `REP OUTS`: `data` holds `data.len() / size` elements.
    IoOut {
        /// Port number.
        port: u16,
        /// Bytes per element: 1, 2 or 4.
        size: u8,
        /// All elements, in order.
        data: Vec<u8>,
    },
    /// `IN` or `REP INS`; answer with [`Entry::Data`] of `size * count` bytes.
    IoIn {
        /// Port number.
        port: u16,
        /// Bytes per element: 1, 2 or 4.
        size: u8,
        /// Number of elements.
        count: u32,
    },
    /// A read where no slot is; answer with [`Entry::Data`] of `size` bytes.
    MmioRead {
        /// Where.
        gpa: Gpa,
        /// Bytes: 1 to 8.
        size: u8,
    },
    /// A write where no slot is, or into a read-only slot.
    MmioWrite {
        /// Where.
        gpa: Gpa,
        /// What.
        data: MmioData,
    },
    /// `HLT`. On a VM with interrupt controllers: all its processors sleep, and nothing in it will wake one.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The processor refused to enter the guest.
    FailEntry {
        /// Hardware's reason code.
        reason: u64,
    },
    /// KVM gave up on the guest.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The host has no page behind a slot: a plain `EFAULT`, or `KVM_EXIT_MEMORY_FAULT`.
    MemoryFault {
        /// The guest address, where the host tells it.
        gpa: Option<Gpa>,
    },
    /// The vCPU's dirty ring has no room for what it may write next
    /// ([`SlotManager::reap`](slot_manager::SlotManager::reap) makes some), and it comes back at once until there is.
    DirtyRingFull,
    /// The software CPU met an instruction, or a form of it, that it does not have.
    Unimplemented {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its disassembly.
        instruction: String,
    },
    /// The budget ran out; the guest can go on with a new one.
    BudgetExceeded(Limit),
    /// Another thread asked the vCPU to come back ([`Kick`](crate::Kick)).
    Kicked,
}

/// What a vCPU is given when it goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Just go on.
    Resume,
    /// The answer to [`Exit::IoIn`] or [`Exit::MmioRead`]: bytes, little endian.
    Data(Vec<u8>),
}

/// How long a guest may run. Every run has one, so that no guest can hang its VMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Wall-clock end.
    pub deadline: Instant,
    /// Instructions retired, where the vCPU counts them (the software CPU does, KVM does not).
    pub instructions: u64,
}

impl Budget {
    /// A budget that ends `time` from now, with no limit on instructions.
    pub fn time(time: Duration) -> Self {
        Self { deadline: Instant::now() + time, instructions: u64::MAX }
    }

    /// The same with a limit on instructions.
    pub fn instructions(self, instructions: u64) -> Self {
        Self { instructions, ..self }
    }
}
