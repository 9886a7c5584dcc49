//! A random guest as plain data: what can be generated, shrunk and printed.

use std::fmt;

use crate::layout::{FAR_TABLES, HOT, PAGE, TABLES};

/// What stays the same during a guest's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// CR4.LA57.
    pub five_levels: bool,
    /// How many address spaces there are.
    pub spaces: usize,
    /// The kernel maps its memory by pages of 2 MiB.
    pub large_kernel: bool,
    /// Some of the tables lie among the data of slot `large`.
    pub far_tables: bool,
    pub smep: bool,
    pub smap: bool,
    /// EFER.NXE; without it, NX is a reserved bit.
    pub no_execute: bool,
    /// The host backs RAM by pages of 2 MiB where it can.
    pub huge_host: bool,
    /// RAM begins one page after a multiple of 2 MiB in the host's process, so that no large page fits.
    pub shifted: bool,
}

/// A guest: what its tables hold at first, and what it does.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where all its random numbers come from.
    pub seed: u64,
    pub setting: Setting,
    /// Entries of its tables: address, value.
    pub tables: Vec<(u64, u64)>,
    pub steps: Vec<Step>,
}

/// Something the guest does, and what the host does meanwhile.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    /// The host's events, each after so many instructions of the operation.
    pub events: Vec<(u32, HostEvent)>,
}

/// What a guest does. Each leaves no translation behind that differs from the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// An access in ring 0.
    Touch(Touch),
    /// Accesses in ring 3.
    User(Vec<Touch>),
    /// The accesses, several times.
    Loop { times: u32, body: Vec<Touch> },
    /// Table entries change; then what the processor may remember of them is invalidated.
    Edit { edits: Vec<Edit>, flush: Flush },
    /// The entry is made absent; the fault that the access takes gives it this value, and the access is made again.
    Demand { entry: u64, value: u64, touch: Touch, user: bool },
    /// CR3 becomes the root of that address space.
    Switch(usize),
    /// CR0.WP changes.
    FlipWriteProtect,
    /// RFLAGS.AC changes, which suspends SMAP.
    FlipAccessCheck,
    /// A byte goes to a port.
    Port(u8),
}

/// How the guest invalidates after an edit. What must be invalidated is found when the program is lowered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flush {
    /// Everything, even where some `INVLPG` would do.
    pub all: bool,
    /// Even where nothing present has changed.
    pub needless: bool,
}

/// A change of one table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edit {
    pub entry: u64,
    pub change: Change,
    /// Which instructions do it.
    pub way: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Set(u64),
    Or(u64),
    And(u64),
}

impl Change {
    pub fn apply(self, old: u64) -> u64 {
        match self {
            Self::Set(value) => value,
            Self::Or(bits) => old | bits,
            Self::And(bits) => old & bits,
        }
    }
}

/// One access to data or code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    pub kind: TouchKind,
    pub gva: u64,
    /// 1, 2, 4 or 8.
    pub size: u8,
    /// What is stored, added, compared.
    pub value: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TouchKind {
    Load,
    Store,
    Add,
    Exchange,
    CompareExchange,
    /// Writes only the page that a sixteen-byte access begins in, or both.
    CompareExchange16,
    /// `REP STOS` of so many elements.
    Fill(u8),
    /// `REP MOVSB` of so many bytes, from there.
    Copy(u8, u64),
    /// Calls the stub there.
    Call,
    /// Writes another stub there.
    Patch,
}

