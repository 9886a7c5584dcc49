//! Single entries below tables that grant everything: all rights, memory types and levels, and every single bit.

use crate::garbage::Garbage;
use crate::oracle::{self, Ask};
use crate::subject::Machine;
use crate::{Seen, compare_one};

const READ: Ask = Ask {
    read: true,
    write: false,
    fetch: false,
    user: false,
    ac: false,
    shadow_stack: false,
    guest_flag: false,
};
const ASKS: [Ask; 4] = [
    READ,
    Ask { read: false, write: true, ..READ },
    Ask { read: false, fetch: true, ..READ },
    Ask { read: false, fetch: true, user: true, ..READ },
];

/// Where the table of a level is.
const fn table(level: u32) -> u64 {
    (level as u64) << 12
}

/// Memory in which the entries for address 0 lead on to `level`, where there is `entry`.
fn below(levels: u32, level: u32, entry: u64) -> Garbage {
    let memory = Garbage::new(0, |_| 0);
    let above = (level + 1..=levels).map(|above| (table(above), table(above - 1) | 0x7));
    memory.written.borrow_mut().extend(above.chain([(table(level), entry)]));
    memory
}

const EPT: oracle::ept::Machine = oracle::ept::Machine {
    root: table(5),
    levels: 5,
    width: 46,
    page_2m: true,
    page_1g: true,
    execute_only: true,
    accessed_dirty: true,
    mode_based_execute: false,
    shadow_stack: false,
    paging_write: false,
    guest_paging_verification: false,
};

/// All settings of what matters to an entry's form.
fn ept_machines() -> impl Iterator<Item = oracle::ept::Machine> {
    (0..32).map(|n: u32| oracle::ept::Machine {
        page_2m: n & 1 != 0,
        page_1g: n & 2 != 0,
        execute_only: n & 4 != 0,
        mode_based_execute: n & 8 != 0,
        paging_write: n & 16 != 0,
        ..EPT
    })
}

#[test]
fn p1_m1_m2_m3_m4_m5_v1_all_rights_types_and_levels() {
    let mut seen = Seen::default();
    for (machine, level) in ept_machines().flat_map(|machine| (1..=5).map(move |level| (machine, level))) {
        for low in 0..256 {
            for high in [0, 1 << 10, 1 << 58, 1 << 10 | 1 << 58] {
                let memory = below(5, level, low | high | 1 << 30);
                for ask in ASKS {
                    seen.count(&compare_one(&memory, &Machine::Ept(machine), 0, ask));
                    memory.written.borrow_mut().insert(table(level), low | high | 1 << 30);
                }
            }
        }
    }
    seen.includes(["M1", "M2", "M3", "M4", "M5", "page 0x1000", "page 0x200000", "page 0x40000000"]);
}

/// Compares for a good table pointer or page, and a good large page, with each of their bits turned over.
fn each_bit(machine: Machine, levels: u32, bits: u32) {
    for (level, good) in (1..=levels).flat_map(|level| [(level, 0x7), (level, 0x87)]) {
        for bit in 0..bits {
            for ask in ASKS {
                compare_one(&below(levels, level, good ^ 1 << bit), &machine, 0, ask);
            }
        }
    }
}

#[test]
fn m3_each_bit_at_each_level() {
    for machine in ept_machines() {
        for width in [36, 46, 52] {
            each_bit(Machine::Ept(oracle::ept::Machine { width, ..machine }), 5, 64);
        }
    }
}

#[test]
fn i1_n1_each_bit_at_each_level() {
    for (n, width) in (0..8).flat_map(|n| [36, 46, 52].map(|width| (n, width))) {
        let [page_1g, nxe, amd] = [n & 1 != 0, n & 2 != 0, n & 4 != 0];
        let root = table(5);
        each_bit(
            Machine::Npt(oracle::npt::Machine { root, levels: 5, width, page_1g, nxe, amd, smep: false }),
            5,
            64,
        );
        let machine = oracle::ia32e::Machine {
            root,
            levels: 5,
            width,
            page_1g,
            nxe,
            amd,
            wp: true,
            smep: false,
            smap: false,
            pke: false,
            pks: false,
            cet: false,
            pkru: 0,
            pkrs: 0,
        };
        each_bit(Machine::Ia32e(machine), 5, 64);
    }
}

#[test]
fn i2_each_bit_at_each_level() {
    for (nxe, width) in [false, true].into_iter().flat_map(|nxe| [36, 46, 52].map(|width| (nxe, width))) {
        let pdptes = [table(2) | 1, 0, 0, 0];
        let machine = oracle::pae::Machine { pdptes, width, nxe, wp: true, smep: false, smap: false };
        each_bit(Machine::Pae(machine), 2, 64);
    }
}

#[test]
fn i3_each_bit_at_each_level() {
    for pse in [false, true] {
        for pse_36 in [None, Some(32), Some(36), Some(40), Some(52)] {
            let root = table(2);
            let machine = oracle::legacy32::Machine { root, pse, pse_36, wp: true, smep: false, smap: false };
            each_bit(Machine::Legacy32(machine), 2, 32);
        }
    }
}
