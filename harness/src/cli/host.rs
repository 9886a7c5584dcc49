//! `memvirt host`.

use std::io::{self, Write};

use harness::Mmu;
use memory_model::RamBlock;
use vcpu::kvm::{KvmHost, KvmModule};
use vcpu::{Witness, pagemap_frame};

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
    writeln!(out, "witnesses")?;
    match frames() {
        Ok(()) => {
            writeln!(out, "  {:<12} yes  /proc/self/pagemap shows frames: HVA -> HPA is checked", "frames")?
        }
        Err(why) => {
            writeln!(out, "  {:<12} no   {why}: HVA -> HPA of kvm is reported as not checked", "frames")?
        }
    }
    match vcpu::kvm::live_kernel() {
        Ok(kernel) => writeln!(
            out,
            "  {:<12} yes  KVM's own tables ({}) are read: the second level of kvm is checked",
            "live tables",
            kernel.second_level()
        )?,
        Err(why) => writeln!(
            out,
            "  {:<12} no   {why}: the second level of kvm is reported as not checked",
            "live tables"
        )?,
    }
    Ok(Status::AsExpected)
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