/// What the host does between two instructions. Slots are numbers in [`SLOTS`](crate::layout::SLOTS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostEvent {
    /// The slot is deleted and comes back at once.
    Replace(usize),
    /// The slot is deleted: the guest meets a hole.
    Remove(usize),
    /// It comes back.
    Restore(usize),
    LogOn(usize),
    LogOff(usize),
    /// The dirty log is read and starts anew.
    Collect(usize),
    /// Pages of RAM, from an offset on, lose their frames.
    SwapOut {
        first: u64,
        pages: u64,
    },
    /// They get other frames.
    Migrate {
        first: u64,
        pages: u64,
    },
    /// Two pages get one frame, if their bytes are the same.
    Merge(u64, u64),
    /// A chunk of RAM gets one frame of 2 MiB.
    Collapse(u64),
    /// A frame of 2 MiB becomes small ones.
    Split(u64),
    /// A page may be read alone, or not be touched at all, until its first fault. Data alone.
    Protect {
        page: u64,
        all: bool,
    },
    /// It may be used again.
    Unprotect(u64),
    /// A page may not be used for a moment.
    Shield(u64),
    /// A page is zero from now on. Data alone.
    Discard(u64),
    /// The host asks what was accessed of a slot.
    Age(usize),
}

/// A table that is edited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    pub address: u64,
    pub level: u8,
    /// It maps what all address spaces share, and may have global pages.
    pub shared: bool,
}

/// Index in the top or fourth table of what each address space has for itself ...
pub const PRIVATE: u64 = 300;
/// ... and of what they share.
pub const SHARED: u64 = 7;
/// Index in a fifth-level table of the upper half.
pub const UPPER: u64 = 511;

impl Setting {
    pub const fn levels(&self) -> u8 {
        if self.five_levels { 5 } else { 4 }
    }

    /// All tables that are edited. The first are the roots, one for each address space; with five levels the fourth-level
    /// tables of each follow.
    pub fn pool(&self) -> Vec<Table> {
        let spaces = self.spaces;
        let mut kinds = Vec::new();
        let mut add = |count: usize, level, shared| kinds.extend(std::iter::repeat_n((level, shared), count));
        add(spaces, self.levels(), false);
        if self.five_levels {
            add(spaces + 1, 4, false);
        }
        add(1, 3, true);
        add(spaces + 1, 3, false);
        add(2, 2, true);
        add(spaces + 1, 2, false);
        add(3, 1, true);
        add(spaces + 2, 1, false);
        let address = |index: usize, level| {
            let far = self.far_tables && level <= 2 && index.is_multiple_of(2);
            PAGE * index as u64 + if far { FAR_TABLES } else { TABLES }
        };
        kinds
            .into_iter()
            .enumerate()
            .map(|(index, (level, shared))| Table { address: address(index, level), level, shared })
            .collect()
    }

    /// The root of an address space.
    pub fn root(&self, space: usize) -> u64 {
        self.pool()[space].address
    }

    /// Which entries of a table of that level are edited.
    pub fn indexes(&self, level: u8) -> &'static [u64] {
        match level {
            1 => &HOT,
            2 => &[0, 1, 2, 3],
            3 => &[0, 1],
            4 => &[PRIVATE],
            _ => &[UPPER],
        }
    }

    /// The linear address of a path through the tables, root first.
    pub fn gva(&self, [l5, l4, l3, l2, l1]: [u64; 5]) -> u64 {
        let address = l5 << 48 | l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12;
        let unused = if self.five_levels { 64 - 57 } else { 64 - 48 };
        ((address << unused) as i64 >> unused) as u64
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {:#x}, {:?}", self.seed, self.setting)?;
        let mut pool = self.setting.pool();
        pool.sort_by_key(|table| table.address);
        for table in pool {
            let shared = if table.shared { ", shared" } else { "" };
            write!(f, "  table {:#x} of level {}{shared}:", table.address, table.level)?;
            let inside = |address| (table.address..table.address + PAGE).contains(&address);
            for (address, value) in self.tables.iter().filter(|&&(address, _)| inside(address)) {
                write!(f, " [{:#x}] = {value:#x}", (address - table.address) / 8)?;
            }
            writeln!(f)?;
        }
        for (number, Step { op, events }) in self.steps.iter().enumerate() {
            writeln!(f, "  step {number}: {op:x?}")?;
            for (after, event) in events {
                writeln!(f, "    host, after {after} instructions: {event:x?}")?;
            }
        }
        Ok(())
    }
}
