//! The Linux that a lab boots: a folder with a `vmlinuz*` and KVM's modules, fetched from Debian where none is given. Modules may be
//! compressed, if the kernel decompresses them itself (CONFIG_MODULE_DECOMPRESS).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Lab, LabError};

/// The package that depends on the newest kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules that any lab needs.
const MODULES: [&str; 4] = ["irqbypass", "kvm", "kvm-amd", "kvm-intel"];
/// What the names of modules end with.
const SUFFIXES: [&str; 4] = ["ko", "ko.xz", "ko.zst", "ko.gz"];

/// What Linux is told in each lab. It does not test its own algorithms, which takes Bochs many seconds; and a program is at the
/// same addresses in each run.
pub(super) const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests norandmaps";

/// A kernel on disk.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    folder: PathBuf,
    files: Vec<PathBuf>,
}

impl Kernel {
    /// Finds a kernel anywhere below `folder`, as in an unpacked package.
    pub fn below(folder: &Path) -> Result<Self, LabError> {
        let mut files = Vec::new();
        list(folder, &mut files)?;
        files.sort();
        let is_image = |file: &&PathBuf| {
            file.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("vmlinuz"))
        };
        let image = files.iter().find(is_image).cloned();
        let image = image.ok_or_else(|| no_kernel(folder, "vmlinuz*"))?;
        Ok(Self { image, folder: folder.into(), files })
    }

    /// The kernel in the cache; if there is none, Debian's for clouds, which is fetched and put there.
    pub fn cached() -> Result<Self, LabError> {
        let cache = cache_folder();
        let ready = cache.join("kernel");
        if !ready.exists() {
            fetch(&cache, &ready)?;
        }
        Self::below(&ready)
    }

    /// The files of a lab's modules, in the order in which they are inserted.
    pub(super) fn modules(&self, lab: Lab) -> Result<Vec<PathBuf>, LabError> {
        let module = |name: &&str| self.module(name);
        lab.modules().iter().map(module).collect()
    }

    fn module(&self, name: &str) -> Result<PathBuf, LabError> {
        let names = SUFFIXES.map(|suffix| format!("{name}.{suffix}"));
        let is_module = |file: &&PathBuf| {
            names.iter().any(|name| file.file_name().is_some_and(|file| file == name.as_str()))
        };
        self.files.iter().find(is_module).cloned().ok_or_else(|| no_kernel(&self.folder, &names[0]))
    }
}

fn no_kernel(folder: &Path, what: &str) -> LabError {
    LabError::NoKernel { folder: folder.into(), what: what.to_owned() }
}

/// `$XDG_CACHE_HOME/memvirt`, or `~/.cache/memvirt`.
fn cache_folder() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("memvirt")
}

/// All files below a folder.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), LabError> {
    for entry in fs::read_dir(folder).map_err(LabError::file(folder))? {
        let entry = entry.map_err(LabError::file(folder))?;
        let kind = entry.file_type().map_err(LabError::file(entry.path()))?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Downloads and unpacks the newest kernel, and keeps of it what labs need. It is put in its place at the end: what is there
/// is whole.
fn fetch(cache: &Path, ready: &Path) -> Result<(), LabError> {
    let package = newest_package()?;
    eprintln!("memvirt: fetching {package} to {}", ready.display());
    let work = cache.join(format!("fetch-{}", std::process::id()));
    let unpacked = work.join("unpacked");
    fs::create_dir_all(&unpacked).map_err(LabError::file(&unpacked))?;
    output(Command::new("apt-get").args(["-q", "download", &package]).current_dir(&work))?;
    let mut files = Vec::new();
    list(&work, &mut files)?;
    let packed = files.first().cloned();
    let packed = packed.ok_or_else(|| no_kernel(&work, &package))?;
    output(Command::new("dpkg").arg("-x").args([&packed, &unpacked]))?;
    let whole = Kernel::below(&unpacked)?;
    let kept = work.join("kept");
    fs::create_dir_all(&kept).map_err(LabError::file(&kept))?;
    let modules = MODULES.iter().map(|name| whole.module(name)).collect::<Result<Vec<_>, _>>()?;
    for file in modules.iter().chain([&whole.image]) {
        let place = kept.join(file.file_name().expect("a file that was listed has a name"));
        fs::rename(file, &place).map_err(LabError::file(file))?;
    }
    // Another process may have been faster: then its kernel stands.
    if !ready.exists() {
        fs::rename(&kept, ready).map_err(LabError::file(ready))?;
    }
    fs::remove_dir_all(&work).map_err(LabError::file(&work))
}

fn newest_package() -> Result<String, LabError> {
    let mut command = Command::new("apt-cache");
    let text = output(command.args(["depends", META_PACKAGE]))?;
    let depends = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    depends.map(str::to_owned).ok_or_else(|| LabError::Program {
        command: format!("apt-cache depends {META_PACKAGE}"),
        how: "names no kernel: `apt-get update`?".to_owned(),
    })
}

/// Runs a command to its end and gives what it printed.
pub(super) fn output(command: &mut Command) -> Result<String, LabError> {
    let failed = |command: &Command, how: String| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        LabError::Program { command: words.join(" "), how }
    };
    let output = command.output().map_err(|error| failed(command, format!("cannot be run: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("no word why");
        return Err(failed(command, format!("failed ({}): {said}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files of these names, and nothing in them.
    fn kernel(test: &str, files: &[&str]) -> (PathBuf, Result<Kernel, LabError>) {
        let folder = std::env::temp_dir().join(format!("memvirt-kernel-{}-{test}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, []).unwrap();
        }
        let found = Kernel::below(&folder);
        fs::remove_dir_all(&folder).unwrap();
        (folder, found)
    }

    #[test]
    fn an_unpacked_package_is_a_kernel_whether_its_modules_are_compressed_or_not() {
        let files = [
            "boot/vmlinuz-6.12",
            "boot/config-6.12",
            "lib/modules/kernel/arch/x86/kvm/kvm-amd.ko.zst",
            "lib/modules/kernel/arch/x86/kvm/kvm.ko",
            "lib/modules/kernel/drivers/ptp/ptp_kvm.ko.xz",
            "lib/modules/kernel/virt/lib/irqbypass.ko.xz",
        ];
        let (folder, found) = kernel("whole", &files);
        let found = found.unwrap();
        assert_eq!(found.image, folder.join(files[0]));
        let modules = found.modules(Lab::Npt).unwrap();
        assert_eq!(modules, [files[5], files[3], files[2]].map(|file| folder.join(file)));
        let missing = found.modules(Lab::Ept).unwrap_err().to_string();
        assert!(missing.contains("no kvm-intel.ko"), "{missing}");
    }

    #[test]
    fn a_folder_without_a_kernel_is_told_what_was_looked_for() {
        let (folder, found) = kernel("none", &["README", "kvm.ko"]);
        let why = found.unwrap_err().to_string();
        assert!(why.starts_with(&format!("{}: no vmlinuz* ", folder.display())), "{why}");
        for part in ["vmlinuz", "irqbypass", "kvm", "kvm-amd", "kvm-intel", ".ko.xz"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
}
