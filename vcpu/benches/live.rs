//! What a check of all tables of a KVM guest costs, and where the time goes: reading the tables, the process's page map, the
//! comparison. `cargo bench -p vcpu --bench live -- [GiB]`: the size of the larger guest, whose memory is really there.
//!
//! The best of some rounds: what others do on this machine can only make it slower.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ept::live::{Kernel, LiveVm, Means, Pagemap};
use ept::verify::{HostMap, UnknownHost};
use iced_x86::code_asm::*;
use memory_model::{AddrRange, AddressSpace, Gva, PageSize, Pages, RamBlock, RamOptions, RegionTree};
use slot_manager::SlotManager;
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::kvm::{KvmHost, live_kernel};
use vcpu::{Budget, Entry, Exit, KvmVm, Vcpu, Vm};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const LOW: u64 = 2 * MIB;
const CODE: u64 = MIB;
/// Where the guest's data begins.
const DATA: u64 = 4 * GIB;

fn main() {
    let missing = KvmHost::probe().err().map(|why| why.to_string());
    if let Some(why) = missing.or(live_kernel().err().map(str::to_owned)) {
        println!("not measured: {why}");
        return;
    }
    let gib = std::env::args().filter_map(|arg| arg.parse::<u64>().ok()).next().unwrap_or(2);
    println!(
        "{:<26} {:>9} {:>8} {:>10} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "guest",
        "leaves",
        "MiB",
        "check",
        "target",
        "reading",
        "pagemap",
        "verifier",
        "leaves/s",
        "2 readings"
    );
    for means in Means::ALL {
        match Kernel::open_by(means) {
            Ok(kernel) => {
                let guest = touched(8 * MIB, Pages::Small);
                row(&format!("8 MiB, 4K, {means}"), &kernel, &guest, 31, Duration::from_millis(5));
            }
            Err(why) => println!("{means}: not measured: {why}"),
        }
    }
    let target = Duration::from_secs(2) * gib as u32 / 16;
    for (size, pages) in [("4K", Pages::Small), ("2M", Pages::Thp)] {
        let guest = touched(gib * GIB, pages);
        row(&format!("{gib} GiB, {size}"), live_kernel().unwrap(), &guest, 3, target);
    }
}

/// A VM whose guest has written to all of its data.
struct Touched {
    vm: KvmVm,
    _vcpu: Box<dyn Vcpu>,
    _space: AddressSpace,
}

fn row(name: &str, kernel: &Arc<Kernel>, guest: &Touched, rounds: usize, target: Duration) {
    let live = LiveVm::of_fd(kernel, &guest.vm).unwrap().unwrap();
    let pagemap = Pagemap::of_this_process().unwrap();
    let tables = live.tables().unwrap();
    let leaves = tables.leaves().count() as u64;
    // A host that makes room for huge pages takes leaves away meanwhile.
    let mapped: u64 = tables.leaves().map(|leaf| leaf.size.bytes()).sum();
    let read = (0..rounds).map(|_| timed(|| live.tables().unwrap()).0).min().unwrap_or_default();
    let checked = best_check(rounds, &live, &pagemap);
    let alone = best_check(rounds, &live, &UnknownHost);
    let all = read + checked;
    let share = |part: Duration| format!("{:.0}%", 100.0 * part.as_secs_f64() / all.as_secs_f64());
    println!(
        "{name:<26} {leaves:>9} {:>8} {:>10.1?} {:>8.1?} {:>8} {:>8} {:>8} {:>10.0} {:>10.1?}",
        mapped / MIB,
        all,
        target,
        share(read),
        share(checked.saturating_sub(alone)),
        share(alone.min(checked)),
        leaves as f64 / all.as_secs_f64(),
        read,
    );
}

/// The best of some checks, each of tables just read. Where the host has moved a page between the two there are findings, and
/// such a round does not count.
fn best_check(rounds: usize, live: &LiveVm, host: &dyn HostMap) -> Duration {
    let mut last = String::new();
    let clean = (0..rounds).filter_map(|_| {
        let tables = live.tables().unwrap();
        let (took, report) = timed(|| tables.check(host).unwrap());
        last = report.to_string();
        report.is_clean().then_some(took)
    });
    let best = clean.min();
    best.unwrap_or_else(|| panic!("{last}"))
}

/// How long it takes, without what becomes of the result.
fn timed<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = act();
    (start.elapsed(), result)
}

fn touched(bytes: u64, pages: Pages) -> Touched {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    let low = RamBlock::anonymous("low", LOW).unwrap();
    let data = RamBlock::create("data", bytes, RamOptions { pages, ..RamOptions::default() }).unwrap();
    space
        .update(|tree| {
            let ram = tree.ram("low", low.clone())?;
            tree.add(tree.root(), 0, ram)?;
            let ram = tree.ram("data", data.clone())?;
            tree.add(tree.root(), DATA, ram)
        })
        .unwrap();
    let vm = KvmVm::new().unwrap();
    space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
    low.write(CODE, &program(bytes).unwrap()).unwrap();
    let range = AddrRange::new(Gva(DATA), bytes.into()).unwrap();
    let data = GuestMap { page: PageSize::Size2M, ..GuestMap::identity(range) };
    let code = GuestMap::identity(AddrRange::new(Gva(CODE), 0x1000).unwrap());
    let guest = LongMode { entry: CODE, ring: Ring::User, handlers: vec![], maps: vec![code, data] };
    let (regs, system) = guest.install(&space.view()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_system_regs(&system).unwrap();
    vcpu.set_regs(&regs).unwrap();
    let exit = vcpu.run(Entry::Resume, &Budget::time(Duration::from_secs(600))).unwrap();
    assert!(matches!(exit, Exit::IoOut { .. }), "{exit:?}");
    Touched { vm, _vcpu: vcpu, _space: space }
}

/// Writes to each page of the data, and comes out.
fn program(bytes: u64) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut next = a.create_label();
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + bytes)?;
    a.set_label(&mut next)?;
    a.mov(qword_ptr(rsi), rsi)?;
    a.add(rsi, 0x1000)?;
    a.cmp(rsi, rdi)?;
    a.jb(next)?;
    a.out(0xf4, al)?;
    a.assemble(CODE)
}
