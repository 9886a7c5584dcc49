//! What a failed walk is, in the hardware's own codes.

use bitflags::bitflags;

use crate::access::{Access, Controls, Rights};
use crate::format::{Format, Kind, Misconfiguration};
use crate::phys::MemoryError;

bitflags! {
    /// The error code of a page fault; for NPT also `exit_info_1`, which adds bits 32 and 33.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PageFaultCode: u64 {
        /// P: the translation exists, and its rights or its form are wrong.
        const PRESENT = 1 << 0;
        /// W: the access was a write.
        const WRITE = 1 << 1;
        /// U: the access was made in user mode.
        const USER = 1 << 2;
        /// RSVD: a reserved bit was set.
        const RESERVED = 1 << 3;
        /// I: the access was a fetch (rule F2).
        const FETCH = 1 << 4;
        /// NPT: while translating the final guest-physical address.
        const NPT_FINAL = 1 << 32;
        /// NPT: while walking the guest's own tables.
        const NPT_TABLE = 1 << 33;
    }
}

bitflags! {
    /// Exit qualification of an EPT violation.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Qualification: u64 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write; a read-modify-write has `READ` too.
        const WRITE = 1 << 1;
        /// An instruction fetch.
        const FETCH = 1 << 2;
        /// R is set in all entries used; clear if one was not present.
        const READABLE = 1 << 3;
        /// W, likewise.
        const WRITABLE = 1 << 4;
        /// X, likewise.
        const EXECUTABLE = 1 << 5;
        /// The guest linear address is valid.
        const LINEAR_VALID = 1 << 7;
        /// The final translation, not an access to a guest paging entry. Only with `LINEAR_VALID`.
        const FINAL = 1 << 8;
    }
}

/// Why a walk has no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// #PF with this error code; in NPT the exit code 0x400 with this `exit_info_1`.
    #[error("page fault, code {:#x}", code.bits())]
    PageFault {
        /// The error code.
        code: PageFaultCode,
    },
    /// Exit 48.
    #[error("EPT violation, qualification {:#x}", qualification.bits())]
    EptViolation {
        /// The exit qualification.
        qualification: Qualification,
    },
    /// Exit 49.
    #[error("EPT misconfiguration: {reason}")]
    EptMisconfiguration {
        /// What is wrong with the last entry of the walk.
        reason: Misconfiguration,
    },
    /// A linear address that is not canonical: #GP or #SS, never #PF.
    #[error("{address:#x} is not canonical")]
    NonCanonical {
        /// The linear address.
        address: u64,
    },
    /// A guest-physical address wider than the second-level table translates (rule M9).
    #[error("{address:#x} is wider than the table translates")]
    TooWide {
        /// The guest-physical address.
        address: u64,
    },
    /// A table where no memory is, or flags to be set in read-only memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What stopped a walk, before it is put into a format's words.
#[derive(Clone, Copy)]
pub(crate) enum Stop {
    /// The input address has no place in the table.
    Input(u64),
    /// An entry was not present.
    Absent,
    /// An entry was malformed.
    Malformed(Misconfiguration),
    /// All entries were good, but granted only these.
    Denied(Rights),
}

impl Stop {
    /// The event that the stop raises.
    #[cold]
    pub(crate) fn event(self, format: &Format, access: Access, controls: Controls) -> Fault {
        match (format.kind(), self) {
            (Kind::Ia32e, Self::Input(address)) => Fault::NonCanonical { address },
            (Kind::Npt | Kind::Ept, Self::Input(address)) => Fault::TooWide { address },
            (Kind::Ept, Self::Malformed(reason)) => Fault::EptMisconfiguration { reason },
            (Kind::Ept, Self::Absent) => violation(access, Rights::empty()),
            (Kind::Ept, Self::Denied(rights)) => violation(access, rights),
            (Kind::Ia32e, stop) => page_fault(stop, format, access, controls),
            // Rule N2: each access through nested tables is one of user mode.
            (Kind::Npt, stop) => page_fault(stop, format, access.by_user(), controls),
        }
    }
}

/// Rules V1 and F4 of the qualification: what the access does in bits 2:0, what the entries grant in 5:3.
fn violation(access: Access, granted: Rights) -> Fault {
    let does = u64::from((access.does & Rights::RWX).bits());
    let granted = u64::from((granted & Rights::RWX).bits());
    Fault::EptViolation { qualification: Qualification::from_bits_truncate(does | granted << 3) }
}

/// Rules F1 and F2.
fn page_fault(stop: Stop, format: &Format, access: Access, controls: Controls) -> Fault {
    let fetch = access.fetches() && (format.no_execute() || controls.contains(Controls::SMEP));
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::PRESENT, !matches!(stop, Stop::Absent));
    code.set(PageFaultCode::RESERVED, matches!(stop, Stop::Malformed(_)));
    code.set(PageFaultCode::WRITE, access.writes());
    code.set(PageFaultCode::USER, access.user);
    code.set(PageFaultCode::FETCH, fetch);
    Fault::PageFault { code }
}
