//! BTF, in which a kernel describes its own types (Linux, Documentation/bpf/btf.rst): where a field lies, by name.

use alloc::vec::Vec;
use core::ops::Range;

/// The description of a kernel's types, read from `/sys/kernel/btf`.
#[derive(Debug)]
pub struct Btf {
    parts: Vec<Part>,
}

/// The types of the kernel, or those that a module adds to them.
#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    /// Where each type's record begins. The first is type `first_type`.
    types: Vec<u32>,
    first_type: u32,
    /// Names lie here; the first byte is name `first_name`.
    names: Range<usize>,
    first_name: u32,
}

/// Why bytes are no BTF.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BtfError {
    /// They do not begin as BTF of this byte order and version does.
    #[error("no BTF of version 1 in this machine's byte order")]
    Header,
    /// A part of it lies outside the file.
    #[error("BTF ends at byte {at:#x}, in the middle of something")]
    Truncated {
        /// Where more bytes are wanted.
        at: usize,
    },
    /// A kind of type that nobody has described: its record has no known length.
    #[error("BTF type {id} is of unknown kind {kind}")]
    UnknownKind {
        /// The number of the type.
        id: u32,
        /// Its kind.
        kind: u8,
    },
}

/// Where a field lies in its structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// The first bit, counted from the start of the structure.
    pub bit: u64,
    /// How many bits: those of a bit field, or of the whole type.
    pub bits: u64,
}

impl Field {
    /// The byte that the field begins in.
    pub const fn offset(self) -> u64 {
        self.bit / 8
    }

    /// The number that the field holds in `structure`, whose first bytes these are; `None` if it lies outside of them
    /// or is wider than a number.
    pub fn value(self, structure: &[u8]) -> Option<u64> {
        let (shift, first) = (self.bit % 8, usize::try_from(self.offset()).ok()?);
        let last = usize::try_from((self.bit.checked_add(self.bits.checked_sub(1)?)?) / 8).ok()?;
        let bytes = structure.get(first..=last).filter(|bytes| bytes.len() <= 8 && self.bits <= 64)?;
        let number = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        Some(number >> shift & u64::MAX >> (64 - self.bits))
    }
}

/// A record: `name, info, size or type` and what follows it.
#[derive(Clone, Copy)]
struct Record<'a> {
    name: u32,
    kind: u8,
    /// How many members it has.
    members: usize,
    /// Offsets of members hold the width of bit fields, too.
    bit_fields: bool,
    size_or_type: u32,
    body: &'a [u8],
}

const INT: u8 = 1;
const PTR: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const TYPEDEF: u8 = 8;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
const RESTRICT: u8 = 11;
const FLOAT: u8 = 16;
const TYPE_TAG: u8 = 18;
const ENUM64: u8 = 19;

/// By kind: the bytes that follow a record, and those that follow for each member.
const BODY: [(usize, usize); 20] = [
    (0, 0),
    (4, 0), // INT
    (0, 0),
    (12, 0), // ARRAY
    (0, 12), // STRUCT
    (0, 12), // UNION
    (0, 8),  // ENUM
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 8),  // FUNC_PROTO
    (4, 0),  // VAR
    (0, 12), // DATASEC
    (0, 0),
    (4, 0), // DECL_TAG
    (0, 0),
    (0, 12), // ENUM64
];

