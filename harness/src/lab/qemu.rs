//! The lab with NPT: QEMU without KVM of its own, whose TCG emulates an AMD processor.

use std::path::Path;
use std::process::Command;

use super::session::{CONSOLE, INITRAMFS, MESSAGES};

pub(super) fn command(folder: &Path, kernel: &Path) -> Command {
    let mut command = super::session::child("qemu-system-x86_64");
    // Time counts instructions: no timer is late, and two runs are the same.
    command.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]);
    command.args(["-cpu", "max,+svm,+npt,phys-bits=48", "-smp", "1", "-m", "2G"]);
    command.args(["-display", "none", "-nodefaults", "-no-reboot"]);
    for port in [CONSOLE, MESSAGES] {
        command.args(["-serial", &format!("file:{}", folder.join(port).display())]);
    }
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(folder.join(INITRAMFS));
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    command
}
