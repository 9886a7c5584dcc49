//! What KVM counts of a VM's faults and tables (`struct kvm_vm_stat`, `struct kvm_vcpu_stat`). [`KvmStats`](super::KvmStats)
//! gives the same to the process that made the VM, and to no other.

use alloc::vec::Vec;

use super::LiveError;
use super::btf::{Btf, Field};
use super::kernel::Kernel;

/// Of the VM. Names that a kernel does not have are left out.
const OF_VM: [&str; 7] = [
    "mmu_shadow_zapped",
    "mmu_pte_write",
    "mmu_flooded",
    "mmu_recycled",
    "mmu_cache_miss",
    "mmu_unsync",
    "nx_lpage_splits",
];

/// Of each vCPU.
const OF_VCPU: [&str; 5] = ["pf_taken", "pf_fixed", "pf_emulate", "pf_spurious", "pf_fast"];

/// Counts, by the kernel's own names.
pub(super) type Counts = Vec<(&'static str, u64)>;

/// Where the counts are in their structures.
#[derive(Debug)]
pub(super) struct Counters {
    vm: Vec<(&'static str, Field)>,
    vcpu: Vec<(&'static str, Field)>,
}

impl Counters {
    pub fn find(btf: &Btf) -> Self {
        let find = |structure, names: &[&'static str]| {
            let field = |&name| Some((name, btf.field(structure, name)?));
            names.iter().filter_map(field).collect()
        };
        Self { vm: find("kvm_vm_stat", &OF_VM), vcpu: find("kvm_vcpu_stat", &OF_VCPU) }
    }

    /// Of the VM at `kvm`, and of its vCPUs in sum.
    pub fn read(
        &self,
        kernel: &Kernel,
        kvm: u64,
        vcpus: impl Iterator<Item = u64>,
    ) -> Result<Counts, LiveError> {
        let whole = |structure: u64, stat: Field| {
            kernel.record(structure.wrapping_add(stat.offset()), (stat.bits / 8) as usize)
        };
        let stat = whole(kvm, kernel.layout.kvm_stat)?;
        let mut counts: Counts = self.vm.iter().map(|&(name, field)| (name, stat.get(field))).collect();
        let of_vcpus = counts.len();
        counts.extend(self.vcpu.iter().map(|&(name, _)| (name, 0)));
        for vcpu in vcpus {
            let stat = whole(vcpu, kernel.layout.vcpu_stat)?;
            for ((_, sum), &(_, field)) in counts[of_vcpus..].iter_mut().zip(&self.vcpu) {
                *sum += stat.get(field);
            }
        }
        Ok(counts)
    }
}
