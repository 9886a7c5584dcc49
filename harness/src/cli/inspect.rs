//! `memvirt inspect`.

use std::io::{self, Write};

use harness::inspect::{self, GpaView, Inspection, SlotView};
use memory_model::{AddrRange, Gpa, PageSize};
use vcpu::kvm::live_kernel;

use super::output::{letters, shown};
use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The process whose VMs are looked at, as of `qemu-system-x86_64 -accel kvm`.
    pid: u32,
    /// One of its VMs alone, by number from 0 on.
    #[arg(long, value_name = "NUMBER")]
    vm: Option<usize>,
    /// A guest-physical address (0x...) to follow.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    gpa: Option<Gpa>,
    /// Print a JSON object a line for each VM.
    #[arg(long)]
    json: bool,
}

fn address(text: &str) -> Result<Gpa, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map(Gpa).map_err(|error| error.to_string())
}

pub(crate) fn inspect(args: &Args) -> io::Result<Status> {
    let found = match live_kernel() {
        Ok(kernel) => {
            inspect::inspect(kernel, args.pid, args.vm, args.gpa).map_err(|error| error.to_string())
        }
        Err(why) => Err(why.to_owned()),
    };
    let vms = match found {
        Ok(vms) if !vms.is_empty() => vms,
        Ok(_) => {
            let which = args.vm.map_or_else(String::new, |vm| format!(" number {vm}"));
            output::complain(&format!("process {} has no VM{which}", args.pid));
            return Ok(Status::Trouble);
        }
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    let mut out = io::stdout().lock();
    for vm in &vms {
        match args.json {
            true => writeln!(out, "{}", serde_json::to_string(vm).map_err(io::Error::other)?)?,
            false => show(&mut out, vm)?,
        }
    }
    let clean = vms.iter().all(|vm| vm.findings.is_empty());
    Ok(if clean { Status::AsExpected } else { Status::Failed })
}

fn show(out: &mut impl Write, vm: &Inspection) -> io::Result<()> {
    let vcpus = match vm.vcpus.len() {
        1 => "1 vCPU".to_owned(),
        vcpus => format!("{vcpus} vCPUs"),
    };
    writeln!(out, "VM {} of process {}: {}, {vcpus}", vm.vm, vm.pid, vm.second_level)?;
    writeln!(out, "  slot  GPA                        HVA              flags  leaves")?;
    for slot in &vm.slots {
        show_slot(out, slot)?;
    }
    writeln!(out, "  tables: {}, {} KiB; leaves: {}", vm.tables, vm.table_bytes >> 10, sizes(vm.leaves))?;
    writeln!(out, "  KVM counts: {}", counts(vm))?;
    if let Some(gpa) = &vm.gpa {
        show_gpa(out, gpa)?;
    }
    writeln!(out, "  {} frames compared with the process's, {} findings", vm.frames, vm.findings.len())?;
    for finding in &vm.findings {
        writeln!(out, "    WRONG {finding}")?;
    }
    vm.unchecked.iter().try_for_each(|why| writeln!(out, "    not checked: {why}"))
}

fn show_slot(out: &mut impl Write, slot: &SlotView) -> io::Result<()> {
    let gpa = AddrRange::new(slot.gpa, slot.bytes.into()).map_or_else(String::new, |range| range.to_string());
    let flag = |set, letter| if set { letter } else { '-' };
    let smm = flag(slot.space != 0, 's');
    let (readonly, log) = (flag(slot.readonly, 'r'), flag(slot.log_dirty, 'd'));
    let (id, hva, leaves) = (slot.id, slot.hva.to_string(), sizes(slot.leaves));
    writeln!(out, "  {id:<4}  {gpa:<25}  {hva:<15}  {readonly}{log}{smm}    {leaves}")?;
    for (size, limits) in PageSize::ALL.iter().zip(&slot.limits).filter(|(_, limits)| !limits.is_empty()) {
        let reasons: Vec<_> = limits.iter().map(|(why, count)| format!("{why} ({count})")).collect();
        writeln!(out, "        {size} and no larger: {}", reasons.join(", "))?;
    }
    Ok(())
}

fn show_gpa(out: &mut impl Write, view: &GpaView) -> io::Result<()> {
    writeln!(out, "  GPA {}", view.gpa)?;
    writeln!(out, "   -> HVA {}  (slot {})", shown(view.hva), shown(view.slot))?;
    writeln!(out, "   -> HPA {}", shown(view.hpa))?;
    if view.leaves.is_empty() {
        writeln!(out, "      no leaf maps it")?;
    }
    for leaf in &view.leaves {
        let (entry, at, rights) = (leaf.entry, leaf.entry_address, letters(leaf.rights));
        let verdict = if Some(leaf.hpa) == view.hpa { "" } else { "  WRONG" };
        let (size, hpa) = (&leaf.size, leaf.hpa);
        writeln!(out, "      leaf {entry:#018x} at {at}: {size} page, {rights}, {hpa}{verdict}")?;
    }
    Ok(())
}

/// The faults, and what else has happened at least once.
fn counts(vm: &Inspection) -> String {
    let some = vm.counts.iter().filter(|(name, count)| name.starts_with("pf_") || **count > 0);
    let texts: Vec<_> = some.map(|(name, count)| format!("{name} {count}")).collect();
    texts.join(", ")
}

/// How many of each size, but for sizes of which there are none.
fn sizes(counts: [u64; 3]) -> String {
    let some = PageSize::ALL.iter().zip(counts).filter(|(_, count)| *count > 0);
    let texts: Vec<_> = some.map(|(size, count)| format!("{count} x {size}")).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}
