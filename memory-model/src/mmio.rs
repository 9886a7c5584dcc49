//! Devices: their callbacks, the accesses they take, and what goes wrong.

/// The callbacks of a device (QEMU's `MemoryRegionOps`). Offsets count from the region's start. Threads may
/// call them at the same time; the same thread does not call them while it is inside one of them (see
/// [`Reentry`]).
///
/// An access comes as the device's [`rules`](Self::rules) want it: refused, cut or widened before it gets here.
/// It may reach past the region's end (rule R36): a device looks at the offset, not at its own size.
///
/// ```
/// use memory_model::{AccessRules, AccessSizes, MemTxAttrs, MemTxError, MmioOps};
/// /// Four registers of 32 bits, which can only be reached whole.
/// struct Registers([u32; 4]);
/// impl MmioOps for Registers {
///     fn read(&self, offset: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
///         self.0.get(offset as usize / 4).map(|&word| word.into()).ok_or(MemTxError::Device)
///     }
///     fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
///         Err(MemTxError::Device)
///     }
///     fn rules(&self) -> AccessRules {
///         AccessRules { valid: Some(AccessSizes::new(4, 4)), ..AccessRules::DEFAULT }
///     }
/// }
/// ```
pub trait MmioOps: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8) as a number, in the low bytes of the result; the rest is ignored.
    fn read(&self, offset: u64, size: u8, attrs: MemTxAttrs) -> Result<u64, MemTxError>;

    /// Writes the number `value` of `size` bytes.
    fn write(&self, offset: u64, size: u8, value: u64, attrs: MemTxAttrs) -> Result<(), MemTxError>;

    /// Which accesses the device takes, and how it wants them.
    fn rules(&self) -> AccessRules {
        AccessRules::DEFAULT
    }

    /// Has the first word on an access: one it does not accept is a decode error (rule R33).
    fn accepts(&self, _offset: u64, _size: u8, _write: bool, _attrs: MemTxAttrs) -> bool {
        true
    }
}

/// Who accesses (QEMU's `MemTxAttrs`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct MemTxAttrs {
    /// The PCI function that does it, as bus << 8 | device << 3 | function; 0 for a CPU.
    pub requester: u16,
    /// In system management mode, on x86.
    pub secure: bool,
}

/// Why an access failed (QEMU's `MemTxResult`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum MemTxError {
    /// The device took the access and failed it.
    #[error("the device failed the access")]
    Device,
    /// Nobody takes the access: nothing is there, or what is there does not take one of this kind.
    #[error("nothing takes the access")]
    Decode,
    /// A device in the midst of an access was accessed again by the same thread (rule R37).
    #[error("the device is already in an access of this thread")]
    Access,
    /// Too many IOMMUs one behind the other: they most likely lead to each other.
    #[error("too many IOMMUs one behind the other")]
    Translation,
    /// The memory is there for the guest, but this process has not mapped it.
    #[error("the memory is not mapped by this process")]
    NotMapped,
}

/// A smallest and a largest size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AccessSizes {
    min: u8,
    max: u8,
}

impl AccessSizes {
    /// From `min` to `max` bytes, each 1, 2, 4 or 8.
    ///
    /// # Panics
    /// If they are other numbers, or in the wrong order. In a `const` the compiler finds out.
    pub const fn new(min: u8, max: u8) -> Self {
        assert!(min.is_power_of_two() && max.is_power_of_two(), "sizes are 1, 2, 4 or 8");
        assert!(min <= max && max <= 8, "sizes are in order and at most 8");
        Self { min, max }
    }

    /// The smallest.
    pub const fn min(self) -> u8 {
        self.min
    }

    /// The largest.
    pub const fn max(self) -> u8 {
        self.max
    }

    fn clamp(self, size: u8) -> u8 {
        size.clamp(self.min, self.max)
    }
}

/// The order of bytes in a device's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Endianness {
    /// The lowest address holds the low byte.
    Little,
    /// The lowest address holds the high byte.
    Big,
}

/// What happens when a device, in the midst of an access, is accessed again by the same thread: by its own
/// DMA, that is, as a hostile guest may program it (rule R37). Accesses of other threads are no re-entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reentry {
    /// [`MemTxError::Access`]; the device is what implements [`MmioOps`].
    Refused,
    /// [`MemTxError::Access`]; the device is all that gives the same number, such as the address of the state
    /// that its regions share. 0 is no number.
    RefusedWithin(usize),
    /// The device is called again, up to a depth of [`MAX_NESTING`] accesses.
    Allowed,
}

/// So many accesses of devices can be nested in one thread, each from within the one before.
pub const MAX_NESTING: usize = 16;

/// Which accesses a device takes, and how it wants them (the data of QEMU's `MemoryRegionOps`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AccessRules {
    /// The sizes a guest may use; `None` takes any, in steps of at most 4 bytes.
    pub valid: Option<AccessSizes>,
    /// Whether a guest may leave natural alignment.
    pub valid_unaligned: bool,
    /// The sizes the callbacks are written for: others are cut up or widened (rule R34).
    pub implemented: AccessSizes,
    /// Whether the callbacks take accesses off their natural alignment. If not, such an access is cut into
    /// aligned steps (rule R35).
    pub implemented_unaligned: bool,
    /// The order of bytes in the callbacks' numbers.
    pub endianness: Endianness,
    /// What happens to an access from within an access.
    pub reentry: Reentry,
}

impl AccessRules {
    /// QEMU's defaults: any size, aligned; callbacks of 1 to 4 bytes; little endian; no re-entry.
    pub const DEFAULT: Self = Self {
        valid: None,
        valid_unaligned: false,
        implemented: AccessSizes::new(1, 4),
        implemented_unaligned: false,
        endianness: Endianness::Little,
        reentry: Reentry::Refused,
    };

    /// Everything goes through as it comes, from 1 to 8 bytes at any alignment.
    pub const ANY: Self = Self {
        valid: Some(AccessSizes::new(1, 8)),
        valid_unaligned: true,
        implemented: AccessSizes::new(1, 8),
        implemented_unaligned: true,
        ..Self::DEFAULT
    };

    /// The size of the next step of a transfer of `bytes` (not 0) at `offset` (rule R35).
    pub(crate) fn transfer_step(&self, offset: u64, bytes: usize) -> u8 {
        let largest = self.valid.map_or(4, AccessSizes::max);
        let aligned = match offset.trailing_zeros() {
            zeros @ 0..3 if !self.implemented_unaligned => 1 << zeros,
            _ => 8,
        };
        let step = bytes.min(largest.min(aligned).into());
        // At most 8, so both conversions keep the number.
        1 << step.ilog2() as u8
    }

    /// The size of the callbacks that do an access of `size` bytes (rule R34).
    pub(crate) fn callback_width(&self, size: u8) -> u8 {
        self.implemented.clamp(size)
    }

    /// Whether the device takes an access of that shape (the second half of rule R33).
    pub(crate) fn permit(&self, offset: u64, size: u8) -> bool {
        (self.valid_unaligned || offset.is_multiple_of(size.into()))
            && self.valid.is_none_or(|sizes| (sizes.min..=sizes.max).contains(&size))
    }
}

impl Default for AccessRules {
    fn default() -> Self {
        Self::DEFAULT
    }
}
