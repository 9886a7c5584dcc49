//! Whether the entries of a walk allow an access: rules V1, N2, I5, I6, F3, X1 to X3.

use crate::access::{Access, Controls, ProtectionKeys, Rights};
use crate::format::{Format, Kind};
use crate::paging::Paging;
use crate::walk::Leaf;

/// What an access asks of a walk's granting bits ([`Format::granted`]): most accesses ask nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Demand {
    /// All of these are granted.
    pub all: u64,
    /// None of these is.
    none: u64,
}

impl Demand {
    #[inline(always)]
    pub(crate) const fn is_met(self, granted: u64) -> bool {
        (!granted ^ self.none) & (self.all | self.none) == 0
    }
}

impl Format {
    /// The rules for everything but shadow stacks, paging writes and protection keys.
    #[inline(always)]
    pub(crate) const fn demand(&self, access: Access, controls: Controls) -> Demand {
        const fn on(condition: bool, bit: u64) -> u64 {
            if condition { bit } else { 0 }
        }
        let user = self.grant(Rights::USER);
        let user_exec = self.grant(Rights::USER_EXEC);
        // Rule X1.
        let exec = if access.user && user_exec != 0 { user_exec } else { self.grant(Rights::EXEC) };
        let read_exec =
            on(access.does.contains(Rights::READ), self.grant(Rights::READ)) | on(access.fetches(), exec);
        let write = on(access.writes(), self.grant(Rights::WRITE));
        // Rules V1 and N2: the second level grants what it says, and NPT takes all accesses for those of user mode.
        if access.user || matches!(self.kind(), Kind::Ept | Kind::Npt) {
            return Demand { all: user | read_exec | write, none: 0 };
        }
        // Rules I5 and I6.
        let smep = access.fetches() && controls.contains(Controls::SMEP);
        let smap = access.is_data() && controls.contains(Controls::SMAP) && !access.ac;
        let write = on(controls.contains(Controls::WP), write);
        Demand { all: read_exec | write, none: on(smep || smap, user) }
    }
}

/// What a walk has found when it comes to a leaf.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    /// AND of the table pointers, in the shape of [`Format::mergeable`].
    pub tables: u64,
    /// [`Format::granted`].
    pub granted: u64,
    /// The leaf.
    pub leaf: u64,
}

/// Whether SMEP, SMAP or protection keys deny what the rights allow.
#[inline(always)]
pub(crate) fn controls_deny(paging: &Paging, access: Access, leaf: u64, withheld: u64) -> bool {
    const CONTROLS: Controls = Controls::SMEP.union(Controls::SMAP).union(Controls::PKE).union(Controls::PKS);
    paging.controls.intersects(CONTROLS) && denied_by_controls(paging, access, leaf, withheld)
}

/// Out of line, so that walks which need none of it keep their registers.
#[cold]
#[inline(never)]
fn denied_by_controls(paging: &Paging, access: Access, leaf: u64, withheld: u64) -> bool {
    let Paging { format, controls, .. } = paging;
    let found = Found { tables: !withheld, granted: format.granted(!withheld, leaf), leaf };
    !format.demand(access, *controls).is_met(found.granted) || key_denies(paging, access, found)
}

/// Why an access is denied.
#[derive(Clone, Copy)]
pub(crate) struct Denial {
    /// What the entries grant.
    pub rights: Rights,
    /// The protection key denies it, whatever else does (rule F3).
    pub key: bool,
}

/// The whole judgement.
pub(crate) fn judge(paging: &Paging, access: Access, found: Found) -> Result<(), Denial> {
    let Paging { format, controls, .. } = paging;
    let ordinary = || format.demand(access, *controls).is_met(found.granted);
    let rights = format.kind().rights(found.granted);
    let shadow_stack = access.does.contains(Rights::SHADOW_STACK);
    let allowed = match format.kind() {
        Kind::Ept if shadow_stack && !access.user && format.grant(Rights::SHADOW_STACK) != 0 => {
            // Rule X2. The W of the leaf does not count.
            rights.contains(Rights::READ | Rights::SHADOW_STACK) && format.grants(found.tables, Rights::WRITE)
        }
        Kind::Ept if access.does.contains(Rights::PAGING_WRITE) && rights.contains(Rights::PAGING_WRITE) => {
            rights.contains(Rights::READ)
        }
        Kind::Ia32e if shadow_stack && controls.contains(Controls::CET) => {
            // SDM vol. 3A, 4.6: a shadow-stack page is one whose leaf alone lacks W, and is dirty.
            let is_stack = format.grants(found.tables, Rights::WRITE)
                && !format.grants(format.mergeable(found.leaf), Rights::WRITE)
                && format.is_dirty(found.leaf);
            is_stack && rights.contains(Rights::USER) == access.user
        }
        _ => ordinary(),
    };
    let key = key_denies(paging, access, found);
    if allowed && !key { Ok(()) } else { Err(Denial { rights, key }) }
}

/// Protection keys: data accesses alone, by PKRU for user pages and by PKRS for supervisor pages (rules I5, I6).
#[inline]
pub(crate) fn key_denies(paging: &Paging, access: Access, found: Found) -> bool {
    let Paging { format, controls, keys: ProtectionKeys { pkru, pkrs }, .. } = *paging;
    let user_page = format.grants(found.granted, Rights::USER);
    let (control, rights) = if user_page { (Controls::PKE, pkru) } else { (Controls::PKS, pkrs) };
    if format.kind() != Kind::Ia32e || !controls.contains(control) || !access.is_data() {
        return false;
    }
    let denies = rights >> (2 * Format::protection_key(found.leaf));
    let write_disabled = access.writes() && (access.user || controls.contains(Controls::WP));
    denies & 1 != 0 || denies & 2 != 0 && write_disabled
}

/// How a read of a guest's own table counts in this second-level table: rules A2 and N2.
pub(crate) fn guest_table_access(second: &Format) -> Access {
    match second.kind() {
        Kind::Ept if !second.has_accessed_dirty() => Access::READ,
        _ => GUEST_FLAG_UPDATE,
    }
}

/// Setting a flag in a guest's entry, whatever rule A2 says of reads.
pub(crate) const GUEST_FLAG_UPDATE: Access =
    Access { does: Access::READ_WRITE.does.union(Rights::PAGING_WRITE), ..Access::READ_WRITE };

/// How an access of the guest counts in the second level. EPT asks whether its linear address is one of user mode,
/// not who makes the access; without paging all are (rules V1, X1).
#[inline]
pub(crate) fn final_access(second: &Format, guest: Option<&Leaf>, access: Access) -> Access {
    match second.kind() {
        Kind::Ept => Access { user: guest.is_none_or(Leaf::grants_user), ..access },
        _ => access,
    }
}
