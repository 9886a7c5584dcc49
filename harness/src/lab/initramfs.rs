//! An initial RAM disk: this program as `/init`, the libraries it uses, KVM's modules, the orders.
//!
//! The format is cpio's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst): a header of hexadecimal
//! digits, a name, the bytes, each padded to four.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::LabError;

const FOLDER: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// A cpio archive that grows.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    /// Adds a file, and the folders it lies in. `path` is absolute.
    pub(super) fn file(&mut self, path: &Path, contents: &[u8]) {
        let mut folders: Vec<_> =
            path.ancestors().skip(1).filter(|folder| folder.parent().is_some()).collect();
        folders.reverse();
        for folder in folders {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER, &[]);
            }
        }
        self.entry(path, EXECUTABLE, contents);
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let name = path.to_string_lossy();
        self.record(name.trim_start_matches('/'), self.entries, mode, contents);
    }

    fn record(&mut self, name: &str, inode: u32, mode: u32, contents: &[u8]) {
        let (uid, gid, links, mtime, device, check) = (0, 0, 1, 0, 0, 0);
        let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
        let fields =
            [inode, mode, uid, gid, links, mtime, size, device, device, device, device, name_size, check];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.record(TRAILER, 0, 0, &[]);
        self.bytes
    }

    /// Adds this program as `/init`, and all that is mapped beside it: the loader and the libraries, at their places.
    pub(super) fn this_program(&mut self) -> Result<(), LabError> {
        let own = fs::read_link("/proc/self/exe").map_err(LabError::file("/proc/self/exe"))?;
        let maps = fs::read_to_string("/proc/self/maps").map_err(LabError::file("/proc/self/maps"))?;
        let mapped: BTreeSet<_> = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
        self.program(Path::new("/init"), &own)?;
        for library in mapped.into_iter().map(Path::new).filter(|path| path.is_absolute() && *path != own) {
            self.program(library, library)?;
        }
        if let Some(loader) = interpreter(&read(&own)?) {
            // Its name in the program may be a link's.
            self.program(&loader, &loader)?;
        }
        Ok(())
    }

    /// Adds a program, or a library.
    pub(super) fn program(&mut self, path: &Path, source: &Path) -> Result<(), LabError> {
        self.file(path, loaded_part(&read(source)?));
        Ok(())
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::file(path))
}

/// `p_type` of program headers.
const PT_LOAD: u64 = 1;
const PT_INTERP: u64 = 3;

/// A program header of a 64-bit ELF file: type, offset and size in the file.
fn segments(elf: &[u8]) -> impl Iterator<Item = (u64, usize, usize)> {
    let field = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (first, size, count) = (field(32, 8) as usize, field(54, 2) as usize, field(56, 2) as usize);
    (0..count).map(move |index| {
        let at = first + index * size;
        (field(at, 4), field(at + 8, 8) as usize, field(at + 32, 8) as usize)
    })
}

/// The file without what nothing loads: debug information, most of the time the larger part.
fn loaded_part(elf: &[u8]) -> &[u8] {
    if !elf.starts_with(b"\x7fELF\x02") {
        return elf;
    }
    let ends = segments(elf).filter(|(kind, ..)| *kind == PT_LOAD).map(|(_, offset, size)| offset + size);
    elf.get(..ends.max().unwrap_or(0)).unwrap_or(elf)
}

fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    let (_, offset, size) = segments(elf).find(|(kind, ..)| *kind == PT_INTERP)?;
    let name = elf.get(offset..offset + size)?.split(|byte| *byte == 0).next()?;
    Some(PathBuf::from(str::from_utf8(name).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and contents, read back as the kernel's documentation has the format.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let digits = &archive[at + 6 + 8 * index..][..8];
                u32::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let contents = (at + 110 + name_size).next_multiple_of(4);
            let name = str::from_utf8(&archive[at + 110..][..name_size - 1]).unwrap().to_owned();
            entries.push((name, mode, archive[contents..contents + size].to_vec()));
            at = (contents + size).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn an_archive_has_each_folder_once_before_what_is_in_it() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/one"), b"1");
        archive.file(Path::new("/a/b/two"), b"");
        archive.file(Path::new("/three"), b"33333");
        let file = |name: &str, contents: &[u8]| (name.to_owned(), EXECUTABLE, contents.to_vec());
        let folder = |name: &str| (name.to_owned(), FOLDER, vec![]);
        let expected = [
            folder("a"),
            folder("a/b"),
            file("a/b/one", b"1"),
            file("a/b/two", b""),
            file("three", b"33333"),
            (TRAILER.to_owned(), 0, vec![]),
        ];
        assert_eq!(entries(&archive.finish()), expected);
    }

    #[test]
    fn a_program_comes_with_its_loader_and_without_what_nobody_loads() {
        let mut archive = Archive::default();
        archive.this_program().unwrap();
        let entries = entries(&archive.finish());
        let own = fs::read("/proc/self/exe").unwrap();
        let (_, _, init) = entries.iter().find(|(name, ..)| name == "init").unwrap();
        assert!(own.starts_with(init) && init.len() < own.len());
        let loader = interpreter(&own).unwrap();
        assert!(entries.iter().any(|(name, ..)| Path::new("/").join(name) == loader));
    }
}
