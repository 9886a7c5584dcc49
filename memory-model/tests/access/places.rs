//! What an access meets: memory of all kinds, holes, and the seams between them.

use std::sync::Arc;

use memory_model::{
    AccessError, AccessRules, AddrRange, DirtyClients, Gpa, Hva, MemTxAttrs, MemTxError, MmioOps, RamBlock,
    Unassigned,
};

use crate::device::{Call, Device, add_page, page, space_of};

fn decode_error(at: u64) -> Result<(), AccessError> {
    Err(AccessError { gpa: Gpa(at), source: MemTxError::Decode })
}

#[test]
fn r5_a_reservation_hides_what_is_below_reads_0_and_is_a_decode_error() {
    let block = page(0x11);
    let space = space_of(|tree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)?;
        let reservation = tree.reservation("reserved", 0x100)?;
        tree.add_with_priority(tree.root(), 0x100, reservation, 1)
    });
    let view = space.view();
    let mut bytes = [0xaa; 0x102];
    assert_eq!(view.bus().read(Gpa(0xff), &mut bytes), decode_error(0x100));
    assert_eq!((bytes[0], bytes[0x101]), (0x11, 0x11));
    assert!(bytes[1..0x101].iter().all(|&byte| byte == 0));
    assert_eq!(view.bus().write(Gpa(0x180), &[1]), decode_error(0x180));
    let mut below = [0];
    block.read(0x180, &mut below).unwrap();
    assert_eq!(below, [0x11]);
}

#[test]
fn r6_rom_changes_for_the_loader_only() {
    let space = space_of(|tree| {
        let rom = tree.rom("rom", page(0x22))?;
        tree.add(tree.root(), 0, rom)?;
        // RAM behind a read-only alias is ROM too.
        let ram = tree.ram("ram", page(0x22))?;
        let alias = tree.alias("shadow", ram, 0, 0x1000)?;
        tree.set_readonly(alias, true)?;
        tree.add(tree.root(), 0x1000, alias)
    });
    let view = space.view();
    for at in [0x10, 0x1010] {
        let mut byte = [0];
        assert_eq!(view.bus().write(Gpa(at), &[1]), decode_error(at));
        view.bus().read(Gpa(at), &mut byte).unwrap();
        assert_eq!(byte, [0x22]);
        view.bus().write_rom(Gpa(at), &[1]).unwrap();
        view.bus().read(Gpa(at), &mut byte).unwrap();
        assert_eq!(byte, [1]);
    }
}

