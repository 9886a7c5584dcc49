//! All that a guest's tables map, followed to the host's frames: long lists of pieces in few letters.

use std::collections::BTreeMap;

use ept::{Access, Flags, Format, Mapping, Paging, Rights, Role, Step, walk};
use memory_model::{FlatRange, FlatView, PageSize, RegionKind};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use slot_manager::{SlotRecord, SlotRegistry};
use vcpu::{GuestTables, SecondLevelTables};

use super::columns::Column;
use super::format::FormatData;
use crate::Observer;
use crate::pages::{Pages, Place};

const SHIFT: u32 = PageSize::Size4K.shift();

/// The memory of a guest. A piece is a run of pages that lie one behind the other in all four columns, and are of one kind.
#[derive(serde::Serialize, Default)]
pub(super) struct Memory {
    /// What the guest sees.
    ranges: Vec<Range>,
    /// The guest's tables; `None` with paging off.
    guest: Option<Tables>,
    /// The second level's, where the host shows them.
    second: Option<Tables>,
    /// They translate GVAs.
    shadow: bool,
    kinds: Vec<Kind>,
    /// For each piece: its kind, its first pages and how many, each as the difference from the end of the piece before.
    kind: Column,
    gva: Column,
    pages: Column,
    gpa: Column,
    hva: Column,
    hpa: Column,
    /// Why a column is empty.
    not_shown: Vec<String>,
}

/// A range of the flat view.
#[derive(serde::Serialize)]
struct Range {
    name: String,
    kind: &'static str,
    readonly: bool,
    gpa: String,
    bytes: String,
    hva: Option<String>,
    slot: Option<u32>,
}

/// What a piece's pages have in common, beside following each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
struct Kind {
    range: Option<usize>,
    guest: Option<Leaf>,
    second: Option<Leaf>,
    hpa: bool,
    /// The host has another frame than the leaf.
    differs: bool,
}

/// What leaves have in common: the size of their pages, what all entries on the way grant, the bits beside the frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    size: PageSize,
    rights: u8,
    flags: u64,
    /// The format tells user pages from others.
    has_user: bool,
}

impl Leaf {
    fn new(format: &Format, size: PageSize, rights: Rights, entry: u64) -> Self {
        let bits = |role| format.bits(role, size.level(), true);
        let flags = entry & !(bits(Role::Frame) | bits(Role::FrameHigh));
        Self { size, rights: rights.bits(), flags, has_user: bits(Role::User) != 0 }
    }
}

impl Serialize for Leaf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rights = Rights::from_bits_truncate(self.rights);
        let user = match (self.has_user, rights.contains(Rights::USER)) {
            (false, _) => "",
            (true, true) => "u",
            (true, false) => "-",
        };
        let mut leaf = serializer.serialize_struct("Leaf", 4)?;
        leaf.serialize_field("size", &self.size.to_string())?;
        leaf.serialize_field("level", &self.size.level())?;
        leaf.serialize_field("rights", &(crate::inspect::letters(rights) + user))?;
        leaf.serialize_field("flags", &format!("{:#x}", self.flags))?;
        leaf.end()
    }
}

/// The entries above the leaves, each once.
#[derive(serde::Serialize)]
struct Tables {
    format: FormatData,
    #[serde(serialize_with = "rows")]
    upper: BTreeMap<(u8, u64), Step>,
}

impl Tables {
    fn new(format: &Format) -> Self {
        Self { format: FormatData::of(format), upper: BTreeMap::new() }
    }

    /// Takes in the entries on the way to a leaf, for an address.
    fn note(&mut self, format: &Format, address: u64, path: &[Step]) {
        let Some((_, upper)) = path.split_last() else { return };
        for step in upper {
            self.upper.insert((step.level, address >> format.shift(step.level)), *step);
        }
    }
}

/// Level, the address bits above the index and with it, table, entry.
fn rows<S: Serializer>(upper: &BTreeMap<(u8, u64), Step>, serializer: S) -> Result<S::Ok, S::Error> {
    let hex = |number| format!("{number:#x}");
    serializer.collect_seq(
        upper.iter().map(|((level, at), step)| (level, hex(*at), hex(step.table), hex(step.entry))),
    )
}

impl Memory {
    pub fn of(observer: &Observer<'_>) -> Self {
        let mut pages = Pages::new(observer);
        let mut collector = Collector {
            memory: Self {
                ranges: pages.ranges.iter().map(|range| Range::new(range, observer.slots)).collect(),
                guest: observer.guest.as_ref().map(|paging| Tables::new(&paging.format)),
                second: pages.tables.map(|tables| Tables::new(&tables.format)),
                shadow: pages.tables.is_some_and(|tables| tables.shadow),
                ..Self::default()
            },
            known: BTreeMap::new(),
            open: None,
            before: [0; 4],
            table: None,
        };
        pages.visit(|pages, place| {
            if let (Some(paging), Some(mapping)) = (&observer.guest, &place.guest) {
                collector.guest_walk(observer.view, paging, mapping);
            }
            collector.place(
                observer.guest.as_ref().map(|paging| &paging.format),
                pages.tables.as_ref(),
                &place,
            );
        });
        Self { not_shown: pages.not_shown, ..collector.finish() }
    }
}

