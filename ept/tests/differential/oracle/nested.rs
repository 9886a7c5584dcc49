//! Section "Two-dimensional walk": rules D1 and D2, with A2, V1, X4, N2 and N4, in terms of two slow walks.

use std::cell::{Cell, RefCell};

use super::{Ask, End, Used, Walked, bit, ept};
use crate::subject::Machine;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NestedEnd {
    /// GPA and HPA.
    Page(u64, u64),
    Guest(End),
    /// An access to the guest's entry at this GPA.
    Table(u64, End),
    /// The access to this GPA itself.
    Final(u64, End),
}

/// Memory, and what is done to it.
pub trait Cells {
    fn get(&self, address: u64) -> Option<u64>;
    fn set(&self, address: u64, value: u64);
}

pub struct Nested<'a, C> {
    pub cells: &'a C,
    pub guest: Option<&'a Machine>,
    pub second: &'a Machine,
    /// Whether flags are set.
    pub set_flags: bool,
    pub references: Cell<u32>,
    /// Whether all guest tables lie in pages with bit 58.
    pub verified: Cell<bool>,
}

impl<C: Cells> Nested<'_, C> {
    pub fn walk(&self, gva: u64, ask: Ask) -> NestedEnd {
        let Some(guest) = self.guest else {
            // Without paging an address is one of user mode, writable and executable.
            return self.last(gva, ask, true, 1 << 9 | 1 << 10);
        };
        loop {
            self.verified.set(true);
            let failed = RefCell::new(None);
            let read = |gpa| match self.guest_entry(gpa, self.table_ask()) {
                Ok((_, entry)) => Some(entry),
                Err(end) => {
                    *failed.borrow_mut() = Some(end);
                    None
                }
            };
            let walked = guest.slow_walk(gva, ask, read);
            if let Some(end) = failed.take() {
                return end;
            }
            let End::Page { address, granted, .. } = walked.end else { return NestedEnd::Guest(walked.end) };
            if self.set_flags {
                match self.set_guest_flags(&walked.used) {
                    Ok(true) => {}
                    // An entry is no longer what it was: the processor walks again.
                    Ok(false) => continue,
                    Err(end) => return end,
                }
            }
            let mut told = 0;
            if granted.u {
                told |= 1 << 9;
            }
            if granted.w {
                told |= 1 << 10;
            }
            if !granted.x {
                told |= 1 << 11;
            }
            return self.last(address, ask, granted.u, told);
        }
    }

    /// Rules A2 and N2: how an access to a guest table counts.
    fn table_ask(&self) -> Ask {
        let writes = match self.second {
            Machine::Ept(machine) => machine.accessed_dirty,
            _ => true,
        };
        if writes { FLAG_UPDATE } else { Ask { write: false, guest_flag: false, ..FLAG_UPDATE } }
    }

    /// The HPA and the value of a guest's entry.
    fn guest_entry(&self, gpa: u64, ask: Ask) -> Result<(u64, u64), NestedEnd> {
        let walked = self.second_walk(gpa, ask);
        let address = match walked.end {
            End::Page { address, .. } => {
                let leaf = walked.used.last().expect("a page has a leaf").entry;
                self.verified.set(self.verified.get() && bit(leaf, 58));
                address
            }
            // Bit 7: there is a linear address. Bit 8 is clear.
            End::Violation(bits) => return Err(NestedEnd::Table(gpa, End::Violation(bits | 1 << 7))),
            End::PageFault(bits) => return Err(NestedEnd::Table(gpa, End::PageFault(bits | 1 << 33))),
            other => return Err(NestedEnd::Table(gpa, other)),
        };
        self.references.set(self.references.get() + 1);
        match self.cells.get(address) {
            Some(entry) => Ok((address, entry)),
            None => Err(NestedEnd::Table(gpa, End::NoMemory(address))),
        }
    }

    fn set_guest_flags(&self, used: &[Used]) -> Result<bool, NestedEnd> {
        for &Used { at, entry, after, .. } in used {
            if entry == after {
                continue;
            }
            let shift = 8 * (at & 7);
            let (word, flags) = (at & !7, (entry ^ after) << shift);
            let before = self.references.get();
            let (hpa, now) = self.guest_entry(word, FLAG_UPDATE)?;
            self.references.set(before);
            let mask = if let Some(Machine::Legacy32(_)) = self.guest { 0xffff_ffff } else { u64::MAX };
            if now >> shift & mask != entry {
                return Ok(false);
            }
            self.cells.set(hpa, now | flags);
        }
        Ok(true)
    }

    fn last(&self, gpa: u64, ask: Ask, user_address: bool, told: u64) -> NestedEnd {
        // V1: user mode by the address, not by who asks.
        let user = matches!(self.second, Machine::Ept(_)) && user_address
            || !matches!(self.second, Machine::Ept(_)) && ask.user;
        let ask = Ask { user, ..ask };
        let walked = self.second_walk(gpa, ask);
        match walked.end {
            End::Page { granted, .. } if !self.verified.get() && self.verifies(&walked) => {
                let End::Violation(bits) = ept::violation(ask, granted) else { unreachable!() };
                NestedEnd::Final(gpa, End::Violation(bits | 1 << 7 | 1 << 8 | 1 << 15 | told))
            }
            End::Page { address, .. } => NestedEnd::Page(gpa, address),
            End::Violation(bits) => NestedEnd::Final(gpa, End::Violation(bits | 1 << 7 | 1 << 8 | told)),
            End::PageFault(bits) => NestedEnd::Final(gpa, End::PageFault(bits | 1 << 32)),
            other => NestedEnd::Final(gpa, other),
        }
    }

    /// Rule X4: bit 57 of the final leaf.
    fn verifies(&self, walked: &Walked) -> bool {
        let Machine::Ept(machine) = self.second else { return false };
        machine.guest_paging_verification && walked.used.last().is_some_and(|leaf| bit(leaf.entry, 57))
    }

    fn second_walk(&self, gpa: u64, ask: Ask) -> Walked {
        let walked = self.second.slow_walk(gpa, ask, |at| self.cells.get(at));
        self.references.set(self.references.get() + walked.used.len() as u32);
        if self.set_flags {
            for &Used { at, entry, after, .. } in &walked.used {
                let now = self.cells.get(at).expect("it was read");
                self.cells.set(at, now | entry ^ after);
            }
        }
        walked
    }
}

const FLAG_UPDATE: Ask = Ask {
    read: true,
    write: true,
    fetch: false,
    user: false,
    ac: false,
    shadow_stack: false,
    guest_flag: true,
};
