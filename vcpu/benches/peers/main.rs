//! The software CPU against other software CPUs: Bochs, which interprets as it does, and QEMU's TCG, which translates
//! to the host's code. `cargo bench -p vcpu --bench peers`.
//!
//! All boot the same 512 bytes. A row is the time of a long run less that of a short one, so that no start-up is in it.

#[path = "../loops/mod.rs"]
mod loops;
mod machines;
#[path = "../../../memory-model/benches/paired/mod.rs"]
mod paired;
mod sector;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use loops::{LOOPS, Loop};
use machines::Machine;

const ROUNDS: usize = 3;

/// A peer: its name, its program, and what runs it.
type Peer = (&'static str, &'static str, Machine);
const BOCHS: Peer = ("Bochs", "bochs-bin", machines::bochs);
const TCG: Peer = ("QEMU TCG", "qemu-system-x86_64", machines::qemu);

/// A loop by name, the instructions of one time, how often it runs, the peers with the highest ratio that is wanted.
type Row = ((&'static str, Loop, u32), u32, [(Peer, Option<f64>); 2]);
const ROWS: [Row; 3] = [
    (LOOPS[0], 10_000_000, [(BOCHS, Some(0.5)), (TCG, None)]),
    (LOOPS[1], 12_000_000, [(BOCHS, Some(0.5)), (TCG, None)]),
    (("touch 64k pages, INVLPG each", pages, 6), 1 << 21, [(BOCHS, None), (TCG, Some(1.0))]),
];

/// A load from each page of 256 MiB in turn, and the end of what the processor remembers of that page.
fn pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(rax, qword_ptr(rbx))?;
    a.invlpg(byte_ptr(rbx))?;
    a.add(ebx, 0x1000)?;
    a.and(ebx, 0xfff_ffff)?;
    a.dec(rcx)?;
    a.jnz(top)
}

fn main() {
    let folder = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    paired::head("an instruction of the guest, in long mode, on each software CPU");
    for ((name, repeat, instructions), times, peers) in ROWS {
        for ((peer, program, machine), target) in peers {
            let row = format!("{name}: {peer}");
            if !is_there(program) {
                println!("{row:<44} not measured: no {program} here");
                continue;
            }
            let guests = [sector::build(repeat, 1), sector::build(repeat, times.into())].map(Result::unwrap);
            let [_, whole] = &guests;
            let (ours, theirs) = (machines::ours(&folder, whole).unwrap(), machine(&folder, whole).unwrap());
            assert!(theirs.is_none_or(|theirs| Some(theirs & 0x7f) == ours.map(|ours| ours & 0x7f)));
            let run = |machine: Machine| difference(machine, &folder, &guests);
            paired::compare(
                &row,
                target,
                ROUNDS,
                times * instructions,
                || run(machines::ours),
                || run(machine),
            );
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// The time of the second guest less that of the first.
fn difference(machine: Machine, folder: &Path, guests: &[[u8; 512]; 2]) -> Duration {
    let [short, long] = guests.each_ref().map(|guest| {
        let start = Instant::now();
        machine(folder, guest).unwrap();
        start.elapsed()
    });
    long.saturating_sub(short)
}

fn is_there(program: &str) -> bool {
    let asked = Command::new("sh").args(["-c", "command -v \"$0\"", program]).stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}
