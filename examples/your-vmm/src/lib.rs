//! A VMM as small as it gets: RAM, one vCPU in real mode, a run to HLT. It knows nothing of memvirt; its tests do.

use std::io;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

/// Where a program is loaded and starts.
const ENTRY: u64 = 0x1000;

/// A virtual machine. The vCPU and the VM go before the memory that they use.
pub struct Vmm {
    vcpu: VcpuFd,
    /// The VM's file.
    pub vm: VmFd,
    /// What the guest has for memory.
    pub memory: GuestMemoryMmap<()>,
}

impl Vmm {
    /// A machine with RAM at these addresses, of these sizes in bytes.
    pub fn new(ram: &[(GuestAddress, usize)]) -> io::Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(ram).map_err(io::Error::other)?;
        let vm = Kvm::new()?.create_vm()?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let host = memory.get_host_address(region.start_addr()).map_err(io::Error::other)?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the memory stays mapped until the VM is gone.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        let vcpu = vm.create_vcpu(0)?;
        Ok(Self { vcpu, vm, memory })
    }

    /// Runs 16-bit code until it halts.
    pub fn run(&mut self, code: &[u8]) -> io::Result<()> {
        self.memory
            .write_slice(code, GuestAddress(ENTRY))
            .map_err(|error: GuestMemoryError| io::Error::other(error))?;
        let mut sregs = self.vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        self.vcpu.set_sregs(&sregs)?;
        self.vcpu.set_regs(&kvm_regs { rip: ENTRY, rflags: 2, ..Default::default() })?;
        match self.vcpu.run()? {
            VcpuExit::Hlt => Ok(()),
            exit => Err(io::Error::other(format!("{exit:?}"))),
        }
    }
}