/// Puts pieces together from pages that come from the lowest address up.
struct Collector {
    memory: Memory,
    known: BTreeMap<Kind, usize>,
    open: Option<Piece>,
    /// Where the piece before ended, by column.
    before: [u64; 4],
    /// The guest's table that the last page was in.
    table: Option<u64>,
}

/// Page numbers.
#[derive(Clone, Copy)]
struct Piece {
    kind: usize,
    pages: u64,
    at: [Option<u64>; 4],
}

impl Collector {
    /// The way to another of the guest's tables.
    fn guest_walk(&mut self, view: &FlatView, paging: &Paging, mapping: &Mapping) {
        if self.table.replace(mapping.step.table) != Some(mapping.step.table) {
            let path = walk(&GuestTables(view), paging, mapping.address, Access::READ, Flags::Keep).path;
            self.memory.guest.iter_mut().for_each(|guest| guest.note(&paging.format, mapping.address, &path));
        }
    }

    fn place(&mut self, guest: Option<&Format>, second: Option<&SecondLevelTables>, place: &Place) {
        let leaf = second.zip(place.leaf.as_ref());
        if let (Some((tables, leaf)), Some(known)) = (leaf, &mut self.memory.second) {
            let address = if tables.shadow { place.gva.0 } else { place.gpa.0 };
            known.note(&tables.format, address, &leaf.path);
        }
        let hpa = place.leaf.as_ref().map(|leaf| leaf.hpa).or(place.frame);
        let kind = Kind {
            range: place.range,
            guest: guest
                .zip(place.guest)
                .map(|(format, page)| Leaf::new(format, page.size, page.rights, page.step.entry)),
            second: leaf.map(|(tables, leaf)| Leaf::new(&tables.format, leaf.size, leaf.rights, leaf.entry)),
            hpa: hpa.is_some(),
            differs: place.frame.is_some() && place.frame != hpa,
        };
        let raw = [Some(place.gva.0), Some(place.gpa.0), place.hva.map(|hva| hva.0), hpa.map(|hpa| hpa.0)];
        self.page(kind, raw.map(|address| address.map(|address| address >> SHIFT)));
    }

    /// A page: the next of the open piece, or the first of another one.
    fn page(&mut self, kind: Kind, at: [Option<u64>; 4]) {
        let next = self.memory.kinds.len();
        let kind = *self.known.entry(kind).or_insert_with_key(|kind| {
            self.memory.kinds.push(*kind);
            next
        });
        if let Some(open) = &mut self.open {
            let follows = |(first, here): (Option<u64>, Option<u64>)| match (first, here) {
                (Some(first), Some(here)) => first + open.pages == here,
                (first, here) => first == here,
            };
            if open.kind == kind && open.at.into_iter().zip(at).all(follows) {
                open.pages += 1;
                return;
            }
        }
        if let Some(done) = self.open.replace(Piece { kind, pages: 1, at }) {
            self.piece(done);
        }
    }

    fn piece(&mut self, Piece { kind, pages, at }: Piece) {
        let Memory { kind: kinds, gva, pages: counts, gpa, hva, hpa, .. } = &mut self.memory;
        kinds.push(kind as i64);
        counts.push(pages as i64);
        for ((column, at), before) in [gva, gpa, hva, hpa].into_iter().zip(at).zip(&mut self.before) {
            let at = at.unwrap_or(*before);
            column.push(at as i64 - *before as i64);
            *before = at + pages;
        }
    }

    fn finish(mut self) -> Memory {
        if let Some(last) = self.open.take() {
            self.piece(last);
        }
        self.memory
    }
}

impl Range {
    fn new(range: &FlatRange, slots: &SlotRegistry) -> Self {
        let first = range.range.first();
        let kind = match &range.kind {
            RegionKind::Ram(_) if range.readonly => "rom",
            RegionKind::Ram(_) => "ram",
            RegionKind::RomDevice { .. } => "rom device",
            RegionKind::RamDevice(_) => "ram device",
            RegionKind::Mmio(_) => "mmio",
            RegionKind::Iommu(_) => "iommu",
            _ => "reserved",
        };
        Self {
            name: range.name.to_string(),
            kind,
            readonly: range.readonly,
            gpa: first.to_string(),
            bytes: format!("{:#x}", range.range.bytes()),
            hva: range.hva(first).map(|hva| hva.to_string()),
            slot: slots.by_gpa(first).map(|slot| slot.id().0),
        }
    }
}
