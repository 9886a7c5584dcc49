//! A core file of the kernel: ELF64 (elf(5)), of which only program headers and notes count.

use alloc::vec;
use alloc::vec::Vec;

use memory_model::{AddrRange, Hva};

use crate::live::LiveError;
use crate::live::btf::Field;
use crate::live::reading::may_be_direct_map;

/// What of the kernel's memory is where in the file.
#[derive(PartialEq, Eq, Debug)]
pub struct Core {
    /// Lowest address first.
    segments: Vec<Segment>,
    pub notes: Notes,
}

/// A stretch of the kernel's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    range: AddrRange<Hva>,
    /// Where it is in the file.
    offset: u64,
    /// Where it is in physical memory, or [`NOWHERE`].
    physical: u64,
}

/// Where the notes are in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notes {
    pub offset: u64,
    pub bytes: usize,
}

/// Of memory that is not in one piece: what `vmalloc` has made, and descriptors of pages.
const NOWHERE: u64 = u64::MAX;
/// From here on the kernel's text is mapped a second time (Linux, Documentation/arch/x86/x86_64/mm.rst).
const TEXT: u64 = 0xffff_ffff_8000_0000;
/// Notes are a few structures and some text; a file that has more of them is not the kernel's.
const MOST_NOTES: u64 = 1 << 20;

const fn at(byte: u64, bytes: u64) -> Field {
    Field { bit: byte * 8, bits: bytes * 8 }
}

/// `Elf64_Ehdr`: its length, and the fields that count.
const HEADER: usize = 64;
const MAGIC: Field = at(0, 7);
const TYPE: Field = at(16, 2);
const MACHINE: Field = at(18, 2);
const PROGRAM_HEADERS: Field = at(32, 8);
const PROGRAM_HEADER_BYTES: Field = at(54, 2);
const PROGRAM_HEADER_COUNT: Field = at(56, 2);

/// Of 64 bits, little-endian, version 1; a core file; for x86-64.
const EXPECTED: [(Field, u64); 4] = [
    (MAGIC, u64::from_le_bytes(*b"\x7fELF\x02\x01\x01\0")),
    (TYPE, 4),
    (MACHINE, 62),
    (PROGRAM_HEADER_BYTES, PROGRAM_HEADER as u64),
];

/// `Elf64_Phdr`.
const PROGRAM_HEADER: usize = 56;
const KIND: Field = at(0, 4);
const OFFSET: Field = at(8, 8);
const ADDRESS: Field = at(16, 8);
const PHYSICAL: Field = at(24, 8);
const BYTES: Field = at(32, 8);
const LOAD: u64 = 1;
const NOTE: u64 = 4;

/// `Elf64_Nhdr`, before a note's name and contents, each of which is filled up to a multiple of 4.
const NOTE_HEADER: usize = 12;
const NAME_BYTES: Field = at(0, 4);
const CONTENT_BYTES: Field = at(4, 4);
const NOTE_KIND: Field = at(8, 4);
/// `NT_TASKSTRUCT`, by the name of `CORE`.
const TASK_STRUCT: u64 = 4;
const NAME: &[u8] = b"CORE\0";

impl Core {
    /// Finds the segments with what reads the file: so many bytes from an offset on.
    pub fn parse(read: impl Fn(u64, &mut [u8]) -> Result<(), LiveError>) -> Result<Self, LiveError> {
        let mut header = [0; HEADER];
        read(0, &mut header)?;
        if EXPECTED.iter().any(|&(field, expected)| field.value(&header) != Some(expected)) {
            return Err(LiveError::BadKcore("is no core file of a 64-bit x86 kernel"));
        }
        let get = |field: Field| field.value(&header).unwrap_or(0);
        let mut table = vec![0; get(PROGRAM_HEADER_COUNT) as usize * PROGRAM_HEADER];
        read(get(PROGRAM_HEADERS), &mut table)?;
        let (mut segments, mut notes) = (Vec::new(), None);
        for header in table.chunks_exact(PROGRAM_HEADER) {
            let get = |field: Field| field.value(header).unwrap_or(0);
            let (offset, bytes) = (get(OFFSET), get(BYTES));
            match get(KIND) {
                LOAD => segments.extend(
                    AddrRange::new(Hva(get(ADDRESS)), bytes.into())
                        .filter(|_| offset.checked_add(bytes).is_some())
                        .map(|range| Segment { range, offset, physical: get(PHYSICAL) }),
                ),
                NOTE if bytes <= MOST_NOTES => notes = Some(Notes { offset, bytes: bytes as usize }),
                _ => {}
            }
        }
        segments.sort_unstable_by_key(|segment| segment.range.first());
        let notes = notes.ok_or(LiveError::BadKcore("has no notes"))?;
        Ok(Self { segments, notes })
    }

