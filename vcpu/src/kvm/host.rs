//! What the host's KVM is: whether it can be used, its flavour, the CPUID it supports.

use std::io;
use std::sync::OnceLock;

use ept::live::KvmModule;
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use slot_manager::Capability;

use crate::VcpuError;

/// Why KVM cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmUnavailable {
    /// There is no `/dev/kvm`.
    #[error("there is no /dev/kvm: load kvm_intel or kvm_amd, and enable virtualization in the firmware")]
    NoDevice,
    /// `/dev/kvm` is there, but not for this user.
    #[error("no permission to open /dev/kvm: add this user to the group kvm, or run as root")]
    NoPermission,
    /// `/dev/kvm` does not open for another reason.
    #[error("/dev/kvm does not open: {0}")]
    Open(#[source] io::Error),
    /// Not the one API version there has been since Linux 2.6.22.
    #[error("/dev/kvm speaks API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// The kernel is too old: a capability is missing.
    #[error("this kernel's KVM has no {0}: Linux 4.13 is the oldest that will do")]
    NoCapability(&'static str),
}

/// What `/dev/kvm` offers, for a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvmHost {
    /// `KVM_GET_API_VERSION`.
    pub api_version: i32,
    /// The module, where `/sys/module` shows it.
    pub module: Option<KvmModule>,
    /// Whether the second level is in hardware (EPT, NPT) or shadow tables, where `/sys/module` shows it.
    pub tdp: Option<bool>,
}

impl KvmHost {
    /// Looks at `/dev/kvm`. The error is the reason why KVM cannot be used.
    pub fn probe() -> Result<Self, KvmUnavailable> {
        let kvm = open()?;
        let (module, tdp) = KvmModule::of_this_host().unzip();
        Ok(Self { api_version: kvm.get_api_version(), module, tdp: tdp.flatten() })
    }
}

impl KvmHost {
    /// What of KVM the slots can make use of, and what a VM answers when it is asked: 0 if it lacks it.
    pub fn capabilities() -> Result<Vec<(Capability, u32)>, VcpuError> {
        let vm = open()?.create_vm().map_err(VcpuError::host("KVM_CREATE_VM"))?;
        Ok(Capability::ALL.iter().map(|&capability| (capability, capability.probe(&vm))).collect())
    }
}

/// Opens `/dev/kvm` and makes sure that it has what the run loop is built on.
pub(super) fn open() -> Result<Kvm, KvmUnavailable> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmUnavailable::NoDevice,
        libc::EACCES | libc::EPERM => KvmUnavailable::NoPermission,
        _ => KvmUnavailable::Open(error.into()),
    })?;
    match kvm.get_api_version() {
        version if version == KVM_API_VERSION as i32 => {}
        version => return Err(KvmUnavailable::ApiVersion(version)),
    }
    if !kvm.check_extension(Cap::ImmediateExit) {
        return Err(KvmUnavailable::NoCapability("KVM_CAP_IMMEDIATE_EXIT"));
    }
    Ok(kvm)
}

/// The CPUID leaves that this host's KVM supports. Asked for once per process: it takes KVM longer than
/// making a VM, since each leaf is a CPUID instruction, and a trap where the host is a guest itself.
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<&'static CpuId, VcpuError> {
    static SUPPORTED: OnceLock<CpuId> = OnceLock::new();
    if let Some(cpuid) = SUPPORTED.get() {
        return Ok(cpuid);
    }
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VcpuError::host("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(SUPPORTED.get_or_init(|| cpuid))
}

/// What CPUID shows a guest of this host's KVM, EAX to EDX; `None` for a leaf that it does not have.
pub fn cpuid_of_this_host(leaf: u32, subleaf: u32) -> Result<Option<[u32; 4]>, VcpuError> {
    let supported = supported_cpuid(&open()?)?;
    let entry = supported.as_slice().iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
    Ok(entry.map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_tells_what_there_is_or_why_not() {
        match KvmHost::probe() {
            Ok(host) => assert_eq!(host.api_version, 12),
            Err(reason) => println!("not checked: {reason}"),
        }
    }
}
