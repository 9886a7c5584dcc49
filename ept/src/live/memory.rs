//! The kernel's memory, and the means by which it is read.

use core::fmt;

use super::LiveError;
use super::bpf::Programs;
use super::btf::Field;
use super::kcore::Kcore;

/// How the kernel's memory is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// Two BPF programs of a few instructions.
    Bpf,
    /// `/proc/kcore`, where the kernel shows its memory as a core file.
    Kcore,
}

impl Means {
    /// All of them, the first choice first: a wrong address is an error to BPF, and reads as zeroes in parts of `/proc/kcore`.
    pub const ALL: [Self; 2] = [Self::Bpf, Self::Kcore];

    /// Why this process cannot read the kernel's memory by it.
    pub fn missing(self) -> Option<LiveError> {
        KernelMemory::open(self).err()
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bpf => "BPF",
            Self::Kcore => "/proc/kcore",
        })
    }
}

/// The kernel's memory, to be read from any thread.
#[derive(Debug)]
pub(super) enum KernelMemory {
    Bpf(Programs),
    Kcore(Kcore),
}

impl KernelMemory {
    pub fn open(means: Means) -> Result<Self, LiveError> {
        match means {
            Means::Bpf => Programs::load().map(Self::Bpf),
            Means::Kcore => Kcore::open().map(Self::Kcore),
        }
    }

    /// By the first means that is to be had.
    pub fn open_any() -> Result<Self, LiveError> {
        Self::open(Means::Bpf).or_else(|bpf| {
            let missing = |kcore: LiveError| LiveError::NoMeans { bpf: bpf.into(), kcore: kcore.into() };
            Self::open(Means::Kcore).map_err(missing)
        })
    }

    pub fn means(&self) -> Means {
        match self {
            Self::Bpf(_) => Means::Bpf,
            Self::Kcore(_) => Means::Kcore,
        }
    }

    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        match self {
            Self::Bpf(programs) => programs.read(address, bytes),
            Self::Kcore(kcore) => kcore.read(address, bytes),
        }
    }

    /// A field, of eight bytes at most, of the calling thread's `task_struct`.
    pub fn of_current_task(&self, field: Field) -> Result<u64, LiveError> {
        match self {
            Self::Bpf(programs) => self.field(programs.current_task()?, field),
            Self::Kcore(kcore) => kcore.of_current_task(field),
        }
    }

    /// A field of the structure at `address`. Nothing else of it is read: structures may end before a page does.
    pub fn field(&self, address: u64, field: Field) -> Result<u64, LiveError> {
        let mut bytes = [0; 8];
        let shift = Field { bit: field.bit % 8, bits: field.bits.min(64) };
        let bytes = &mut bytes[..((shift.bit + shift.bits).div_ceil(8) as usize).min(8)];
        self.read(address.wrapping_add(field.offset()), bytes)?;
        Ok(shift.value(bytes).unwrap_or(0))
    }

    /// The kernel's address of physical memory, if the means itself knows it.
    pub fn direct_map(&self) -> Option<u64> {
        match self {
            Self::Bpf(_) => None,
            Self::Kcore(kcore) => kcore.direct_map(),
        }
    }
}

/// Whether nobody may read the kernel's memory, by whatever means.
pub(super) fn is_locked_down() -> bool {
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    lockdown.contains("[confidentiality]")
}
