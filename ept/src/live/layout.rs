//! The fields of the kernel's structures that are read. They move with each configuration, so BTF says where they are.

use std::fs;

use super::LiveError;
use super::btf::{Btf, Field};
use super::counters::Counters;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// There if KVM is a module.
const KVM: &str = "/sys/kernel/btf/kvm";

/// A row for each field: its name here, the structure, the path in it; then those that a kernel may be built without; then
/// one for each structure that is read whole.
macro_rules! layout {
    ($($name:ident: $structure:literal $path:literal,)* ;
     $($option:ident: $in:literal $at:literal,)* ;
     $($size:ident: $whole:literal,)*) => {
        /// Where the fields are in this kernel.
        #[derive(Debug)]
        pub(super) struct Layout {
            $(pub $name: Field,)*
            $(pub $option: Option<Field>,)*
            $(pub $size: usize,)*
        }

        impl Layout {
            fn find(btf: &Btf) -> Result<Self, LiveError> {
                Ok(Self {
                    $($name: btf
                        .field($structure, $path)
                        .ok_or(LiveError::NoField { structure: $structure, path: $path })?,)*
                    $($option: btf.field($in, $at),)*
                    $($size: btf
                        .size_of($whole)
                        .and_then(|bytes| usize::try_from(bytes).ok())
                        .ok_or(LiveError::NoField { structure: $whole, path: "" })?,)*
                })
            }
        }
    };
}

layout! {
    task_files: "task_struct" "files",
    files_table: "files_struct" "fdt",
    table_most: "fdtable" "max_fds",
    table_files: "fdtable" "fd",
    file_private: "file" "private_data",

    kvm_memslots: "kvm" "memslots",
    kvm_vcpus: "kvm" "vcpu_array.xa_head",
    kvm_pages: "kvm" "arch.active_mmu_pages",
    kvm_tdp_roots: "kvm" "arch.tdp_mmu_roots",
    kvm_stat: "kvm" "stat",
    kvm_leaves: "kvm" "stat.pages",

    memslots_tree: "kvm_memslots" "gfn_tree.rb_node",
    memslots_node: "kvm_memslots" "node_idx",
    slot_nodes: "kvm_memory_slot" "gfn_node",
    slot_base: "kvm_memory_slot" "base_gfn",
    slot_pages: "kvm_memory_slot" "npages",
    slot_hva: "kvm_memory_slot" "userspace_addr",
    slot_flags: "kvm_memory_slot" "flags",
    slot_id: "kvm_memory_slot" "id",
    node_left: "rb_node" "rb_left",
    node_right: "rb_node" "rb_right",

    xa_slots: "xa_node" "slots",

    vcpu_id: "kvm_vcpu" "vcpu_id",
    vcpu_stat: "kvm_vcpu" "stat",
    vcpu_mmu: "kvm_vcpu" "arch.mmu",
    vcpu_cr0: "kvm_vcpu" "arch.cr0",
    vcpu_cr4: "kvm_vcpu" "arch.cr4",
    vcpu_efer: "kvm_vcpu" "arch.efer",
    mmu_root: "kvm_mmu" "root.hpa",
    mmu_pgd: "kvm_mmu" "root.pgd",
    mmu_root_level: "kvm_mmu" "root_role.level",
    mmu_pae_root: "kvm_mmu" "pae_root",

    page_link: "kvm_mmu_page" "link",
    page_gfn: "kvm_mmu_page" "gfn",
    page_table: "kvm_mmu_page" "spt",
    page_translation: "kvm_mmu_page" "shadowed_translation",
    page_unsync: "kvm_mmu_page" "unsync",
    page_level: "kvm_mmu_page" "role.level",
    page_direct: "kvm_mmu_page" "role.direct",
    page_invalid: "kvm_mmu_page" "role.invalid",
    page_ad_disabled: "kvm_mmu_page" "role.ad_disabled",
    page_guest_mode: "kvm_mmu_page" "role.guest_mode",
    page_smm: "kvm_mmu_page" "role.smm",
    ;
    kvm_attributes: "kvm" "mem_attr_array",
    ;
    page_bytes: "kvm_mmu_page",
    slot_bytes: "kvm_memory_slot",
    node_bytes: "rb_node",
    xa_bytes: "xa_node",
    mmu_bytes: "kvm_mmu",
}

impl Layout {
    /// Reads what this kernel says of itself.
    pub fn of_this_kernel() -> Result<(Self, Counters), LiveError> {
        let bytes = fs::read(VMLINUX).map_err(|source| LiveError::NoBtf { path: VMLINUX, source })?;
        let mut btf = Btf::parse(bytes).map_err(|source| LiveError::Btf { path: VMLINUX, source })?;
        if let Ok(bytes) = fs::read(KVM) {
            btf.extend(bytes).map_err(|source| LiveError::Btf { path: KVM, source })?;
        }
        Ok((Self::find(&btf)?, Counters::find(&btf)))
    }
}
