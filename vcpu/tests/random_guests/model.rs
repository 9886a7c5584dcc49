//! The machine without a second level: guest-physical memory is bytes, and the only tables are the guest's.
//!
//! The walk is written from the SDM (vol. 3A, 4.5 to 4.8) for this test. An access goes page by page, in the order of
//! its addresses, and flags are set once the whole of a page's walk has succeeded. A table where no memory is holds no
//! present entry.

use std::collections::{BTreeMap, BTreeSet};

use memory_model::{Gpa, Gva};
use vcpu::soft::{AccessKind, Bus, BusFault, Paging};
use vcpu::{cr0, cr4, efer};

use crate::layout::{PAGE, RAM_BYTES, SLOTS};
use crate::program::HostEvent;

const PHYSICAL_BITS: u32 = 46;
const FRAME: u64 = (1 << PHYSICAL_BITS) - PAGE;
/// Bits 51:46.
const TOO_WIDE: u64 = (1 << 52) - (1 << PHYSICAL_BITS);
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a #PF error code.
const CODE_PRESENT: u32 = 1 << 0;
const CODE_WRITE: u32 = 1 << 1;
const CODE_USER: u32 = 1 << 2;
const CODE_RESERVED: u32 = 1 << 3;
const CODE_FETCH: u32 = 1 << 4;

/// The guest's memory, and what is logged of it.
pub struct Model {
    pub ram: Vec<u8>,
    present: [bool; SLOTS.len()],
    logged: [bool; SLOTS.len()],
    /// Pages of each logged slot that were written since its log was read.
    written: [BTreeSet<u64>; SLOTS.len()],
    /// Pages of RAM that the host keeps from the guest: from reads too, or from writes alone.
    protected: BTreeMap<u64, bool>,
    /// Error codes of the page faults so far.
    pub codes: BTreeSet<u32>,
}

