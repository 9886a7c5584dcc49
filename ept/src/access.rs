//! What an entry grants, what an access asks for, and the control bits that judge it.

use bitflags::bitflags;

bitflags! {
    /// What an entry, or all entries of a walk together, grant; of an access, what it does.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Rights: u8 {
        /// Data reads: R in EPT, P elsewhere.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Instruction fetches: X in EPT (of supervisor-mode addresses alone under mode-based execute control), NX
        /// clear elsewhere.
        const EXEC = 1 << 2;
        /// Accesses of user mode: U. EPT has no such right and never shows it.
        const USER = 1 << 3;
        /// Fetches from user-mode addresses: XU of EPT under mode-based execute control (rule X1).
        const USER_EXEC = 1 << 4;
        /// Supervisor shadow-stack accesses: bit 60 of an EPT leaf (rule X2). Of an access: it is one to a shadow stack.
        const SHADOW_STACK = 1 << 5;
        /// Flags in guest paging entries, even without `WRITE`: bit 58 of an EPT leaf (rule X3). Of an access: the
        /// processor makes it while it walks the guest's tables.
        const PAGING_WRITE = 1 << 6;
    }
}

impl Rights {
    /// Read, write, execute.
    pub const RWX: Self = Self::READ.union(Self::WRITE).union(Self::EXEC);
}

bitflags! {
    /// Control bits that take part in judging an access to a guest's or host's own pages. EPT knows none of them;
    /// in NPT, SMEP shows in the code of a fault.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Controls: u8 {
        /// CR0.WP: supervisor writes obey W.
        const WP = 1 << 0;
        /// CR4.SMEP: no supervisor fetch from user pages.
        const SMEP = 1 << 1;
        /// CR4.SMAP: no supervisor data access to user pages, unless [`Access::ac`].
        const SMAP = 1 << 2;
        /// CR4.PKE: PKRU counts for user pages.
        const PKE = 1 << 3;
        /// CR4.PKS: PKRS counts for supervisor pages.
        const PKS = 1 << 4;
        /// CR4.CET: accesses with [`Rights::SHADOW_STACK`] go to shadow-stack pages alone.
        const CET = 1 << 5;
    }
}

/// The rights that go with each of the 16 protection keys: two bits a key, access-disable (AD) below write-disable
/// (WD).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProtectionKeys {
    /// PKRU: of user pages.
    pub pkru: u32,
    /// IA32_PKRS: of supervisor pages.
    pub pkrs: u32,
}

/// One memory access, as paging judges it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// What it does: any of `READ`, `WRITE`, `EXEC` (a fetch), and `SHADOW_STACK` or `PAGING_WRITE`.
    pub does: Rights,
    /// Made in user mode (CPL 3, and not an implicit supervisor access). In EPT: at a user-mode linear address.
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

    /// The same access made to a shadow stack.
    pub const fn to_shadow_stack(self) -> Self {
        Self { does: self.does.union(Rights::SHADOW_STACK), ..self }
    }

    /// Whether it writes.
    pub const fn writes(self) -> bool {
        self.does.contains(Rights::WRITE)
    }

    /// Whether it is an instruction fetch.
    pub const fn fetches(self) -> bool {
        self.does.contains(Rights::EXEC)
    }

    /// Whether it reads or writes data.
    pub const fn is_data(self) -> bool {
        self.does.intersects(Rights::READ.union(Rights::WRITE))
    }
}
