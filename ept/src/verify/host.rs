//! What the host has behind the memory of a process, asked in stretches of pages.

use core::fmt;

use memory_model::{Hpa, Hva};

/// What lies behind one 4 KiB page of a process: bits 51:12 of its host-physical address, and what is known of it.
///
/// A page that is neither shared, nor read-only, nor a device's is its bare address. Then one comparison with a leaf
/// is enough.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct HostPage(u64);

impl HostPage {
    /// The host does not say: frames there are not checked, and the report says so.
    pub const UNKNOWN: Self = Self(1 << 0);
    /// The host has nothing there: no leaf may be.
    pub const ABSENT: Self = Self(1 << 1);
    const SHARED: u64 = 1 << 2;
    const READ_ONLY: u64 = 1 << 3;
    const DEVICE: u64 = 1 << 4;
    /// Bits that are no part of the address.
    pub(super) const FLAGS: u64 = 0xfff;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// RAM of this process alone, at the page around `hpa`.
    #[inline]
    pub const fn at(hpa: Hpa) -> Self {
        Self(hpa.raw() & Self::ADDRESS)
    }

    /// The same page, which others may map too: the zero page, a page merged by KSM, memory shared by mapping it.
    pub const fn shared(self) -> Self {
        Self(self.0 | Self::SHARED)
    }

    /// The same page, which the host may not write: no guest may either.
    pub const fn read_only(self) -> Self {
        Self(self.0 | Self::READ_ONLY)
    }

    /// The same page, which is a device's and not RAM.
    pub const fn device(self) -> Self {
        Self(self.0 | Self::DEVICE)
    }

    /// The host-physical address; `None` if nothing is there or nothing is known.
    pub const fn hpa(self) -> Option<Hpa> {
        if self.0 & (Self::UNKNOWN.0 | Self::ABSENT.0) == 0 {
            Some(Hpa(self.0 & Self::ADDRESS))
        } else {
            None
        }
    }

    /// Whether others may map it too.
    pub const fn is_shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }

    /// Whether the host may not write it.
    pub const fn is_read_only(self) -> bool {
        self.0 & Self::READ_ONLY != 0
    }

    /// Whether it is a device's.
    pub const fn is_device(self) -> bool {
        self.0 & Self::DEVICE != 0
    }

    /// Address and flags.
    #[inline]
    pub(super) const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Display for HostPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hpa() {
            Some(hpa) => hpa.fmt(f),
            None if *self == Self::ABSENT => f.write_str("nothing"),
            None => f.write_str("unknown"),
        }
    }
}

impl fmt::Debug for HostPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostPage({:#x})", self.0)
    }
}

/// From HVA to HPA, for one process: `/proc/self/pagemap`, or the frame table of a model.
pub trait HostMap: Sync {
    /// Says what lies behind each page from `hva` on, which is page aligned. There are at most 512 of them, all inside
    /// one slot; they are asked from several threads at once.
    fn pages(&self, hva: Hva, pages: &mut [HostPage]);
}

/// A host that tells nothing: no frame is checked.
#[derive(Clone, Copy, Debug)]
pub struct UnknownHost;

impl HostMap for UnknownHost {
    fn pages(&self, _: Hva, pages: &mut [HostPage]) {
        pages.fill(HostPage::UNKNOWN);
    }
}

/// A stretch of a process, as an array with an element for each page. Outside of it, nothing is known.
#[derive(Clone, Copy, Debug)]
pub struct HostPages<'a> {
    /// Where the first page lies.
    pub hva: Hva,
    /// The pages.
    pub pages: &'a [HostPage],
}

impl HostMap for HostPages<'_> {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        let inside = hva.checked_sub(self.hva).and_then(|offset| {
            let first = usize::try_from(offset >> 12).ok()?;
            self.pages.get(first..first.checked_add(pages.len())?)
        });
        match inside {
            Some(known) => pages.copy_from_slice(known),
            None => {
                for (index, page) in pages.iter_mut().enumerate() {
                    let at = hva.checked_add((index as u64) << 12).and_then(|at| at.checked_sub(self.hva));
                    let known = at.and_then(|offset| self.pages.get(usize::try_from(offset >> 12).ok()?));
                    *page = known.copied().unwrap_or(HostPage::UNKNOWN);
                }
            }
        }
    }
}
