//! A whole guest on KVM, from the VM's creation to the verdict: against the same guest driven by bare kvm-ioctls, with no
//! regions, no slots, no chains, no judging; and against QEMU, which boots the same ELF file on KVM.
#![expect(unsafe_code, reason = "the peer sets its memory slot by the bare ioctl")]

#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_tests::Image;
use harness::{Mmu, Verdict, run_guest};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const PASS: u8 = 0x10;
const RAM: usize = 16 << 20;
const TABLES: u64 = 0x8000;

fn main() {
    if let Some(why) = Mmu::Kvm.unavailable() {
        println!("not measured: {why}");
        return;
    }
    let cpuid = Kvm::new().unwrap().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    paired::head("whole guest on KVM: creation of the VM to verdict");
    for name in ["first_touch", "read_before_write"] {
        let image = built_in(name);
        let ours = || passes(name, &image);
        let bare = || assert_eq!(bare(&image, &cpuid), PASS);
        paired::compare(&format!("{name}: bare kvm-ioctls"), Some(1.5), 200, 1, ours, bare);
        let more: Vec<_> = (0..200).map(|_| time(ours).as_secs_f64() - time(bare).as_secs_f64()).collect();
        println!("{name}: {:.2} ms more than the guest's own time (target: at most 2)", median(more) * 1e3);
    }
    against_qemu("pvh_touch");
}

/// QEMU's smallest machine boots the ELF file and ends with the guest's code.
fn against_qemu(name: &str) {
    let image = built_in(name);
    let elf = std::env::temp_dir().join(format!("{name}-{}.elf", std::process::id()));
    fs::write(&elf, image.bytes()).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "kvm", "-machine", "microvm", "-m", "16M", "-nodefaults", "-display", "none"]);
    qemu.args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel"]).arg(&elf);
    qemu.stdin(Stdio::null()).stderr(Stdio::null());
    let row = format!("{name}: QEMU, microvm");
    match qemu.status() {
        Err(error) => println!("{row}: not measured: {error}"),
        Ok(_) => {
            let status = i32::from(PASS) << 1 | 1;
            let peer = || assert_eq!(qemu.status().unwrap().code(), Some(status));
            paired::compare(&row, Some(1.0 / 20.0), 21, 1, || passes(name, &image), peer);
        }
    }
    fs::remove_file(elf).unwrap();
}

fn built_in(name: &str) -> Image {
    let guest = guest_tests::built_in().find(|guest| guest.name == name).unwrap();
    Image::parse(guest.elf).unwrap()
}

fn passes(name: &str, image: &Image) {
    assert_eq!(run_guest(name, image, Mmu::Kvm).unwrap().verdict, Verdict::Pass);
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The least that boots the guest and sees its exit code.
fn bare(image: &Image, cpuid: &CpuId) -> u8 {
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
    };
    // SAFETY: `memory` stays mapped until after the VM and its vCPU are gone.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let elf = goblin::elf::Elf::parse(image.bytes()).unwrap();
    for segment in
        elf.program_headers.iter().filter(|segment| segment.p_type == goblin::elf::program_header::PT_LOAD)
    {
        memory.write_slice(&image.bytes()[segment.file_range()], GuestAddress(segment.p_paddr)).unwrap();
    }
    identity_map(&memory);

    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(cpuid).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    let flat = kvm_segment { limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 0x23, type_: 0xb, l: 1, ..flat };
    sregs.ss = kvm_segment { selector: 0x1b, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (sregs.ss, sregs.ss, sregs.ss, sregs.ss);
    sregs.tr = kvm_segment {
        base: 0x3000,
        limit: 0x67,
        selector: 0x28,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable { base: 0x1000, limit: 55, ..Default::default() };
    sregs.idt = kvm_dtable { base: 0x2000, limit: 511, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0033, TABLES, 0x620, 0xd00);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: elf.entry, rsp: 0x10_0000, rflags: 0x3002, ..Default::default() })
        .unwrap();
    loop {
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0xf4, data) => return data[0],
            VcpuExit::IoOut(..) => {}
            exit => panic!("{exit:?}"),
        }
    }
}

/// 4 KiB pages for all RAM, user and writable.
fn identity_map(memory: &GuestMemoryMmap<()>) {
    let entry = |table: u64, index: u64, value: u64| {
        memory.write_obj(value | 7, GuestAddress(table + index * 8)).unwrap()
    };
    entry(TABLES, 0, TABLES + 0x1000);
    entry(TABLES + 0x1000, 0, TABLES + 0x2000);
    for large in 0..RAM as u64 >> 21 {
        let table = TABLES + 0x3000 + (large << 12);
        entry(TABLES + 0x2000, large, table);
        (0..512).for_each(|small| entry(table, small, large << 21 | small << 12));
    }
}
