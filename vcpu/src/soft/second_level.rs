//! The MMU of a software VM, whichever it is.

use ept::Error;
use ept::mmu::{Memslot, Shadow, ShadowContext, Stats, Tdp, Zapped};
use memory_model::{AddrRange, Gpa};

use super::host::Host;
use super::options::SoftOptions;
use crate::VcpuError;

/// KVM's MMU of a VM. What it takes back, it says so: [`Zapped::flush`].
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one to a VM")]
pub enum SoftMmu {
    /// Tables from guest-physical addresses to the host's, beside the guest's own.
    Tdp(Tdp),
    /// Tables from linear addresses to the host's, in place of the guest's own.
    Shadow(Shadow),
}

impl SoftMmu {
    pub(super) fn new(options: &SoftOptions, host: &Host) -> Result<Self, VcpuError> {
        Ok(match options.second_level.format() {
            Some(format) => Self::Tdp(Tdp::new(format, options.tdp(), host)?),
            None => Self::Shadow(Shadow::new(options.shadow())),
        })
    }

    /// KVM's counters.
    pub fn stats(&self) -> Stats {
        match self {
            Self::Tdp(tdp) => tdp.stats(),
            Self::Shadow(shadow) => shadow.stats(),
        }
    }

    /// Bytes of all tables.
    pub fn table_bytes(&self) -> u64 {
        match self {
            Self::Tdp(tdp) => tdp.table_bytes(),
            Self::Shadow(shadow) => shadow.table_bytes(),
        }
    }

    /// What a new processor needs.
    pub(super) fn context(&mut self, host: &Host) -> Result<Option<ShadowContext>, Error> {
        match self {
            Self::Tdp(_) => Ok(None),
            Self::Shadow(shadow) => shadow.context(host).map(Some),
        }
    }

    /// A slot goes.
    pub(super) fn zap(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.zap(range, host),
            Self::Shadow(shadow) => shadow.zap(range, host),
        }
    }

    /// The host's pages behind `range` are about to change.
    pub(super) fn invalidate_begin(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_begin(range, host),
            Self::Shadow(shadow) => shadow.invalidate_begin(range, host),
        }
    }

    pub(super) fn invalidate_end(&mut self) {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_end(),
            Self::Shadow(shadow) => shadow.invalidate_end(),
        }
    }

    /// A slot's log has started or ended.
    pub(super) fn set_logging(
        &mut self,
        slot: &Memslot,
        initially_set: bool,
        host: &Host,
    ) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.set_logging(slot, initially_set, host),
            // Pages are protected when they are taken out of the log.
            Self::Shadow(_) if slot.log_dirty && initially_set => Ok(Zapped::default()),
            Self::Shadow(shadow) => match AddrRange::new(slot.base, slot.bytes.into()) {
                Some(range) => shadow.set_logging(range, slot.log_dirty, host),
                None => Ok(Zapped::default()),
            },
        }
    }

    /// Pages are taken out of the log: their next writes are to get into it. `dirty` hears of those that the processor
    /// has marked since they were taken out before.
    pub(super) fn clear_dirty(
        &mut self,
        range: AddrRange<Gpa>,
        dirty: impl FnMut(Gpa),
        host: &Host,
    ) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.clear_dirty(range, dirty, host),
            Self::Shadow(shadow) => shadow.write_protect(range, host),
        }
    }

    /// The slots have changed.
    pub(super) fn slots_changed(&mut self, generation: u64, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.invalidate_mmio(generation, host),
            // It remembers no holes.
            Self::Shadow(_) => Ok(Zapped::default()),
        }
    }

    /// No table is left for a fault.
    pub(super) fn reclaim(&mut self, host: &Host) -> Result<Zapped, Error> {
        match self {
            Self::Tdp(tdp) => tdp.reclaim(host),
            // It makes room by itself, and the host has no frame left.
            Self::Shadow(shadow) => shadow.zap_all(host).map(|()| Zapped::default()),
        }
    }

    /// Whether a page of `range` was accessed; from now on, none was.
    pub(super) fn age(&mut self, range: AddrRange<Gpa>, host: &Host) -> Result<bool, Error> {
        match self {
            Self::Tdp(tdp) => tdp.age(range, host),
            Self::Shadow(shadow) => shadow.age(range, host),
        }
    }

    pub(super) fn test_age(&self, range: AddrRange<Gpa>, host: &Host) -> Result<bool, Error> {
        match self {
            Self::Tdp(tdp) => tdp.test_age(range, host),
            Self::Shadow(shadow) => shadow.test_age(range, host),
        }
    }
}
