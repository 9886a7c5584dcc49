//! The image on `/dev/kvm`.
#![expect(unsafe_code, reason = "guest memory is mapped and handed to KVM")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::guest::{self, Image, MEMORY};

/// Memory that KVM may write to at any time: reached by raw copies only.
struct Mapping {
    start: *mut u8,
}

impl Mapping {
    fn new() -> Result<Self, String> {
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), MEMORY, rights, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(format!("mmap: {}", std::io::Error::last_os_error()));
        }
        Ok(Self { start: start.cast() })
    }

    fn fill(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), MEMORY);
        // SAFETY: the mapping is MEMORY bytes long, lives as long as `self`, and no vCPU runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start, MEMORY) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        // SAFETY: as in `fill`.
        unsafe { std::ptr::copy_nonoverlapping(self.start, bytes.as_mut_ptr(), MEMORY) }
        bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the VM that used the mapping is dropped before it (order of fields in `Machine`).
        unsafe { libc::munmap(self.start.cast(), MEMORY) };
    }
}

/// A VM with one vCPU.
pub struct Machine {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Mapping,
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    let (l, db) = (long.into(), (!long).into());
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    }
}

impl Machine {
    pub fn new() -> Result<Self, String> {
        let kvm = Kvm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
        let vm = kvm.create_vm().map_err(|error| format!("KVM_CREATE_VM: {error}"))?;
        let memory = Mapping::new()?;
        let slot = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.start as u64,
            ..Default::default()
        };
        // SAFETY: the mapping outlives the VM (order of fields in `Machine`).
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|error| format!("KVM_SET_USER_MEMORY_REGION: {error}"))?;
        let vcpu = vm.create_vcpu(0).map_err(|error| format!("KVM_CREATE_VCPU: {error}"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| error.to_string())?;
        vcpu.set_cpuid2(&cpuid).map_err(|error| format!("KVM_SET_CPUID2: {error}"))?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    /// The memory after the run, or why there is none.
    pub fn run(&mut self, image: &Image) -> Result<Vec<u8>, String> {
        self.memory.fill(&image.memory);
        self.reset().map_err(|error| error.to_string())?;
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(guest::EXIT_PORT, _)) => Ok(self.memory.bytes()),
            exit => {
                let exit = format!("{exit:?}");
                Err(format!("{exit} at {:x?}", self.vcpu.get_regs()))
            }
        }
    }

    fn reset(&mut self) -> Result<(), kvm_ioctls::Error> {
        let mut sregs = self.vcpu.get_sregs()?;
        let data = segment(guest::DATA_SELECTOR, 3, false);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, guest::PML4, 0x620, 0xd00);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        sregs.cs = segment(guest::CODE_SELECTOR, 0xb, true);
        sregs.fs = kvm_segment { base: guest::FS_BASE, ..data };
        sregs.gs = kvm_segment { base: guest::GS_BASE, ..data };
        sregs.tr = kvm_segment {
            base: guest::TSS,
            limit: 0x67,
            selector: guest::TSS_SELECTOR,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt = kvm_dtable { base: guest::GDT, limit: 0x37, ..Default::default() };
        sregs.idt = kvm_dtable { base: guest::IDT, limit: 0xfff, ..Default::default() };
        self.vcpu.set_sregs(&sregs)?;
        self.vcpu.set_regs(&kvm_regs {
            rip: guest::start_of_cases(),
            rflags: guest::FLAGS,
            ..Default::default()
        })
    }
}
