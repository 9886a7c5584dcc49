//! Everything that can go wrong in this crate, said with names and hex ranges.

use std::fmt;

use memory_model::{AddrRange, FlatEventfd, Gpa, Hva, Refusal};

use crate::{Capability, DirtyMethod, Side, Slot, SlotOp};

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// The numbers that the slot ioctls are known to give.
const NAMES: [(Errno, &str); 17] = [
    (Errno::EPERM, "EPERM"),
    (Errno::ENOENT, "ENOENT"),
    (Errno::EINTR, "EINTR"),
    (Errno::EIO, "EIO"),
    (Errno::EBADF, "EBADF"),
    (Errno::EAGAIN, "EAGAIN"),
    (Errno::ENOMEM, "ENOMEM"),
    (Errno::EFAULT, "EFAULT"),
    (Errno::EBUSY, "EBUSY"),
    (Errno::EEXIST, "EEXIST"),
    (Errno::EINVAL, "EINVAL"),
    (Errno::ENOTTY, "ENOTTY"),
    (Errno::ENXIO, "ENXIO"),
    (Errno::E2BIG, "E2BIG"),
    (Errno::EOVERFLOW, "EOVERFLOW"),
    (Errno::ENODEV, "ENODEV"),
    (Errno::EOPNOTSUPP, "EOPNOTSUPP"),
];

