//! PAE paging: rule I2. The four PDPTEs are registers, loaded with CR3; their reserved bits were refused there.

use super::{Ask, End, Granted, Memory, Used, Walked, bit, bits, number};

#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub pdptes: [u64; 4],
    pub width: u32,
    pub nxe: bool,
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
        let fetch = if ask.fetch && (machine.nxe || machine.smep) { 1 << 4 } else { 0 };
        End::PageFault(bits | write | user | fetch)
    };
    let pdpte = machine.pdptes[number(address, 31, 30) as usize];
    if !bit(pdpte, 0) {
        return Walked::ends(used, fault(0));
    }
    let reserved = |level: u32, entry: u64| {
        bits(entry, 62, machine.width) != 0
            || bit(entry, 63) && !machine.nxe
            || level == 2 && bit(entry, 7) && bits(entry, 20, 13) != 0
    };

    let at = bits(pdpte, 51, 12) + 8 * number(address, 29, 21);
    let Some(pde) = read(at) else { return Walked::ends(used, End::NoMemory(at)) };
    used.push(Used { level: 2, at, entry: pde, after: pde });
    if !bit(pde, 0) {
        return Walked::ends(used, fault(0));
    }
    if reserved(2, pde) {
        return Walked::ends(used, fault(1 << 0 | 1 << 3));
    }
    // No right comes from the PDPTE.
    let mut granted =
        Granted { r: true, w: bit(pde, 1), u: bit(pde, 2), x: !bit(pde, 63), ..Granted::default() };
    let (leaf, pat, low) = if bit(pde, 7) {
        (pde, bit(pde, 12), 21)
    } else {
        let at = bits(pde, 51, 12) + 8 * number(address, 20, 12);
        let Some(pte) = read(at) else { return Walked::ends(used, End::NoMemory(at)) };
        used.push(Used { level: 1, at, entry: pte, after: pte });
        if !bit(pte, 0) {
            return Walked::ends(used, fault(0));
        }
        if reserved(1, pte) {
            return Walked::ends(used, fault(1 << 0 | 1 << 3));
        }
        granted.w &= bit(pte, 1);
        granted.u &= bit(pte, 2);
        granted.x &= !bit(pte, 63);
        (pte, bit(pte, 7), 12)
    };

    let mut denied = ask.fetch && !granted.x;
    if ask.user {
        denied |= !granted.u || ask.write && !granted.w;
    } else {
        denied |= ask.write && !granted.w && machine.wp;
        denied |= ask.fetch && granted.u && machine.smep;
        denied |= (ask.read || ask.write) && granted.u && machine.smap && !ask.ac;
    }
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
    let address = bits(leaf, 51, low) + bits(address, low - 1, 0);
    Walked::ends(used, End::Page { address, bytes: 1 << low, granted, memory })
}
