//! 32-bit paging: rule I3. Entries have four bytes; memory is read eight bytes at a time.

use super::{Ask, End, Granted, Memory, Used, Walked, bit, bits, number};

#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub root: u64,
    pub pse: bool,
    /// With PSE-36: the physical address width.
    pub pse_36: Option<u32>,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
}

pub fn walk(machine: &Machine, address: u64, ask: Ask, read: impl Fn(u64) -> Option<u64>) -> Walked {
    let mut used = Vec::new();
    if bits(address, 63, 32) != 0 {
        return Walked::ends(used, End::TooWide);
    }
    let fault = |bits: u64| {
        let write = if ask.write { 1 << 1 } else { 0 };
        let user = if ask.user { 1 << 2 } else { 0 };
        // There is no NX here: only SMEP makes a fetch show.
        let fetch = if ask.fetch && machine.smep { 1 << 4 } else { 0 };
        End::PageFault(bits | write | user | fetch)
    };
    let read = |at: u64| {
        let both = read(bits(at, 63, 3))?;
        Some(if bit(at, 2) { number(both, 63, 32) } else { number(both, 31, 0) })
    };

    let at = bits(machine.root, 31, 12) + 4 * number(address, 31, 22);
    let Some(pde) = read(at) else { return Walked::ends(used, End::NoMemory(bits(at, 63, 3))) };
    used.push(Used { level: 2, at, entry: pde, after: pde });
    if !bit(pde, 0) {
        return Walked::ends(used, fault(0));
    }
    let mut granted = Granted { r: true, x: true, w: bit(pde, 1), u: bit(pde, 2), ..Granted::default() };
    let (frame, leaf, pat, low) = if bit(pde, 7) && machine.pse {
        let mut frame = bits(pde, 31, 22);
        let reserved = match machine.pse_36 {
            None => bits(pde, 21, 13),
            Some(width) => {
                // Address bits 39:32 are in 20:13, as far as there are such.
                let last = width.min(40) - 1;
                frame += number(pde, last - 19, 13) << 32;
                bits(pde, 21, last - 19 + 1)
            }
        };
        if reserved != 0 {
            return Walked::ends(used, fault(1 << 0 | 1 << 3));
        }
        (frame, pde, bit(pde, 12), 22)
    } else {
        let at = bits(pde, 31, 12) + 4 * number(address, 21, 12);
        let Some(pte) = read(at) else { return Walked::ends(used, End::NoMemory(bits(at, 63, 3))) };
        used.push(Used { level: 1, at, entry: pte, after: pte });
        if !bit(pte, 0) {
            return Walked::ends(used, fault(0));
        }
        granted.w &= bit(pte, 1);
        granted.u &= bit(pte, 2);
        (bits(pte, 31, 12), pte, bit(pte, 7), 12)
    };

    let denied = if ask.user {
        !granted.u || ask.write && !granted.w
    } else {
        ask.write && !granted.w && machine.wp
            || ask.fetch && granted.u && machine.smep
            || (ask.read || ask.write) && granted.u && machine.smap && !ask.ac
    };
    if denied {
        return Walked::ends(used, fault(1 << 0));
    }
    for one in &mut used {
        one.after |= 1 << 5;
    }
    if ask.write {
        used.last_mut().unwrap().after |= 1 << 6;
    }
    let memory = Memory::Pat(number(leaf, 4, 3) + if pat { 4 } else { 0 });
    Walked::ends(
        used,
        End::Page { address: frame + bits(address, low - 1, 0), bytes: 1 << low, granted, memory },
    )
}
