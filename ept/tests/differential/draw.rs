//! Random processors, addresses and accesses.

use crate::garbage::{Dice, MEMORY, ROOT};
use crate::oracle::{self, Ask};
use crate::subject::Machine;

fn levels(dice: &mut Dice) -> u32 {
    dice.one_of(&[4, 5])
}

fn width(dice: &mut Dice) -> u32 {
    dice.one_of(&[32, 36, 46, 48, 52])
}

pub fn ept(dice: &mut Dice) -> Machine {
    Machine::Ept(oracle::ept::Machine {
        root: ROOT,
        levels: levels(dice),
        width: width(dice),
        page_2m: !dice.one_in(4),
        page_1g: !dice.one_in(4),
        execute_only: dice.coin(),
        accessed_dirty: dice.coin(),
        mode_based_execute: dice.coin(),
        shadow_stack: dice.coin(),
        paging_write: dice.coin(),
        guest_paging_verification: dice.coin(),
    })
}

pub fn ia32e(dice: &mut Dice) -> Machine {
    Machine::Ia32e(oracle::ia32e::Machine {
        root: ROOT,
        levels: levels(dice),
        width: width(dice),
        page_1g: !dice.one_in(4),
        nxe: !dice.one_in(4),
        amd: dice.coin(),
        wp: dice.coin(),
        smep: dice.coin(),
        smap: dice.coin(),
        pke: dice.coin(),
        pks: dice.coin(),
        cet: dice.coin(),
        pkru: dice.number() as u32,
        pkrs: dice.number() as u32,
    })
}

pub fn npt(dice: &mut Dice) -> Machine {
    Machine::Npt(oracle::npt::Machine {
        root: ROOT,
        levels: levels(dice),
        width: width(dice),
        page_1g: !dice.one_in(4),
        nxe: !dice.one_in(4),
        amd: dice.coin(),
        smep: dice.coin(),
    })
}

pub fn pae(dice: &mut Dice) -> Machine {
    let mut pdpte = || dice.roll(MEMORY >> 12) << 12 | u64::from(!dice.one_in(8));
    Machine::Pae(oracle::pae::Machine {
        pdptes: [pdpte(), pdpte(), pdpte(), pdpte()],
        width: width(dice),
        nxe: !dice.one_in(4),
        wp: dice.coin(),
        smep: dice.coin(),
        smap: dice.coin(),
    })
}

pub fn legacy32(dice: &mut Dice) -> Machine {
    Machine::Legacy32(oracle::legacy32::Machine {
        root: ROOT,
        pse: !dice.one_in(4),
        pse_36: if dice.coin() { Some(width(dice)) } else { None },
        wp: dice.coin(),
        smep: dice.coin(),
        smap: dice.coin(),
    })
}

/// Mostly one that the tables translate.
pub fn address(dice: &mut Dice, machine: &Machine) -> u64 {
    let levels = match machine {
        Machine::Ept(machine) => machine.levels,
        Machine::Ia32e(machine) => machine.levels,
        Machine::Npt(machine) => machine.levels,
        Machine::Pae(_) | Machine::Legacy32(_) => {
            return if dice.one_in(16) { dice.number() } else { dice.roll(1 << 32) };
        }
    };
    let bits = 12 + 9 * levels;
    match dice.roll(32) {
        0 => dice.number(),
        1 => dice.roll(1 << 57),
        // The upper half of what is canonical.
        2..8 if matches!(machine, Machine::Ia32e(_)) => dice.number() | u64::MAX << (bits - 1),
        _ => dice.roll(1 << (bits - 1)),
    }
}

pub fn ask(dice: &mut Dice, machine: &Machine) -> Ask {
    let second_level = matches!(machine, Machine::Ept(_) | Machine::Npt(_));
    let guest_flag = second_level && dice.one_in(6);
    let kind = if guest_flag { 2 } else { dice.roll(4) };
    let fetch = kind == 3;
    Ask {
        read: kind == 0 || kind == 2,
        write: kind == 1 || kind == 2,
        fetch,
        user: dice.coin(),
        ac: dice.coin(),
        shadow_stack: !fetch && !guest_flag && dice.one_in(6),
        guest_flag,
    }
}
