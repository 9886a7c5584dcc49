//! Every single bit of good tables, flipped: it is found, or it changes what the tables map, or it is one of those that
//! mean nothing to the translation.
//!
//! By default all entries in use and some of the others are taken; with `MEMVIRT_FLIP_ALL` set, all of them.

use ept::verify::{DirtyLog, Guest};
use ept::{Caching, Ept, EptCaps, Format, Ia32e, Kind, Levels, PhysMemory, Rights, Role, mappings};
use memory_model::{AddrRange, Hpa, PageSize};

use crate::world::*;

/// Guest memory of each size, read-only memory and logged memory; little of it, as it is verified once for each bit.
fn world(format: Format) -> World {
    let mut world = World::empty(format);
    world.slots = vec![
        slot(0, 4 * K4, 0x7f00_0000_0000),
        slot(M2, M2, 0x7f00_4000_0000),
        slot(4 * M2, 2 * K4, 0x7f00_8000_0000),
        slot(5 * M2, 2 * K4, 0x7f00_9000_0000),
    ];
    world.slots[2].memslot.readonly = true;
    world.slots[3].memslot.log_dirty = true;
    world.slots[3].log = DirtyLog::Bitmap(&[0b10]);
    for (number, slot) in (1..).zip(world.slots.clone()) {
        let bytes = slot.memslot.bytes;
        world.host.map(slot.memslot.hva.raw(), number << 24, bytes);
    }
    let (all, read) = (world.all(), world.all() - Rights::WRITE);
    (0..3).for_each(|page| world.map(page * K4, PageSize::Size4K, all));
    world.map(M2, PageSize::Size2M, all);
    (0..2).for_each(|page| world.map(4 * M2 + page * K4, PageSize::Size4K, read));
    world.map(5 * M2, PageSize::Size4K, read);
    world.map(5 * M2 + K4, PageSize::Size4K, all);
    world
}

/// One leaf of 1 GiB.
fn gigantic(format: Format) -> World {
    let mut world = World::empty(format);
    world.slots = vec![slot(G1, G1, 0x7f00_0000_0000 + G1)];
    world.host.map(0x7f00_0000_0000 + G1, G1, G1);
    world.map(G1, PageSize::Size1G, world.all());
    world
}

/// What hardware makes of the tables: pages, rights, memory types, and what else a leaf says.
fn view(world: &World) -> Vec<(u64, PageSize, u64, Rights, Caching, u64)> {
    let format = &world.roots[0].format;
    let more = |level, entry| {
        let roles = [Role::Global, Role::ProtectionKey, Role::GuestPagingVerification, Role::SubPageWrite];
        entry & roles.into_iter().fold(0, |bits, role| bits | format.bits(role, level, true))
    };
    let pages = mappings(&world.memory, &world.roots[0]);
    pages
        .map(|page| {
            let (level, entry) = (page.step.level, page.step.entry);
            (
                page.address,
                page.size,
                page.frame,
                page.rights,
                format.caching(level, entry),
                more(level, entry),
            )
        })
        .collect()
}

/// The bits that may change and nothing comes of it.
fn ignored(format: &Format, level: u8, leaf: bool) -> u64 {
    let mut roles = vec![Role::Ignored, Role::Accessed];
    match leaf {
        true => roles.extend([Role::Dirty, Role::SuppressVe]),
        // The memory type by which the table below is read.
        false => roles.extend([Role::WriteThrough, Role::CacheDisable]),
    }
    roles.into_iter().fold(0, |bits, role| bits | format.bits(role, level, leaf))
}

#[derive(Default, Debug)]
struct Score {
    found: u32,
    seen: u32,
    ignored: u32,
    missed: Vec<(u64, u32)>,
}

