//! What the kernel's memory shows of a VM, where this process may read it.

use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ept::live::{
    Event, Happened, Kernel, LiveError, LiveRoot, LiveSlot, LiveTables, LiveVm, SecondLevel, Trace,
};
use ept::{Access, Flags, Kind, walk};
use memory_model::{Gpa, Gva, Hpa, Hva, PageSize};

use super::KvmVm;
use crate::pagemap::PageWindow;
use crate::witness::BY_GVA;
use crate::{
    FaultEvent, FaultRecord, HostView, MappedPage, SecondLevelLeaf, SecondLevelTables, Verification, Witness,
    pagemap,
};

/// The running kernel, if this process may read it; else why not. Asked once: it takes a while to find the fields.
pub fn live_kernel() -> Result<&'static Arc<Kernel>, &'static str> {
    static KERNEL: OnceLock<Result<Arc<Kernel>, String>> = OnceLock::new();
    let kernel = KERNEL.get_or_init(|| Kernel::open().map_err(|error| error.to_string()));
    kernel.as_ref().map_err(String::as_str)
}

/// A VM as the kernel has it, once somebody asks.
#[derive(Debug, Default)]
pub(super) struct Live {
    vm: OnceLock<Result<LiveVm, String>>,
    /// Once somebody has asked for it; or why there is none.
    trace: Mutex<Option<Result<Trace, String>>>,
}

impl Live {
    fn vm(&self, fd: &impl AsRawFd) -> Result<&LiveVm, String> {
        let vm = self.vm.get_or_init(|| {
            let vm = LiveVm::of_fd(live_kernel()?, fd).map_err(|error| error.to_string())?;
            vm.ok_or_else(|| "the kernel does not take this file for a VM".to_owned())
        });
        vm.as_ref().map_err(String::clone)
    }

    /// Asks the VM, of which something may not be there.
    fn ask<T>(
        &self,
        fd: &impl AsRawFd,
        ask: impl FnOnce(&LiveVm) -> Result<Option<T>, LiveError>,
    ) -> Witness<T> {
        match self.vm(fd).and_then(|vm| ask(vm).map_err(|error| error.to_string())) {
            Ok(seen) => seen.into(),
            Err(why) => Witness::NotShown(why.into()),
        }
    }

    pub fn slot_hva(&self, fd: &impl AsRawFd, gpa: Gpa) -> Witness<Hva> {
        self.ask(fd, |vm| Ok(slot_hva(&vm.slots()?, gpa)))
    }

    /// All of it at once.
    pub fn tables(&self, fd: &impl AsRawFd) -> Result<LiveTables, String> {
        self.vm(fd)?.tables().map_err(|error| error.to_string())
    }

    pub fn leaf(&self, fd: &impl AsRawFd, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf> {
        self.ask(fd, |vm| Ok(leaf(&vm.tables()?, gva, gpa)))
    }

    pub fn mapped_pages(&self, fd: &impl AsRawFd) -> Witness<Vec<MappedPage>> {
        match self.tables(fd) {
            Ok(tables) => mapped_pages(&tables),
            Err(why) => Witness::NotShown(why.into()),
        }
    }

    pub fn second_level(&self, fd: &impl AsRawFd) -> Witness<SecondLevelTables> {
        self.ask(fd, |vm| Ok(second_level(&vm.tables()?)))
    }

    pub fn verification(&self, fd: &impl AsRawFd) -> Witness<Verification> {
        match self.tables(fd) {
            Ok(tables) => self.verification_of(&tables),
            Err(why) => Witness::NotShown(why.into()),
        }
    }

    /// Of tables as they were read.
    fn verification_of(&self, tables: &LiveTables) -> Witness<Verification> {
        let check = || {
            let mut report =
                tables.check(pagemap::of_this_process().as_ref()?).map_err(|error| error.to_string())?;
            if let Some(Ok(trace)) = &mut *self.trace() {
                let lost = trace.lost().map_err(|error| error.to_string())?;
                report.events = Some(tables.replay(trace.events(), lost));
            }
            Ok(report)
        };
        check().map_or_else(
            |why: String| Witness::NotShown(why.into()),
            |report| Witness::Seen(Verification::Live(report)),
        )
    }

    /// Starts to record what KVM tells of its leaves and of faults.
    pub fn record(&self) -> Witness<()> {
        let mut trace = self.trace();
        match trace.get_or_insert_with(|| Trace::start().map_err(|error| error.to_string())) {
            Ok(_) => Witness::Seen(()),
            Err(why) => Witness::NotShown(why.clone().into()),
        }
    }

    /// The faults that KVM has told of.
    pub fn faults(&self) -> Witness<FaultRecord> {
        let mut trace = self.trace();
        let trace = match &mut *trace {
            Some(Ok(trace)) => trace,
            Some(Err(why)) => return Witness::NotShown(why.clone().into()),
            None => return Witness::NotShown("nobody has asked for a record of faults".into()),
        };
        let kernel = match live_kernel() {
            Ok(kernel) => kernel,
            Err(why) => return Witness::NotShown(why.into()),
        };
        let Some(taken) = trace.faults(kernel) else {
            return Witness::NotShown("kvm_pvm has no trace event of single faults".into());
        };
        let lost = match trace.lost() {
            Ok(lost) => lost,
            Err(error) => return Witness::NotShown(error.to_string().into()),
        };
        let when = trace.clock();
        let of_event = |event: &Event| fault_event(event, when(event), kernel.second_level());
        let events: Vec<_> = trace.events().iter().filter_map(of_event).collect();
        let unkept = taken.saturating_sub(events.len() as u64);
        Witness::Seen(FaultRecord { events, unkept, lost })
    }

    fn trace(&self) -> MutexGuard<'_, Option<Result<Trace, String>>> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault that KVM has told of, and counts.
fn fault_event(event: &Event, at: Instant, second_level: SecondLevel) -> Option<FaultEvent> {
    let Happened::Faulted(fault) = event.what else { return None };
    let (gva, gpa) = match second_level {
        SecondLevel::Shadow => (Some(Gva(fault.address)), None),
        SecondLevel::Ept | SecondLevel::Npt => (None, Some(Gpa(fault.address))),
    };
    (!fault.is_mmio(second_level)).then(|| FaultEvent {
        at,
        took: None,
        vcpu: fault.vcpu,
        gva,
        gpa,
        access: fault.access(second_level).does,
        outcome: None,
    })
}

/// A VM as one reading has found it.
pub(super) struct Still<'a> {
    vm: &'a KvmVm,
    tables: LiveTables,
    pages: RefCell<PageWindow>,
}

impl<'a> Still<'a> {
    pub fn of(vm: &'a KvmVm) -> Option<Self> {
        Some(Self { vm, tables: vm.live.tables(vm).ok()?, pages: RefCell::default() })
    }
}

impl HostView for Still<'_> {
    fn slot_hva(&self, gpa: Gpa) -> Witness<Hva> {
        slot_hva(self.tables.slots(), gpa).into()
    }

