//! The manifest: which machine a guest wants, how long it may run, and what must hold when it has ended.

mod check;
mod expect;
pub(crate) mod place;
mod region;
mod step;

use std::collections::BTreeMap;

use memory_model::PageSize;
use serde::Deserialize;

pub use self::expect::{AbsentSpec, EndingSpec, Expect, Holds, MmioSpec, PASS, PagesSpec, SamePageSpec};
pub use self::region::{BackingSpec, KindSpec, MapSpec, PagesOf, RegionSpec};
pub use self::step::{Action, Change, MemoryEvent, Occasion, StepSpec};
use crate::{Bytes, GuestError, Location, Page, Vector};

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
    /// Machines that it cannot run on, and what they lack.
    pub unsuited: BTreeMap<ColumnSpec, String>,
    /// What the host does while it runs.
    #[serde(rename = "step")]
    pub steps: Vec<StepSpec>,
    /// What must hold at the end, or before.
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
    /// Which pages are large.
    Huge,
    /// What a mapping allows.
    Rights,
    /// Regions, aliases and priorities.
    Region,
    /// Memory that comes, goes and moves while the guest runs.
    Slot,
    /// Which pages were written.
    Dirty,
    /// The host's own memory: pages given back, moved, protected.
    Host,
    /// Several processors.
    Vcpus,
    /// Accesses that leave the guest.
    Mmio,
    /// What interrupts processors.
    Interrupt,
    /// Guests that a compiler made.
    Language,
    /// Anything else.
    #[default]
    Other,
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Fault,
        Self::Paging,
        Self::Huge,
        Self::Rights,
        Self::Region,
        Self::Slot,
        Self::Dirty,
        Self::Host,
        Self::Vcpus,
        Self::Mmio,
        Self::Interrupt,
        Self::Language,
        Self::Other,
    ];

    /// The word in manifests, test names and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Paging => "paging",
            Self::Huge => "huge",
            Self::Rights => "rights",
            Self::Region => "region",
            Self::Slot => "slot",
            Self::Dirty => "dirty",
            Self::Host => "host",
            Self::Vcpus => "vcpus",
            Self::Mmio => "mmio",
            Self::Interrupt => "interrupt",
            Self::Language => "language",
            Self::Other => "other",
        }
    }
}

/// A machine that guests run on, by the name of its column.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnSpec {
    /// The software machine with EPT.
    Ept,
    /// The software machine with nested page tables.
    Npt,
    /// The software machine with shadow paging.
    Shadow,
    /// The host's KVM.
    Kvm,
    /// KVM inside QEMU's TCG.
    LabNpt,
    /// KVM inside Bochs.
    LabEpt,
}

/// Memory and processor.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSpec {
    /// The RAM at guest address 0; its region is called `ram`.
    pub memory: Bytes,
    /// How many processors it has. In long mode, at most four, all start with the program, each with its number in RDI and
    /// 16 KiB of stack; on a PC those after the first wait for INIT and SIPI.
    pub vcpus: u32,
    /// The privilege level the program starts at: 3 (with IOPL 3) or 0.
    pub ring: u8,
    /// The page size of the identity map, where a region's ends allow it.
    pub page: Page,
    /// The host's pages behind its memory.
    pub pages: PagesOf,
    /// How the host learns which pages were written.
    pub dirty_log: DirtyLogSpec,
    /// What its processors must have.
    pub needs: Vec<FeatureSpec>,
    /// How the program is started; if absent, by PVH if the file has a note for that, else as its ELF class wants it.
    pub boot: Option<BootSpec>,
    /// The name of the processor; the software machine alone can choose.
    pub vendor: VendorSpec,
    /// Its processors have x2APIC mode; the software machine alone can choose.
    pub x2apic: bool,
    /// Whether it has the interrupt controllers and timers of a PC; if absent, unless the program starts in long mode.
    pub interrupts: Option<bool>,
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

/// How the host learns which pages were written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirtyLogSpec {
    /// A bitmap for each slot; reading it clears it.
    #[default]
    Bitmap,
    /// A bitmap for each slot that is cleared by a call of its own (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    Manual,
    /// The same, and a log begins with all pages dirty.
    ManualInitiallySet,
    /// A ring of entries for each processor (`KVM_CAP_DIRTY_LOG_RING_ACQ_REL`).
    Ring,
}

/// A processor's feature, as CPUID tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureSpec {
    /// No execution of user pages at ring 0.
    Smep,
    /// No access to user pages at ring 0.
    Smap,
    /// Protection keys of user pages.
    Pku,
    /// Pages of 1 GiB.
    Pdpe1gb,
    /// Process-context identifiers.
    Pcid,
    /// Five levels of page tables.
    La57,
}

impl FeatureSpec {
    /// Its name in manifests: the one that Linux gives it in `/proc/cpuinfo`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Smep => "smep",
            Self::Smap => "smap",
            Self::Pku => "pku",
            Self::Pdpe1gb => "pdpe1gb",
            Self::Pcid => "pcid",
            Self::La57 => "la57",
        }
    }

    /// Leaf, subleaf, register (EAX to EDX from 0 on) and bit of CPUID (SDM vol. 2A, CPUID).
    pub const fn cpuid(self) -> (u32, u32, usize, u32) {
        match self {
            Self::Smep => (7, 0, 1, 7),
            Self::Smap => (7, 0, 1, 20),
            Self::Pku => (7, 0, 2, 3),
            Self::Pdpe1gb => (0x8000_0001, 0, 3, 26),
            Self::Pcid => (1, 0, 2, 17),
            Self::La57 => (7, 0, 2, 16),
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
            pages: PagesOf::default(),
            dirty_log: DirtyLogSpec::default(),
            needs: Vec::new(),
            boot: None,
            vendor: VendorSpec::default(),
            x2apic: true,
            interrupts: None,
            command_line: String::new(),
        }
    }
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

impl Manifest {
    /// Reads and checks a manifest.
    pub fn parse(text: &str) -> Result<Self, GuestError> {
        if text.len() > MAX_TEXT {
            return Err(GuestError::ManifestSize { size: text.len() });
        }
        let manifest: Self = toml::from_str(text).map_err(|error| {
            let (line, column) = place::position(text, error.span().map_or(0, |span| span.start));
            let message = error.message().replace('\n', " ");
            GuestError::ManifestText { line, column, message }
        })?;
        manifest.check().map_err(|wrong| wrong.within(Some(text)))?;
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
        let pages = self.machine.pages;
        RegionSpec { pages, ..RegionSpec::ram("ram", 0, self.machine.memory.0) }
    }
}
