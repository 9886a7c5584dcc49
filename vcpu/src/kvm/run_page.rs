//! `struct kvm_run`: the pages that a vCPU shares with the kernel, and the `KVM_RUN` that fills them.
//!
//! kvm-ioctls has both too, but its `run` makes a `&mut kvm_run`, during which the signal handler must not write
//! `immediate_exit`; and it drops the size of a port access, so that `REP OUTSB` of four bytes looks like one
//! `OUT` of four. Here every access goes through a raw pointer to a mapping of our own.
#![expect(unsafe_code, reason = "kvm_run is shared with the kernel, and a union")]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;
use memory_model::Gpa;

use crate::{Exit, MmioData, VcpuError};

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: libc::Ioctl = 0xae80;

/// Size and place of a port access in `kvm_run`.
type PortAccess = kvm_run__bindgen_ty_1__bindgen_ty_4;

#[derive(Debug)]
pub(super) struct RunPage {
    run: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: the mapping belongs to the process; no thread has a claim of its own on it.
unsafe impl Send for RunPage {}

impl RunPage {
    /// Maps `len` bytes (`KVM_GET_VCPU_MMAP_SIZE`) of a vCPU.
    pub(super) fn map(vcpu: &VcpuFd, len: usize) -> io::Result<Self> {
        assert!(len >= size_of::<kvm_run>(), "KVM maps the whole of kvm_run");
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let run = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { run, len })
    }

    /// While it is not zero, KVM finishes the exit before and comes back without entering the guest.
    pub(super) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped as long as `self` lives, and accessed in no other way.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run.as_ptr()).immediate_exit) }
    }

    /// `KVM_RUN`: what the guest wants, or `None` if KVM was interrupted. Either way it has finished
    /// the exit before.
    pub(super) fn run(&self, vcpu: &VcpuFd) -> Result<Option<Exit>, VcpuError> {
        // SAFETY: KVM writes only to `kvm_run` and to guest memory, to which no Rust references exist.
        let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) };
        if result >= 0 {
            return self.exit();
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::EAGAIN) => Ok(None),
            Some(libc::EFAULT | libc::EHWPOISON) if self.reason() == KVM_EXIT_MEMORY_FAULT => {
                // SAFETY: integers only, and the exit reason says that KVM filled this member.
                let fault = unsafe { self.payload().memory_fault };
                Ok(Some(Exit::MemoryFault { gpa: Some(Gpa(fault.gpa)) }))
            }
            Some(libc::EFAULT) => Ok(Some(Exit::MemoryFault { gpa: None })),
            _ => Err(VcpuError::host("KVM_RUN")(error)),
        }
    }

    /// Gives the exit before, a read, its bytes. There are as many as it asked for.
    pub(super) fn answer(&self, data: &[u8]) {
        let target = match self.reason() {
            // SAFETY: integers only, and the exit reason says that KVM filled this member.
            KVM_EXIT_IO => self.port_data(&unsafe { self.payload().io }, data.len()),
            _ => {
                assert!(data.len() <= 8, "an MMIO access has 1 to 8 bytes");
                // SAFETY: the field is mapped as long as `self` lives.
                unsafe { (&raw mut (*self.run.as_ptr()).__bindgen_anon_1.mmio.data).cast() }
            }
        };
        // SAFETY: `target` has room for `data.len()` bytes inside our mapping, as both branches made sure, and
        // outside `KVM_RUN` nobody else accesses it.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
    }

    fn exit(&self) -> Result<Option<Exit>, VcpuError> {
        let payload = self.payload();
        // SAFETY: all members are integers alone; only the one that the exit reason names is looked at.
        let (io, mmio, fail_entry, internal) =
            unsafe { (payload.io, payload.mmio, payload.fail_entry, payload.internal) };
        let exit = match self.reason() {
            KVM_EXIT_IO => self.port_exit(&io),
            KVM_EXIT_MMIO => {
                let (gpa, len) = (Gpa(mmio.phys_addr), mmio.len as usize);
                let data = mmio.data.get(..len).and_then(MmioData::new);
                let data = data.expect("an MMIO access has 1 to 8 bytes");
                match mmio.is_write {
                    0 => Exit::MmioRead { gpa, size: len as u8 },
                    _ => Exit::MmioWrite { gpa, data },
                }
            }
            KVM_EXIT_HLT => Exit::Halt,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            KVM_EXIT_FAIL_ENTRY => Exit::FailEntry { reason: fail_entry.hardware_entry_failure_reason },
            KVM_EXIT_INTERNAL_ERROR => Exit::InternalError { suberror: internal.suberror },
            KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
            KVM_EXIT_INTR => return Ok(None),
            reason => return Err(VcpuError::UnexpectedExit { reason, name: name(reason) }),
        };
        Ok(Some(exit))
    }

    fn port_exit(&self, io: &PortAccess) -> Exit {
        let (port, size, count) = (io.port, io.size, io.count);
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            return Exit::IoIn { port, size, count };
        }
        let mut data = vec![0; usize::from(size) * count as usize];
        // SAFETY: the source is `data.len()` bytes of our mapping; outside `KVM_RUN` nobody else writes them.
        unsafe { ptr::copy_nonoverlapping(self.port_data(io, data.len()), data.as_mut_ptr(), data.len()) };
        Exit::IoOut { port, size, data }
    }

    /// Where the `len` bytes of a port access are.
    fn port_data(&self, io: &PortAccess, len: usize) -> *mut u8 {
        let offset = io.data_offset as usize;
        assert!(offset <= self.len && len <= self.len - offset, "KVM keeps port data inside its mapping");
        // SAFETY: the offset lies inside the mapping, as just checked.
        unsafe { self.run.as_ptr().cast::<u8>().add(offset) }
    }

    fn reason(&self) -> u32 {
        // SAFETY: mapped as long as `self` lives.
        unsafe { (&raw const (*self.run.as_ptr()).exit_reason).read_volatile() }
    }

    fn payload(&self) -> kvm_run__bindgen_ty_1 {
        // SAFETY: mapped as long as `self` lives; any bytes are a value of this union.
        unsafe { (&raw const (*self.run.as_ptr()).__bindgen_anon_1).read_volatile() }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no pointer into it outlives `self`.
        unsafe { libc::munmap(self.run.as_ptr().cast(), self.len) };
    }
}

