//! What an access does, written from rules I4 to I6 and F1 to F4 for one PDE and one PTE. It knows no tables, no masks
//! and no walk.

use crate::case::*;

pub struct Entries {
    pub pde: u64,
    pub pte: u64,
}

/// Where the PTEs are, the 4 KiB page and the 2 MiB page.
pub const PT: u64 = 0x4000;
pub const PAGE: u64 = 0x1234_5000;
pub const LARGE_PAGE: u64 = 0x1260_0000;

/// The entries of a case before the access.
pub fn before(flags: u32) -> Entries {
    let bit = |flag: u32, n: u32| if flags & flag == 0 { 0 } else { 1_u64 << n };
    let large = flags & PDE_PS != 0;
    let mut pde = if large { LARGE_PAGE } else { PT };
    pde |= bit(PDE_P, 0) | bit(PDE_W, 1) | bit(PDE_U, 2) | bit(PDE_A, 5) | bit(PDE_D, 6) | bit(PDE_PS, 7);
    pde |= bit(PDE_13, 13) | bit(PDE_36, 36) | bit(PDE_51, 51) | bit(PDE_NX, 63);
    let mut pte = PAGE;
    pte |= bit(PTE_P, 0) | bit(PTE_W, 1) | bit(PTE_U, 2) | bit(PTE_A, 5) | bit(PTE_D, 6);
    pte |= bit(PTE_36, 36) | bit(PTE_51, 51) | bit(PTE_NX, 63);
    // The page's key is 1; in a PDE that points to a table key bits mean nothing (rule I4).
    if large {
        pde |= bit(KEY, 59);
    } else {
        pde |= 2 << 59;
        pte |= bit(KEY, 59);
    }
    Entries { pde, pte }
}

/// What the access ends in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The physical address of the page.
    Page(u64),
    /// The error code.
    Fault(u64),
}

pub fn end(flags: u32) -> End {
    let has = |flag| flags & flag != 0;
    let mut code = 0;
    if has(WRITE) {
        code |= 1 << 1;
    }
    if has(USER) {
        code |= 1 << 2;
    }
    // F2: SMEP is 0 throughout.
    if has(FETCH) && has(EFER_NX) {
        code |= 1 << 4;
    }

    // F1: level by level not present, then reserved.
    if !has(PDE_P) {
        return End::Fault(code);
    }
    if has(PDE_51) || has(PDE_36) || has(PDE_13) || has(PDE_NX) && !has(EFER_NX) {
        return End::Fault(code | 1 << 0 | 1 << 3);
    }
    let (mut writable, mut user, mut no_execute) =
        (has(PDE_W) && !has(PDPTE_NO_WRITE), has(PDE_U), has(PDE_NX));
    if !has(PDE_PS) {
        if !has(PTE_P) {
            return End::Fault(code);
        }
        if has(PTE_51) || has(PTE_36) || has(PTE_NX) && !has(EFER_NX) {
            return End::Fault(code | 1 << 0 | 1 << 3);
        }
        writable = writable && has(PTE_W);
        user = user && has(PTE_U);
        no_execute = no_execute || has(PTE_NX);
    }

    // I4, I5.
    let mut denied = false;
    if has(USER) && !user {
        denied = true;
    }
    if has(WRITE) && !writable && (has(USER) || has(WP)) {
        denied = true;
    }
    if has(FETCH) && no_execute {
        denied = true;
    }
    // I6, F3: data of user pages whose key is 1. PKRU says nothing of key 0.
    let keyed = has(PKE) && has(KEY) && user && !has(FETCH);
    if keyed && (has(PKRU_AD) || has(PKRU_WD) && has(WRITE) && (has(USER) || has(WP))) {
        denied = true;
        code |= 1 << 5;
    }
    if denied {
        return End::Fault(code | 1 << 0);
    }
    End::Page(if has(PDE_PS) { LARGE_PAGE } else { PAGE })
}

/// The entries after the access. F4: on a fault D stays; whether A is set in a PDE that was passed is left open, so
/// the caller masks it.
pub fn after(flags: u32) -> Entries {
    let Entries { mut pde, mut pte } = before(flags);
    if let End::Page(_) = end(flags) {
        pde |= 1 << 5;
        if flags & PDE_PS != 0 {
            if flags & WRITE != 0 {
                pde |= 1 << 6;
            }
        } else {
            pte |= 1 << 5;
            if flags & WRITE != 0 {
                pte |= 1 << 6;
            }
        }
    }
    Entries { pde, pte }
}
