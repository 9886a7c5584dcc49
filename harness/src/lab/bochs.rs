//! The lab with EPT: Bochs as an Intel processor. It boots from a CD with isolinux, having no other way to a kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::LabError;
use super::kernel::{COMMAND_LINE, output};
use super::session::{CONSOLE, INITRAMFS, MESSAGES};

pub(super) const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
pub(super) const VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";
pub(super) const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
pub(super) const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// Time counts instructions.
const INSTRUCTIONS_PER_SECOND: u32 = 100_000_000;

/// CPUID has the frequency of the processor that is emulated. Linux would believe it, and wait that much longer for everything.
fn command_line() -> String {
    let khz = INSTRUCTIONS_PER_SECOND / 1000;
    // Without RDRAND (158) and RDSEED (306), whose numbers differ from run to run.
    format!("{COMMAND_LINE} nokaslr tsc=reliable tsc_early_khz={khz} idle=poll clearcpuid=158,306")
}

pub(super) fn command(folder: &Path, kernel: &Path) -> Result<Command, LabError> {
    cd(folder, kernel)?;
    let settings = folder.join("bochsrc");
    fs::write(&settings, self::settings(folder)).map_err(LabError::file(&settings))?;
    // Debian's build is one with a debugger, which waits for a word to begin.
    let word = folder.join("rc");
    fs::write(&word, "c\n").map_err(LabError::file(&word))?;
    let mut command = super::session::child("bochs-bin");
    command.arg("-q").arg("-f").arg(settings).arg("-rc").arg(word);
    // A terminal whose cursor cannot be hidden: else that is all that Bochs does with it, all the time.
    command.env("TERM", "vt100");
    Ok(command)
}

fn cd(folder: &Path, kernel: &Path) -> Result<(), LabError> {
    let tree = folder.join("cd");
    fs::create_dir(&tree).map_err(LabError::file(&tree))?;
    let command_line = command_line();
    let configuration = format!(
        "default lab\nprompt 0\nlabel lab\nkernel /vmlinuz\nappend initrd=/{INITRAMFS} {command_line}\n"
    );
    let file = tree.join("isolinux.cfg");
    fs::write(&file, configuration).map_err(LabError::file(&file))?;
    let initramfs = folder.join(INITRAMFS);
    let parts = [
        (Path::new(ISOLINUX), "isolinux.bin"),
        (Path::new(LDLINUX), "ldlinux.c32"),
        (kernel, "vmlinuz"),
        (&initramfs, INITRAMFS),
    ];
    for (source, name) in parts {
        fs::copy(source, tree.join(name)).map_err(LabError::file(source))?;
    }
    let mut command = Command::new("xorriso");
    command.args(["-as", "mkisofs", "-quiet", "-b", "isolinux.bin", "-no-emul-boot"]);
    command.args(["-boot-load-size", "4", "-boot-info-table", "-o"]).arg(folder.join("cd.iso")).arg(&tree);
    output(&mut command).map(drop)
}

fn settings(folder: &Path) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "megs: 1024\n\
         cpu: model=corei7_skylake_x, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={VGA_BIOS}\n\
         ata0-master: type=cdrom, path={cd}, status=inserted\n\
         boot: cdrom\n\
         clock: sync=none, time0=946684800\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=file, dev={messages}\n\
         sound: driver=dummy, waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
         plugin_ctrl: speaker=0, gameport=0\n\
         panic: action=report\n\
         error: action=ignore\n\
         info: action=ignore\n\
         log: {log}\n\
         display_library: term\n",
        cd = file("cd.iso"),
        console = file(CONSOLE),
        messages = file(MESSAGES),
        log = file("bochs.log"),
    )
}