/// Types are not nested deeper than this: whatever is has a cycle in it.
const DEEPEST: usize = 32;

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const RECORD: usize = 12;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl Btf {
    /// The types of a kernel: `/sys/kernel/btf/vmlinux`.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        Ok(Self { parts: [Part::parse(bytes, 1, 0)?].into() })
    }

    /// The types that a module adds: `/sys/kernel/btf/kvm`, whose numbers go on from those here.
    pub fn extend(&mut self, bytes: Vec<u8>) -> Result<(), BtfError> {
        let (mut next_type, mut next_name) = (1, 0);
        if let Some(last) = self.parts.last() {
            next_type = last.first_type.saturating_add(last.types.len() as u32);
            next_name = last.first_name.saturating_add(last.names.len() as u32);
        }
        self.parts.push(Part::parse(bytes, next_type, next_name)?);
        Ok(())
    }

    /// How many bytes a structure has; `None` if there is none of that name.
    pub fn size_of(&self, structure: &str) -> Option<u64> {
        self.structures(structure).next().map(|record| record.size_or_type.into())
    }

    /// Finds a field by its path, such as `arch.mmu` or `prev_roots[1].hpa`. Members of anonymous structures and unions
    /// go by their own names. `None` if there is none.
    pub fn field(&self, structure: &str, path: &str) -> Option<Field> {
        self.structures(structure).find_map(|record| self.follow(record, path))
    }

    /// Structures and unions of that name: there may be several.
    fn structures<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Record<'a>> {
        let records = self.parts.iter().flat_map(Part::records);
        records.filter(move |record| is_structure(record) && self.name(record.name) == Some(name.as_bytes()))
    }

    fn follow<'a>(&'a self, mut record: Record<'a>, path: &str) -> Option<Field> {
        let mut field = Field { bit: 0, bits: 0 };
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (name, index) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
                Some((name, index)) => (name, Some(index.parse::<u64>().ok()?)),
                None => (part, None),
            };
            let (member, mut of) = self.member(&record, name, DEEPEST)?;
            let mut bits = member.bits;
            if let Some(index) = index {
                let element = self.plain(of).filter(|array| array.kind == ARRAY)?;
                of = u32_at(element.body, 0)?;
                bits = self.bytes_of(of, DEEPEST)?.checked_mul(8)?;
                field.bit = field.bit.checked_add(bits.checked_mul(index)?)?;
            }
            field = Field { bit: field.bit.checked_add(member.bit)?, bits };
            if parts.peek().is_some() {
                record = self.plain(of).filter(is_structure)?;
            }
        }
        Some(field)
    }

    /// A member by name, here or in an anonymous member, and its type.
    fn member(&self, record: &Record<'_>, name: &str, depth: usize) -> Option<(Field, u32)> {
        let depth = depth.checked_sub(1)?;
        record.body.chunks_exact(RECORD).take(record.members).find_map(|member| {
            let (own_name, of, place) = (u32_at(member, 0)?, u32_at(member, 4)?, u32_at(member, 8)?);
            let (bit, width) = match record.bit_fields {
                true => (place & 0x00ff_ffff, place >> 24),
                false => (place, 0),
            };
            let bit = u64::from(bit);
            match self.name(own_name)? {
                [] => {
                    let inner = self.plain(of).filter(is_structure)?;
                    let (field, of) = self.member(&inner, name, depth)?;
                    Some((Field { bit: bit.checked_add(field.bit)?, ..field }, of))
                }
                found if found == name.as_bytes() => {
                    let bits = match width {
                        0 => self.bytes_of(of, DEEPEST)?.checked_mul(8)?,
                        width => width.into(),
                    };
                    Some((Field { bit, bits }, of))
                }
                _ => None,
            }
        })
    }

    /// The type behind its names and qualifiers.
    fn plain(&self, mut id: u32) -> Option<Record<'_>> {
        for _ in 0..DEEPEST {
            let record = self.record(id)?;
            match record.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = record.size_or_type,
                _ => return Some(record),
            }
        }
        None
    }

    fn bytes_of(&self, id: u32, depth: usize) -> Option<u64> {
        let record = self.plain(id)?;
        match record.kind {
            PTR => Some(8),
            INT | STRUCT | UNION | ENUM | ENUM64 | FLOAT => Some(record.size_or_type.into()),
            ARRAY => {
                let (element, count) = (u32_at(record.body, 0)?, u32_at(record.body, 8)?);
                self.bytes_of(element, depth.checked_sub(1)?)?.checked_mul(count.into())
            }
            _ => None,
        }
    }

    fn record(&self, id: u32) -> Option<Record<'_>> {
        let part = self.parts.iter().rev().find(|part| part.first_type <= id)?;
        part.record((id - part.first_type) as usize)
    }

    fn name(&self, name: u32) -> Option<&[u8]> {
        let part = self.parts.iter().rev().find(|part| part.first_name <= name)?;
        let names = part.bytes.get(part.names.clone())?.get((name - part.first_name) as usize..)?;
        names.split(|&byte| byte == 0).next()
    }
}

fn is_structure(record: &Record<'_>) -> bool {
    matches!(record.kind, STRUCT | UNION)
}

