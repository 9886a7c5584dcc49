//! Section "EPT": rules P1, M1 to M9, V1, V2, A1, X1 to X3.

use super::{Ask, End, Granted, Memory, Reason, Used, Walked, bit, bits, number};

#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub root: u64,
    pub levels: u32,
    pub width: u32,
    pub page_2m: bool,
    pub page_1g: bool,
    pub execute_only: bool,
    pub accessed_dirty: bool,
    pub mode_based_execute: bool,
    pub shadow_stack: bool,
    pub paging_write: bool,
    pub guest_paging_verification: bool,
}

fn is_leaf(machine: &Machine, level: u32, entry: u64) -> bool {
    if level == 1 {
        return true;
    }
    if level == 2 {
        return bit(entry, 7) && machine.page_2m;
    }
    if level == 3 {
        return bit(entry, 7) && machine.page_1g;
    }
    false
}

/// Rule P1.
pub fn present(machine: &Machine, entry: u64) -> bool {
    if bit(entry, 0) || bit(entry, 1) || bit(entry, 2) {
        return true;
    }
    machine.mode_based_execute && bit(entry, 10)
}

/// Rules M1 to M5, of a present entry.
pub fn misconfigured(machine: &Machine, level: u32, entry: u64) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let leaf = is_leaf(machine, level, entry);
    let (r, w, x) = (bit(entry, 0), bit(entry, 1), bit(entry, 2));
    let xu = machine.mode_based_execute && bit(entry, 10);
    if !r && w {
        reasons.push(Reason::M1);
    }
    if !r && !w && (x || xu) && !machine.execute_only {
        reasons.push(Reason::M2);
    }
    let mut reserved = 0;
    if machine.width < 52 {
        reserved |= bits(entry, 51, machine.width);
    }
    if !leaf {
        reserved |= bits(entry, 7, 3);
    }
    if leaf && level == 3 {
        reserved |= bits(entry, 29, 12);
    }
    if leaf && level == 2 {
        reserved |= bits(entry, 20, 12);
    }
    if reserved != 0 {
        reasons.push(Reason::M3(reserved));
    }
    let memory_type = number(entry, 5, 3);
    if leaf && (memory_type == 2 || memory_type == 3 || memory_type == 7) {
        reasons.push(Reason::M4(memory_type));
    }
    if leaf && machine.paging_write && bit(entry, 58) && !r {
        reasons.push(Reason::M5);
    }
    reasons
}

pub fn walk(machine: &Machine, gpa: u64, ask: Ask, read: impl Fn(u64) -> Option<u64>) -> Walked {
    let mut used = Vec::new();
    // M9.
    if bits(gpa, 63, 12 + 9 * machine.levels) != 0 {
        return Walked::ends(used, End::TooWide);
    }
    let mut granted =
        Granted { r: true, w: true, x: true, xu: machine.mode_based_execute, ..Granted::default() };
    let mut tables_writable = true;
    let mut table = machine.root;
    let mut level = machine.levels;
    loop {
        let low = 12 + 9 * (level - 1);
        let at = table + 8 * number(gpa, low + 8, low);
        let Some(entry) = read(at) else { return Walked::ends(used, End::NoMemory(at)) };
        used.push(Used { level, at, entry, after: entry });
        // M6.
        if !present(machine, entry) {
            return Walked::ends(used, violation(ask, Granted::default()));
        }
        let reasons = misconfigured(machine, level, entry);
        if !reasons.is_empty() {
            return Walked::ends(used, End::Misconfigured(reasons));
        }
        granted.r = granted.r && bit(entry, 0);
        granted.w = granted.w && bit(entry, 1);
        granted.x = granted.x && bit(entry, 2);
        granted.xu = granted.xu && bit(entry, 10);
        if !is_leaf(machine, level, entry) {
            tables_writable = tables_writable && bit(entry, 1);
            table = bits(entry, 51, 12);
            level -= 1;
            continue;
        }
        granted.shadow_stack = machine.shadow_stack && bit(entry, 60);
        granted.paging_write = machine.paging_write && bit(entry, 58);
        if denied(machine, ask, granted, tables_writable) {
            return Walked::ends(used, violation(ask, granted));
        }
        // A1.
        if machine.accessed_dirty {
            for one in &mut used {
                one.after |= 1 << 8;
            }
            if ask.write {
                used.last_mut().unwrap().after |= 1 << 9;
            }
        }
        let address = bits(entry, 51, low) + bits(gpa, low - 1, 0);
        let memory = Memory::Type(number(entry, 5, 3), bit(entry, 6));
        return Walked::ends(used, End::Page { address, bytes: 1 << low, granted, memory });
    }
}

fn denied(machine: &Machine, ask: Ask, granted: Granted, tables_writable: bool) -> bool {
    // X2.
    if machine.shadow_stack && ask.shadow_stack && !ask.user {
        return !granted.r || !tables_writable || !granted.shadow_stack;
    }
    // X3.
    let write_granted = granted.w || ask.guest_flag && granted.paging_write;
    // X1, V1.
    let fetch_granted = if machine.mode_based_execute && ask.user { granted.xu } else { granted.x };
    ask.read && !granted.r || ask.write && !write_granted || ask.fetch && !fetch_granted
}

/// The bits that the second level alone decides.
pub fn violation(ask: Ask, granted: Granted) -> End {
    let mut bits = 0;
    if ask.read {
        bits |= 1 << 0;
    }
    if ask.write {
        bits |= 1 << 1;
    }
    if ask.fetch {
        bits |= 1 << 2;
    }
    if granted.r {
        bits |= 1 << 3;
    }
    if granted.w {
        bits |= 1 << 4;
    }
    if granted.x {
        bits |= 1 << 5;
    }
    if granted.xu {
        bits |= 1 << 6;
    }
    if ask.shadow_stack {
        bits |= 1 << 13;
    }
    if granted.shadow_stack {
        bits |= 1 << 14;
    }
    End::Violation(bits)
}

/// Rule V2: whether a violation may become a #VE. The last entry read is the one not present, or the leaf.
pub fn convertible(walked: &Walked) -> bool {
    matches!(walked.end, End::Violation(_)) && walked.used.last().is_some_and(|last| !bit(last.entry, 63))
}
