//! What a machine's memory is made of, and what the guest's first page tables say of it.

use memory_model::PageSize;
use serde::Deserialize;

use crate::{Bytes, Page, Rights};

/// What a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KindSpec {
    /// Memory.
    Ram,
    /// Memory the guest cannot write.
    Rom,
    /// Memory that is read directly, and written by way of a device; one that is trapped is read so, too. The device
    /// answers every read with `value` and keeps nothing.
    RomDevice,
    /// A device that answers every read with `value`.
    Mmio,
    /// A part of another region once more.
    Alias,
}

/// Where a RAM block's memory comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingSpec {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// Shared memory behind a memfd.
    Memfd,
}

/// The host's pages behind a RAM block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PagesOf {
    /// As the host is set.
    #[default]
    Usual,
    /// 4 KiB pages only.
    Small,
    /// Transparent huge pages, where the host has them.
    Thp,
}

/// A region.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSpec {
    /// Its name, unlike every other.
    pub name: String,
    /// What it is.
    pub kind: KindSpec,
    /// Where the guest sees it.
    pub gpa: Bytes,
    /// Its size: whole pages.
    pub size: Bytes,
    /// Which of two overlapping regions is seen: the higher priority. The main RAM has 0.
    #[serde(default)]
    pub priority: i32,
    /// Where its memory comes from (RAM, ROM).
    #[serde(default)]
    pub backing: BackingSpec,
    /// The host's pages behind its memory (RAM, ROM).
    #[serde(default)]
    pub pages: PagesOf,
    /// Whether it is seen from the start.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Whether the guest cannot write to it, whatever it is.
    #[serde(default)]
    pub readonly: bool,
    /// The region it shows (aliases); `ram` is the main RAM.
    pub target: Option<String>,
    /// Where in the target it begins (aliases).
    pub offset: Option<Bytes>,
    /// What a read gives (MMIO, ROM devices).
    pub value: Option<u64>,
}

/// A piece of the guest's page tables.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapSpec {
    /// From this guest-virtual address on.
    pub gva: Bytes,
    /// To this guest-physical address.
    pub gpa: Bytes,
    /// So many bytes: whole pages.
    pub size: Bytes,
    /// With this page size.
    #[serde(default = "small_page")]
    pub page: Page,
    /// With these rights; `""` leaves the range unmapped.
    #[serde(default = "all_rights")]
    pub access: Rights,
    /// For ring 0 alone, or for ring 3, too.
    #[serde(default = "three")]
    pub ring: u8,
}

impl RegionSpec {
    /// RAM at an address, and nothing special.
    pub fn ram(name: &str, gpa: u64, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            kind: KindSpec::Ram,
            gpa: Bytes(gpa),
            size: Bytes(size),
            priority: 0,
            backing: BackingSpec::default(),
            pages: PagesOf::default(),
            enabled: true,
            readonly: false,
            target: None,
            offset: None,
            value: None,
        }
    }
}

fn small_page() -> Page {
    Page(PageSize::Size4K)
}

fn all_rights() -> Rights {
    Rights::ALL
}

fn yes() -> bool {
    true
}

fn three() -> u8 {
    3
}
