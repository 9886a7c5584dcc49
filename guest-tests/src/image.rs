//! A guest's file, judged before anything of it is loaded.
//!
//! A loader takes what it is given: relocatable files, other machines, segments past the end of the file.
//! All that is refused here, with the place, so that what follows may trust an [`Image`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use goblin::elf::header::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_386, EM_X86_64, ET_EXEC, SIZEOF_IDENT,
};
use goblin::elf::program_header::{PF_X, PT_LOAD};
use goblin::elf::{Elf, Symtab};
use memory_model::{AddrRange, Gpa};

use crate::manifest::place;
use crate::{BootSpec, GuestError, Location, Manifest, multiboot, pvh};

/// A guest's file may be this long, in bytes.
pub const MAX_FILE: usize = 64 << 20;

/// Where a bzImage has its magic, and what it is.
const BZ_IMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");

/// A part of the file that is loaded: `memory` is what it occupies, zero behind the file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it lies in guest-physical memory.
    pub memory: AddrRange<Gpa>,
    /// How many of its bytes come from the file; the rest is zero.
    pub file_bytes: u64,
    file_offset: u64,
    /// Whether the program may run in it.
    pub executable: bool,
}

/// A checked guest: a statically linked x86 ELF file with its manifest, or a Linux bzImage. A 64-bit ELF file starts in
/// long mode, a 32-bit one by Multiboot, and one with a note for that by PVH.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Cow<'static, [u8]>,
    entry: u64,
    segments: Vec<Segment>,
    symbols: BTreeMap<String, u64>,
    manifest: Manifest,
    boot: BootSpec,
    initrd: Vec<u8>,
}

impl Image {
    /// Reads and checks a file. An ELF file without a `.memvirt` section has the default manifest, that of
    /// [`Manifest::multiboot`] if it does not start in long mode. Of a bzImage only the magic is looked at: its header is
    /// for who boots it.
    pub fn parse(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, GuestError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_FILE {
            return Err(GuestError::FileSize { size: bytes.len() });
        }
        if bytes.get(BZ_IMAGE_MAGIC.0..).is_some_and(|rest| rest.starts_with(BZ_IMAGE_MAGIC.1)) {
            return Ok(Self::bz_image(bytes));
        }
        let class = check_ident(&bytes)?;
        let elf = Elf::parse(&bytes).map_err(|error| GuestError::NotElf { why: error.to_string() })?;
        let (machine, expected) = class.machine();
        if elf.header.e_machine != machine {
            return Err(GuestError::Machine { machine: elf.header.e_machine, expected });
        }
        if elf.header.e_type != ET_EXEC {
            return Err(GuestError::NotExecutable { kind: elf.header.e_type });
        }
        let text = manifest_text(&elf, &bytes)?;
        let manifest = text.map(Manifest::parse).transpose()?;
        let pvh = pvh::entry(&elf, &bytes)?;
        let asked = manifest.as_ref().and_then(|manifest| manifest.machine.boot);
        let boot = match (pvh, class) {
            (Some(_), _) if asked.is_none_or(|asked| asked == BootSpec::Pvh) => BootSpec::Pvh,
            (_, Class::Elf64) => BootSpec::Long,
            (_, Class::Elf32) => BootSpec::Multiboot,
        };
        let manifest = manifest.unwrap_or_else(|| match boot {
            BootSpec::Long => Manifest::default(),
            _ => Manifest::multiboot(),
        });
        manifest.check_boot(boot).map_err(|wrong| wrong.within(text))?;
        if boot == BootSpec::Multiboot {
            multiboot::check_header(&bytes)?;
        }
        let entry = pvh.filter(|_| boot == BootSpec::Pvh).map_or(elf.entry, u64::from);
        let segments = segments(&elf, bytes.len() as u64, boot)?;
        let inside = |segment: &&Segment| segment.executable && segment.memory.contains(Gpa(entry));
        if segments.iter().find(inside).is_none() {
            return Err(GuestError::Entry { entry });
        }
        let symbols = symbols(&elf, &elf.syms);
        for (path, location) in manifest.locations() {
            resolve(&symbols, location).map_err(|name| GuestError::NoSymbol {
                place: text.and_then(|text| place::of(text, &path)).into(),
                name: name.to_owned(),
            })?;
        }
        Ok(Self { bytes, entry, segments, symbols, manifest, boot, initrd: Vec::new() })
    }