impl Model {
    pub fn new(image: &[(u64, Vec<u8>)]) -> Self {
        let mut ram = vec![0; RAM_BYTES as usize];
        for (offset, bytes) in image {
            ram[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Self {
            ram,
            present: [true; SLOTS.len()],
            logged: [false; SLOTS.len()],
            written: Default::default(),
            protected: BTreeMap::new(),
            codes: BTreeSet::new(),
        }
    }

    /// What an event means to the guest and to logs. `false` if it changes nothing: then it does not happen.
    pub fn host(&mut self, event: HostEvent) -> bool {
        match event {
            HostEvent::Replace(slot) => {
                self.written[slot].clear();
                self.present[slot]
            }
            HostEvent::Remove(slot) => {
                self.written[slot].clear();
                std::mem::replace(&mut self.present[slot], false)
            }
            HostEvent::Restore(slot) => !std::mem::replace(&mut self.present[slot], true),
            HostEvent::LogOn(slot) => self.present[slot] && !std::mem::replace(&mut self.logged[slot], true),
            HostEvent::LogOff(slot) => {
                self.written[slot].clear();
                self.present[slot] && std::mem::replace(&mut self.logged[slot], false)
            }
            HostEvent::Collect(slot) => self.present[slot] && self.logged[slot],
            HostEvent::Protect { page, all } => self.protected.insert(page, all) != Some(all),
            HostEvent::Unprotect(page) => self.protected.remove(&page).is_some(),
            HostEvent::Shield(page) => !self.protected.contains_key(&page),
            HostEvent::Discard(page) => {
                self.ram[page as usize..][..PAGE as usize].fill(0);
                true
            }
            HostEvent::Age(slot) => self.present[slot],
            HostEvent::SwapOut { .. }
            | HostEvent::Migrate { .. }
            | HostEvent::Merge(..)
            | HostEvent::Collapse(_)
            | HostEvent::Split(_) => true,
        }
    }

    /// Slots that log now.
    pub fn logging(&self) -> impl Iterator<Item = usize> + '_ {
        (0..SLOTS.len()).filter(|&slot| self.present[slot] && self.logged[slot])
    }

    /// Which pages of the slot were written, from now on anew.
    pub fn collect(&mut self, slot: usize) -> BTreeSet<u64> {
        std::mem::take(&mut self.written[slot])
    }

    fn slot(&self, gpa: u64) -> Option<usize> {
        (0..SLOTS.len()).find(|&slot| self.present[slot] && SLOTS[slot].holds(gpa))
    }

    /// Where `gpa` lies in RAM.
    pub fn offset(&self, gpa: u64) -> Option<usize> {
        let slot = SLOTS[self.slot(gpa)?];
        Some((slot.offset + (gpa - slot.gpa)) as usize)
    }

    fn store(&mut self, gpa: u64, data: &[u8]) {
        let (Some(slot), Some(offset)) = (self.slot(gpa), self.offset(gpa)) else { return };
        self.ram[offset..][..data.len()].copy_from_slice(data);
        if self.logged[slot] {
            self.written[slot].insert((gpa - SLOTS[slot].gpa) / PAGE);
        }
    }

    /// From linear to guest-physical, with the flags set that the access sets.
    fn walk(&mut self, paging: &Paging, gva: u64, kind: AccessKind) -> Result<u64, BusFault> {
        let no_execute = paging.efer & efer::NXE != 0;
        let fetch_shows = no_execute || paging.cr4 & cr4::SMEP != 0;
        let mut code = 0;
        if kind == AccessKind::Write {
            code |= CODE_WRITE;
        }
        if paging.user {
            code |= CODE_USER;
        }
        if kind == AccessKind::Fetch && fetch_shows {
            code |= CODE_FETCH;
        }
        let fault = |more| Err(BusFault::PageFault { error_code: code | more, address: Gva(gva) });

        let levels = if paging.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
        let unused = 64 - 12 - 9 * levels;
        if ((gva << unused) as i64 >> unused) as u64 != gva {
            return Err(BusFault::NotCanonical);
        }
        let (mut writable, mut user, mut executable) = (true, true, true);
        let mut path = Vec::new();
        let mut table = paging.cr3 & FRAME;
        let mut level = levels;
        let (leaf, shift) = loop {
            let shift = 12 + 9 * (level - 1);
            let address = table + 8 * (gva >> shift & 511);
            let Some(offset) = self.offset(address) else { return fault(0) };
            let entry = u64::from_le_bytes(self.ram[offset..][..8].try_into().expect("eight bytes"));
            if entry & PRESENT == 0 {
                return fault(0);
            }
            let large = level > 1 && entry & PAGE_SIZE != 0;
            let mut reserved = TOO_WIDE;
            if !no_execute {
                reserved |= NO_EXECUTE;
            }
            if level > 3 {
                reserved |= PAGE_SIZE;
            } else if large {
                // Between the PAT bit and the frame.
                reserved |= (1 << shift) - (1 << 13);
            }
            if entry & reserved != 0 {
                return fault(CODE_PRESENT | CODE_RESERVED);
            }
            writable &= entry & WRITABLE != 0;
            user &= entry & USER != 0;
            executable &= entry & NO_EXECUTE == 0;
            path.push((address, entry));
            if level == 1 || large {
                break (entry, shift);
            }
            table = entry & FRAME;
            level -= 1;
        };

        let allowed = match (paging.user, kind) {
            (true, AccessKind::Read) => user,
            (true, AccessKind::Write) => user && writable,
            (true, AccessKind::Fetch) => user && executable,
            (false, AccessKind::Fetch) => executable && !(user && paging.cr4 & cr4::SMEP != 0),
            (false, _) => {
                let prevented = user && paging.cr4 & cr4::SMAP != 0 && !paging.ac;
                let protected = kind == AccessKind::Write && !writable && paging.cr0 & cr0::WP != 0;
                !prevented && !protected
            }
        };
        if !allowed {
            return fault(CODE_PRESENT);
        }
        let last = path.len() - 1;
        for (depth, &(address, entry)) in path.iter().enumerate() {
            let dirty = if depth == last && kind == AccessKind::Write { DIRTY } else { 0 };
            let marked = entry | ACCESSED | dirty;
            if marked != entry {
                self.store(address, &marked.to_le_bytes());
            }
        }
        let inside = (1 << shift) - 1;
        Ok(leaf & FRAME & !inside | gva & inside)
    }

    /// The place in memory of a part of an access, or the device that is there.
    fn reach(&mut self, paging: &Paging, part: Part, kind: AccessKind) -> Result<u64, BusFault> {
        let walked = self.walk(paging, part.gva, kind);
        if let Err(BusFault::PageFault { error_code, .. }) = walked {
            self.codes.insert(error_code);
        }
        let gpa = walked?;
        match self.slot(gpa) {
            Some(slot) if !(SLOTS[slot].readonly && kind == AccessKind::Write) => {
                let page = (SLOTS[slot].offset + (gpa - SLOTS[slot].gpa)) & !(PAGE - 1);
                match self.protected.get(&page) {
                    Some(all) if *all || kind == AccessKind::Write => {
                        Err(BusFault::HostMemory { gpa: Gpa(gpa) })
                    }
                    _ => Ok(gpa),
                }
            }
            _ => Err(BusFault::Mmio { gpa: Gpa(gpa), len: part.len }),
        }
    }
}

/// The part of an access that lies in one page.
#[derive(Clone, Copy)]
struct Part {
    gva: u64,
    start: usize,
    len: usize,
}

fn parts(gva: Gva, len: usize) -> Result<Vec<Part>, BusFault> {
    let first = len.min((PAGE - gva.raw() % PAGE) as usize);
    let mut parts = vec![Part { gva: gva.raw(), start: 0, len: first }];
    if first < len {
        let gva = gva.raw().checked_add(first as u64).ok_or(BusFault::NotCanonical)?;
        parts.push(Part { gva, start: first, len: len - first });
    }
    Ok(parts)
}

impl Bus for Model {
    fn read(&mut self, paging: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        for part in parts(gva, buf.len())? {
            let gpa = self.reach(paging, part, kind)?;
            let offset = self.offset(gpa).expect("a slot is there");
            buf[part.start..][..part.len].copy_from_slice(&self.ram[offset..][..part.len]);
        }
        Ok(())
    }

    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        let mut reached = Vec::new();
        for part in parts(gva, data.len())? {
            reached.push((self.reach(paging, part, AccessKind::Write)?, part));
        }
        for (gpa, part) in reached {
            self.store(gpa, &data[part.start..][..part.len]);
        }
        Ok(())
    }

    fn invalidate_page(&mut self, _: Gva) {}

    fn invalidate_all(&mut self) {}
}
