//! INVEPT, INVVPID, INVPCID, INVLPG and MOV to CR3.

use crate::format::{EptCaps, Eptp, Format, MaxPhyAddr};

use super::cache::Space;
use super::{LinearSpace, Tlb};

/// What INVEPT forgets: guest-physical and combined mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvEpt {
    /// Type 1: those of EPTP bits 51:12, whatever its other bits.
    Single(Eptp),
    /// Type 2: all.
    All,
}

/// What INVVPID forgets: linear and combined mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InvVpid {
    /// Type 0: those of one linear address.
    Address {
        /// The VPID.
        vpid: u16,
        /// The linear address.
        address: u64,
    },
    /// Type 1: those of one VPID.
    Single(u16),
    /// Type 2: those of all VPIDs but 0.
    All,
    /// Type 3: those of one VPID, but not global pages.
    SingleNonGlobal(u16),
}

/// VMfailValid, with this number in the VM-instruction error field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("VMfail {0}: invalid operand to INVEPT or INVVPID")]
pub struct VmFail(pub u32);

/// "Invalid operand to INVEPT/INVVPID" (rule IV5).
pub const VMFAIL_INVALID_OPERAND: VmFail = VmFail(28);

impl InvEpt {
    /// From the instruction's operands: its type and its descriptor, EPTP first.
    pub fn decode(
        kind: u64,
        [eptp, reserved]: [u64; 2],
        caps: EptCaps,
        max_phy_addr: MaxPhyAddr,
    ) -> Result<Self, VmFail> {
        let decoded = match kind {
            1 if caps.contains(EptCaps::INVEPT_SINGLE) => {
                Eptp::new(eptp, caps, max_phy_addr).ok().map(Self::Single)
            }
            2 if caps.contains(EptCaps::INVEPT_ALL) => Some(Self::All),
            _ => None,
        };
        decoded.filter(|_| reserved == 0).ok_or(VMFAIL_INVALID_OPERAND)
    }
}

impl InvVpid {
    /// From the instruction's operands: its type and its descriptor, VPID in bits 15:0 and then a linear address.
    /// `paging` is the format of the VPID's linear addresses.
    pub fn decode(
        kind: u64,
        [vpid, address]: [u64; 2],
        caps: EptCaps,
        paging: &Format,
    ) -> Result<Self, VmFail> {
        let vpid = u16::try_from(vpid).map_err(|_| VMFAIL_INVALID_OPERAND)?;
        let (decoded, needs) = match kind {
            0 if paging.translates(address) => (Self::Address { vpid, address }, EptCaps::INVVPID_ADDRESS),
            1 => (Self::Single(vpid), EptCaps::INVVPID_SINGLE),
            2 => (Self::All, EptCaps::INVVPID_ALL),
            3 => (Self::SingleNonGlobal(vpid), EptCaps::INVVPID_SINGLE_NON_GLOBAL),
            _ => return Err(VMFAIL_INVALID_OPERAND),
        };
        // VPID 0 is the host's own.
        let named = vpid != 0 || kind == 2;
        if named && caps.contains(needs) { Ok(decoded) } else { Err(VMFAIL_INVALID_OPERAND) }
    }
}

impl Tlb {
    /// INVEPT. Linear mappings stay (rule IV4).
    pub fn invept(&mut self, what: InvEpt) {
        let gone = |space: Space| match what {
            InvEpt::Single(eptp) => space.second() == Some(eptp.root()),
            InvEpt::All => true,
        };
        self.physical.forget_spaces(gone);
        self.combined.forget_spaces(gone);
    }

    /// INVVPID. Guest-physical mappings stay (rule IV4).
    pub fn invvpid(&mut self, what: InvVpid) {
        match what {
            InvVpid::Address { vpid, address } => {
                self.forget_linear_address(address, |space| space.vpid() == vpid)
            }
            InvVpid::Single(vpid) => self.forget_linear(|space| space.vpid() == vpid),
            InvVpid::All => self.forget_linear(|space| space.vpid() != 0),
            InvVpid::SingleNonGlobal(vpid) => {
                self.forget_linear(|space| space.vpid() == vpid && !space.is_global());
            }
        }
    }

    /// INVLPG: the page around `address`, global or not, and with it all tables that the processor remembers for that
    /// PCID.
    pub fn invlpg(&mut self, space: LinearSpace, address: u64) {
        let space = space.behind(None);
        self.forget_linear_address(address, |of| [space, space.global()].contains(&of.linear()));
    }

    /// MOV to CR3 without bit 63, and INVPCID of type 1: all but global pages of that VPID and PCID.
    pub fn mov_to_cr3(&mut self, space: LinearSpace) {
        let space = space.behind(None);
        self.forget_linear(|of| of.linear() == space);
    }

    /// INVPCID of type 0: one address of that PCID, but not if it is global.
    pub fn invpcid_address(&mut self, space: LinearSpace, address: u64) {
        let space = space.behind(None);
        self.forget_linear_address(address, |of| of.linear() == space);
    }

    /// A change of CR4.PGE, INVPCID of type 2, and a VM entry or exit with VPIDs off (then for VPID 0): all of that
    /// VPID. INVPCID of type 3 keeps global pages: [`InvVpid::SingleNonGlobal`] does the same.
    pub fn flush(&mut self, vpid: u16) {
        self.invvpid(InvVpid::Single(vpid));
    }

    fn forget_linear(&mut self, gone: impl Fn(Space) -> bool) {
        self.linear.forget_spaces(&gone);
        self.combined.forget_spaces(&gone);
    }

    /// A large page goes whole, and tables go with any address.
    fn forget_linear_address(&mut self, address: u64, of: impl Fn(Space) -> bool) {
        let Self { linear, combined, .. } = self;
        linear.pages.forget(|key, known| of(key.space()) && known.is_piece(key.address(), address));
        combined.pages.forget(|key, known| of(key.space()) && known.guest.is_piece(key.address(), address));
        linear.tables.forget(|key, _| of(key.space()));
        combined.tables.forget(|key, _| of(key.space()));
    }
}
