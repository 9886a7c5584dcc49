//! Why live tables could not be read, and what to do about it.

use alloc::boxed::Box;
use alloc::string::String;
use std::io;

use super::btf::BtfError;

/// Why a running VM's tables could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The kernel does not describe its types.
    #[error("{path}: {source}: the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf {
        /// The file that was to be read.
        path: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// What the kernel says of its types cannot be understood.
    #[error("{path}: {source}")]
    Btf {
        /// The file.
        path: &'static str,
        /// What is wrong with it.
        source: BtfError,
    },
    /// This kernel's structures are not those that are known here.
    #[error("this kernel's BTF has no {structure}.{path}: its KVM is older or newer than what is known here")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field's path in it; empty if the structure itself is missing.
        path: &'static str,
    },
    /// The kernel is built without bpf(2).
    #[error("this kernel has no bpf(2): it must be built with CONFIG_BPF_SYSCALL")]
    NoBpf,
    /// This process may not load BPF programs that read the kernel.
    #[error("{call} is not permitted: run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE")]
    NotPermitted {
        /// The command of bpf(2).
        call: &'static str,
    },
    /// There is no core file of the kernel, or not for this process.
    #[error("/proc/kcore: {source}: run as root, or with CAP_SYS_RAWIO, on a kernel with CONFIG_PROC_KCORE")]
    NoKcore {
        /// Why it cannot be read.
        source: io::Error,
    },
    /// What the core file has is not what one of a 64-bit x86 kernel has.
    #[error("/proc/kcore: {0}")]
    BadKcore(&'static str),
    /// The kernel's memory cannot be read by any means.
    #[error("{bpf}; nor is there another way: {kcore}")]
    NoMeans {
        /// Why not by BPF.
        bpf: Box<Self>,
        /// Why not by `/proc/kcore`.
        kcore: Box<Self>,
    },
    /// Nobody may read the kernel's memory.
    #[error("the kernel is locked down (confidentiality): nobody may read its memory; boot without that")]
    Lockdown,
    /// bpf(2) failed.
    #[error("{call} failed: {source}")]
    Bpf {
        /// Its command.
        call: &'static str,
        /// Its errno.
        source: io::Error,
    },
    /// The other process cannot be looked into.
    #[error("process {pid}: {call}: {source}")]
    Process {
        /// Its number.
        pid: u32,
        /// What failed.
        call: &'static str,
        /// Its errno.
        source: io::Error,
    },
    /// A file of the host cannot be read.
    #[error("{path}: {source}")]
    Host {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// KVM's counts cannot be read: the kernel is older than Linux 5.14, or the VM is another process's.
    #[error("KVM_GET_STATS_FD: {0}")]
    Stats(#[source] io::Error),
    /// What the kernel says of its trace events is not to be seen.
    #[error("tracefs: {source}: run as root, on a kernel with CONFIG_FTRACE and no lockdown")]
    NoTracefs {
        /// Why it does not mount.
        source: io::Error,
    },
    /// This kernel has no such trace event.
    #[error("this kernel has no trace event {event} with a field {field}")]
    NoEvent {
        /// Its name.
        event: &'static str,
        /// What of its record is needed.
        field: &'static str,
    },
    /// Trace events cannot be recorded.
    #[error(
        "perf_event_open: {source}: run as root, or with CAP_PERFMON, on a kernel with CONFIG_PERF_EVENTS"
    )]
    NoPerf {
        /// Its errno.
        source: io::Error,
    },
    /// Which of the kernel's modules drives the VM is not to be seen.
    #[error(
        "no kvm_intel, kvm_amd or kvm_pvm under /sys/module that fits this processor: the format of its tables is unknown"
    )]
    UnknownModule,
    /// What the kernel's own structures lead to is no memory, or not what it should be.
    #[error("the kernel's memory at {address:#x} cannot be read, or is not what it was taken for")]
    Unreadable {
        /// The kernel's address.
        address: u64,
    },
    /// Tables are there, but where the kernel has physical memory is not known.
    #[error(
        "{pages} tables, but no vCPU uses one of them: where physical memory lies is not to be seen before one has run"
    )]
    NoRoot {
        /// How many tables KVM lists.
        pages: usize,
    },
    /// The tables cannot be verified.
    #[error(transparent)]
    Verify(#[from] crate::Error),
    /// No two readings one after the other were equal.
    #[error("the tables changed during each of {readings} readings: pause the VM")]
    Changing {
        /// How many times they were read.
        readings: u32,
    },
}
