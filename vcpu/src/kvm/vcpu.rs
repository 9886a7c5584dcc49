//! A vCPU of KVM's and its run loop.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use super::coalesced::CoalescedWrites;
use super::regs;
use super::run_page::RunPage;
use super::signal::Interruptible;
use super::thread::VcpuThread;
use crate::{Budget, Entry, Exit, Kick, Limit, Regs, SystemRegs, Vcpu, VcpuError};

/// A virtual processor of a [`KvmVm`](super::KvmVm).
///
/// It may be moved between threads from run to run. [`Budget::instructions`] does not bound it: KVM does not count.
///
/// An MMIO access that KVM cannot hand out whole (more than eight bytes, or across a page) comes as several
/// exits; between them registers cannot be set.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    page: RunPage,
    pending: Pending,
    kick: Kick,
}

/// What is between the guest and its VMM.
#[derive(Debug)]
struct Pending {
    unfinished: Unfinished,
    /// What the VMM has not seen yet: coalesced writes, then the exit that is unfinished. The guest may have wanted it
    /// when it was not running but only finishing the exit before.
    queued: VecDeque<Exit>,
    coalesced: CoalescedWrites,
}

/// What the exit before still needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfinished {
    Nothing,
    /// KVM completes the instruction at its next entry.
    Completion,
    /// The same, and it needs this many bytes for that.
    Answer(usize),
}

impl Unfinished {
    fn after(exit: &Exit) -> Self {
        match *exit {
            Exit::IoOut { .. } | Exit::MmioWrite { .. } => Self::Completion,
            Exit::IoIn { size, count, .. } => Self::Answer(usize::from(size) * count as usize),
            Exit::MmioRead { size, .. } => Self::Answer(size.into()),
            _ => Self::Nothing,
        }
    }
}

impl KvmVcpu {
    pub(super) fn new(
        vm: &VmFd,
        index: u32,
        supported: &CpuId,
        coalesced: CoalescedWrites,
    ) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(index.into()).map_err(VcpuError::host("KVM_CREATE_VCPU"))?;
        fd.set_cpuid2(&cpuid(supported, index)).map_err(VcpuError::host("KVM_SET_CPUID2"))?;
        coalesced.map(vm, &fd)?;
        let page = RunPage::map(&fd, vm.run_size()).map_err(VcpuError::host("mmap of kvm_run"))?;
        Ok(Self { fd, page, pending: Pending::new(coalesced), kick: Kick::default() })
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Hands KVM the answer to the exit before.
    fn answer(&mut self, entry: Entry) -> Result<(), VcpuError> {
        let needed = match self.pending.unfinished {
            // The exit of that answer is still in the queue: its reader has not seen it.
            Unfinished::Answer(needed) if self.pending.queued.is_empty() => Some(needed),
            _ => None,
        };
        match (needed, entry) {
            (None, Entry::Resume) => Ok(()),
            (None, Entry::Data(data)) => Err(VcpuError::AnswerUnexpected { given: data.len() }),
            (Some(needed), Entry::Resume) => Err(VcpuError::AnswerMissing { needed }),
            (Some(needed), Entry::Data(data)) if data.len() != needed => {
                Err(VcpuError::AnswerLength { needed, given: data.len() })
            }
            (Some(_), Entry::Data(data)) => {
                self.page.answer(&data);
                Ok(())
            }
        }
    }

    /// Has KVM finish the exit before without running the guest, where it can.
    fn finish(&mut self) -> Result<(), VcpuError> {
        if self.pending.unfinished == Unfinished::Completion && self.pending.queued.is_empty() {
            self.page.immediate_exit().store(1, SeqCst);
            self.pending.enter(&self.page, &self.fd)?;
        }
        Ok(())
    }

    /// The same for those who are about to change registers, which half an instruction would not survive.
    fn finish_instruction(&mut self) -> Result<(), VcpuError> {
        self.finish()?;
        match self.pending.unfinished {
            Unfinished::Nothing => Ok(()),
            _ => Err(VcpuError::MidInstruction),
        }
    }
}

impl Pending {
    fn new(coalesced: CoalescedWrites) -> Self {
        Self { unfinished: Unfinished::Nothing, queued: VecDeque::new(), coalesced }
    }

    /// `KVM_RUN`, once. It finishes the exit before, so only a new one can leave something unfinished.
    fn enter(&mut self, page: &RunPage, fd: &VcpuFd) -> Result<(), VcpuError> {
        self.unfinished = Unfinished::Nothing;
        let exit = page.run(fd)?;
        self.coalesced.drain(&mut self.queued);
        if let Some(exit) = exit {
            self.unfinished = Unfinished::after(&exit);
            self.queued.push_back(exit);
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, entry: Entry, budget: &Budget) -> Result<Exit, VcpuError> {
        self.answer(entry)?;
        if let Some(exit) = self.pending.queued.pop_front() {
            return Ok(exit);
        }
        let thread = VcpuThread::current()?;
        let immediate_exit = self.page.immediate_exit();
        let _interruptible = Interruptible::new(immediate_exit);
        let _kicked_here = self.kick.signals(thread.id());
        loop {
            // Cleared before the checks: a signal after them sets it again.
            immediate_exit.store(0, SeqCst);
            let now = Instant::now();
            if now >= budget.deadline || self.kick.is_requested() {
                if self.pending.unfinished == Unfinished::Nothing {
                    let kicked = self.kick.take();
                    return Ok(if kicked { Exit::Kicked } else { Exit::BudgetExceeded(Limit::WallClock) });
                }
                immediate_exit.store(1, SeqCst);
            } else {
                thread.arm(budget.deadline, now)?;
            }
            self.pending.enter(&self.page, &self.fd)?;
            if let Some(exit) = self.pending.queued.pop_front() {
                return Ok(exit);
            }
        }
    }

    fn counts_instructions(&self) -> bool {
        false
    }

    fn regs(&mut self) -> Result<Regs, VcpuError> {
        self.finish()?;
        let regs = self.fd.get_regs().map_err(VcpuError::host("KVM_GET_REGS"))?;
        Ok(regs::from_kvm(&regs))
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), VcpuError> {
        self.finish_instruction()?;
        self.fd.set_regs(&regs::to_kvm(regs)).map_err(VcpuError::host("KVM_SET_REGS"))
    }

    fn system_regs(&mut self) -> Result<SystemRegs, VcpuError> {
        self.finish()?;
        let sregs = self.fd.get_sregs().map_err(VcpuError::host("KVM_GET_SREGS"))?;
        Ok(regs::system_from_kvm(&sregs))
    }

    fn set_system_regs(&mut self, system: &SystemRegs) -> Result<(), VcpuError> {
        self.finish_instruction()?;
        let before = self.fd.get_sregs().map_err(VcpuError::host("KVM_GET_SREGS"))?;
        let sregs = regs::system_to_kvm(system, before);
        self.fd.set_sregs(&sregs).map_err(VcpuError::host("KVM_SET_SREGS"))
    }

    fn kick(&self) -> Kick {
        self.kick.clone()
    }
}

/// What CPUID shows on vCPU `index`: all that is supported, and its own APIC id (SDM vol. 2A, CPUID: leaf 1
/// EBX bits 31-24, leaves 0BH and 1FH EDX).
fn cpuid(supported: &CpuId, index: u32) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
    cpuid
}
