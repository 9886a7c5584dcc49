//! From a guest's file in memory to its first instructions, on the software machine: the file is read and checked, the
//! address space, slots, VM and vCPU are made, the guest is loaded and started, and its first exit has come.

use std::time::{Duration, Instant};

use guest_tests::{BootSpec, Bytes, Image, Manifest, Page};
use harness::{Ending, Machine, Mmu};
use memory_model::PageSize;

const ROUNDS: usize = 301;
/// The longest that a boot may take.
const TARGET: Duration = Duration::from_micros(300);
const CODE: u32 = 0x10_0000;
/// `mov al, 0x10; out 0xf4, al`: the same in 32 and in 64 bits.
const PROGRAM: [u8; 4] = [0xb0, 0x10, 0xe6, 0xf4];

fn main() {
    println!(
        "\nfrom a file in memory to the guest's first exit, 64 MiB of RAM\n{:<44} {:>12} {:>12}",
        "", "median", "target"
    );
    let all: [(&str, Mmu, BootSpec, Vec<u8>); 5] = [
        ("long mode, pages of 2M, ept", Mmu::Ept, BootSpec::Long, elf64(PT_NULL)),
        ("long mode, pages of 2M, npt", Mmu::Npt, BootSpec::Long, elf64(PT_NULL)),
        ("long mode, pages of 2M, shadow", Mmu::Shadow, BootSpec::Long, elf64(PT_NULL)),
        ("PVH, ept", Mmu::Ept, BootSpec::Pvh, elf64(PT_NOTE)),
        ("Linux, ept", Mmu::Ept, BootSpec::Linux, bz_image()),
    ];
    for (name, mmu, boot, file) in all {
        let manifest = manifest(boot);
        let mut times: Vec<_> = (0..ROUNDS).map(|_| time(mmu, &file, &manifest)).collect();
        times.sort();
        let median = times[ROUNDS / 2].as_secs_f64() * 1e6;
        println!("{name:<44} {median:>9.1} us {:>9} us", TARGET.as_micros());
    }
}

fn time(mmu: Mmu, file: &[u8], manifest: &Manifest) -> Duration {
    let file = file.to_vec();
    let start = Instant::now();
    let image = Image::parse(file).and_then(|image| image.with_manifest(manifest.clone())).unwrap();
    let vm = mmu.create_vm(&image).unwrap();
    let mut machine = Machine::build(image, vm).unwrap();
    let run = machine.run().unwrap();
    let took = start.elapsed();
    assert_eq!(run.ending, Ending::Reported(0x10));
    took
}

fn manifest(boot: BootSpec) -> Manifest {
    let mut manifest = Manifest::default();
    manifest.machine.memory = Bytes(64 << 20);
    manifest.machine.page = Page(PageSize::Size2M);
    manifest.machine.boot = Some(boot);
    manifest
}

const PT_NULL: u32 = 0;
const PT_NOTE: u32 = 4;

/// A 64-bit ELF file with one segment, and with a note for PVH if its program header is one of a note.
fn elf64(note: u32) -> Vec<u8> {
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = 64 + 2 * PROGRAM_HEADER;
    const SEGMENT: u64 = NOTE + 24;
    let code = u64::from(CODE);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // ET_EXEC, x86-64, version, entry, program headers, no sections, flags.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    [code, 64, 0].iter().for_each(|field| put(&field.to_le_bytes()));
    put(&[0; 4]);
    [64_u16, PROGRAM_HEADER as u16, 2, 64, 0, 0].iter().for_each(|field| put(&field.to_le_bytes()));
    // PT_LOAD, to be read and executed; the note.
    let size = PROGRAM.len() as u64;
    for (kind, flags, offset, address, size) in [(1_u32, 5_u32, SEGMENT, code, size), (note, 4, NOTE, 0, 24)]
    {
        [kind, flags].iter().for_each(|field| put(&field.to_le_bytes()));
        [offset, address, address, size, size, 4].iter().for_each(|field| put(&field.to_le_bytes()));
    }
    [4_u32, 4, 18].iter().for_each(|field| put(&field.to_le_bytes()));
    put(b"Xen\0");
    put(&CODE.to_le_bytes());
    put(&[0; 4]);
    put(&PROGRAM);
    file
}

/// A bzImage of protocol 2.15 with one setup sector.
fn bz_image() -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    let fields: [(usize, &[u8]); 10] = [
        (0x1f1, &[1]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x214, &CODE.to_le_bytes()),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x230, &[0, 0, 0x20, 0]),
        (0x234, &[1]),
        (0x238, &[0xff, 0x07]),
    ];
    fields.iter().for_each(|(at, bytes)| file[*at..at + bytes.len()].copy_from_slice(bytes));
    file.extend_from_slice(&PROGRAM);
    file
}
