//! Section "NPT": rules N1, N2, N4 and N6.

use super::{Ask, End, Granted, Memory, Used, Walked, bit, bits, number};

/// The host's paging.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub root: u64,
    pub levels: u32,
    pub width: u32,
    pub page_1g: bool,
    pub nxe: bool,
    pub amd: bool,
    pub smep: bool,
}

pub fn walk(machine: &Machine, gpa: u64, ask: Ask, read: impl Fn(u64) -> Option<u64>) -> Walked {
    let mut used = Vec::new();
    if bits(gpa, 63, 12 + 9 * machine.levels) != 0 {
        return Walked::ends(used, End::TooWide);
    }
    let exit = |bits: u64| {
        let write = if ask.write { 1 << 1 } else { 0 };
        let fetch = if ask.fetch && (machine.nxe || machine.smep) { 1 << 4 } else { 0 };
        // N2: each nested access is one of user mode.
        End::PageFault(bits | write | 1 << 2 | fetch)
    };
    let mut granted = Granted { r: true, w: true, x: true, u: true, ..Granted::default() };
    let mut table = machine.root;
    let mut level = machine.levels;
    loop {
        let low = 12 + 9 * (level - 1);
        let at = table + 8 * number(gpa, low + 8, low);
        let Some(entry) = read(at) else { return Walked::ends(used, End::NoMemory(at)) };
        used.push(Used { level, at, entry, after: entry });
        if !bit(entry, 0) {
            return Walked::ends(used, exit(0));
        }
        let mut reserved = machine.width < 52 && bits(entry, 51, machine.width) != 0;
        reserved |= bit(entry, 63) && !machine.nxe;
        reserved |= level >= 4 && (bit(entry, 7) || bit(entry, 8) && machine.amd);
        let large = bit(entry, 7) && (level == 2 || level == 3);
        reserved |= large && level == 3 && (!machine.page_1g || bits(entry, 29, 13) != 0);
        reserved |= large && level == 2 && bits(entry, 20, 13) != 0;
        if reserved {
            return Walked::ends(used, exit(1 << 0 | 1 << 3));
        }
        granted.w &= bit(entry, 1);
        granted.u &= bit(entry, 2);
        granted.x &= !bit(entry, 63);
        if level > 1 && !large {
            table = bits(entry, 51, 12);
            level -= 1;
            continue;
        }
        if !granted.u || ask.write && !granted.w || ask.fetch && !granted.x {
            return Walked::ends(used, exit(1 << 0));
        }
        for one in &mut used {
            one.after |= 1 << 5;
        }
        if ask.write {
            used.last_mut().unwrap().after |= 1 << 6;
        }
        let pat = bit(entry, if level == 1 { 7 } else { 12 });
        let memory = Memory::Pat(number(entry, 4, 3) + if pat { 4 } else { 0 });
        let address = bits(entry, 51, low) + bits(gpa, low - 1, 0);
        return Walked::ends(used, End::Page { address, bytes: 1 << low, granted, memory });
    }
}