impl Part {
    /// Finds where each record begins: their lengths depend on their kinds.
    fn parse(bytes: Vec<u8>, first_type: u32, first_name: u32) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(&bytes, at).ok_or(BtfError::Truncated { at });
        let (magic, header) = (word(0)?, word(4)? as usize);
        // Version 1, and whatever flags.
        if (magic & 0xffff) as u16 != MAGIC || magic >> 16 & 0xff != 1 || header < HEADER {
            return Err(BtfError::Header);
        }
        let section = |at: usize| {
            let (offset, length) = (word(at)? as usize, word(at + 4)? as usize);
            let first = header.checked_add(offset).ok_or(BtfError::Header)?;
            let end = first.checked_add(length).ok_or(BtfError::Header)?;
            if end > bytes.len() { Err(BtfError::Truncated { at: bytes.len() }) } else { Ok(first..end) }
        };
        let (records, names) = (section(8)?, section(16)?);
        let mut part = Self { types: Vec::new(), first_type, names, first_name, bytes };
        let mut at = records.start;
        while at < records.end {
            let id = first_type.saturating_add(part.types.len() as u32);
            let truncated = BtfError::Truncated { at };
            part.types.push(u32::try_from(at).map_err(|_| truncated)?);
            let info = u32_at(&part.bytes, at + 4).ok_or(truncated)?;
            let (kind, members) = kind_and_members(info);
            let &(fixed, each) = BODY.get(usize::from(kind)).ok_or(BtfError::UnknownKind { id, kind })?;
            at += RECORD + fixed + each * members;
            if at > records.end {
                return Err(truncated);
            }
        }
        Ok(part)
    }

    fn record(&self, index: usize) -> Option<Record<'_>> {
        let at = *self.types.get(index)? as usize;
        let info = u32_at(&self.bytes, at + 4)?;
        let (kind, members) = kind_and_members(info);
        Some(Record {
            name: u32_at(&self.bytes, at)?,
            kind,
            members,
            bit_fields: info >> 31 != 0,
            size_or_type: u32_at(&self.bytes, at + 8)?,
            body: self.bytes.get(at + RECORD..)?,
        })
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.types.len()).filter_map(|index| self.record(index))
    }
}

