//! The manifest: which machine a guest wants, how long it may run, and what must hold when it has ended.

mod check;

use std::collections::BTreeMap;

use memory_model::PageSize;
use serde::Deserialize;

use crate::{Bytes, GuestError, Location, Page, Rights, Vector};

/// The text of a manifest may be this long, in bytes.
pub const MAX_TEXT: usize = 1 << 20;
/// All RAM and ROM of a machine together may be this large, in bytes.
pub const MAX_MEMORY: u64 = 64 << 30;
/// Regions lie below this guest-physical address.
pub const MAX_GPA: u64 = 1 << 46;
/// A list of expected pages may name this many: each keeps a chain.
pub const MAX_EXPECTED: u64 = 1 << 16;
/// A map may have this many pages.
pub const MAX_PAGES: u64 = 1 << 20;
/// A machine may have this many processors.
pub const MAX_VCPUS: u32 = 64;
/// The budget may be this long, in milliseconds.
pub const MAX_TIME_MS: u64 = 3_600_000;

/// A whole manifest. Every key has a default: an empty text, or none, is a manifest too.
///
/// ```
/// use guest_tests::Manifest;
/// let manifest = Manifest::parse("
///     [machine]
///     memory = '32M'
///     [[expect.pages]]
///     at = 'buffer'
///     count = 4
///     access = 'w'
/// ")?;
/// assert_eq!(manifest.machine.memory.0, 32 << 20);
/// let error = Manifest::parse("[machine]\nmemroy = '32M'").unwrap_err();
/// assert!(error.to_string().starts_with("manifest line 2, column 1: unknown field `memroy`"));
/// # Ok::<(), guest_tests::GuestError>(())
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    /// One line that says what the guest shows.
    pub summary: String,
    /// What part of memory virtualization it is about: the middle of its test's name.
    pub area: Area,
    /// Memory and processor.
    pub machine: MachineSpec,
    /// Regions beside the main RAM.
    #[serde(rename = "region")]
    pub regions: Vec<RegionSpec>,
    /// What the guest's page tables map, beyond the identity of every region.
    #[serde(rename = "map")]
    pub maps: Vec<MapSpec>,
    /// Ring-0 exception handlers, by exception name.
    pub handlers: BTreeMap<Vector, Location>,
    /// How long the guest may run.
    pub budget: BudgetSpec,
    /// What must hold at the end.
    pub expect: Expect,
}

/// What a guest is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Pages that come when they are touched.
    Fault,
    /// The guest's own page tables.
    Paging,
    /// Regions, aliases and priorities.
    Region,
    /// Accesses that leave the guest.
    Mmio,
    /// What interrupts processors.
    Interrupt,
    /// Anything else.
    #[default]
    Other,
}

impl Area {
    /// The word in test names.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Paging => "paging",
            Self::Region => "region",
            Self::Mmio => "mmio",
            Self::Interrupt => "interrupt",
            Self::Other => "other",
        }
    }
}

/// Memory and processor.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSpec {
    /// The RAM at guest address 0; its region is called `ram`.
    pub memory: Bytes,
    /// How many processors it has; those after the first wait for INIT and SIPI, which only a PC has (Multiboot).
    pub vcpus: u32,
    /// The privilege level the program starts at: 3 (with IOPL 3) or 0.
    pub ring: u8,
    /// The page size of the identity map, where a region's ends allow it.
    pub page: Page,
    /// How the program is started; if absent, by PVH if the file has a note for that, else as its ELF class wants it.
    pub boot: Option<BootSpec>,
    /// The name of the processor; the software machine alone can choose.
    pub vendor: VendorSpec,
    /// Its processors have x2APIC mode; the software machine alone can choose.
    pub x2apic: bool,
    /// What a guest is told as its command line, but for one in long mode.
    pub command_line: String,
}

/// How a program is started. `ring`, `page`, maps and handlers are for long mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootSpec {
    /// In long mode, with page tables: a 64-bit ELF file.
    Long,
    /// By Multiboot 1, on a PC: a 32-bit ELF file with its header.
    Multiboot,
    /// By PVH, on a PC: an ELF file with the note `XEN_ELFNOTE_PHYS32_ENTRY`.
    Pvh,
    /// By Linux's own protocol, on a PC: a bzImage.
    Linux,
}

