//! Between the CPU and memory: what the CPU asks of the MMU, and how the MMU refuses.

use ept::ProtectionKeys;
use memory_model::{Gpa, Gva, RamPage};

use super::irqchip::Interrupts;

/// What an access is for. It decides rights and error codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, and the read half of a read-modify-write: needs the right to write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// The processor state a translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    /// CR0 (WP).
    pub cr0: u64,
    /// CR3: the root of the guest's tables.
    pub cr3: u64,
    /// CR4 (PSE, PAE, LA57, SMEP, SMAP, PKE, PKS).
    pub cr4: u64,
    /// EFER (LME, NXE).
    pub efer: u64,
    /// PKRU and IA32_PKRS.
    pub keys: ProtectionKeys,
    /// The page-directory pointers that PAE paging loaded with CR3.
    pub pdptes: [u64; 4],
    /// Whether the access is a user access: CPL 3, and not an implicit one (GDT, IDT, TSS).
    pub user: bool,
    /// RFLAGS.AC, for SMAP.
    pub ac: bool,
}

/// Why an access did not happen. Nothing was read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusFault {
    /// The guest's own tables refuse: #PF with this error code, CR2 = the address that failed.
    PageFault {
        /// The #PF error code.
        error_code: u32,
        /// What CR2 will hold: the first byte that could not be reached.
        address: Gva,
    },
    /// Not canonical: #GP(0), or #SS(0) for a stack access.
    NotCanonical,
    /// No slot here, or a write into a read-only one: the VMM must emulate the device. The access
    /// (or that part of it that lies in this page) starts at `gpa` and has `len` bytes.
    Mmio {
        /// Where.
        gpa: Gpa,
        /// Bytes of the access that lie in this page.
        len: usize,
    },
    /// A slot is here, but the host has no page behind it.
    HostMemory {
        /// Where.
        gpa: Gpa,
    },
    /// The second level leads where no guest memory is: it is broken.
    Broken,
    /// The slot or the host's page is about to change: the access is to be made again later.
    Retry,
}

/// Linear memory as the CPU sees it, through the guest's tables and the second level. Translations may be remembered from
/// one call to the next, until the guest invalidates them. An access may cross a page, and is done whole or not at all.
pub trait Bus {
    /// Reads `buf.len()` bytes at `gva`.
    fn read(&mut self, paging: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault>;
    /// Writes `data` at `gva`.
    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault>;
    /// The page of memory that such an access at `gva` reaches, whole, if there is nothing else to it: the access may be
    /// made there, and later ones like it too, until [`generation`](Self::generation) changes or the page is
    /// [invalidated](Self::invalidate_page). `None` where `read` and `write` are the only way, or have not been it yet.
    fn page(&mut self, _paging: &Paging, _gva: Gva, _kind: AccessKind) -> Option<RamPage> {
        None
    }
    /// Another number after each invalidation of more than the page asked for, and whenever else a page that was given may
    /// have become another one.
    fn generation(&self) -> u64 {
        0
    }
    /// `INVLPG`.
    fn invalidate_page(&mut self, gva: Gva);
    /// CR3, CR0, CR4, EFER or a protection key changed: no translation made before may be used again.
    fn invalidate_all(&mut self);
    /// The interrupt controllers, as this processor sees them at the time `now` or later; `None` in a machine without:
    /// there nothing interrupts, and `HLT` is the VMM's.
    fn interrupts(&mut self, _now: u64) -> Option<Interrupts<'_>> {
        None
    }
}