fn kind_and_members(info: u32) -> (u8, usize) {
    ((info >> 24 & 0x1f) as u8, (info & 0xffff) as usize)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    /// BTF made by hand: records as words, and names, of which the first is empty.
    fn btf(records: &[u32], names: &str) -> Vec<u8> {
        let records_bytes = records.len() as u32 * 4;
        let header =
            [u32::from(MAGIC) | 1 << 16, HEADER as u32, 0, records_bytes, records_bytes, names.len() as u32];
        let words = header.iter().chain(records).flat_map(|word| word.to_ne_bytes());
        words.chain(names.bytes()).collect()
    }

    const fn info(kind: u8, members: u32) -> u32 {
        (kind as u32) << 24 | members
    }

    const WITH_BIT_FIELDS: u32 = 1 << 31;
    // Where names begin: "\0word\0outer\0inner\0low\0mid\0array\0"
    const NAMES: &str = "\0word\0outer\0inner\0low\0mid\0array\0";
    const WORD: u32 = 1;
    const OUTER: u32 = 6;
    const INNER: u32 = 12;
    const LOW: u32 = 18;
    const MID: u32 = 22;
    const ARRAY_NAME: u32 = 26;

    /// ```c
    /// typedef u32 word;
    /// struct outer { u32 low; const struct { u32 low:3, mid:9; }; struct outer_inner inner; word array[4]; };
    /// ```
    #[rustfmt::skip]
    fn example() -> Btf {
        let records = [
            WORD, info(INT, 0), 4, 32,                                      // 1: u32
            0, info(STRUCT, 2) | WITH_BIT_FIELDS, 4,                        // 2: { u32 inner:3; u32 mid:9 at bit 3 }
                INNER, 1, 3 << 24,
                MID, 1, 9 << 24 | 3,
            0, info(CONST, 0), 2,                                           // 3: const of 2
            WORD, info(TYPEDEF, 0), 1,                                      // 4: word
            0, info(ARRAY, 0), 0, 4, 1, 4,                                  // 5: word[4]
            OUTER, info(STRUCT, 3), 24,                                     // 6: outer
                LOW, 1, 0,
                0, 3, 32,
                ARRAY_NAME, 5, 64,
        ];
        Btf::parse(btf(&records, NAMES)).unwrap()
    }

    #[test]
    fn fields_are_found_through_names_qualifiers_and_anonymous_members() {
        let btf = example();
        assert_eq!(btf.size_of("outer"), Some(24));
        assert_eq!(btf.field("outer", "low"), Some(Field { bit: 0, bits: 32 }));
        assert_eq!(btf.field("outer", "inner"), Some(Field { bit: 32, bits: 3 }));
        assert_eq!(btf.field("outer", "mid"), Some(Field { bit: 35, bits: 9 }));
        assert_eq!(btf.field("outer", "array"), Some(Field { bit: 64, bits: 128 }));
        assert_eq!(btf.field("outer", "array[3]"), Some(Field { bit: 160, bits: 32 }));
        for (structure, path) in [
            ("outer", "none"),
            ("none", "low"),
            ("outer", "low.low"),
            ("outer", "low[1]"),
            ("outer", ""),
            ("word", "low"),
        ] {
            assert_eq!(btf.field(structure, path), None, "{structure}.{path}");
        }
    }

    #[test]
    fn a_bit_field_is_its_bits_alone() {
        let bytes = [0, 0, 0, 0, 0b1010_1101, 0b1111_0110, 0xff, 0xff];
        assert_eq!(Field { bit: 32, bits: 3 }.value(&bytes), Some(0b101));
        assert_eq!(Field { bit: 35, bits: 9 }.value(&bytes), Some(0b0110_10101));
        assert_eq!(Field { bit: 0, bits: 64 }.value(&bytes), Some(u64::from_le_bytes(bytes)));
        for outside in [
            Field { bit: 60, bits: 5 },
            Field { bit: 0, bits: 65 },
            Field { bit: 0, bits: 0 },
            Field { bit: 64, bits: 1 },
        ] {
            assert_eq!(outside.value(&bytes), None, "{outside:?}");
        }
    }

    /// The numbers of a module's types and names go on where the kernel's end.
    #[test]
    fn a_module_adds_types_that_name_those_of_the_kernel() {
        let mut all = example();
        let name = NAMES.len() as u32 + 1;
        let module = [name, info(STRUCT, 2), 32, LOW, 6, 0, MID, 1, 192];
        all.extend(btf(&module, "\0module\0")).unwrap();
        assert_eq!(all.field("module", "low.array[1]"), Some(Field { bit: 96, bits: 32 }));
        assert_eq!(all.field("module", "mid"), Some(Field { bit: 192, bits: 32 }));
    }

    #[test]
    fn cycles_end() {
        // 1: a typedef of itself; 2: a structure with itself inside, without a name; 3: an array of itself.
        let records = [
            0,
            info(TYPEDEF, 0),
            1,
            OUTER,
            info(STRUCT, 2),
            4,
            0,
            2,
            0,
            LOW,
            1,
            0,
            0,
            info(ARRAY, 0),
            0,
            3,
            3,
            2,
            INNER,
            info(STRUCT, 1),
            4,
            LOW,
            3,
            0,
        ];
        let btf = Btf::parse(btf(&records, NAMES)).unwrap();
        assert_eq!(btf.field("outer", "mid"), None);
        assert_eq!(btf.field("outer", "low"), None);
        assert_eq!(btf.field("inner", "low"), None);
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let good = btf(&[WORD, info(INT, 0), 4, 32], NAMES);
        assert!(Btf::parse(good.clone()).is_ok());
        assert_eq!(Btf::parse(vec![]).unwrap_err(), BtfError::Truncated { at: 0 });
        assert_eq!(Btf::parse(vec![0; 64]).unwrap_err(), BtfError::Header);
        assert!(matches!(Btf::parse(good[..30].to_vec()), Err(BtfError::Truncated { .. })));
        let unknown = btf(&[WORD, info(30, 0), 4, 32], NAMES);
        assert_eq!(Btf::parse(unknown).unwrap_err(), BtfError::UnknownKind { id: 1, kind: 30 });
        let cut = btf(&[WORD, info(STRUCT, 9), 4, 32], NAMES);
        assert!(matches!(Btf::parse(cut), Err(BtfError::Truncated { .. })));
    }

    #[test]
    fn this_kernels_own_has_a_list_head_of_two_pointers() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return std::println!("not checked: this kernel has no BTF");
        };
        let btf = Btf::parse(bytes).unwrap();
        assert_eq!(btf.size_of("list_head"), Some(16));
        assert_eq!(btf.field("list_head", "prev"), Some(Field { bit: 64, bits: 64 }));
        // `files` is a pointer, `comm` 16 characters.
        assert_eq!(btf.field("task_struct", "files").map(|field| field.bits), Some(64));
        assert_eq!(btf.field("task_struct", "comm").map(|field| field.bits), Some(128));
    }

    proptest! {
        /// Bytes of a hostile file neither panic nor go on for ever.
        #[test]
        fn any_bytes_will_do(
            words in prop::collection::vec(prop_oneof![any::<u32>(), 0u32..40, (0u8..32, 0u32..4).prop_map(|(kind, members)| info(kind, members))], 0..64),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = btf(&words, NAMES);
            for (at, to) in flips {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            if let Ok(mut btf) = Btf::parse(bytes.clone()) {
                let _ = btf.extend(bytes);
                for name in NAMES.split('\0') {
                    let _ = (btf.size_of(name), btf.field(name, "low"), btf.field(name, "inner.mid[1].low"));
                }
            }
        }
    }
}