#[test]
fn r6_the_loader_calls_no_device_and_says_so() {
    let device = Device::counting(AccessRules::ANY);
    let space = space_of(|tree| {
        let flash = tree.rom_device("flash", page(0), device.clone())?;
        tree.add(tree.root(), 0, flash)?;
        let mmio = tree.mmio("mmio", 4, device.clone())?;
        tree.add(tree.root(), 0x1000, mmio)?;
        add_page(tree, 0x2000, 0).map(|_| ())
    });
    let view = space.view();
    assert_eq!(view.bus().write_rom(Gpa(0xfff), &[5; 0x1002]), decode_error(0x1000));
    assert_eq!(device.calls(), []);
    for at in [0xfff, 0x2000] {
        let mut byte = [0];
        view.bus().read(Gpa(at), &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
}

#[test]
fn r7_a_rom_device_reads_direct_while_romd_is_on_and_is_always_written_by_callback() {
    let device = Device::counting(AccessRules::ANY);
    let block = page(0x33);
    let mut flash = None;
    let space = space_of(|tree| {
        let id = tree.rom_device("flash", block.clone(), device.clone())?;
        tree.add(tree.root(), 0, id)?;
        flash = Some(id);
        Ok(())
    });
    let mut word = [0; 4];
    space.view().bus().read(Gpa(8), &mut word).unwrap();
    assert_eq!((word, device.calls()), ([0x33; 4], vec![]));
    space.view().bus().write(Gpa(8), &[1, 2]).unwrap();
    assert_eq!(device.calls(), [Call::Write { offset: 8, size: 2, value: 0x201 }]);

    space.update(|tree| tree.set_romd(flash.unwrap(), false)).unwrap();
    space.view().bus().read(Gpa(0x20), &mut word).unwrap();
    assert_eq!((word, device.calls()), ([32, 33, 34, 35], vec![Call::Read { offset: 0x20, size: 4 }]));
    space.view().bus().write(Gpa(8), &[7]).unwrap();
    assert_eq!(device.calls(), [Call::Write { offset: 8, size: 1, value: 7 }]);
    block.read(8, &mut word).unwrap();
    assert_eq!(word, [0x33; 4], "what a write does to the memory is the device's choice");
}

#[test]
fn r8_a_ram_device_takes_every_length_and_can_be_read_only() {
    let (writable, fixed) = (page(0x44), page(0x44));
    let space = space_of(|tree| {
        let bar = tree.ram_device("bar", writable.clone())?;
        tree.add(tree.root(), 0, bar)?;
        let fixed = tree.ram_device("fixed", fixed.clone())?;
        tree.set_readonly(fixed, true)?;
        tree.add(tree.root(), 0x1000, fixed)
    });
    let view = space.view();
    let data: Vec<u8> = (1..=23).collect();
    for len in 0..=data.len() {
        view.bus().write(Gpa(0x101), &data[..len]).unwrap();
        let mut bytes = vec![0; len + 1];
        view.bus().read(Gpa(0x101), &mut bytes).unwrap();
        assert_eq!(bytes[..len], data[..len]);
        assert_eq!(bytes[len], 0x44);
    }
    assert_eq!(view.bus().write(Gpa(0x1000), &[1; 8]), decode_error(0x1000));
    let mut word = [0; 8];
    view.bus().read(Gpa(0x1000), &mut word).unwrap();
    assert_eq!(word, [0x44; 8]);
}

#[test]
fn r36_lengths_are_cut_to_memory_but_not_to_devices() {
    let (address, other) = (Device::counting(AccessRules::ANY), Device::counting(AccessRules::ANY));
    let space = space_of(|tree| {
        add_page(tree, 0, 0x11)?;
        // PCI's configuration address, and the reset register inside it.
        let address = tree.mmio("pci-conf-idx", 1, address.clone())?;
        tree.add(tree.root(), 0x1000, address)?;
        let other = tree.mmio("piix3-reset", 0x1000, other.clone())?;
        tree.add(tree.root(), 0x1001, other)
    });
    let view = space.view();
    view.bus().write(Gpa(0x1000), &[1, 2, 3, 4]).unwrap();
    assert_eq!(address.calls(), [Call::Write { offset: 0, size: 4, value: 0x0403_0201 }]);
    assert_eq!(other.calls(), []);
    // A write that begins in memory gives the device only what is its own.
    view.bus().write(Gpa(0xffe), &[1, 2, 3, 4]).unwrap();
    assert_eq!(address.calls(), [Call::Write { offset: 0, size: 2, value: 0x0403 }]);
}

#[test]
fn r36_a_word_that_begins_in_a_hole_is_not_cut_by_what_begins_in_it() {
    let device = Device::counting(AccessRules::ANY);
    let space = space_of(|tree| {
        let odd = tree.mmio("odd", 0x10, device.clone())?;
        tree.add(tree.root(), 0x1002, odd)
    });
    let view = space.view();
    assert_eq!(view.bus().write(Gpa(0x1000), &[1; 4]), decode_error(0x1000));
    assert_eq!(device.calls(), []);
    assert_eq!(view.bus().write(Gpa(0xf01), &[1; 0x104]), decode_error(0xf01));
    assert_eq!(device.calls(), [Call::Write { offset: 2, size: 1, value: 1 }], "0x1004 is the last byte");
    // Two bytes are no word: the access meets the device at its start.
    assert_eq!(view.bus().write(Gpa(0x1001), &[1; 2]), decode_error(0x1001));
    assert_eq!(device.calls(), [Call::Write { offset: 0, size: 1, value: 1 }]);
}

#[test]
fn r38_where_nothing_is_reads_give_0_and_both_ways_are_decode_errors() {
    let space = space_of(|tree| add_page(tree, 0x1000, 0x55).map(|_| ()));
    let view = space.view();
    let mut bytes = [0xaa; 0x1010];
    assert_eq!(view.bus().read(Gpa(0xff8), &mut bytes), decode_error(0xff8));
    assert_eq!((bytes[7], bytes[8], bytes[0x1007], bytes[0x1008]), (0, 0x55, 0x55, 0));
    assert_eq!(view.bus().write(Gpa(0xff8), &[1; 0x10]), decode_error(0xff8));
    view.bus().read(Gpa(0x1000), &mut bytes[..9]).unwrap();
    assert_eq!(bytes[..9], [1, 1, 1, 1, 1, 1, 1, 1, 0x55], "the part that met memory was written");
}

#[test]
fn r38_all_ones_is_the_choice_of_the_bus() {
    let space = space_of(|tree| {
        let reservation = tree.reservation("reserved", 0x1000)?;
        tree.add(tree.root(), 0, reservation)
    });
    let view = space.view();
    let bus = view.bus().unassigned(Unassigned::AllOnes);
    for at in [0, 0x1000, u64::MAX] {
        let mut byte = [0];
        bus.read(Gpa(at), &mut byte).unwrap();
        assert_eq!(byte, [0xff]);
        bus.write(Gpa(at), &[1]).unwrap();
    }
}

#[test]
fn an_access_past_the_last_address_does_not_come_round() {
    let space = space_of(|tree| {
        add_page(tree, 0, 0x11)?;
        add_page(tree, u64::MAX - 0xfff, 0x22).map(|_| ())
    });
    let view = space.view();
    let mut bytes = [0xaa; 4];
    assert_eq!(view.bus().read(Gpa(u64::MAX - 1), &mut bytes), decode_error(u64::MAX - 1));
    assert_eq!(bytes, [0x22, 0x22, 0, 0]);
    assert_eq!(view.bus().write(Gpa(u64::MAX), &[1, 2]), decode_error(u64::MAX));
    view.bus().read(Gpa(0), &mut bytes).unwrap();
    assert_eq!(bytes, [0x11; 4]);
    assert_eq!(view.bus().read(Gpa(u64::MAX), &mut []), Ok(()));
}

#[test]
fn memory_of_another_process_is_an_error_of_its_own() {
    let block = RamBlock::foreign("theirs", Hva(0x1000), 0x1000).unwrap();
    let space = space_of(|tree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)?;
        let bar = tree.ram_device("bar", block)?;
        tree.add(tree.root(), 0x1000, bar)
    });
    for at in [0, 0x1000] {
        let error = Err(AccessError { gpa: Gpa(at), source: MemTxError::NotMapped });
        let mut byte = [0xaa];
        assert_eq!(space.view().bus().read(Gpa(at), &mut byte), error);
        assert_eq!(byte, [0]);
        assert_eq!(space.view().bus().write(Gpa(at), &[1]), error);
    }
}

