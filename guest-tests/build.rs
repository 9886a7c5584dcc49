//! Assembles and links `programs/*.S`, and for 32 bits `programs/multiboot/*.S` and `programs/pvh/*.S`, with the linker
//! driver that Rust itself needs, and lists them beside the ELF files of `elf/`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (programs, drop_in) = (root.join("programs"), root.join("elf"));
    let mut guests = BTreeMap::new();
    let (multiboot, pvh) = (programs.join("multiboot"), programs.join("pvh"));
    for (folder, bits) in [(&programs, "-m64"), (&multiboot, "-m32"), (&pvh, "-m32")] {
        for source in files(folder, "S") {
            let elf = out.join(format!("{}.elf", name_of(&source)));
            build(&programs, &source, bits, &elf);
            add(&mut guests, &source, elf);
        }
    }
    for elf in files(&drop_in, "elf") {
        add(&mut guests, &elf.clone(), elf);
    }
    let entries: String =
        guests.iter().map(|(name, elf)| format!("    ({name:?}, include_bytes!({elf:?})),\n")).collect();
    let list = format!("pub(crate) static BUILT_IN: &[(&str, &[u8])] = &[\n{entries}];\n");
    fs::write(out.join("built_in.rs"), list).expect("OUT_DIR is writable");
    for folder in [programs, drop_in] {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn add(guests: &mut BTreeMap<String, PathBuf>, source: &Path, elf: PathBuf) {
    let name = name_of(source);
    if guests.insert(name.clone(), elf).is_some() {
        panic!("two guests are called {name}: rename {}", source.display());
    }
}

fn build(include: &Path, source: &Path, bits: &str, elf: &Path) {
    let linker = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&linker);
    command.args([bits, "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]);
    command.arg("-I").arg(include).arg(format!("-Wa,-I,{}", include.display()));
    command.arg("-T").arg(include.join("guest.ld")).arg("-o").arg(elf).arg(source);
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {linker:?}: {error}"));
    assert!(status.success(), "{linker:?} could not build {}: {command:?}", source.display());
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be listed").path());
    paths.filter(|path| path.extension() == Some(OsStr::new(extension))).collect()
}

fn name_of(path: &Path) -> String {
    path.file_stem()
        .and_then(OsStr::to_str)
        .unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
        .to_owned()
}
