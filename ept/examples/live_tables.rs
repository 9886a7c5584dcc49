//! Shows the tables of all VMs of a process: `cargo run -p ept --features live --example live_tables PID`.
//!
//! Needs root. Try it on a process of `qemu-system-x86_64 -accel kvm`.

use ept::live::{Kernel, LiveError, LiveVm};
use ept::mappings;

/// Pages of a root that are listed.
const LISTED: usize = 16;

fn main() -> Result<(), LiveError> {
    let Some(pid) = std::env::args().nth(1).and_then(|pid| pid.parse().ok()) else {
        eprintln!("usage: live_tables PID");
        std::process::exit(2);
    };
    let kernel = Kernel::open()?;
    for vm in LiveVm::of_process(&kernel, pid)? {
        let tables = vm.tables()?;
        println!("{vm:?}: {}, {} tables", tables.second_level(), tables.frames().count());
        for slot in tables.slots() {
            let memslot = slot.memslot;
            println!("  slot {}: {:#x} bytes at {} -> {}", slot.id, memslot.bytes, memslot.base, memslot.hva);
        }
        for root in tables.roots() {
            println!(
                "  root {:#x} of {} levels, in use by vCPUs {:?}",
                root.paging.root, root.page.level, root.vcpus
            );
            for page in mappings(&tables, &root.paging).take(LISTED) {
                println!("    {:#x} -> {:#x} {} {:?}", page.address, page.frame, page.size, page.rights);
            }
        }
        println!("{}", vm.check()?);
    }
    Ok(())
}
