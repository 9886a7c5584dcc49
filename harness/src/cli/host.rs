//! `memvirt host`.

use std::io::{self, Write};

use ept::live::{Kernel, KvmStats, LiveError, Means, Trace};
use harness::Mmu;
use harness::lab::Lab;
use memory_model::RamBlock;
use vcpu::kvm::{KvmHost, KvmModule, live_kernel};
use vcpu::{KvmVm, Witness, pagemap_frame};

use super::Status;

/// What this host offers, a line each: what it is, whether it is there, and what it is good for.
pub(crate) fn host() -> io::Result<Status> {
    let mut out = io::stdout().lock();
    writeln!(out, "machines")?;
    for mmu in Mmu::ALL {
        let what = match mmu {
            Mmu::Ept => "software CPU, 4-level EPT, simulated frames".to_owned(),
            Mmu::Npt => "the same with 4-level NPT".to_owned(),
            Mmu::Shadow => "the same with shadow paging".to_owned(),
            Mmu::Kvm | Mmu::Lab(_) => kvm(),
        };
        match mmu.unavailable() {
            None => writeln!(out, "  {mmu:<12} yes  {what}")?,
            Some(why) => writeln!(out, "  {mmu:<12} no   {why}")?,
        }
    }
    writeln!(out, "labs")?;
    for lab in Lab::ALL {
        let what = match lab {
            Lab::Npt => "KVM with 5-level NPT, inside QEMU",
            Lab::Ept => "KVM with 4-level EPT, inside Bochs",
        };
        match lab.unavailable() {
            None => writeln!(out, "  {lab:<12} yes  {what}")?,
            Some(why) => writeln!(out, "  {lab:<12} no   {why}")?,
        }
    }
    writeln!(out, "the kernel's memory")?;
    for means in Means::ALL {
        match means.missing() {
            None => writeln!(out, "  {means:<12} yes  shows KVM's own tables")?,
            Some(why) => writeln!(out, "  {means:<12} no   {why}")?,
        }
    }
    writeln!(out, "witnesses")?;
    for Witnessed { name, what, missing, without } in witnesses() {
        match &missing[..] {
            [] => writeln!(out, "  {name:<12} yes  {what}")?,
            [first, others @ ..] => {
                writeln!(out, "  {name:<12} no   {first}")?;
                others.iter().try_for_each(|why| writeln!(out, "{:19}{why}", ""))?;
                writeln!(out, "{:19}so that {without} is reported as not checked", "")?;
            }
        }
    }
    if let Ok(capabilities) = KvmHost::capabilities() {
        writeln!(out, "what KVM lacks")?;
        let lacking = capabilities.iter().filter(|(_, answer)| *answer == 0);
        let lacking: Vec<_> = lacking.map(|(capability, _)| capability.to_string()).collect();
        lacking.iter().try_for_each(|capability| writeln!(out, "  {capability}"))?;
        if lacking.is_empty() {
            writeln!(out, "  nothing that memvirt makes use of")?;
        }
    }
    Ok(Status::AsExpected)
}

/// Something that shows a part of the truth about VMs of KVM.
struct Witnessed {
    name: &'static str,
    what: String,
    /// All that it needs and this host does not have, and how to get it.
    missing: Vec<String>,
    /// What it would check.
    without: &'static str,
}

fn witnesses() -> [Witnessed; 4] {
    let texts = |missing: Vec<LiveError>| missing.iter().map(ToString::to_string).collect();
    let tables = live_kernel().map_or_else(
        |_| String::new(),
        |kernel| format!("KVM's own tables ({}) are read by {}", kernel.second_level(), kernel.means()),
    );
    [
        Witnessed {
            name: "frames",
            what: "/proc/self/pagemap shows frames: HVA -> HPA is checked".to_owned(),
            missing: frames().err().into_iter().collect(),
            without: "HVA -> HPA of kvm",
        },
        Witnessed {
            name: "live tables",
            what: format!("{tables}: the second level of kvm is checked"),
            missing: texts(Kernel::missing()),
            without: "the second level of kvm",
        },
        Witnessed {
            name: "counts",
            what: "KVM_GET_STATS_FD: violations are counted, and leaves as KVM counts them".to_owned(),
            missing: counts().err().into_iter().collect(),
            without: "how many leaves and faults there are",
        },
        Witnessed {
            name: "events",
            what: "KVM's trace events: leaves are those that were installed".to_owned(),
            missing: texts(Trace::start().err().into_iter().collect()),
            without: "how leaves came to be",
        },
    ]
}

/// Whether KVM counts for this process.
fn counts() -> Result<(), String> {
    let vm = KvmVm::new().map_err(|error| error.to_string())?;
    KvmStats::of(&vm).map(|_| ()).map_err(|error| error.to_string())
}

fn kvm() -> String {
    let Ok(host) = KvmHost::probe() else { return String::new() };
    let module = match host.module {
        Some(KvmModule::Intel) => "kvm_intel",
        Some(KvmModule::Amd) => "kvm_amd",
        Some(KvmModule::Pvm) => "kvm_pvm (ring 0 interpreted, ring 3 native)",
        None => "unknown module",
    };
    let second_level = match host.tdp {
        Some(true) => "two-dimensional paging",
        Some(false) => "shadow paging",
        None => "second level unknown",
    };
    format!("API {}, {module}, {second_level}", host.api_version)
}

/// Whether this process may see its frames: tried on a page of its own.
fn frames() -> Result<(), String> {
    let block = RamBlock::anonymous("probe", 0x1000).map_err(|error| error.to_string())?;
    block.write(0, &[1]).map_err(|error| error.to_string())?;
    match pagemap_frame(block.hva()) {
        Witness::Seen(_) => Ok(()),
        Witness::Absent => Err("/proc/self/pagemap does not know a page that was just written".to_owned()),
        Witness::NotShown(why) => Err(why.into_owned()),
    }
}
