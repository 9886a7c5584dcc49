//! A VM of this or another process: `struct kvm`, its vCPUs, its slots.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use memory_model::{Gpa, Hva};

use super::LiveError;
use super::btf::Field;
use super::kernel::Kernel;
use super::stats::KvmStats;
use super::sys;
use crate::mmu::Memslot;
use crate::registers::Registers;

/// A running VM. It stays as long as this is held, even if its process ends.
pub struct LiveVm {
    pub(super) kernel: Arc<Kernel>,
    pub(super) kvm: u64,
    /// Of the process whose memory the guest has.
    pub(super) pid: u32,
    /// By the VM's own file, if this process may ask.
    pub(super) stats: Option<KvmStats>,
    /// Keeps the VM.
    _file: OwnedFd,
}

impl fmt::Debug for LiveVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveVm")
            .field("pid", &self.pid)
            .field("kvm", &format_args!("{:#x}", self.kvm))
            .finish()
    }
}

/// A memory slot, as the kernel has it (`kvm_memory_slot`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveSlot {
    /// Its number.
    pub id: u16,
    /// Its address space: 1 is that of system management mode.
    pub space: u8,
    /// What it maps where.
    pub memslot: Memslot,
    /// It has a guest_memfd on a kernel with private memory: pages of it may lie there, where no process has them, and
    /// which of them is not looked at.
    pub private: bool,
}

/// A vCPU's registers that decide about its guest's paging, and the root it uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct VcpuState {
    /// The kernel's address of it.
    pub vcpu: u64,
    pub id: u32,
    /// Physical address of the root table; meaningless bits if there is none.
    pub root: u64,
    pub root_level: u8,
    /// The kernel's address of the root, where it is the four page-directory pointers of PAE paging.
    pub pae_root: u64,
    /// With the guest's own root in CR3 (`kvm_mmu_root_info.pgd`).
    pub registers: Registers,
}

const VM: &str = "anon_inode:kvm-vm";
const LOG_DIRTY_PAGES: u64 = 1 << 0;
const READONLY: u64 = 1 << 1;
const GUEST_MEMFD: u64 = 1 << 2;
/// On its way out (`KVM_MEMSLOT_INVALID`).
const INVALID: u64 = 1 << 16;
/// Address spaces of an x86 VM at most.
const SPACES: u8 = 2;

