//! What keeps a guest from being booted at all. What a guest does wrong once it runs is a verdict.

use guest_tests::GuestError;
use memory_model::{AddrRange, Gpa, MemoryError};
use slot_manager::SlotError;
use vcpu::VcpuError;
use vcpu::boot::BootError;

/// Why a machine could not be built, or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// The ELF file or its manifest is wrong.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A part of the program would not lie in memory.
    #[error("ELF segment at {segment}: no RAM or ROM at {gpa}")]
    SegmentOutsideMemory {
        /// The segment.
        segment: AddrRange<Gpa>,
        /// The first byte that has no memory.
        gpa: Gpa,
    },
    /// A part of the program would lie where the boot keeps its tables.
    #[error("ELF segment at {segment}: memory at {reserved} is the boot's own")]
    SegmentInBootMemory {
        /// The segment.
        segment: AddrRange<Gpa>,
        /// What the boot keeps.
        reserved: AddrRange<Gpa>,
    },
    /// The program could not be copied into memory.
    #[error("ELF segment at {segment}: {source}")]
    Load {
        /// The segment.
        segment: AddrRange<Gpa>,
        /// Why not.
        source: vm_memory::GuestMemoryError,
    },
    /// A step is about memory that is not there.
    #[error("a step of the manifest: no {size:#x} bytes of RAM or ROM in one region at {gpa}")]
    NoMemory {
        /// Where.
        gpa: Gpa,
        /// How much.
        size: u64,
    },
    /// This host cannot log writes as the manifest wants it.
    #[error("the dirty log: {0}")]
    DirtyMethod(SlotError),
    /// The dirty rings cannot be read.
    #[error("the dirty rings: {0}")]
    DirtyRing(SlotError),
    /// Memory could not be set up.
    #[error("{}", with_sources(.0))]
    Memory(#[from] MemoryError),
    /// The guest's first tables could not be set up.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The guest's control registers hold what no instruction puts there.
    #[error("the guest's paging: {0}")]
    GuestPaging(ept::Error),
    /// The VM or its vCPU refused.
    #[error("{}", with_sources(.0))]
    Vcpu(#[from] VcpuError),
}

/// An error in one line, with all that is behind it.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A wrapper that prints its cause has said it already.
        if !line.ends_with(&cause_text) {
            line = format!("{line}: {cause_text}");
        }
        source = cause.source();
    }
    line
}