    fn frame(&self, hva: Hva) -> Witness<Hpa> {
        self.pages.borrow_mut().frame(hva)
    }

    fn leaf(&self, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf> {
        leaf(&self.tables, gva, gpa).into()
    }

    fn is_shadow(&self) -> bool {
        self.vm.is_shadow()
    }

    fn bypasses_tables(&self, ring: u8) -> bool {
        self.vm.bypasses_tables(ring)
    }

    fn violations(&self) -> Option<u64> {
        self.vm.violations()
    }

    fn mapped_pages(&self) -> Witness<Vec<MappedPage>> {
        mapped_pages(&self.tables)
    }

    fn tables(&self) -> Witness<SecondLevelTables> {
        second_level(&self.tables).into()
    }

    /// What is wrong is looked at once more: a page may have moved since the reading.
    fn verification(&self) -> Witness<Verification> {
        match self.vm.live.verification_of(&self.tables) {
            Witness::Seen(found) if !found.is_clean() => self.vm.verification(),
            found => found,
        }
    }
}

fn slot_hva(slots: &[LiveSlot], gpa: Gpa) -> Option<Hva> {
    slots.iter().filter(|slot| slot.space == 0).find_map(|slot| slot.memslot.hva_of(gpa))
}

/// As the root that vCPU 0 uses has them.
fn second_level(tables: &LiveTables) -> Option<SecondLevelTables> {
    let root = tables.root_of(0)?;
    Some(SecondLevelTables {
        format: root.paging.format,
        shadow: is_shadow(tables, root),
        bytes: (tables.frames().count() as u64) << PageSize::Size4K.shift(),
        leaves: tables.counted(),
    })
}

fn is_shadow(tables: &LiveTables, root: &LiveRoot) -> bool {
    tables.second_level() == SecondLevel::Shadow && !root.page.direct
}

/// By the root that vCPU 0 uses.
fn leaf(tables: &LiveTables, gva: Gva, gpa: Gpa) -> Option<SecondLevelLeaf> {
    let root = tables.root_of(0)?;
    let (address, access) = match is_shadow(tables, root) {
        true => (gva.raw(), Access::READ),
        false => (gpa.raw(), Access::READ.by_user()),
    };
    let found = walk(tables, &root.paging, address, access, Flags::Keep);
    let (leaf, step) = found.outcome.ok().zip(found.path.last())?;
    Some(SecondLevelLeaf {
        hpa: Hpa(leaf.address),
        size: leaf.size,
        rights: leaf.rights(),
        entry_address: Hpa(step.entry_address()),
        entry: leaf.entry,
        // The kernel clears it when it looks for memory that nobody needs (rule S4).
        accessed: None,
        written: root.paging.format.used(leaf.entry).map(|used| used.written),
        path: found.path,
    })
}

/// By all roots together: vCPUs of different kinds have their own.
fn mapped_pages(tables: &LiveTables) -> Witness<Vec<MappedPage>> {
    let kind = match tables.second_level() {
        SecondLevel::Ept => Kind::Ept,
        SecondLevel::Npt => Kind::Ia32e,
        SecondLevel::Shadow => return Witness::NotShown(BY_GVA.into()),
    };
    let leaves = tables.leaves().filter(|leaf| !leaf.smm && !leaf.nested);
    let pages = leaves.map(|leaf| MappedPage {
        gpa: leaf.gpa,
        size: leaf.size,
        rights: leaf.rights,
        caching: kind.caching(leaf.size.level(), leaf.entry),
    });
    let mut pages: Vec<_> = pages.collect();
    pages.sort_by_key(|page| page.gpa);
    pages.dedup();
    Witness::Seen(pages)
}
