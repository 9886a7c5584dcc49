//! The pages at hand: linear pages with the host's memory behind them.

use memory_model::RamPage;

use crate::soft::AccessKind;

/// Pages that may be read, written and executed from, as the bus said of each. They hold for one privilege.
#[derive(Default)]
pub(super) struct Pages {
    pub read: PageTable,
    pub write: PageTable,
    pub fetch: PageTable,
}

impl Pages {
    /// Those for accesses of that kind.
    pub fn of(&mut self, kind: AccessKind) -> &mut PageTable {
        match kind {
            AccessKind::Read => &mut self.read,
            AccessKind::Write => &mut self.write,
            AccessKind::Fetch => &mut self.fetch,
        }
    }

    pub fn forget_all(&mut self) {
        self.all().for_each(PageTable::forget_all);
    }

    /// Lets go of the page that holds `address`.
    pub fn forget(&mut self, address: u64) {
        self.all().for_each(|table| table.forget(address));
    }

    fn all(&mut self) -> impl Iterator<Item = &mut PageTable> {
        [&mut self.read, &mut self.write, &mut self.fetch].into_iter()
    }
}

const ENTRIES: usize = 256;

/// A direct-mapped table of pages.
pub(super) struct PageTable {
    entries: Box<[Entry; ENTRIES]>,
    /// The places that hold a page.
    used: Vec<u16>,
}

struct Entry {
    /// The first address of the page; no such address if there is none.
    address: u64,
    page: Option<RamPage>,
}

const NONE: Entry = Entry { address: u64::MAX, page: None };

impl Default for PageTable {
    fn default() -> Self {
        Self { entries: Box::new([NONE; ENTRIES]), used: Vec::new() }
    }
}

impl PageTable {
    fn place(address: u64) -> usize {
        (address >> 12) as usize % ENTRIES
    }

    /// The page that holds all `bytes` at `address`; 1, 2, 4 or 8 of them.
    #[inline(always)]
    pub fn get(&self, address: u64, bytes: u64) -> Option<&RamPage> {
        let entry = &self.entries[Self::place(address)];
        // Aligned accesses take one comparison.
        if entry.address == address & (!0xfff | (bytes - 1)) || entry.reaches(address, bytes) {
            entry.page.as_ref()
        } else {
            None
        }
    }

    pub fn put(&mut self, address: u64, page: RamPage) {
        let entry = &mut self.entries[Self::place(address)];
        if entry.page.is_none() {
            self.used.push(Self::place(address) as u16);
        }
        *entry = Entry { address: address & !0xfff, page: Some(page) };
    }

    /// Its place stays among those in use.
    fn forget(&mut self, address: u64) {
        let entry = &mut self.entries[Self::place(address)];
        if entry.address == address & !0xfff {
            entry.address = NONE.address;
        }
    }

    fn forget_all(&mut self) {
        for place in self.used.drain(..) {
            self.entries[usize::from(place)] = NONE;
        }
    }
}

impl Entry {
    #[inline(always)]
    fn reaches(&self, address: u64, bytes: u64) -> bool {
        self.address == address & !0xfff && address & 0xfff <= 0x1000 - bytes
    }
}