#[expect(missing_docs, reason = "the names are the kernel's")]
impl Errno {
    pub const EPERM: Self = Self(libc::EPERM);
    pub const ENOENT: Self = Self(libc::ENOENT);
    pub const EINTR: Self = Self(libc::EINTR);
    pub const EIO: Self = Self(libc::EIO);
    pub const EBADF: Self = Self(libc::EBADF);
    pub const EAGAIN: Self = Self(libc::EAGAIN);
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    pub const EFAULT: Self = Self(libc::EFAULT);
    pub const EBUSY: Self = Self(libc::EBUSY);
    pub const EEXIST: Self = Self(libc::EEXIST);
    pub const EINVAL: Self = Self(libc::EINVAL);
    pub const ENOTTY: Self = Self(libc::ENOTTY);
    pub const ENXIO: Self = Self(libc::ENXIO);
    pub const E2BIG: Self = Self(libc::E2BIG);
    pub const EOVERFLOW: Self = Self(libc::EOVERFLOW);
    pub const ENODEV: Self = Self(libc::ENODEV);
    pub const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(errno, _)| errno == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

/// Why slots could not be planned or set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// More slots are needed than the kernel has (rule R2). Nothing was changed.
    #[error("{region} at {range}: no slot is left, {needed} are needed and {limit} allowed")]
    OutOfSlots {
        /// The first region for which none was left.
        region: String,
        /// Where the guest was to see it.
        range: AddrRange<Gpa>,
        /// How many slots the whole view needs.
        needed: u64,
        /// How many there are.
        limit: u32,
    },
    /// Guest pages and host pages do not start together, so no page table can map them. Nothing was
    /// changed.
    #[error("{region} at {range}: its page {gpa} lies at {hva}, which is not the start of a page")]
    Misaligned {
        /// The region's name.
        region: String,
        /// Where the guest was to see it.
        range: AddrRange<Gpa>,
        /// Its first whole page.
        gpa: Gpa,
        /// The byte behind it.
        hva: Hva,
    },
    /// Private memory cannot be logged or read-only (rule R6). Nothing was changed.
    #[error("{region} at {range}: memory with a guest_memfd cannot be {wanted}")]
    Private {
        /// The region's name.
        region: String,
        /// Where the guest was to see it.
        range: AddrRange<Gpa>,
        /// What it was to be.
        wanted: &'static str,
    },
    /// The kernel cannot do what was asked.
    #[error("{capability}")]
    Missing {
        /// What it lacks.
        capability: Capability,
    },
    /// No `guest_memfd` could be made.
    #[error("cannot make a guest_memfd of {size:#x} bytes: {errno}")]
    GuestMemfd {
        /// Its size.
        size: u64,
        /// Why not.
        errno: Errno,
    },
    /// How pages are logged is chosen once; and manual protection with rings would lose pages (rule D6).
    #[error("dirty pages are logged by {present:?} already, so not by {wanted:?}")]
    DirtyMethodFixed {
        /// What was chosen before.
        present: DirtyMethod,
        /// What was asked for now.
        wanted: DirtyMethod,
    },
    /// The kernel does not log pages in that way.
    #[error("cannot log dirty pages by {wanted:?}: {errno}")]
    DirtyMethodRefused {
        /// What was asked for.
        wanted: DirtyMethod,
        /// Why not.
        errno: Errno,
    },
    /// A slot's log could not be read or cleared.
    #[error("cannot read the dirty log of {slot}: {errno}")]
    DirtyLog {
        /// Whose log.
        slot: Slot,
        /// Why not.
        errno: Errno,
    },
    /// The rings could not be mapped or reset.
    #[error("cannot use the dirty rings: {errno}")]
    DirtyRings {
        /// Why not.
        errno: Errno,
    },
    /// An ioeventfd could not be added or removed.
    #[error("cannot {} an ioeventfd at {} of width {}: {errno}", verb(.remove), .eventfd.range, .eventfd.size)]
    Eventfd {
        /// Which.
        eventfd: FlatEventfd,
        /// Removed, not added.
        remove: bool,
        /// Why not.
        errno: Errno,
    },
    /// A zone of coalesced MMIO could not be added or removed.
    #[error("cannot {} coalesced MMIO at {zone}: {errno}", verb(.remove))]
    Coalesced {
        /// Which.
        zone: AddrRange<Gpa>,
        /// Removed, not added.
        remove: bool,
        /// Why not.
        errno: Errno,
    },
    /// Only whole pages change sides (rule R10). Nothing was changed.
    #[error("cannot make {range} {side}: it is not whole pages")]
    PartOfPage {
        /// What was to be converted.
        range: AddrRange<Gpa>,
        /// To which side.
        side: Side,
    },
    /// A page without a slot has no sides (rule R10). Nothing was changed.
    #[error("cannot make {range} {side}: {hole} has no slot")]
    NoSlot {
        /// What was to be converted.
        range: AddrRange<Gpa>,
        /// To which side.
        side: Side,
        /// The first part of it without a slot.
        hole: AddrRange<Gpa>,
    },
    /// A slot without a `guest_memfd` has no private side (rule R10). Nothing was changed.
    #[error("cannot make {range} {side}: {slot} has no guest_memfd")]
    NoPrivateHalf {
        /// What was to be converted.
        range: AddrRange<Gpa>,
        /// To which side.
        side: Side,
        /// The first slot in it without one.
        slot: Slot,
    },
    /// The kernel did not convert the pages. Nothing was changed.
    #[error("cannot make {range} {side}: {errno}")]
    Attributes {
        /// What was to be converted.
        range: AddrRange<Gpa>,
        /// To which side.
        side: Side,
        /// Why not.
        errno: Errno,
    },
    /// Pages of one side of a slot could not be given back to the host.
    #[error("cannot discard the {side} pages {part} of {slot}: {cause}")]
    Discard {
        /// The slot.
        slot: Slot,
        /// Which pages.
        part: AddrRange<Gpa>,
        /// Which side of them.
        side: Side,
        /// Why not.
        cause: Refusal,
    },
    /// All of the range was converted, but not all that it left behind on the other side was given back. The same
    /// conversion once more tries that again.
    #[error("{range} is {side} now, but keeps pages that it left: {}", sentences(kept))]
    NotDiscarded {
        /// What was converted.
        range: AddrRange<Gpa>,
        /// To which side.
        side: Side,
        /// What stays of the other side, each part with its cause; the rest of that side is gone.
        kept: Vec<SlotError>,
    },
    /// The slot's addresses are not memory that its block has mapped in this process.
    #[error("cannot {op}: RAM block {block} does not map that memory in this process")]
    NotMapped {
        /// What was to be done.
        op: Box<SlotOp>,
        /// The block's name.
        block: String,
    },
    /// The kernel refused a call. That call changed nothing (rule K5).
    #[error("cannot {op}: {errno}")]
    Refused {
        /// What was to be done.
        op: Box<SlotOp>,
        /// Why not.
        errno: Errno,
    },
    /// A call failed, and some calls before it could not be taken back. What is listed stands, as
    /// [`SlotManager::registry`](crate::SlotManager::registry) shows; the next change of the view sets it
    /// right.
    #[error("{cause}; not taken back: {}", list(standing))]
    Torn {
        /// The failure that came first.
        cause: Box<SlotError>,
        /// The calls that stand though the update as a whole failed, each with what kept it from being
        /// undone.
        standing: Vec<(SlotOp, SlotError)>,
    },
}

impl SlotError {
    pub(crate) fn refused(op: &SlotOp, errno: Errno) -> Self {
        Self::Refused { op: Box::new(op.clone()), errno }
    }
}

fn verb(remove: &bool) -> &'static str {
    if *remove { "remove" } else { "add" }
}

fn list(standing: &[(SlotOp, SlotError)]) -> String {
    let each: Vec<_> = standing.iter().map(|(op, error)| format!("{op} ({error})")).collect();
    each.join(", ")
}

fn sentences(errors: &[SlotError]) -> String {
    let each: Vec<_> = errors.iter().map(SlotError::to_string).collect();
    each.join(", ")
}