    /// Where in the file so many bytes of the kernel's memory are.
    pub fn offset(&self, address: u64, bytes: u64) -> Option<u64> {
        let wanted = AddrRange::new(Hva(address), bytes.into())?;
        let after = self.segments.partition_point(|segment| segment.range.first() <= wanted.first());
        let segment = self.segments[..after].last().filter(|segment| segment.range.covers(wanted))?;
        Some(segment.offset + wanted.first().checked_sub(segment.range.first())?)
    }

    /// The kernel's address of physical memory: the difference of both addresses of each segment that has a physical one, but
    /// for the text, which is mapped apart.
    pub fn direct_map(&self) -> Option<u64> {
        let mapped = self.segments.iter().filter(|segment| segment.physical != NOWHERE);
        let mapped = mapped.map(|segment| (segment.range.first().raw(), segment.physical));
        let mut bases = mapped.filter(|&(at, _)| at < TEXT).map(|(at, physical)| at.wrapping_sub(physical));
        let base = bases.next().filter(|&base| may_be_direct_map(base))?;
        bases.all(|other| other == base).then_some(base)
    }
}

/// The note with the `task_struct` of the thread that has read the notes.
pub fn task_struct(mut notes: &[u8]) -> Option<&[u8]> {
    /// That many bytes, and what comes behind them and what they are filled up with.
    fn take(notes: &[u8], bytes: u64) -> Option<(&[u8], &[u8])> {
        let bytes = usize::try_from(bytes).ok()?;
        let taken = notes.get(..bytes)?;
        Some((taken, notes.get(bytes.next_multiple_of(4)..).unwrap_or_default()))
    }
    loop {
        let (header, rest) = take(notes, NOTE_HEADER as u64)?;
        let get = |field: Field| field.value(header).unwrap_or(0);
        let (name, rest) = take(rest, get(NAME_BYTES))?;
        let (content, rest) = take(rest, get(CONTENT_BYTES))?;
        if name == NAME && get(NOTE_KIND) == TASK_STRUCT {
            return Some(content);
        }
        notes = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;

    const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
    const VMALLOC: u64 = 0xffff_c900_0000_0000;

    /// A program header.
    fn program_header(kind: u32, offset: u64, address: u64, physical: u64, bytes: u64) -> Vec<u8> {
        let numbers = [offset, address, physical, bytes, bytes, 0];
        let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
        kind.to_le_bytes().into_iter().chain([7, 0, 0, 0]).chain(numbers).collect()
    }

    fn load(offset: u64, address: u64, physical: u64, bytes: u64) -> Vec<u8> {
        program_header(1, offset, address, physical, bytes)
    }

    /// A core file with those program headers, all of it headers.
    fn file(headers: &[Vec<u8>]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        let words: [u16; 2] = [4, 62];
        file.extend(words.into_iter().flat_map(u16::to_le_bytes));
        file.extend(1u32.to_le_bytes());
        file.extend([0, HEADER as u64, 0].into_iter().flat_map(u64::to_le_bytes));
        file.extend(0u32.to_le_bytes());
        let words = [HEADER as u16, PROGRAM_HEADER as u16, headers.len() as u16, 0, 0, 0];
        file.extend(words.into_iter().flat_map(u16::to_le_bytes));
        file.extend(headers.concat());
        file
    }

    fn parse(file: &[u8]) -> Result<Core, LiveError> {
        Core::parse(|offset, bytes| {
            let end = || LiveError::NoKcore { source: io::ErrorKind::UnexpectedEof.into() };
            let from = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).ok_or_else(end)?;
            bytes.copy_from_slice(from.get(..bytes.len()).ok_or_else(end)?);
            Ok(())
        })
    }

    fn notes() -> Vec<u8> {
        program_header(4, 0x1c8, 0, 0, 0x100)
    }

    /// As Linux has them: text, what vmalloc has made, RAM in two pieces.
    fn example() -> Vec<Vec<u8>> {
        [
            notes(),
            load(0x7fff_8000_3000, 0xffff_ffff_8100_0000, 0x100_0000, 0x200_0000),
            load(0x4900_0000_3000, VMALLOC, NOWHERE, 0x1fff_ffff_f000),
            load(0x0880_4000_3000, DIRECT_MAP + (1 << 32), 1 << 32, 0x4000_0000),
            load(0x0880_0000_4000, DIRECT_MAP + 0x1000, 0x1000, 0x9_e000),
        ]
        .into()
    }

    #[test]
    fn memory_is_where_its_segment_is() {
        let core = parse(&file(&example())).unwrap();
        assert_eq!(core.notes, Notes { offset: 0x1c8, bytes: 0x100 });
        assert_eq!(core.offset(DIRECT_MAP + 0x1000, 8), Some(0x0880_0000_4000));
        assert_eq!(
            core.offset(DIRECT_MAP + 0x9_eff8, 8),
            Some(0x0880_0000_4000 + 0x9_dff8),
            "its last number"
        );
        assert_eq!(core.offset(DIRECT_MAP + (1 << 32) + 0x123, 0x1000), Some(0x0880_4000_3123));
        assert_eq!(core.offset(VMALLOC + 0x5000, 0x1000), Some(0x4900_0000_8000));
        for (address, bytes) in [
            (DIRECT_MAP, 8),
            (DIRECT_MAP + 0x9_eff9, 8),
            (0, 8),
            (u64::MAX, 1),
            (u64::MAX, 8),
            (DIRECT_MAP + 0x1000, 0),
            (DIRECT_MAP + 0x1000, u64::MAX),
        ] {
            assert_eq!(core.offset(address, bytes), None, "{bytes:#x} bytes at {address:#x}");
        }
    }

    #[test]
    fn physical_memory_lies_where_all_of_its_segments_say() {
        let direct_map = |headers: &[Vec<u8>]| parse(&file(headers)).unwrap().direct_map();
        assert_eq!(direct_map(&example()), Some(DIRECT_MAP));
        assert_eq!(direct_map(&example()[..3]), None, "text and vmalloc alone");
        let other = load(0, DIRECT_MAP + (1 << 33), 1 << 32, 0x1000);
        assert_eq!(direct_map(&[example(), [other].into()].concat()), None, "two places");
        let crooked = load(0, DIRECT_MAP + 0x1000, 0, 0x1000);
        assert_eq!(direct_map(&[notes(), crooked]), None, "no multiple of 1 GiB");
        let low = load(0, 1 << 32, 0, 0x1000);
        assert_eq!(direct_map(&[notes(), low]), None, "among the processes' addresses");
    }

    #[test]
    fn what_is_no_core_file_of_the_kernel_is_refused() {
        let good = file(&example());
        for (byte, what) in
            [(1, "magic"), (4, "class"), (5, "order"), (16, "type"), (18, "machine"), (54, "size")]
        {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            assert!(matches!(parse(&bad), Err(LiveError::BadKcore(_))), "{what}");
        }
        assert!(matches!(parse(&good[..63]), Err(LiveError::NoKcore { .. })));
        assert!(matches!(parse(&good[..good.len() - 1]), Err(LiveError::NoKcore { .. })));
        assert!(matches!(parse(&file(&example()[1..])), Err(LiveError::BadKcore("has no notes"))));
        let many = program_header(4, 0, 0, 0, MOST_NOTES + 1);
        assert!(matches!(parse(&file(&[many])), Err(LiveError::BadKcore("has no notes"))));
        let beyond =
            [load(u64::MAX - 0xfff, DIRECT_MAP, 0, 0x2000), load(0, u64::MAX, 0, 2), load(0, 0, 0, 0)];
        let core = parse(&file(&[beyond.as_slice(), &[notes()]].concat())).unwrap();
        assert_eq!(core.segments, [], "none of them can be there");
    }

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let header = [name.len() as u32, content.len() as u32, kind].into_iter().flat_map(u32::to_le_bytes);
        let mut note: Vec<u8> = header.chain(name.iter().copied()).collect();
        note.resize(note.len().next_multiple_of(4), 0xee);
        note.extend(content);
        note.resize(note.len().next_multiple_of(4), 0xee);
        note
    }

    #[test]
    fn the_task_is_in_the_note_of_its_name_and_kind() {
        let task = [1, 2, 3, 4, 5, 6, 7];
        let before = [note(b"CORE\0", 1, &[9; 5]), note(b"OTHER\0", 4, &[8; 3])].concat();
        let all = [before.clone(), note(b"CORE\0", 4, &task), note(b"VMCOREINFO\0", 0, b"x=1")].concat();
        assert_eq!(task_struct(&all), Some(&task[..]));
        assert_eq!(
            task_struct(&all[..before.len() + 12 + 8 + 7]),
            Some(&task[..]),
            "without what fills it up"
        );
        assert_eq!(task_struct(&all[..before.len() + 12 + 8 + 6]), None, "cut");
        assert_eq!(task_struct(&before), None);
        assert_eq!(task_struct(&note(b"CORE\0", 1, &[])[..16]), None);
        let mut huge = note(b"CORE\0", 4, &task);
        huge[4..8].fill(0xff);
        assert_eq!(task_struct(&huge), None);
    }

    proptest! {
        /// Whatever a hostile file has, it neither panics nor goes on for ever.
        #[test]
        fn any_bytes_will_do(
            headers in prop::collection::vec((0u32..6, any::<[u64; 4]>()), 0..8),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            address in any::<u64>(),
            bytes in 0u64..1 << 20,
        ) {
            let headers: Vec<_> = headers
                .into_iter()
                .map(|(kind, [offset, at, physical, bytes])| program_header(kind, offset, at, physical, bytes))
                .chain([notes()])
                .collect();
            let mut file = file(&headers);
            for (at, to) in flips {
                let at = at.index(file.len());
                file[at] = to;
            }
            let _ = task_struct(&file);
            if let Ok(core) = parse(&file) {
                let _ = (core.direct_map(), core.offset(address, bytes));
            }
        }
    }
}
