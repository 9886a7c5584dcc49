//! What an entry grants, what an access asks for, and the control bits that judge it.

use bitflags::bitflags;

bitflags! {
    /// What an entry, or all entries of a walk together, grant.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rights: u8 {
        /// Data reads: R in EPT, P elsewhere.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Instruction fetches: X in EPT, NX clear elsewhere.
        const EXEC = 1 << 2;
        /// Accesses of user mode: U. EPT has no such right and never shows it.
        const USER = 1 << 3;
    }
}

impl Rights {
    /// Read, write, execute.
    pub const RWX: Self = Self::READ.union(Self::WRITE).union(Self::EXEC);
}

bitflags! {
    /// Control bits that take part in judging an access to IA-32e pages. EPT and NPT know none of them.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Controls: u8 {
        /// CR0.WP: supervisor writes obey W.
        const WP = 1 << 0;
        /// CR4.SMEP: no supervisor fetch from user pages.
        const SMEP = 1 << 1;
        /// CR4.SMAP: no supervisor data access to user pages, unless [`Access::ac`].
        const SMAP = 1 << 2;
    }
}

/// One memory access, as paging judges it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// What it does: any of `READ`, `WRITE`, `EXEC` (a fetch).
    pub does: Rights,
    /// Made in user mode (CPL 3, and not an implicit supervisor access).
    pub user: bool,
    /// EFLAGS.AC is set and the access is explicit, so SMAP does not apply.
    pub ac: bool,
}

impl Access {
    /// A supervisor data read.
    pub const READ: Self = Self { does: Rights::READ, user: false, ac: false };
    /// A supervisor data write.
    pub const WRITE: Self = Self { does: Rights::WRITE, user: false, ac: false };
    /// A supervisor read-modify-write.
    pub const READ_WRITE: Self = Self { does: Rights::READ.union(Rights::WRITE), user: false, ac: false };
    /// A supervisor instruction fetch.
    pub const FETCH: Self = Self { does: Rights::EXEC, user: false, ac: false };

    /// The same access made in user mode.
    pub const fn by_user(self) -> Self {
        Self { user: true, ..self }
    }

    /// Whether it writes.
    pub const fn writes(self) -> bool {
        self.does.contains(Rights::WRITE)
    }

    /// Whether it is an instruction fetch.
    pub const fn fetches(self) -> bool {
        self.does.contains(Rights::EXEC)
    }
}

/// Rules V1 and N2: a second-level table grants exactly what it says. `has_user`: the format has a U bit,
/// and each access counts as one of user mode.
#[inline]
pub(crate) fn second_level_grants(rights: Rights, access: Access, has_user: bool) -> bool {
    rights.contains(access.does) && (!has_user || rights.contains(Rights::USER))
}

/// Rules I5 and I6 (SDM vol. 3A, 4.6.1): user and supervisor mode, with WP, SMEP and SMAP.
#[inline]
pub(crate) fn first_level_grants(rights: Rights, access: Access, controls: Controls) -> bool {
    let user_page = rights.contains(Rights::USER);
    if access.user {
        return user_page && rights.contains(access.does);
    }
    let write = !access.writes() || rights.contains(Rights::WRITE) || !controls.contains(Controls::WP);
    let fetch = !access.fetches()
        || rights.contains(Rights::EXEC) && !(user_page && controls.contains(Controls::SMEP));
    let data = access.does.intersects(Rights::READ | Rights::WRITE);
    let smap = !(data && user_page && controls.contains(Controls::SMAP) && !access.ac);
    write && fetch && smap
}
