//! Memory for tables whose allocator keeps books, runs dry when told to, and never gives out a clean frame.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ept::{
    Access, Attributes, Controls, Cr3, EptCaps, Eptp, Fault, Flags, Format, FrameAllocator, Ia32e, Kind,
    Levels, Mapper, Mapping, MaxPhyAddr, MemoryError, PageFaultCode, Paging, PhysMemory, Rights,
    SparseMemory, mappings, walk,
};

pub const K4: u64 = 0x1000;
pub const M2: u64 = 0x20_0000;
pub const G1: u64 = 0x4000_0000;
pub const WIDTH: MaxPhyAddr = MaxPhyAddr::new(40).unwrap();

/// The formats that are tested, with their levels.
pub const FORMATS: [(Kind, Levels); 6] = [
    (Kind::Ept, Levels::Four),
    (Kind::Ept, Levels::Five),
    (Kind::Ia32e, Levels::Four),
    (Kind::Ia32e, Levels::Five),
    (Kind::Npt, Levels::Four),
    (Kind::Npt, Levels::Five),
];

pub struct World {
    memory: SparseMemory,
    pub paging: Paging,
    /// How many tables the allocator still gives.
    pub left: usize,
    /// Tables given out, with the root.
    tables: BTreeMap<u64, ()>,
    /// An entry, and bits that hardware sets in another just before the first is exchanged for something else.
    pub race: RefCell<Option<Race>>,
    /// A frame that is given out in the place of the n-th next table.
    pub bad: Option<(u64, usize)>,
    /// Addresses that another processor reads after each write to memory, and what it must find: a page there, or
    /// either a page there or nothing.
    pub watched: Vec<Watched>,
    /// A table in read-only memory.
    pub read_only: Option<u64>,
}

/// Hardware sets `bits` in the entry at `there` just before the one at `at` is exchanged.
#[derive(Clone, Copy)]
pub struct Race {
    pub at: u64,
    pub there: u64,
    pub bits: u64,
}

#[derive(Clone, Copy)]
pub struct Watched {
    pub address: u64,
    pub frame: u64,
    pub may_be_absent: bool,
}

impl World {
    pub fn new(kind: Kind, levels: Levels) -> Self {
        Self::with_caps(kind, levels, EptCaps::all())
    }

    pub fn with_caps(kind: Kind, levels: Levels, caps: EptCaps) -> Self {
        let root = 0x10_0000;
        let mut memory = SparseMemory::allocating_from(root);
        memory.add_frame(root);
        let processor = Ia32e::new(levels, WIDTH);
        let paging = match kind {
            Kind::Ept => {
                let flags = caps.contains(EptCaps::ACCESSED_DIRTY);
                Paging::ept(Eptp::for_root(root, levels, flags, caps, WIDTH).unwrap(), caps, WIDTH)
            }
            _ => {
                let mut paging = Paging::ia32e(Cr3::new(root, WIDTH).unwrap(), processor, Controls::WP);
                if kind == Kind::Npt {
                    paging.format = Format::npt(processor);
                }
                paging
            }
        };
        let tables = BTreeMap::from([(root, ())]);
        Self {
            memory,
            paging,
            left: usize::MAX,
            tables,
            race: RefCell::default(),
            bad: None,
            watched: Vec::new(),
            read_only: None,
        }
    }

    pub fn mapper(&mut self) -> Mapper<'_, Self> {
        let paging = self.paging;
        Mapper::new(self, paging)
    }

    /// What another processor sees right now.
    fn look(&self) {
        for &Watched { address, frame, may_be_absent } in &self.watched {
            let seen = walk(&self.memory, &self.paging, address, Access::READ.by_user(), Flags::Keep);
            match seen.outcome {
                Ok(leaf) => assert_eq!(leaf.address, frame, "{address:#x}: {:x?}", seen.path),
                Err(Fault::EptViolation { .. }) if may_be_absent => {}
                Err(Fault::PageFault { code })
                    if may_be_absent && !code.contains(PageFaultCode::RESERVED) => {}
                Err(fault) => panic!("{address:#x}: {fault}, {:x?}", seen.path),
            }
        }
    }

    /// RAM, for user mode where the format knows one.
    pub fn page(&self, rights: Rights) -> Attributes {
        Attributes::ram(self.paging.format.kind(), self.rights(rights))
    }

    pub fn rights(&self, rights: Rights) -> Rights {
        if self.is_ept() { rights } else { rights | Rights::USER }
    }

    pub fn is_ept(&self) -> bool {
        self.paging.format.kind() == Kind::Ept
    }

    /// A and D.
    pub fn flags(&self) -> (u64, u64) {
        if self.is_ept() { (1 << 8, 1 << 9) } else { (1 << 5, 1 << 6) }
    }

    /// How many tables there are, with the root.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// All tables, bit by bit.
    pub fn image(&self) -> Vec<(u64, Vec<u64>)> {
        let entries = |table: u64| (0..512).map(|n| self.memory.read_entry(table + n * 8).unwrap()).collect();
        self.tables.keys().map(|&table| (table, entries(table))).collect()
    }

    pub fn pages(&self) -> Vec<Mapping> {
        mappings(self, &self.paging).collect()
    }

    /// The page that starts at `address`.
    pub fn at(&self, address: u64) -> Mapping {
        self.pages().into_iter().find(|page| page.address == address).unwrap()
    }

    /// The table pointer at that level on the way to `address`: where it is, and what.
    pub fn pointer(&self, address: u64, level: u8) -> (u64, u64) {
        let walk = ept::walk(self, &self.paging, address, ept::Access::READ.by_user(), ept::Flags::Keep);
        let step = *walk.path.iter().find(|step| step.level == level).unwrap();
        (step.entry_address(), step.entry)
    }

    pub fn write(&self, address: u64, entry: u64) {
        self.memory.write_entry(address, entry).unwrap();
    }
}

impl PhysMemory for World {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.read_entry(address)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        if self.read_only == Some(address & !0xfff) {
            return Err(MemoryError::ReadOnly { address });
        }
        let race = self.race.borrow_mut().take_if(|race| race.at == address && current != new);
        if let Some(Race { there, bits, .. }) = race {
            self.write(there, self.memory.read_entry(there)? | bits);
        }
        let done = self.memory.compare_exchange(address, current, new);
        self.look();
        done
    }

    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        let done = self.memory.write_entries(address, entries);
        self.look();
        done
    }
}

impl FrameAllocator for World {
    fn allocate_table(&mut self) -> Option<u64> {
        match &mut self.bad {
            Some((bad, 0)) => return Some(*bad),
            Some((_, later)) => *later -= 1,
            None => {}
        }
        self.left = self.left.checked_sub(1)?;
        let table = self.memory.allocate_table()?;
        // A well-formed leaf, absent bits that are not zero: whatever is left of it would be seen.
        for index in 0..512 {
            self.write(table + index * 8, if index % 2 == 0 { 0xdead_b000 | 0x37 } else { !0x7 });
        }
        assert_eq!(self.tables.insert(table, ()), None, "{table:#x} is given out twice");
        Some(table)
    }

    fn free_table(&mut self, frame: u64) {
        if self.bad.is_some_and(|(bad, _)| bad == frame) {
            return;
        }
        assert_eq!(self.tables.remove(&frame), Some(()), "{frame:#x} is freed without having been given out");
        assert_ne!(frame, self.paging.root);
        self.left = self.left.saturating_add(1);
        self.memory.free_table(frame);
    }
}