fn flip_all(world: &mut World, score: &mut Score, only_used: bool) {
    let end = AddrRange::new(Hpa(0), 2 * u128::from(G1)).unwrap();
    let clean = |world: &World| {
        let guest = Guest { tables: None, leaves: None, ..world.guest() };
        ept::verify::verify(&world.memory, &[guest], end, 4).unwrap().is_clean()
    };
    assert!(clean(world));
    let (before, format) = (view(world), world.roots[0].format);
    let all = std::env::var_os("MEMVIRT_FLIP_ALL").is_some();
    let tables = ept::verify::verify(&world.memory, &[world.guest()], end, 0).unwrap().coverage.tables;
    assert_eq!(tables.iter().sum::<u64>(), world.frames().len() as u64);
    // Tables are allocated from the leaf up, so a table's level has to be looked up.
    for (table, level) in levels(world) {
        for index in 0..512 {
            let entry = table + index * 8;
            let value = world.read(entry);
            if value == 0 && (only_used || !all && index % 61 != 3) {
                continue;
            }
            let leaf = matches!(format.decode(level, value), ept::Entry::Leaf(..));
            for bit in 0..64 {
                world.write(entry, value ^ 1 << bit);
                if !clean(world) {
                    score.found += 1;
                } else if view(world) != before {
                    score.seen += 1;
                } else if value != 0 && ignored(&format, level, leaf) >> bit & 1 != 0 {
                    score.ignored += 1;
                } else {
                    score.missed.push((entry, bit));
                }
            }
            world.write(entry, value);
        }
    }
}

/// The tables and their levels.
fn levels(world: &World) -> Vec<(u64, u8)> {
    let root = &world.roots[0];
    let mut levels = vec![(root.root, root.format.levels())];
    let mut at = 0;
    while let Some(&(table, level)) = levels.get(at) {
        for entry in (table..).step_by(8).take(512) {
            if let ept::Entry::Table(next) =
                root.format.decode(level, world.memory.read_entry(entry).unwrap())
            {
                levels.push((next, level - 1));
            }
        }
        at += 1;
    }
    levels
}

#[test]
fn each_flipped_bit_is_found_or_changes_the_view_or_is_ignored() {
    for (name, format) in [
        ("EPT", format(Kind::Ept)),
        ("EPT, 5 levels", ept(EptCaps::all(), Levels::Five, true)),
        ("EPT, no flags, no execute-only", ept(no_options(), Levels::Four, false)),
        ("EPT, all extensions", Format::ept(extensions())),
        ("NPT", format(Kind::Npt)),
        ("NPT, AMD's reserved bits", Format::npt(Ia32e { amd: true, ..Ia32e::new(Levels::Four, WIDTH) })),
        ("IA-32e", format(Kind::Ia32e)),
        ("IA-32e, no NX", Format::ia32e(Ia32e { no_execute: false, ..Ia32e::new(Levels::Four, WIDTH) })),
    ] {
        let mut score = Score::default();
        flip_all(&mut world(format), &mut score, false);
        flip_all(&mut gigantic(format), &mut score, true);
        let Score { found, seen, ignored, ref missed } = score;
        let all = found + seen + ignored + missed.len() as u32;
        let percent = |count: u32| f64::from(count) * 100.0 / f64::from(all);
        println!(
            "{name}: {all} bits flipped: {:.2} % found, {:.2} % change the view, {:.2} % ignored, {:.2} % missed",
            percent(found),
            percent(seen),
            percent(ignored),
            percent(missed.len() as u32)
        );
        assert!(missed.is_empty(), "{name}: {missed:x?}");
        assert!(found > 100 && seen > 0 && ignored > 100);
    }
}

fn extensions() -> Ept {
    Ept {
        accessed_dirty: true,
        supervisor_shadow_stack: true,
        mode_based_execute: true,
        paging_write: true,
        guest_paging_verification: true,
        sub_page_write: true,
        ..Ept::new(Levels::Four, EptCaps::all(), WIDTH)
    }
}

fn no_options() -> EptCaps {
    EptCaps::all() - EptCaps::EXECUTE_ONLY - EptCaps::ACCESSED_DIRTY
}
