//! What a kernel may or may not have, and what this crate cannot do without it.

use std::fmt;

use kvm_bindings::*;
use kvm_ioctls::VmFd;

use crate::SlotError;

/// Something a kernel may lack (`KVM_CAP_*`). Asked of the VM, not of `/dev/kvm`: the answer depends on
/// the VM's type (rule R7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Capability {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Its number for `KVM_CHECK_EXTENSION`.
    pub number: u32,
    /// What there is none of where it is missing.
    pub without: &'static str,
}

macro_rules! capabilities {
    ($($short:ident = $name:ident: $without:literal;)*) => {
        #[expect(missing_docs, reason = "the table says what each is for")]
        impl Capability {
            $(pub const $short: Self = Self { name: stringify!($name), number: $name, without: $without };)*
            /// All that this crate can make use of.
            pub const ALL: &'static [Self] = &[$(Self::$short),*];
        }
    };
}

capabilities! {
    NR_MEMSLOTS = KVM_CAP_NR_MEMSLOTS: "count of memory slots, so 32 are assumed";
    READONLY_MEM = KVM_CAP_READONLY_MEM: "read-only slot, so that reads of ROM exit too";
    MULTI_ADDRESS_SPACE = KVM_CAP_MULTI_ADDRESS_SPACE: "second address space, so no SMRAM of its own";
    USER_MEMORY2 = KVM_CAP_USER_MEMORY2: "KVM_SET_USER_MEMORY_REGION2, so no private memory";
    GUEST_MEMFD = KVM_CAP_GUEST_MEMFD: "guest_memfd, so no private memory";
    MEMORY_ATTRIBUTES = KVM_CAP_MEMORY_ATTRIBUTES: "conversion between private and shared memory";
    MANUAL_DIRTY_LOG_PROTECT2 = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: "KVM_CLEAR_DIRTY_LOG, so reading a log clears all of it";
    DIRTY_LOG_RING = KVM_CAP_DIRTY_LOG_RING_ACQ_REL: "dirty ring, so logs are bitmaps";
    IOEVENTFD = KVM_CAP_IOEVENTFD: "ioeventfd, so doorbells exit";
    IOEVENTFD_ANY_LENGTH = KVM_CAP_IOEVENTFD_ANY_LENGTH: "ioeventfd for writes of any width";
    COALESCED_MMIO = KVM_CAP_COALESCED_MMIO: "coalesced MMIO, so each write exits";
}

impl Capability {
    /// What the VM answers; 0 if it lacks it.
    pub fn probe(self, vm: &VmFd) -> u32 {
        u32::try_from(vm.check_extension_raw(self.number.into())).unwrap_or(0)
    }

    /// What the VM answers, or that it lacks it.
    pub fn require(self, vm: &VmFd) -> Result<u32, SlotError> {
        match self.probe(vm) {
            0 => Err(SlotError::Missing { capability: self }),
            answer => Ok(answer),
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel has no {} ({} {})", self.without, self.name, self.number)
    }
}
