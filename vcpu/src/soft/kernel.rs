//! The kernel side of the software machine: slots, host frames and the second-level MMU, tied together as
//! `struct kvm` ties them.

use ept::mmu::{HostFault, HostFrame, HostFrames, Memslots, Tdp};
use ept::{EptCaps, Eptp, Flags, Format, Levels, MaxPhyAddr, walk};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};
use slot_manager::{KernelMemslots, SlotChange, SlotError, SlotFlags, SlotOp, SlotRecord};

use super::cpu::PHYSICAL_ADDRESS_BITS;
use super::frames::FrameTable;
use crate::{SecondLevelLeaf, VcpuError};

/// Width of physical addresses, the host's and the guest's.
pub(super) const MAX_PHY_ADDR: MaxPhyAddr = match MaxPhyAddr::new(PHYSICAL_ADDRESS_BITS as u8) {
    Some(bits) => bits,
    None => panic!("MAXPHYADDR is 32 to 52 bits"),
};

/// What the simulated processor's EPT can do: a recent server's.
fn ept_caps() -> EptCaps {
    EptCaps::all() - EptCaps::LEVELS_5
}

/// Slots, frames and second-level tables of one VM. Its fields are open, so that a test can look at them, or
/// break one and see who notices.
pub struct SoftKernel {
    /// The memory slots.
    pub memslots: KernelMemslots,
    /// The host's frames.
    pub frames: FrameTable,
    /// The second-level MMU.
    pub tdp: Tdp,
}

impl SoftKernel {
    /// A VM without slots, with an empty 4-level EPT.
    pub(super) fn new() -> Result<Self, VcpuError> {
        let mut frames = FrameTable::default();
        // The format does not depend on where the root lies; `Tdp` allocates that.
        let eptp = Eptp::for_root(0, Levels::Four, true, ept_caps(), MAX_PHY_ADDR)?;
        let tdp = Tdp::new(Format::ept(eptp, ept_caps(), MAX_PHY_ADDR), &mut frames)?;
        Ok(Self { memslots: KernelMemslots::new(), frames, tdp })
    }

    /// `KVM_SET_USER_MEMORY_REGION`: what goes or moves leaves the second level at once (rule Z3), and a log that
    /// starts makes its pages fault on their next write (rule D1).
    pub(super) fn set_slot(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        let change = self.memslots.set_user_memory_region(&op.to_region());
        let change = change.map_err(|errno| SlotError::Refused { op: Box::new(op.clone()), errno })?;
        match change {
            SlotChange::Created(_) => self.frames.map(&op.slot().block),
            SlotChange::Deleted(old) | SlotChange::Moved { old, .. } => self.zap(old.gpa()),
            SlotChange::FlagsChanged { old, new } => {
                if !old.flags.contains(SlotFlags::LOG_DIRTY_PAGES)
                    && new.flags.contains(SlotFlags::LOG_DIRTY_PAGES)
                {
                    self.tdp.write_protect(new.gpa(), &mut self.frames).expect(OWN_TABLES);
                }
            }
            SlotChange::Nothing => {}
        }
        Ok(())
    }

    fn zap(&mut self, range: AddrRange<Gpa>) {
        self.tdp.zap(range, &mut self.frames).expect(OWN_TABLES);
    }

    /// What the second level says of `gpa`.
    pub fn leaf(&self, gpa: Gpa) -> Option<SecondLevelLeaf> {
        let read = ept::Access::READ.by_user();
        let walk = walk(&self.frames, self.tdp.paging(), gpa.0, read, Flags::Keep);
        let (leaf, last) = (walk.outcome.ok()?, *walk.path.last()?);
        Some(SecondLevelLeaf {
            hpa: Hpa(leaf.address),
            size: leaf.size,
            rights: leaf.rights,
            entry_address: Hpa(last.entry_address()),
            entry: leaf.entry,
        })
    }
}

/// Zapping allocates nothing and reads only tables that this VM allocated.
const OWN_TABLES: &str = "the second level's own tables are in the frame table";

/// The slots as the MMU asks for them.
pub(super) struct Slots<'a>(pub(super) &'a KernelMemslots);

impl Memslots for Slots<'_> {
    fn slot(&self, gpa: Gpa) -> Option<ept::mmu::Memslot> {
        let slot = self.0.gfn_to_memslot(gpa)?;
        Some(ept::mmu::Memslot {
            base: slot.gpa().first(),
            bytes: slot.npages() << PageSize::Size4K.shift(),
            hva: slot.userspace_addr,
            readonly: slot.flags.contains(SlotFlags::READONLY),
            log_dirty: slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES),
        })
    }

    /// The slots keep no bitmap yet: a log that is on only makes pages fault.
    fn mark_page_dirty(&self, _gpa: Gpa) {}
}

impl HostFrames for FrameTable {
    fn host_frame(&mut self, hva: Hva, _write: bool) -> Result<HostFrame, HostFault> {
        let hpa = self.fault_in(hva).ok_or(HostFault::Unmapped)?;
        Ok(HostFrame { hpa: hpa.align_down(PageSize::Size4K), size: PageSize::Size4K, writable: true })
    }
}
