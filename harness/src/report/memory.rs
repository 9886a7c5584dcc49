//! All that a guest's tables map, followed to the host's frames: long lists of pieces in few letters.

use std::collections::BTreeMap;

use ept::{Access, Flags, Format, Mapping, Paging, Rights, Role, Step, mappings, walk};
use memory_model::{FlatRange, FlatView, Gpa, Gva, Hpa, Hva, PageSize, RegionKind};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use slot_manager::{SlotRecord, SlotRegistry};
use vcpu::{GuestTables, HostView, SecondLevelLeaf, Witness};

use super::columns::Column;
use super::format::FormatData;
use crate::Observer;

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
        let mut collector = Collector::new(observer);
        match &observer.guest {
            Some(paging) => collector.guest_tables(paging),
            None => collector.without_paging(),
        }
        collector.finish()
    }
}

/// Goes through the guest's memory from its lowest address up.
struct Collector<'a> {
    host: &'a dyn HostView,
    view: &'a FlatView,
    ranges: Vec<&'a FlatRange>,
    second: Option<Format>,
    shows_frames: bool,
    memory: Memory,
    known: BTreeMap<Kind, usize>,
    open: Option<Piece>,
    /// Where the piece before ended, by column.
    before: [u64; 4],
}

/// Page numbers.
#[derive(Clone, Copy)]
struct Piece {
    kind: usize,
    pages: u64,
    at: [Option<u64>; 4],
}

impl<'a> Collector<'a> {
    fn new(observer: &Observer<'a>) -> Self {
        let ranges: Vec<_> = observer.view.ranges().collect();
        let mut memory = Memory {
            ranges: ranges.iter().map(|range| Range::new(range, observer.slots)).collect(),
            guest: observer.guest.as_ref().map(|paging| Tables::new(&paging.format)),
            ..Memory::default()
        };
        let second = match observer.host.tables() {
            Witness::Seen(tables) => {
                memory.shadow = tables.shadow;
                memory.second = Some(Tables::new(&tables.format));
                Some(tables.format)
            }
            Witness::Absent => None,
            Witness::NotShown(why) => {
                memory.not_shown.push(format!("second level: {why}"));
                None
            }
        };
        Self {
            host: observer.host,
            view: observer.view,
            ranges,
            second,
            shows_frames: true,
            memory,
            known: BTreeMap::new(),
            open: None,
            before: [0; 4],
        }
    }

    fn guest_tables(&mut self, paging: &Paging) {
        let tables = GuestTables(self.view);
        let mut last = None;
        for Mapping { address, size, frame, rights, step } in mappings(&tables, paging) {
            if last != Some(step.table) {
                last = Some(step.table);
                let path = walk(&tables, paging, address, Access::READ, Flags::Keep).path;
                self.memory.guest.iter_mut().for_each(|guest| guest.note(&paging.format, address, &path));
            }
            let leaf = Leaf::new(&paging.format, size, rights, step.entry);
            self.run(Gva(address), Gpa(frame), size.bytes() >> SHIFT, Some(leaf));
        }
    }

    fn without_paging(&mut self) {
        for range in self.ranges.clone() {
            let pages = (range.range.bytes() >> SHIFT) as u64;
            if range.ram().is_some() {
                self.run(Gva(range.range.first().0), range.range.first(), pages, None);
            }
        }
    }

    /// A run of pages, as the guest has it.
    fn run(&mut self, gva: Gva, gpa: Gpa, pages: u64, guest: Option<Leaf>) {
        let mut found: Option<usize> = None;
        for offset in (0..pages).map(|page| page << SHIFT) {
            let (Some(gva), Some(gpa)) = (gva.checked_add(offset), gpa.checked_add(offset)) else { return };
            found = found.filter(|&at| self.ranges[at].range.contains(gpa)).or_else(|| self.range_at(gpa));
            let hva = found.and_then(|at| self.ranges[at].hva(gpa));
            let leaf = self.leaf(gva, gpa);
            let frame = hva.and_then(|hva| self.frame(hva));
            let hpa = leaf.as_ref().map(|leaf| leaf.hpa).or(frame);
            let kind = Kind {
                range: found,
                guest,
                second: leaf.as_ref().and_then(|leaf| self.second_leaf(gva, gpa, leaf)),
                hpa: hpa.is_some(),
                differs: frame.is_some() && frame != hpa,
            };
            let raw = [Some(gva.0), Some(gpa.0), hva.map(|hva| hva.0), hpa.map(|hpa| hpa.0)];
            self.page(kind, raw.map(|address| address.map(|address| address >> SHIFT)));
        }
    }

    fn range_at(&self, gpa: Gpa) -> Option<usize> {
        let after = self.ranges.partition_point(|range| range.range.first() <= gpa);
        after.checked_sub(1).filter(|&at| self.ranges[at].range.contains(gpa))
    }

    fn leaf(&mut self, gva: Gva, gpa: Gpa) -> Option<SecondLevelLeaf> {
        self.second.as_ref()?;
        match self.host.leaf(gva, gpa) {
            Witness::Seen(leaf) => Some(leaf),
            Witness::Absent => None,
            Witness::NotShown(why) => {
                self.second = None;
                self.memory.not_shown.push(format!("second level: {why}"));
                None
            }
        }
    }

    fn second_leaf(&mut self, gva: Gva, gpa: Gpa, leaf: &SecondLevelLeaf) -> Option<Leaf> {
        let format = self.second.as_ref()?;
        let address = if self.memory.shadow { gva.0 } else { gpa.0 };
        self.memory.second.iter_mut().for_each(|tables| tables.note(format, address, &leaf.path));
        Some(Leaf::new(format, leaf.size, leaf.rights, leaf.entry))
    }

    fn frame(&mut self, hva: Hva) -> Option<Hpa> {
        if !self.shows_frames {
            return None;
        }
        match self.host.frame(hva) {
            Witness::Seen(hpa) => Some(hpa),
            Witness::Absent => None,
            Witness::NotShown(why) => {
                self.shows_frames = false;
                self.memory.not_shown.push(format!("HVA -> HPA: {why}"));
                None
            }
        }
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