#[test]
fn a_device_to_the_end_of_the_space_sees_its_offsets_go_on_past_it() {
    struct Offsets;
    impl MmioOps for Offsets {
        fn read(&self, offset: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
            Ok(offset & 0xff)
        }
        fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
            Ok(())
        }
        fn rules(&self) -> AccessRules {
            AccessRules { implemented: memory_model::AccessSizes::new(1, 1), ..AccessRules::ANY }
        }
    }
    let space = space_of(|tree| {
        let all = tree.mmio("all", 1 << 64, Arc::new(Offsets))?;
        tree.add(tree.root(), 0, all)
    });
    let mut bytes = [0; 2];
    // One step of two bytes at an odd place, the second of which does not exist.
    space.view().bus().read(Gpa(u64::MAX), &mut bytes).unwrap();
    assert_eq!(bytes, [0xff, 0]);
}

#[test]
fn r40_the_first_range_in_a_window_is_given_cut_and_keeps_its_memory() {
    let block = page(0x66);
    let weak = Arc::downgrade(&block);
    let space = space_of(|tree| {
        let ram = tree.ram("ram", block)?;
        let alias = tree.alias("part", ram, 0x400, 0x800)?;
        tree.add(tree.root(), 0x1000, alias)
    });
    let window = |first, last| AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
    let view = space.view();
    let find = |first, last| view.first_in(window(first, last)).map(|found| (found.range, found.offset));
    assert_eq!(find(0, 0xfff), None);
    assert_eq!(find(0, 0x1000), Some((window(0x1000, 0x1000), 0x400)));
    assert_eq!(find(0x1100, u64::MAX), Some((window(0x1100, 0x17ff), 0x500)));
    assert_eq!(find(0x1800, u64::MAX), None);

    let found = view.first_in(window(0, u64::MAX)).unwrap();
    drop((view, space));
    assert!(weak.upgrade().is_some(), "what was found is referenced");
    drop(found);
    assert!(weak.upgrade().is_none());
}

#[test]
fn writes_mark_their_pages_dirty_for_the_clients_of_the_range() {
    let block = RamBlock::anonymous("ram", 0x4000).unwrap();
    let space = space_of(|tree| {
        let ram = tree.ram("vram", block.clone())?;
        tree.set_dirty_log(ram, DirtyClients::VGA)?;
        tree.add(tree.root(), 0, ram)
    });
    let view = space.view();
    view.bus().read(Gpa(0), &mut [0; 8]).unwrap();
    view.bus().write(Gpa(0x1ffc), &[1; 8]).unwrap();
    let dirty = |page: u64, client| block.is_dirty(page * 0x1000, 0x1000, client);
    assert_eq!([0, 1, 2, 3].map(|page| dirty(page, DirtyClients::VGA)), [false, true, true, false]);
    assert!([0, 1, 2, 3].iter().all(|&page| !dirty(page, DirtyClients::MIGRATION)));
}
