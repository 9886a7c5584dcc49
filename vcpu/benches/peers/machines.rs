//! The machines that run the sector: ours, and two emulators in processes of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_model::{AddressSpace, Pages, RamBlock, RamOptions, RegionTree};
use slot_manager::SlotManager;
use vcpu::boot::multiboot::Multiboot;
use vcpu::soft::SoftVm;
use vcpu::{Budget, Entry, Exit, Vm};

use crate::sector::{ENTRY, LOAD, RAM, RESULT};

/// A longer run is a hang.
const LONGEST: Duration = Duration::from_secs(100);

/// Something that boots a sector and runs it to its end; gives the byte that the guest reports, if it shows that.
pub type Machine = fn(&Path, &[u8]) -> Result<Option<u8>, String>;

/// The software machine, with its EPT.
pub fn ours(_: &Path, sector: &[u8]) -> Result<Option<u8>, String> {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    // As QEMU asks for its guests' memory.
    let options = RamOptions { pages: Pages::Thp, ..Default::default() };
    let block = RamBlock::create("ram", RAM, options).unwrap();
    let add = |tree: &mut RegionTree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)
    };
    space.update(add).unwrap();
    let vm = SoftVm::new().unwrap();
    space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
    let guest = Multiboot { entry: ENTRY as u32, command_line: String::new() };
    let (regs, system) = guest.install(&space.view()).unwrap();
    // Over the command line that the guest does not read.
    block.write(LOAD, sector).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_system_regs(&system).unwrap();
    vcpu.set_regs(&regs).unwrap();
    match vcpu.run(Entry::Resume, &Budget::time(LONGEST)) {
        Ok(Exit::IoOut { port: RESULT, data, .. }) => Ok(Some(data[0])),
        other => Err(format!("{other:?}")),
    }
}

/// QEMU's TCG: `isa-debug-exit` makes a status of the result.
pub fn qemu(folder: &Path, sector: &[u8]) -> Result<Option<u8>, String> {
    let kernel = write(folder, "kernel", sector);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-display", "none", "-nodefaults", "-no-reboot", "-m", "256M"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel"]).arg(kernel);
    let output = run(&mut command)?;
    let status = output.status.code().filter(|status| status & 1 == 1);
    let status =
        status.ok_or_else(|| format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)))?;
    Ok(Some((status >> 1) as u8))
}

/// Bochs boots the sector as its hard disk. Debian's build needs a terminal, and a word to its debugger to begin.
pub fn bochs(folder: &Path, sector: &[u8]) -> Result<Option<u8>, String> {
    // One cylinder.
    let mut disk = vec![0; 16 * 63 * 512];
    disk[..sector.len()].copy_from_slice(sector);
    let disk = write(folder, "disk", &disk);
    let log = folder.join("log");
    let settings = format!(
        "display_library: term\nmegs: 256\nboot: disk\nclock: sync=none\nlog: {}\n\
         cpu: model=corei7_skylake_x\npanic: action=report\nplugin_ctrl: speaker=0, gameport=0\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         ata0-master: type=disk, path={}, mode=flat, cylinders=1, heads=16, spt=63\n",
        log.display(),
        disk.display(),
    );
    let settings = write(folder, "settings", settings.as_bytes());
    let word = write(folder, "word", b"c\n");
    let bochs = format!("bochs-bin -q -f {} -rc {}", settings.display(), word.display());
    let output = run(Command::new("script").env("TERM", "xterm").args(["-qc", &bochs, "/dev/null"]))?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    if said.contains("Shutdown port: shutdown requested") {
        return Ok(None);
    }
    Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stdout)))
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Runs a process to its end, or to that of [`LONGEST`].
fn run(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_owned();
    let mut limited = Command::new("timeout");
    limited.arg(LONGEST.as_secs().to_string()).arg(&name).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = limited.stdin(Stdio::null()).output();
    output.map_err(|error| format!("{}: {error}", name.display()))
}