impl BootSpec {
    /// The word in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Long => "long",
            Self::Multiboot => "multiboot",
            Self::Pvh => "pvh",
            Self::Linux => "linux",
        }
    }

    /// The file that can be started so.
    pub(crate) const fn needs(self) -> &'static str {
        match self {
            Self::Long => "a 64-bit ELF file",
            Self::Multiboot => "a 32-bit ELF file",
            Self::Pvh => "an ELF file with the note XEN_ELFNOTE_PHYS32_ENTRY",
            Self::Linux => "a bzImage",
        }
    }
}

/// Whose processor `CPUID` says it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VendorSpec {
    /// `GenuineIntel`, which programs expect that know one other name at most.
    #[default]
    Intel,
    /// `AuthenticAMD`.
    Amd,
    /// `memvirt soft`.
    Memvirt,
}

impl std::str::FromStr for VendorSpec {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "intel" => Ok(Self::Intel),
            "amd" => Ok(Self::Amd),
            "memvirt" => Ok(Self::Memvirt),
            _ => Err(format!("no vendor `{name}`: use intel, amd or memvirt")),
        }
    }
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            memory: Bytes(16 << 20),
            vcpus: 1,
            ring: 3,
            page: Page(PageSize::Size4K),
            boot: None,
            vendor: VendorSpec::default(),
            x2apic: true,
            command_line: String::new(),
        }
    }
}

/// What a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KindSpec {
    /// Memory.
    Ram,
    /// Memory the guest cannot write.
    Rom,
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
    /// The region it shows (aliases); `ram` is the main RAM.
    pub target: Option<String>,
    /// Where in the target it begins (aliases).
    pub offset: Option<Bytes>,
    /// What a read gives (MMIO).
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
    /// With these rights, for both rings; `""` leaves the range unmapped.
    #[serde(default = "all_rights")]
    pub access: Rights,
}

/// How long a guest may run.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSpec {
    /// Wall-clock milliseconds.
    pub ms: u64,
    /// Instructions, on a vCPU that counts them.
    pub instructions: u64,
}

impl Default for BudgetSpec {
    fn default() -> Self {
        Self { ms: 10_000, instructions: 50_000_000 }
    }
}

/// What must hold when the guest has ended.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// The code written to the exit port.
    pub exit: u8,
    /// Everything written to the console.
    pub console: Option<String>,
    /// Pages that the guest touched.
    pub pages: Vec<PagesSpec>,
    /// Pages that are one page under two addresses.
    pub same_page: Vec<SamePageSpec>,
    /// The MMIO accesses the host saw: exactly these, in this order; not checked if the key is absent.
    pub mmio: Option<Vec<MmioSpec>>,
}

/// What a guest reports when all its own checks hold (QEMU's isa-debug-exit then ends with status 33).
pub const PASS: u8 = 0x10;

impl Default for Expect {
    fn default() -> Self {
        Self { exit: PASS, console: None, pages: Vec::new(), same_page: Vec::new(), mmio: None }
    }
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

fn small_page() -> Page {
    Page(PageSize::Size4K)
}

fn small_stride() -> Bytes {
    Bytes(PageSize::Size4K.bytes())
}

fn all_rights() -> Rights {
    Rights::ALL
}

fn one() -> u64 {
    1
}

impl Manifest {
    /// Reads and checks a manifest.
    pub fn parse(text: &str) -> Result<Self, GuestError> {
        if text.len() > MAX_TEXT {
            return Err(GuestError::ManifestSize { size: text.len() });
        }
        let manifest: Self = toml::from_str(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', " ");
            GuestError::ManifestText { line, column, message }
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// That of a 32-bit file without one: 128 MiB, ten minutes, and exit code 0 for a pass, as kvm-unit-tests has it.
    pub fn multiboot() -> Self {
        Self {
            machine: MachineSpec { memory: Bytes(128 << 20), ..MachineSpec::default() },
            budget: BudgetSpec { ms: 600_000, instructions: u64::MAX },
            expect: Expect { exit: 0, ..Expect::default() },
            ..Self::default()
        }
    }

    /// That of a Linux kernel: 512 MiB, ten minutes, and exit code 0 for a pass.
    pub fn linux() -> Self {
        Self {
            machine: MachineSpec { memory: Bytes(512 << 20), ..MachineSpec::default() },
            ..Self::multiboot()
        }
    }

    /// The main RAM as a region.
    pub fn main_ram(&self) -> RegionSpec {
        RegionSpec {
            name: "ram".to_owned(),
            kind: KindSpec::Ram,
            gpa: Bytes(0),
            size: self.machine.memory,
            priority: 0,
            backing: BackingSpec::Anonymous,
            target: None,
            offset: None,
            value: None,
        }
    }
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
