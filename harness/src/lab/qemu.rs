//! The lab with NPT: QEMU without KVM of its own, whose TCG emulates an AMD processor.

use std::path::Path;
use std::process::Command;

use super::kernel::COMMAND_LINE;
use super::session::{CONSOLE, INITRAMFS, MESSAGES};

pub(super) fn command(folder: &Path, kernel: &Path) -> Command {
    let mut command = super::session::child("qemu-system-x86_64");
    // Time counts instructions, and nothing is random: no timer is late, and two runs are the same.
    command.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]);
    command.args(["-rtc", "base=2000-01-01,clock=vm"]);
    command.args(["-cpu", "max,+svm,+npt,-rdrand,-rdseed,phys-bits=48", "-smp", "1", "-m", "2G"]);
    command.args(["-display", "none", "-nodefaults", "-no-reboot"]);
    for port in [CONSOLE, MESSAGES] {
        command.args(["-serial", &format!("file:{}", folder.join(port).display())]);
    }
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(folder.join(INITRAMFS));
    command.args(["-append", COMMAND_LINE]);
    command
}
