//! What a failed walk is, in the hardware's own codes.

use bitflags::bitflags;

use crate::access::{Access, Controls, Rights};
use crate::format::{Format, Kind, Misconfiguration};
use crate::judge::Denial;
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
        /// PK: the protection key denies the access, whatever else does (rule F3).
        const PROTECTION_KEY = 1 << 5;
        /// SS: the access was one to a shadow stack.
        const SHADOW_STACK = 1 << 6;
        /// HLAT: the fault arose in tables of hypervisor-managed linear-address translation.
        const HLAT = 1 << 7;
        /// SGX: the fault has nothing to do with paging.
        const SGX = 1 << 15;
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
        /// XU, likewise; only under mode-based execute control.
        const USER_EXECUTABLE = 1 << 6;
        /// The guest linear address is valid.
        const LINEAR_VALID = 1 << 7;
        /// The final translation, not an access to a guest paging entry. Only with `LINEAR_VALID`.
        const FINAL = 1 << 8;
        /// The guest's own tables make it a user-mode address. This and the next two are told of a final
        /// translation by processors with [`EptCaps::ADVANCED_EXIT_INFO`](crate::EptCaps::ADVANCED_EXIT_INFO).
        const GUEST_USER = 1 << 9;
        /// They let it be written.
        const GUEST_WRITABLE = 1 << 10;
        /// They forbid fetches from it.
        const GUEST_NO_EXECUTE = 1 << 11;
        /// The access was made by an IRET that has unblocked NMIs: for the caller to add.
        const NMI_UNBLOCKING = 1 << 12;
        /// An access to a shadow stack.
        const SHADOW_STACK = 1 << 13;
        /// Bit 60 of the leaf, if EPTP bit 7 is set.
        const SUPERVISOR_SHADOW_STACK = 1 << 14;
        /// Guest-paging verification failed (rule X4).
        const GUEST_PAGING_VERIFICATION = 1 << 15;
        /// The access was asynchronous to the instruction, such as one of Processor Trace: for the caller to add.
        const ASYNCHRONOUS = 1 << 16;
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
    /// A guest-physical address wider than the second-level table translates (rule M9), or a linear address of more
    /// than 32 bits in PAE and 32-bit paging.
    #[error("{address:#x} is wider than the table translates")]
    TooWide {
        /// The address.
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
    /// All entries were good, but do not allow the access.
    Denied(Denial),
}

impl Stop {
    /// The event that the stop raises.
    #[cold]
    pub(crate) fn event(self, format: &Format, access: Access, controls: Controls) -> Fault {
        match (format.kind(), self) {
            (Kind::Ia32e, Self::Input(address)) => Fault::NonCanonical { address },
            (_, Self::Input(address)) => Fault::TooWide { address },
            (Kind::Ept, Self::Malformed(reason)) => Fault::EptMisconfiguration { reason },
            (Kind::Ept, Self::Absent) => violation(access, Rights::empty()),
            (Kind::Ept, Self::Denied(Denial { rights, .. })) => violation(access, rights),
            // Rule N2: each access through nested tables is one of user mode.
            (Kind::Npt, stop) => page_fault(stop, format, access.by_user(), controls),
            (_, stop) => page_fault(stop, format, access, controls),
        }
    }
}

/// The bits of a violation that the second level knows by itself: 0 to 6, 13 and 14.
pub(crate) fn violation(access: Access, granted: Rights) -> Fault {
    let does = access.does;
    let bits = [
        (does, Rights::READ, Qualification::READ),
        (does, Rights::WRITE, Qualification::WRITE),
        (does, Rights::EXEC, Qualification::FETCH),
        (does, Rights::SHADOW_STACK, Qualification::SHADOW_STACK),
        (granted, Rights::READ, Qualification::READABLE),
        (granted, Rights::WRITE, Qualification::WRITABLE),
        (granted, Rights::EXEC, Qualification::EXECUTABLE),
        (granted, Rights::USER_EXEC, Qualification::USER_EXECUTABLE),
        (granted, Rights::SHADOW_STACK, Qualification::SUPERVISOR_SHADOW_STACK),
    ];
    let set = bits.into_iter().filter(|(rights, right, _)| rights.contains(*right));
    Fault::EptViolation { qualification: set.map(|(.., bit)| bit).collect() }
}

/// Rules F1 to F3.
fn page_fault(stop: Stop, format: &Format, access: Access, controls: Controls) -> Fault {
    let fetch = access.fetches() && (format.no_execute() || controls.contains(Controls::SMEP));
    let shadow_stack = access.does.contains(Rights::SHADOW_STACK) && controls.contains(Controls::CET);
    let mut code = PageFaultCode::empty();
    code.set(PageFaultCode::PRESENT, !matches!(stop, Stop::Absent));
    code.set(PageFaultCode::RESERVED, matches!(stop, Stop::Malformed(_)));
    code.set(PageFaultCode::WRITE, access.writes());
    code.set(PageFaultCode::USER, access.user);
    code.set(PageFaultCode::FETCH, fetch);
    code.set(PageFaultCode::PROTECTION_KEY, matches!(stop, Stop::Denied(Denial { key: true, .. })));
    code.set(PageFaultCode::SHADOW_STACK, shadow_stack);
    Fault::PageFault { code }
}
