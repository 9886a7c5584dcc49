//! From a source file to an ELF file, with the tools that Rust itself needs: `cc`, and `rustc` for Rust.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the guest in `source`, a file of assembly (`.S`), C (`.c`) or Rust (`.rs`). What it includes is found beside it
/// and in `support`, which has `guest.inc`, `guest.h`, `guest.rs` and `guest.ld`; what is made goes to `out`. The error is
/// what the tool says.
pub(crate) fn compile(source: &Path, support: &Path, out: &Path) -> Result<PathBuf, String> {
    let name = source.file_stem().ok_or_else(|| format!("{} has no name", source.display()))?;
    let elf = out.join(name).with_extension("elf");
    let folder = source.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let file = PathBuf::from(source.file_name().unwrap_or(name));
    match source.extension().and_then(|extension| extension.to_str()) {
        Some("S" | "c") => run(cc(&file, folder, support, &elf), folder)?,
        Some("rs") => {
            let library = out.join("libguest.rlib");
            let mut guest = rustc();
            guest.args(["--crate-type", "rlib", "--crate-name", "guest", "-o"]).arg(&library);
            run(guest.arg(support.join("guest.rs")), support)?;
            run(rust(&file, support, &library, &elf), folder)?;
        }
        _ => return Err(format!("{}: no .S, .c or .rs file", source.display())),
    }
    Ok(elf)
}

/// Neither start files nor libraries, nothing that moves, and the memory map of `guest.ld`.
const LINKING: [&str; 5] =
    ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack", "-Wl,--gc-sections"];

fn cc(file: &Path, folder: &Path, support: &Path, elf: &Path) -> Command {
    let mut command = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
    // What is booted by a 32-bit protocol has 32 bits.
    let bits = if folder.ends_with("multiboot") || folder.ends_with("pvh") { "-m32" } else { "-m64" };
    command.arg(bits).args(LINKING).arg("-I").arg(support).arg(format!("-Wa,-I,{}", support.display()));
    command.args([
        "-ffreestanding",
        "-fno-pic",
        "-fno-stack-protector",
        "-mgeneral-regs-only",
        "-O2",
        "-Wall",
    ]);
    command.args(["-fno-asynchronous-unwind-tables", "-fcf-protection=none"]);
    command.arg("-T").arg(support.join("guest.ld")).arg("-o").arg(elf).arg(file);
    command
}

fn rustc() -> Command {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.args([
        "--edition",
        "2024",
        "-C",
        "panic=abort",
        "-C",
        "opt-level=2",
        "-C",
        "relocation-model=static",
    ]);
    command
}

fn rust(file: &Path, support: &Path, library: &Path, elf: &Path) -> Command {
    let mut command = rustc();
    command.args(["-C", "strip=debuginfo"]);
    let linker = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    command.args(["-C", &format!("linker={linker}")]);
    let script = format!("-T{}", support.join("guest.ld").display());
    for argument in LINKING.into_iter().chain([script.as_str()]) {
        command.args(["-C", &format!("link-arg={argument}")]);
    }
    let mut guest = OsString::from("guest=");
    guest.push(library);
    command.arg("--extern").arg(guest).arg("-o").arg(elf).arg(file);
    command
}

fn run(mut command: impl std::borrow::BorrowMut<Command>, folder: &Path) -> Result<(), String> {
    let command = command.borrow_mut().current_dir(folder);
    let tool = command.get_program().to_owned();
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", tool.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
}