    fn bz_image(bytes: Cow<'static, [u8]>) -> Self {
        let (manifest, boot) = (Manifest::linux(), BootSpec::Linux);
        Self { bytes, entry: 0, segments: vec![], symbols: BTreeMap::new(), manifest, boot, initrd: vec![] }
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the program starts: inside an executable segment. A bzImage starts where its header says.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// What is loaded: ascending, disjoint, each at a physical address equal to its virtual one, unless it is a kernel
    /// booted by PVH. None of a bzImage.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The bytes of a segment that come from the file.
    pub fn bytes_of(&self, segment: &Segment) -> &[u8] {
        let (first, bytes) = (segment.file_offset as usize, segment.file_bytes as usize);
        &self.bytes[first..first + bytes]
    }

    /// How it is started.
    pub fn boot(&self) -> BootSpec {
        self.boot
    }

    /// Its initial RAM disk; empty for none.
    pub fn initrd(&self) -> &[u8] {
        &self.initrd
    }

    /// The same guest with an initial RAM disk, where its boot protocol has one: PVH and Linux.
    pub fn with_initrd(self, initrd: Vec<u8>) -> Result<Self, GuestError> {
        match self.boot {
            BootSpec::Pvh | BootSpec::Linux => Ok(Self { initrd, ..self }),
            boot => Err(GuestError::NoInitrd { boot: boot.word() }),
        }
    }

    /// The same guest with another manifest.
    pub fn with_manifest(self, manifest: Manifest) -> Result<Self, GuestError> {
        let checked = manifest.check().and_then(|()| manifest.check_boot(self.boot));
        checked.map_err(|wrong| wrong.within(None))?;
        Ok(Self { manifest, ..self })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The symbol at an address or the nearest one before it in the same segment, and how far it is away.
    pub fn symbol_at(&self, address: u64) -> Option<(&str, u64)> {
        let segment = self.segments.iter().find(|segment| segment.memory.contains(Gpa(address)))?;
        let near =
            self.symbols.iter().filter(|(_, value)| (segment.memory.first().0..=address).contains(value));
        near.max_by_key(|(_, value)| **value).map(|(name, value)| (name.as_str(), address - value))
    }

    /// The address that a manifest means.
    pub fn resolve(&self, location: &Location) -> Result<u64, GuestError> {
        resolve(&self.symbols, location)
            .map_err(|name| GuestError::NoSymbol { place: Default::default(), name: name.to_owned() })
    }
}

/// An address, or the name of a symbol that is not there.
fn resolve<'a>(symbols: &BTreeMap<String, u64>, location: &'a Location) -> Result<u64, &'a str> {
    match location {
        Location::Address(address) => Ok(*address),
        Location::Symbol(name) => symbols.get(name).copied().ok_or(name),
    }
}

/// How wide an ELF file's addresses are.
#[derive(Clone, Copy)]
enum Class {
    Elf32,
    Elf64,
}

impl Class {
    /// The machine that a file of the class is for.
    fn machine(self) -> (u16, &'static str) {
        match self {
            Self::Elf32 => (EM_386, "i386 (3)"),
            Self::Elf64 => (EM_X86_64, "x86-64 (62)"),
        }
    }
}

/// goblin reads big-endian files too: those are told apart before.
fn check_ident(bytes: &[u8]) -> Result<Class, GuestError> {
    let not_elf = |why: &str| GuestError::NotElf { why: why.to_owned() };
    let ident = bytes.get(..SIZEOF_IDENT).ok_or_else(|| not_elf("the file is too short"))?;
    if !ident.starts_with(b"\x7fELF") {
        return Err(not_elf("it does not begin with 7f 45 4c 46"));
    }
    match (ident[EI_CLASS], ident[EI_DATA]) {
        (ELFCLASS64, ELFDATA2LSB) => Ok(Class::Elf64),
        (ELFCLASS32, ELFDATA2LSB) => Ok(Class::Elf32),
        _ => Err(not_elf("it is neither a 64-bit nor a 32-bit little-endian file")),
    }
}

fn segments(elf: &Elf<'_>, file_size: u64, boot: BootSpec) -> Result<Vec<Segment>, GuestError> {
    let mut segments = Vec::new();
    for header in elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
        let wrong = |why: &str| GuestError::Segment {
            address: header.p_paddr,
            size: header.p_memsz,
            why: why.to_owned(),
        };
        if header.p_filesz > header.p_memsz {
            return Err(wrong("more bytes in the file than in memory"));
        }
        if header.p_offset.checked_add(header.p_filesz).is_none_or(|end| end > file_size) {
            return Err(wrong("its bytes lie past the end of the file"));
        }
        if header.p_vaddr != header.p_paddr && boot != BootSpec::Pvh {
            return Err(wrong("its virtual address differs from its physical one"));
        }
        let memory = AddrRange::new(Gpa(header.p_paddr), header.p_memsz.into());
        let memory = memory.ok_or_else(|| wrong("it reaches past the end of the address space"))?;
        let executable = header.p_flags & PF_X != 0;
        segments.push(Segment {
            memory,
            file_bytes: header.p_filesz,
            file_offset: header.p_offset,
            executable,
        });
    }
    segments.sort_by_key(|segment| segment.memory);
    for pair in segments.windows(2) {
        if pair[0].memory.overlaps(pair[1].memory) {
            let (address, size) = (pair[1].memory.first().0, pair[1].memory.bytes() as u64);
            return Err(GuestError::Segment {
                address,
                size,
                why: format!("it overlaps the one at {}", pair[0].memory),
            });
        }
    }
    Ok(segments)
}

fn manifest_text<'a>(elf: &Elf<'_>, bytes: &'a [u8]) -> Result<Option<&'a str>, GuestError> {
    let name_of = |header: &goblin::elf::SectionHeader| elf.shdr_strtab.get_at(header.sh_name);
    let Some(section) = elf.section_headers.iter().find(|header| name_of(header) == Some(".memvirt")) else {
        return Ok(None);
    };
    let outside = || GuestError::ManifestBytes { why: "it lies past the end of the file".to_owned() };
    let range = section.file_range().ok_or_else(outside)?;
    let text = bytes.get(range).ok_or_else(outside)?;
    let text =
        std::str::from_utf8(text).map_err(|error| GuestError::ManifestBytes { why: error.to_string() })?;
    Ok(Some(text))
}

fn symbols(elf: &Elf<'_>, table: &Symtab<'_>) -> BTreeMap<String, u64> {
    let named = table.iter().filter_map(|symbol| Some((elf.strtab.get_at(symbol.st_name)?, symbol.st_value)));
    named.filter(|(name, _)| !name.is_empty()).map(|(name, value)| (name.to_owned(), value)).collect()
}