/// The x86 exits that come only to those who asked for them.
fn name(reason: u32) -> &'static str {
    match reason {
        KVM_EXIT_UNKNOWN => "KVM_EXIT_UNKNOWN",
        KVM_EXIT_EXCEPTION => "KVM_EXIT_EXCEPTION",
        KVM_EXIT_HYPERCALL => "KVM_EXIT_HYPERCALL",
        KVM_EXIT_DEBUG => "KVM_EXIT_DEBUG",
        KVM_EXIT_IRQ_WINDOW_OPEN => "KVM_EXIT_IRQ_WINDOW_OPEN",
        KVM_EXIT_SET_TPR => "KVM_EXIT_SET_TPR",
        KVM_EXIT_TPR_ACCESS => "KVM_EXIT_TPR_ACCESS",
        KVM_EXIT_NMI => "KVM_EXIT_NMI",
        KVM_EXIT_SYSTEM_EVENT => "KVM_EXIT_SYSTEM_EVENT",
        KVM_EXIT_IOAPIC_EOI => "KVM_EXIT_IOAPIC_EOI",
        KVM_EXIT_HYPERV => "KVM_EXIT_HYPERV",
        KVM_EXIT_X86_RDMSR => "KVM_EXIT_X86_RDMSR",
        KVM_EXIT_X86_WRMSR => "KVM_EXIT_X86_WRMSR",
        KVM_EXIT_AP_RESET_HOLD => "KVM_EXIT_AP_RESET_HOLD",
        KVM_EXIT_X86_BUS_LOCK => "KVM_EXIT_X86_BUS_LOCK",
        KVM_EXIT_XEN => "KVM_EXIT_XEN",
        KVM_EXIT_NOTIFY => "KVM_EXIT_NOTIFY",
        KVM_EXIT_MEMORY_FAULT => "KVM_EXIT_MEMORY_FAULT",
        _ => "not in the KVM API of Linux 6.8",
    }
}
