//! Everything that can go wrong in this crate apart from the guest itself: that is an [`Exit`](crate::Exit).

use std::io;

use crate::kvm::KvmUnavailable;

/// Why a VM or a vCPU refused. A guest's own failures are exits, never errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// KVM cannot be used on this host.
    #[error(transparent)]
    KvmUnavailable(#[from] KvmUnavailable),
    /// A call to the host failed.
    #[error("{call} failed: {source}")]
    Host {
        /// The ioctl or system call.
        call: &'static str,
        /// Its errno.
        source: io::Error,
    },
    /// KVM came back for something that nobody asked it for.
    #[error("KVM came back with exit {reason} ({name}), which this VMM never asked for")]
    UnexpectedExit {
        /// `kvm_run.exit_reason`.
        reason: u32,
        /// Its name in the KVM API.
        name: &'static str,
    },
    /// The software machine's second-level tables could not be set up.
    #[error("second-level tables: {0}")]
    SecondLevel(#[from] ept::Error),
    /// The vCPU's dirty ring could not be mapped.
    #[error(transparent)]
    DirtyRing(#[from] slot_manager::SlotError),
    /// The guest waits for the bytes of a read, and was told to just go on.
    #[error("the guest waits for {needed} bytes: answer with Entry::Data")]
    AnswerMissing {
        /// How many bytes.
        needed: usize,
    },
    /// The answer to a read has the wrong length.
    #[error("the guest waits for {needed} bytes, the answer has {given}")]
    AnswerLength {
        /// How many bytes the guest reads.
        needed: usize,
        /// How many the answer has.
        given: usize,
    },
    /// An answer, and no read that waits for one.
    #[error("an answer of {given} bytes, but the guest waits for none")]
    AnswerUnexpected {
        /// How many bytes the answer has.
        given: usize,
    },
    /// Registers cannot be set while an instruction is half done.
    #[error("registers cannot be set in the middle of an instruction: answer its exit and run first")]
    MidInstruction,
    /// Every real-time signal of this process has a handler of its own, and one is needed to interrupt a guest.
    #[error("no real-time signal is free to interrupt a guest with")]
    NoFreeSignal,
}

impl VcpuError {
    /// A failed call, ready for `map_err`.
    pub(crate) fn host<S: Into<io::Error>>(call: &'static str) -> impl FnOnce(S) -> Self {
        move |source| Self::Host { call, source: source.into() }
    }
}
