//! Section "IA-32e": rules I1, I4 to I6, F1 to F4.

use super::{Ask, End, Granted, Memory, Used, Walked, bit, bits, number};

#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub root: u64,
    pub levels: u32,
    pub width: u32,
    pub page_1g: bool,
    pub nxe: bool,
    pub amd: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    pub pke: bool,
    pub pks: bool,
    pub cet: bool,
    pub pkru: u32,
    pub pkrs: u32,
}

/// Rule I1, of a present entry.
pub fn reserved(machine: &Machine, level: u32, entry: u64) -> bool {
    if machine.width < 52 && bits(entry, 51, machine.width) != 0 {
        return true;
    }
    if bit(entry, 63) && !machine.nxe {
        return true;
    }
    if level >= 4 && bit(entry, 7) {
        return true;
    }
    if level >= 4 && bit(entry, 8) && machine.amd {
        return true;
    }
    if level == 3 && bit(entry, 7) && (!machine.page_1g || bits(entry, 29, 13) != 0) {
        return true;
    }
    level == 2 && bit(entry, 7) && bits(entry, 20, 13) != 0
}

pub fn walk(machine: &Machine, address: u64, ask: Ask, read: impl Fn(u64) -> Option<u64>) -> Walked {
    let mut used = Vec::new();
    let sign = 12 + 9 * machine.levels - 1;
    let above = bits(address, 63, sign);
    if above != 0 && above != bits(u64::MAX, 63, sign) {
        return Walked::ends(used, End::NotCanonical);
    }
    let mut granted = Granted { r: true, w: true, x: true, u: true, ..Granted::default() };
    let mut tables_writable = true;
    let mut table = machine.root;
    let mut level = machine.levels;
    loop {
        let low = 12 + 9 * (level - 1);
        let at = table + 8 * number(address, low + 8, low);
        let Some(entry) = read(at) else { return Walked::ends(used, End::NoMemory(at)) };
        used.push(Used { level, at, entry, after: entry });
        // F1.
        if !bit(entry, 0) {
            return Walked::ends(used, page_fault(machine, ask, 0));
        }
        if reserved(machine, level, entry) {
            return Walked::ends(used, page_fault(machine, ask, 1 << 0 | 1 << 3));
        }
        // I4.
        granted.w = granted.w && bit(entry, 1);
        granted.u = granted.u && bit(entry, 2);
        granted.x = granted.x && !bit(entry, 63);
        if level > 1 && !(level <= 3 && bit(entry, 7)) {
            tables_writable = tables_writable && bit(entry, 1);
            table = bits(entry, 51, 12);
            level -= 1;
            continue;
        }
        let mut code = 0;
        let mut denied = denied(machine, ask, granted);
        if machine.cet && ask.shadow_stack {
            // SDM vol. 3A, 4.6.1: a shadow-stack page has W clear in its leaf alone, and D set.
            let stack = tables_writable && !bit(entry, 1) && bit(entry, 6);
            denied = !stack || granted.u != ask.user;
        }
        if key_denies(machine, ask, granted.u, number(entry, 62, 59)) {
            denied = true;
            code |= 1 << 5;
        }
        if denied {
            return Walked::ends(used, page_fault(machine, ask, code | 1 << 0));
        }
        for one in &mut used {
            one.after |= 1 << 5;
        }
        if ask.write {
            used.last_mut().unwrap().after |= 1 << 6;
        }
        let pat = bit(entry, if level == 1 { 7 } else { 12 });
        let memory = Memory::Pat(number(entry, 4, 3) + if pat { 4 } else { 0 });
        let address = bits(entry, 51, low) + bits(address, low - 1, 0);
        return Walked::ends(used, End::Page { address, bytes: 1 << low, granted, memory });
    }
}

/// Rules I5 and I6.
fn denied(machine: &Machine, ask: Ask, granted: Granted) -> bool {
    if ask.fetch && !granted.x {
        return true;
    }
    if ask.user {
        return !granted.u || ask.write && !granted.w;
    }
    if ask.write && !granted.w && machine.wp {
        return true;
    }
    if ask.fetch && granted.u && machine.smep {
        return true;
    }
    (ask.read || ask.write) && granted.u && machine.smap && !ask.ac
}

/// Rules I5 and I6: user pages by PKRU, supervisor pages by PKRS; data alone.
fn key_denies(machine: &Machine, ask: Ask, user_page: bool, key: u64) -> bool {
    if ask.fetch {
        return false;
    }
    let register = if user_page {
        if !machine.pke {
            return false;
        }
        machine.pkru
    } else {
        if !machine.pks {
            return false;
        }
        machine.pkrs
    };
    let access_disable = bit(register.into(), 2 * key as u32);
    let write_disable = bit(register.into(), 2 * key as u32 + 1);
    access_disable || write_disable && ask.write && (ask.user || machine.wp)
}

/// `bits`: P, RSVD and PK.
fn page_fault(machine: &Machine, ask: Ask, bits: u64) -> End {
    let mut code = bits;
    if ask.write {
        code |= 1 << 1;
    }
    if ask.user {
        code |= 1 << 2;
    }
    // F2.
    if ask.fetch && (machine.nxe || machine.smep) {
        code |= 1 << 4;
    }
    if ask.shadow_stack && machine.cet {
        code |= 1 << 6;
    }
    End::PageFault(code)
}
