//! What must hold at the end of a run, or at a moment of it.

use memory_model::PageSize;
use serde::Deserialize;

use super::Occasion;
use crate::{Bytes, Location, Page, Rights};

/// What must hold when the guest has ended.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// How the run ends.
    pub ending: EndingSpec,
    /// The code written to the exit port.
    pub exit: u8,
    /// Everything written to the console.
    pub console: Option<String>,
    /// Pages that the guest touched.
    pub pages: Vec<PagesSpec>,
    /// Pages that are one page under two addresses.
    pub same_page: Vec<SamePageSpec>,
    /// Pages that no second-level leaf maps.
    pub absent: Vec<AbsentSpec>,
    /// How often the vCPU left with a memory fault; not checked if the key is absent.
    pub memory_faults: Option<u64>,
    /// The MMIO accesses the host saw: exactly these, in this order; not checked if the key is absent.
    pub mmio: Option<Vec<MmioSpec>>,
}

/// What a guest reports when all its own checks hold (QEMU's isa-debug-exit then ends with status 33).
pub const PASS: u8 = 0x10;

impl Default for Expect {
    fn default() -> Self {
        Self {
            ending: EndingSpec::default(),
            exit: PASS,
            console: None,
            pages: Vec::new(),
            same_page: Vec::new(),
            absent: Vec::new(),
            memory_faults: None,
            mmio: None,
        }
    }
}

/// How a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndingSpec {
    /// The guest writes `exit` to the exit port.
    #[default]
    Exit,
    /// It halts.
    Halt,
    /// It faults while a fault is delivered: a triple fault.
    Shutdown,
    /// It does what the host's own page does not allow.
    MemoryFault,
}

/// Pages that the guest touched: each is followed from GVA to HPA.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesSpec {
    /// The first page's guest-virtual address.
    pub at: Location,
    /// How many.
    #[serde(default = "one")]
    pub count: u64,
    /// From one to the next, in bytes.
    #[serde(default = "small_stride")]
    pub stride: Bytes,
    /// What the guest did there: the second level must allow at least this.
    pub access: Rights,
    /// The region it must lie in.
    pub region: Option<String>,
    /// What its first eight bytes hold: a number, or `gva` for the page's own address.
    pub holds: Option<Holds>,
    /// The page size in the guest's own tables.
    pub guest_page: Option<Page>,
    /// Where the first page leads, for a guest that has changed its tables: those that follow are behind it. If absent,
    /// where the manifest's own maps lead.
    pub gpa: Option<Bytes>,
    /// The page size of the second level: where that is a table of guest-physical addresses.
    pub leaf: Option<Page>,
    /// Where it is a shadow of the guest's tables, whose pages are never larger than the guest's own; as `leaf`, if absent.
    pub shadow_leaf: Option<Page>,
    /// When it must hold, after the steps of that occasion; at the end, if absent.
    pub when: Option<Occasion>,
}

/// Pages that no second-level leaf maps: nobody has been there since they went.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbsentSpec {
    /// The first page's address, guest-virtual and guest-physical.
    pub at: Location,
    /// How many pages of 4 KiB.
    #[serde(default = "one")]
    pub count: u64,
    /// When it must hold, after the steps of that occasion; at the end, if absent.
    pub when: Option<Occasion>,
}

/// The content of a page's first eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    /// The guest-virtual address that the manifest names for the page.
    Gva,
    /// A number.
    Value(u64),
}

impl std::str::FromStr for Holds {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "gva" {
            Ok(Self::Gva)
        } else {
            Err(format!("`{text}` is no content: use a number or `gva`"))
        }
    }
}

impl From<u64> for Holds {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

/// Pages that are one page under two addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamePageSpec {
    /// The first page of the one range.
    pub one: Location,
    /// The first page of the other.
    pub other: Location,
    /// How many pages of 4 KiB.
    #[serde(default = "one")]
    pub count: u64,
    /// When it must hold, after the steps of that occasion; at the end, if absent.
    pub when: Option<Occasion>,
}

/// An MMIO access that the host saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmioSpec {
    /// Guest-physical address.
    pub at: u64,
    /// Bytes: 1 to 8.
    pub size: u8,
    /// The value written; a read if absent.
    pub write: Option<u64>,
}

fn small_stride() -> Bytes {
    Bytes(PageSize::Size4K.bytes())
}

fn one() -> u64 {
    1
}
