//! A second walker, slow and plain, written from the rules' text. It shares no code with the crate.

/// What the processor offers and how its control bits stand.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub ept: bool,
    pub levels: u32,
    pub width: u32,
    pub page_1g: bool,
    pub page_2m: bool,
    pub execute_only: bool,
    pub flags: bool,
    pub nxe: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    pub user: bool,
    pub ac: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Output address, page size, R W X U, and the number of entries read.
    Page {
        address: u64,
        bytes: u64,
        r: bool,
        w: bool,
        x: bool,
        u: bool,
    },
    PageFault(u64),
    Violation(u64),
    Misconfigured,
    BadAddress,
    NoMemory(u64),
}

fn bit(entry: u64, n: u32) -> bool {
    entry >> n & 1 == 1
}

/// Bits `high..=low`, in place.
fn bits(entry: u64, high: u32, low: u32) -> u64 {
    (low..=high).filter(|&n| bit(entry, n)).map(|n| 1 << n).sum()
}

/// Whether bit 7 at that level makes a leaf.
fn large(machine: Machine, level: u32, entry: u64) -> bool {
    bit(entry, 7) && (level == 2 && machine.page_2m || level == 3 && machine.page_1g)
}

/// Rules M1 to M4, for a present EPT entry.
pub fn ept_misconfigured(machine: Machine, level: u32, entry: u64) -> bool {
    let (r, w, x) = (bit(entry, 0), bit(entry, 1), bit(entry, 2));
    let m1 = !r && w;
    let m2 = !r && !w && x && !machine.execute_only;
    let leaf = level == 1 || large(machine, level, entry);
    let mut m3 = machine.width < 52 && bits(entry, 51, machine.width) != 0;
    if !leaf {
        m3 |= bits(entry, 6, 3) != 0;
        m3 |= bit(entry, 7);
    } else if level == 3 {
        m3 |= bits(entry, 29, 12) != 0;
    } else if level == 2 {
        m3 |= bits(entry, 20, 12) != 0;
    }
    let m4 = leaf && [2, 3, 7].contains(&(entry >> 3 & 7));
    m1 || m2 || m3 || m4
}

/// Rule I1, for a present entry.
pub fn ia32e_reserved(machine: Machine, level: u32, entry: u64) -> bool {
    let mut reserved = machine.width < 52 && bits(entry, 51, machine.width) != 0;
    reserved |= bit(entry, 63) && !machine.nxe;
    reserved |= level >= 4 && bit(entry, 7);
    reserved |= level == 3 && bit(entry, 7) && !machine.page_1g;
    reserved |= level == 3 && bit(entry, 7) && bits(entry, 29, 13) != 0;
    reserved |= level == 2 && bit(entry, 7) && bits(entry, 20, 13) != 0;
    reserved
}

pub struct Walked {
    pub answer: Answer,
    /// Address and value of each entry read.
    pub entries: Vec<(u64, u64)>,
}

pub fn walk(
    machine: Machine,
    root: u64,
    address: u64,
    ask: Ask,
    read: impl Fn(u64) -> Option<u64>,
) -> Walked {
    let mut entries = Vec::new();
    let answer = answer(machine, root, address, ask, read, &mut entries);
    Walked { answer, entries }
}

fn answer(
    machine: Machine,
    root: u64,
    address: u64,
    ask: Ask,
    read: impl Fn(u64) -> Option<u64>,
    entries: &mut Vec<(u64, u64)>,
) -> Answer {
    let top = 12 + 9 * machine.levels;
    let above = (top..64).filter(|&n| bit(address, n)).count() as u32;
    let canonical = above == if bit(address, top - 1) { 64 - top } else { 0 };
    if machine.ept && above != 0 || !machine.ept && !canonical {
        return Answer::BadAddress;
    }
    let (mut r, mut w, mut x, mut u) = (true, true, true, true);
    let mut table = root;
    let mut level = machine.levels;
    loop {
        let low = 12 + 9 * (level - 1);
        let at = table + (bits(address, low + 8, low) >> low) * 8;
        let Some(entry) = read(at) else { return Answer::NoMemory(at) };
        entries.push((at, entry));
        if machine.ept {
            if bits(entry, 2, 0) == 0 {
                return violation(ask, false, false, false);
            }
            if ept_misconfigured(machine, level, entry) {
                return Answer::Misconfigured;
            }
            (r, w, x) = (r && bit(entry, 0), w && bit(entry, 1), x && bit(entry, 2));
        } else {
            if !bit(entry, 0) {
                return page_fault(machine, ask, false, false);
            }
            if ia32e_reserved(machine, level, entry) {
                return page_fault(machine, ask, true, true);
            }
            (w, u, x) = (w && bit(entry, 1), u && bit(entry, 2), x && !bit(entry, 63));
        }
        if level == 1 || large(machine, level, entry) {
            let frame = bits(entry, 51, low);
            let offset = bits(address, low - 1, 0);
            return judge(machine, ask, [r, w, x, u], frame + offset, 1 << low);
        }
        table = bits(entry, 51, 12);
        level -= 1;
    }
}

fn judge(machine: Machine, ask: Ask, [r, w, x, u]: [bool; 4], address: u64, bytes: u64) -> Answer {
    let mut denied = false;
    if machine.ept {
        denied |= ask.read && !r || ask.write && !w || ask.fetch && !x;
        if denied {
            return violation(ask, r, w, x);
        }
        return Answer::Page { address, bytes, r, w, x, u: false };
    }
    if ask.user {
        denied |= !u || ask.write && !w || ask.fetch && !x;
    } else {
        denied |= ask.write && !w && machine.wp;
        denied |= ask.fetch && !x;
        denied |= ask.fetch && u && machine.smep;
        denied |= (ask.read || ask.write) && u && machine.smap && !ask.ac;
    }
    if denied {
        return page_fault(machine, ask, true, false);
    }
    Answer::Page { address, bytes, r, w, x, u }
}

fn violation(ask: Ask, r: bool, w: bool, x: bool) -> Answer {
    let flags = [ask.read, ask.write, ask.fetch, r, w, x];
    Answer::Violation(flags.iter().enumerate().map(|(n, &set)| u64::from(set) << n).sum())
}

fn page_fault(machine: Machine, ask: Ask, present: bool, reserved: bool) -> Answer {
    let fetch = ask.fetch && (machine.nxe || machine.smep);
    let flags = [present, ask.write, ask.user, reserved, fetch];
    Answer::PageFault(flags.iter().enumerate().map(|(n, &set)| u64::from(set) << n).sum())
}