impl LiveVm {
    /// All VMs of a process, in the order of their files.
    pub fn of_process(kernel: &Arc<Kernel>, pid: u32) -> Result<Vec<Self>, LiveError> {
        let process = |call| move |source| LiveError::Process { pid, call, source };
        // From here on the number stays this process's.
        let handle = sys::pidfd_open(pid).map_err(process("pidfd_open"))?;
        let folder = format!("/proc/{pid}/fd");
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(process("list of files"))? {
            let name = entry.map_err(process("list of files"))?.file_name();
            files.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        files.sort_unstable();
        let mut vms: Vec<Self> = Vec::new();
        for fd in files {
            if !is_vm(&format!("{folder}/{fd}")) {
                continue;
            }
            let vm = match sys::pidfd_getfd(&handle, fd) {
                Ok(file) => Self::of_file(kernel, pid, file)?,
                // Closed since the list was made.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => None,
                Err(error) => return Err(process("pidfd_getfd")(error)),
            };
            vms.extend(vm.filter(|vm| vms.iter().all(|other| other.kvm != vm.kvm)));
        }
        Ok(vms)
    }

    /// A VM of this process, by its file; `None` if that is none of a VM.
    pub fn of_fd(kernel: &Arc<Kernel>, fd: &impl AsRawFd) -> Result<Option<Self>, LiveError> {
        let pid = std::process::id();
        let process = |call| move |source| LiveError::Process { pid, call, source };
        let this = sys::pidfd_open(pid).map_err(process("pidfd_open"))?;
        Self::of_file(kernel, pid, sys::pidfd_getfd(&this, fd.as_raw_fd()).map_err(process("pidfd_getfd"))?)
    }

    fn of_file(kernel: &Arc<Kernel>, pid: u32, file: OwnedFd) -> Result<Option<Self>, LiveError> {
        // A file of this thread's own cannot become another one now.
        let fd = file.as_raw_fd();
        if !is_vm(&format!("/proc/thread-self/fd/{fd}")) {
            return Ok(None);
        }
        let kvm = kernel.private_data(fd.unsigned_abs())?;
        Ok(Some(Self { kernel: kernel.clone(), kvm, pid, stats: KvmStats::of(&file).ok(), _file: file }))
    }

    /// The slots of all address spaces, lowest first.
    pub fn slots(&self) -> Result<Vec<LiveSlot>, LiveError> {
        let layout = &self.kernel.layout;
        let spaces = (layout.kvm_memslots.bits / 64).min(SPACES.into()) as u8;
        let mut slots = Vec::new();
        for space in 0..spaces {
            let at = self.kvm.wrapping_add(layout.kvm_memslots.offset() + u64::from(space) * 8);
            self.slots_of(space, self.kernel.word(at)?, &mut slots)?;
        }
        slots.sort_unstable_by_key(|slot| (slot.space, slot.memslot.base));
        Ok(slots)
    }

    /// The slots of one set, a tree by guest frame.
    fn slots_of(&self, space: u8, memslots: u64, slots: &mut Vec<LiveSlot>) -> Result<(), LiveError> {
        let (kernel, layout) = (&self.kernel, &self.kernel.layout);
        let node_index = kernel.field(memslots, layout.memslots_node)? & 1;
        let node_at = layout.slot_nodes.offset() + node_index * layout.node_bytes as u64;
        let mut open = [kernel.field(memslots, layout.memslots_tree)?].to_vec();
        let mut seen = BTreeSet::new();
        while let Some(node) = open.pop() {
            if node == 0 {
                continue;
            }
            if !seen.insert(node) {
                return Err(LiveError::Unreadable { address: node });
            }
            let slot = kernel.record(node.wrapping_sub(node_at), layout.slot_bytes)?;
            for child in [layout.node_left, layout.node_right] {
                open.push(slot.get(Field { bit: child.bit + node_at * 8, ..child }));
            }
            let flags = slot.get(layout.slot_flags);
            if flags & INVALID != 0 {
                continue;
            }
            let memslot = Memslot {
                base: Gpa(slot.get(layout.slot_base) << 12),
                bytes: slot.get(layout.slot_pages) << 12,
                hva: Hva(slot.get(layout.slot_hva)),
                readonly: flags & READONLY != 0,
                log_dirty: flags & LOG_DIRTY_PAGES != 0,
            };
            let private = flags & GUEST_MEMFD != 0 && layout.kvm_attributes.is_some();
            slots.push(LiveSlot { id: slot.get(layout.slot_id) as u16, space, memslot, private });
        }
        Ok(())
    }

    /// Each vCPU's root and registers, in the order of their numbers. They are in an XArray (Linux,
    /// Documentation/core-api/xarray.rst): an entry with 10 in its lowest bits is a node with entries of its own.
    pub(super) fn vcpus(&self) -> Result<Vec<VcpuState>, LiveError> {
        const NODE: u64 = 2;
        /// Internal entries up to here mean something else, and stand for nothing.
        const LAST_MARK: u64 = 4096;
        let (kernel, layout) = (&self.kernel, &self.kernel.layout);
        let (mut states, mut seen) = (Vec::new(), BTreeSet::new());
        let mut open = [kernel.field(self.kvm, layout.kvm_vcpus)?].to_vec();
        while let Some(entry) = open.pop() {
            match entry & 3 {
                NODE if entry > LAST_MARK => {
                    if !seen.insert(entry) {
                        return Err(LiveError::Unreadable { address: entry });
                    }
                    let node = kernel.record(entry - NODE, layout.xa_bytes)?;
                    let slots = (0..layout.xa_slots.bits / 64).map(|slot| layout.xa_slots.bit + slot * 64);
                    open.extend(slots.map(|bit| node.get(Field { bit, bits: 64 })));
                }
                0 if entry != 0 => states.push(self.vcpu(entry)?),
                _ => {}
            }
        }
        states.sort_unstable_by_key(|state| state.id);
        Ok(states)
    }

    fn vcpu(&self, vcpu: u64) -> Result<VcpuState, LiveError> {
        let (kernel, layout) = (&self.kernel, &self.kernel.layout);
        let register = |field| kernel.field(vcpu, field);
        let mmu = kernel.record(register(layout.vcpu_mmu)?, layout.mmu_bytes)?;
        Ok(VcpuState {
            vcpu,
            id: register(layout.vcpu_id)? as u32,
            root: mmu.get(layout.mmu_root),
            root_level: mmu.get(layout.mmu_root_level) as u8,
            pae_root: mmu.get(layout.mmu_pae_root),
            registers: Registers {
                cr0: register(layout.vcpu_cr0)?,
                cr3: mmu.get(layout.mmu_pgd),
                cr4: register(layout.vcpu_cr4)?,
                efer: register(layout.vcpu_efer)?,
                ..Registers::default()
            },
        })
    }
}

fn is_vm(link: &str) -> bool {
    fs::read_link(link).is_ok_and(|target| target.as_os_str() == VM)
}
