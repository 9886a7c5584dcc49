//! A second walker, slow and plain: if by if from the rules' text, with the bits' numbers. It shares no code with the
//! crate, and its formats none with each other but what is here.

pub mod ept;
pub mod ia32e;
pub mod legacy32;
pub mod nested;
pub mod npt;
pub mod pae;

/// The access.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    pub user: bool,
    pub ac: bool,
    pub shadow_stack: bool,
    /// The processor sets a flag in a guest's entry.
    pub guest_flag: bool,
}

/// What all entries together grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Granted {
    pub r: bool,
    pub w: bool,
    pub x: bool,
    pub u: bool,
    pub xu: bool,
    pub shadow_stack: bool,
    pub paging_write: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// EPT: memory type, and whether PAT is ignored.
    Type(u64, bool),
    /// Elsewhere: an index into PAT.
    Pat(u64),
}

/// Why an entry is misconfigured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    M1,
    M2,
    /// The reserved bits that are set.
    M3(u64),
    M4(u64),
    M5,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    Page {
        address: u64,
        bytes: u64,
        granted: Granted,
        memory: Memory,
    },
    /// The error code.
    PageFault(u64),
    /// The exit qualification.
    Violation(u64),
    /// All that is wrong with the last entry.
    Misconfigured(Vec<Reason>),
    NotCanonical,
    TooWide,
    /// No memory answers there.
    NoMemory(u64),
}

/// An entry that was read: where, what it was, and what the walk leaves there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    pub level: u32,
    pub at: u64,
    pub entry: u64,
    pub after: u64,
}

#[derive(Clone, Debug)]
pub struct Walked {
    pub used: Vec<Used>,
    pub end: End,
}

impl Walked {
    /// A walk that goes no further.
    fn ends(used: Vec<Used>, end: End) -> Self {
        Self { used, end }
    }
}

fn bit(entry: u64, n: u32) -> bool {
    entry >> n & 1 == 1
}

/// Bits `high..=low`, in place.
fn bits(entry: u64, high: u32, low: u32) -> u64 {
    (low..=high).filter(|&n| bit(entry, n)).map(|n| 1 << n).sum()
}

/// Bits `high..=low`, moved down to bit 0.
fn number(entry: u64, high: u32, low: u32) -> u64 {
    bits(entry, high, low) >> low
}
