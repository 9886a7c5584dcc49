//! What can be wrong with a guest: each in one line that says what and where.

use std::fmt;

use crate::image::MAX_FILE;
use crate::manifest::MAX_TEXT;

/// Why a file is no guest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The file is too long.
    #[error("the file has {size:#x} bytes, at most {MAX_FILE:#x} are read")]
    FileSize {
        /// Its size.
        size: usize,
    },
    /// No ELF file, a truncated one, or one of another class.
    #[error("neither an x86 ELF file nor a bzImage: {why}")]
    NotElf {
        /// What is wrong.
        why: String,
    },
    /// An ELF file for another processor.
    #[error("the ELF file is for machine {machine}, not for {expected}")]
    Machine {
        /// Its `e_machine`.
        machine: u16,
        /// The one that a file of its class must be for.
        expected: &'static str,
    },
    /// A relocatable file, a shared object or a core dump.
    #[error("the ELF file has type {kind}, not ET_EXEC (2): link it statically, without -pie")]
    NotExecutable {
        /// Its `e_type`.
        kind: u16,
    },
    /// A segment that cannot be loaded.
    #[error("ELF segment of {size:#x} bytes at {address:#x}: {why}")]
    Segment {
        /// Its physical address.
        address: u64,
        /// Its size in memory.
        size: u64,
        /// What is wrong.
        why: String,
    },
    /// A 32-bit file is booted by Multiboot, and this one has no header for that.
    #[error(
        "the 32-bit ELF file has no Multiboot header (magic 0x1badb002) in its first {searched:#x} bytes"
    )]
    NoMultibootHeader {
        /// How many bytes were searched.
        searched: usize,
    },
    /// The Multiboot header does not add up.
    #[error("the Multiboot header at file offset {offset:#x}: {why}")]
    MultibootHeader {
        /// Where it is in the file.
        offset: usize,
        /// What is wrong.
        why: String,
    },
    /// The note that names a PVH entry has no such value.
    #[error("the ELF note XEN_ELFNOTE_PHYS32_ENTRY has {bytes:#x} bytes that are no 32-bit address")]
    PvhNote {
        /// The length of its value.
        bytes: usize,
    },
    /// The entry point lies in no executable segment.
    #[error("the ELF entry point {entry:#x} is in no executable segment")]
    Entry {
        /// The entry point.
        entry: u64,
    },
    /// An initial RAM disk for a guest that is not told of one.
    #[error("a guest booted by `{boot}` has no initial RAM disk")]
    NoInitrd {
        /// How it is booted.
        boot: &'static str,
    },
    /// A name that no file of a guest may have.
    #[error("`{name}` is no name for a guest: use letters, digits and `_`")]
    Name {
        /// The name.
        name: String,
    },
    /// The source does not build.
    #[error("it does not build: {why}")]
    Build {
        /// What the tool says.
        why: String,
    },
    /// The manifest section cannot be read.
    #[error("the section .memvirt cannot be read: {why}")]
    ManifestBytes {
        /// What is wrong.
        why: String,
    },
    /// The manifest is too long.
    #[error("the manifest has {size:#x} bytes, at most {MAX_TEXT:#x} are read")]
    ManifestSize {
        /// Its size.
        size: usize,
    },
    /// The manifest is no TOML, or has a key or a value that it should not have.
    #[error("manifest line {line}, column {column}: {message}")]
    ManifestText {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The manifest asks for something that cannot be.
    #[error("manifest{place}: {what}: {why}")]
    Manifest {
        /// Where, if it was read from a text.
        place: Place,
        /// Which part of it.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The manifest names a symbol that the ELF file does not have.
    #[error("{}the ELF file has no symbol `{name}`", place.of_manifest())]
    NoSymbol {
        /// Where, if it was read from a text.
        place: Place,
        /// The name.
        name: String,
    },
}

/// Line and column, from 1, in the text of a manifest; or nowhere, for one that was made by a program.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place(pub Option<(usize, usize)>);

impl Place {
    /// What an error of a manifest begins with, if the manifest has anything to do with it.
    fn of_manifest(self) -> String {
        self.0.map_or_else(String::new, |_| format!("manifest{self}: "))
    }
}

impl From<Option<(usize, usize)>> for Place {
    fn from(place: Option<(usize, usize)>) -> Self {
        Self(place)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, " line {line}, column {column}"),
            None => Ok(()),
        }
    }
}
