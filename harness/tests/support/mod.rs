//! ELF files made by hand, good and bad.

/// A loadable segment.
#[derive(Clone, Copy)]
pub struct Segment {
    pub address: u64,
    pub memory_size: u64,
    pub flags: u32,
}

/// A small guest: code at 1 MiB, and a manifest. Change a field to make it a bad one.
#[derive(Clone)]
pub struct ElfBuilder {
    pub class: u8,
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub code: Vec<u8>,
    pub segments: Vec<Segment>,
    pub manifest: String,
}

pub const CODE: u64 = 0x10_0000;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const READ_EXECUTE: u32 = 5;

impl ElfBuilder {
    pub fn new(code: &[u8]) -> Self {
        let segment = Segment { address: CODE, memory_size: code.len() as u64, flags: READ_EXECUTE };
        Self {
            class: 2,
            kind: 2,
            machine: 62,
            entry: CODE,
            code: code.to_vec(),
            segments: vec![segment],
            manifest: String::new(),
        }
    }

    pub fn manifest(mut self, text: &str) -> Self {
        self.manifest = text.to_owned();
        self
    }

    /// Header, program headers, code (the first segment's bytes), manifest, section names, section headers.
    pub fn build(&self) -> Vec<u8> {
        const NAMES: &[u8] = b"\0.memvirt\0.shstrtab\0";
        let code_at = HEADER + PROGRAM_HEADER * self.segments.len() as u64;
        let manifest_at = code_at + self.code.len() as u64;
        let names_at = manifest_at + self.manifest.len() as u64;
        let sections_at = names_at + NAMES.len() as u64;
        let mut elf = vec![0x7f, b'E', b'L', b'F', self.class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        elf.extend(self.kind.to_le_bytes());
        elf.extend(self.machine.to_le_bytes());
        elf.extend(1u32.to_le_bytes());
        for value in [self.entry, HEADER, sections_at] {
            elf.extend(value.to_le_bytes());
        }
        elf.extend(0u32.to_le_bytes());
        for value in [HEADER as u16, PROGRAM_HEADER as u16, self.segments.len() as u16, 64, 3, 2] {
            elf.extend(value.to_le_bytes());
        }
        for (index, segment) in self.segments.iter().enumerate() {
            let file_size = if index == 0 { self.code.len() as u64 } else { 0 };
            elf.extend(1u32.to_le_bytes());
            elf.extend(segment.flags.to_le_bytes());
            for value in [code_at, segment.address, segment.address, file_size, segment.memory_size, 1] {
                elf.extend(value.to_le_bytes());
            }
        }
        elf.extend(&self.code);
        elf.extend(self.manifest.as_bytes());
        elf.extend(NAMES);
        elf.extend([0; 64]);
        elf.extend(section(1, 1, manifest_at, self.manifest.len() as u64));
        elf.extend(section(10, 3, names_at, NAMES.len() as u64));
        elf
    }
}

fn section(name: u32, kind: u32, offset: u64, size: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(name.to_le_bytes());
    header.extend(kind.to_le_bytes());
    for value in [0, 0, offset, size, 0, 1, 0] {
        header.extend(value.to_le_bytes());
    }
    header.resize(64, 0);
    header
}
