//! Guests from their sources: built outside of this crate, and begun.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, process};

use crate::GuestError;
use crate::compile::compile;

/// What a source includes and is linked by.
const SUPPORT: [(&str, &str); 4] = [
    ("guest.inc", include_str!("../programs/guest.inc")),
    ("guest.h", include_str!("../programs/guest.h")),
    ("guest.rs", include_str!("../programs/guest.rs")),
    ("guest.ld", include_str!("../programs/guest.ld")),
];

/// A language that guests are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// Assembly, by `cc`.
    Assembly,
    /// C, by `cc`, without a library.
    C,
    /// Rust, by `rustc`, with `core` alone.
    Rust,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Assembly, Self::C, Self::Rust];

    /// How a file of it ends.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Assembly => "S",
            Self::C => "c",
            Self::Rust => "rs",
        }
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Assembly => "asm",
            Self::C => "c",
            Self::Rust => "rust",
        }
    }

    /// Whether the file is written in one.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        Self::ALL.into_iter().find(|language| extension == language.extension())
    }
}

impl std::str::FromStr for Language {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|language| language.name() == name);
        known.ok_or_else(|| format!("no language `{name}`: use {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// The files of a new guest, a program and its manifest, each with its name: it runs as it is, and says in comments what
/// is what. The name has letters, digits and `_` alone.
pub fn starter(name: &str, language: Language) -> Result<[(String, String); 2], GuestError> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if name.is_empty() || !name.chars().all(fits) {
        return Err(GuestError::Name { name: name.to_owned() });
    }
    let program = match language {
        Language::Assembly => include_str!("../starters/starter.S"),
        Language::C => include_str!("../starters/starter.c"),
        Language::Rust => include_str!("../starters/starter.rs"),
    };
    Ok([(language.extension(), program), ("toml", include_str!("../starters/starter.toml"))]
        .map(|(extension, text)| (format!("{name}.{extension}"), text.replace("NAME", name))))
}

/// Builds the guest in a source file: its ELF file. What it includes, its manifest say, lies beside it. The tools are `cc`
/// and `rustc`, or what `CC` and `RUSTC` name.
pub fn build(source: &Path) -> Result<Vec<u8>, GuestError> {
    let folder = Folder::new().map_err(|error| GuestError::Build { why: error.to_string() })?;
    let source = source.canonicalize().map_err(|error| GuestError::Build { why: error.to_string() })?;
    let elf = compile(&source, &folder.0, &folder.0).map_err(|why| GuestError::Build { why })?;
    fs::read(elf).map_err(|error| GuestError::Build { why: error.to_string() })
}

/// A folder with the support files, for as long as somebody has it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Self(env::temp_dir().join(format!("memvirt-{}-{number}", process::id())));
        fs::create_dir(&folder.0)?;
        for (name, text) in SUPPORT {
            fs::write(folder.0.join(name), text)?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}
