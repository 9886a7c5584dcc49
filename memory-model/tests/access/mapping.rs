//! Memory lent out: directly, or by a bounce buffer from the budget of the space (rule R39).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memory_model::{
    Access, AccessError, AccessRules, AddressSpace, BOUNCE_BYTES, DirtyClients, Gpa, MapError, MappedMemory,
    MemTxAttrs, MemTxError, RamBlock,
};

use crate::device::{Call, Device, page, space_of, space_with};

fn map(space: &AddressSpace, gpa: u64, len: usize, access: Access) -> Result<MappedMemory, MapError> {
    space.map(Gpa(gpa), len, access, MemTxAttrs::default())
}

fn bytes_of(memory: &mut MappedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.bytes().copy_to(&mut bytes[..]);
    bytes
}

#[test]
fn r39_ram_is_lent_itself_as_far_as_it_goes() {
    let block = page(0x11);
    let space = space_of(|tree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0x1000, ram)
    });
    let mut memory = map(&space, 0x1ff0, 0x100, Access::all()).unwrap();
    assert_eq!((memory.is_direct(), memory.len()), (true, 0x10));
    assert_eq!(bytes_of(&mut memory), [0x11; 0x10]);
    memory.bytes().copy_from(&[0x22u8; 4]);
    let mut word = [0; 8];
    block.read(0xff0, &mut word).unwrap();
    assert_eq!(word, [0x22, 0x22, 0x22, 0x22, 0x11, 0x11, 0x11, 0x11], "seen before it is given back");
    memory.unmap(4).unwrap();
}

#[test]
fn r39_giving_back_marks_what_was_accessed_dirty() {
    let block = RamBlock::anonymous("ram", 0x4000).unwrap();
    let space = space_of(|tree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.set_dirty_log(ram, DirtyClients::VGA)?;
        tree.add(tree.root(), 0, ram)
    });
    let dirty = || [0, 1, 2, 3].map(|page| block.is_dirty(page * 0x1000, 0x1000, DirtyClients::VGA));
    map(&space, 0, 0x4000, Access::READ).unwrap().unmap(0x4000).unwrap();
    assert_eq!(dirty(), [false; 4], "read only");
    let memory = map(&space, 0x800, 0x3000, Access::WRITE).unwrap();
    assert_eq!(dirty(), [false; 4], "not yet");
    memory.unmap(0x801).unwrap();
    assert_eq!(dirty(), [true, true, false, false]);
    drop(map(&space, 0x2000, 0x2000, Access::WRITE).unwrap());
    assert_eq!(dirty(), [true; 4], "dropped: all of it counts as written");
}

#[test]
fn r39_what_is_not_ram_gets_a_copy_read_now_and_written_when_given_back() {
    let device = Device::counting(AccessRules::DEFAULT);
    let space = space_with(device.clone());
    let mut memory = map(&space, 8, 8, Access::READ).unwrap();
    assert_eq!((memory.is_direct(), bytes_of(&mut memory)), (false, vec![8, 9, 10, 11, 12, 13, 14, 15]));
    assert_eq!(device.calls().len(), 2);
    memory.unmap(8).unwrap();
    assert_eq!(device.calls(), [], "lent for reading only");

    let mut memory = map(&space, 8, 8, Access::WRITE).unwrap();
    memory.bytes().copy_from(&[1u8, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(device.calls(), []);
    memory.unmap(4).unwrap();
    assert_eq!(device.calls(), [Call::Write { offset: 8, size: 4, value: 0x0403_0201 }]);
    drop(map(&space, 8, 8, Access::WRITE).unwrap());
    assert_eq!(device.calls(), [], "dropped: nothing is written");
}

#[test]
fn r39_memory_that_may_not_be_written_so_is_copied() {
    let device = Device::counting(AccessRules::ANY);
    let mut flash = None;
    let space = space_of(|tree| {
        let rom = tree.rom("rom", page(1))?;
        tree.add(tree.root(), 0, rom)?;
        let romd = tree.rom_device("flash", page(2), device.clone())?;
        tree.add(tree.root(), 0x1000, romd)?;
        flash = Some(romd);
        let ramd = tree.ram_device("bar", page(3))?;
        tree.add(tree.root(), 0x2000, ramd)
    });
    let direct = |gpa, access| map(&space, gpa, 8, access).unwrap().is_direct();
    for (gpa, read, write) in [(0, true, false), (0x1000, true, false), (0x2000, false, false)] {
        assert_eq!((direct(gpa, Access::READ), direct(gpa, Access::WRITE)), (read, write), "{gpa:#x}");
    }
    space.update(|tree| tree.set_romd(flash.unwrap(), false)).unwrap();
    assert!(!direct(0x1000, Access::READ));
    // R8: the copy of a RAM device goes back like any other.
    let mut memory = map(&space, 0x2001, 7, Access::all()).unwrap();
    assert_eq!(bytes_of(&mut memory), [3; 7]);
    memory.bytes().copy_from(&[9u8; 7]);
    memory.unmap(7).unwrap();
    let mut bytes = [0; 9];
    space.view().bus().read(Gpa(0x2000), &mut bytes).unwrap();
    assert_eq!(bytes, [3, 9, 9, 9, 9, 9, 9, 9, 3]);
}

#[test]
fn r39_bounce_buffers_run_out_and_those_who_wait_are_told() {
    let space = space_with(Device::counting(AccessRules::DEFAULT));
    let told = Arc::new(AtomicUsize::new(0));
    let wait = || {
        let told = told.clone();
        space.bounce().when_free(move || {
            told.fetch_add(1, Ordering::SeqCst);
        });
    };
    let most = map(&space, 0, BOUNCE_BYTES - 8, Access::WRITE).unwrap();
    wait();
    assert_eq!(told.load(Ordering::SeqCst), 1, "there is room: told at once");
    let rest = map(&space, 0, 0x100, Access::WRITE).unwrap();
    assert_eq!((most.len(), rest.len()), (BOUNCE_BYTES - 8, 8), "as much as there is");
    assert_eq!(map(&space, 0x10, 1, Access::WRITE).err(), Some(MapError::Exhausted { gpa: Gpa(0x10) }));
    wait();
    wait();
    assert_eq!(told.load(Ordering::SeqCst), 1);
    rest.unmap(0).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 3);
    drop(most);
    assert_eq!(told.load(Ordering::SeqCst), 3, "each is told once");
    assert_eq!(map(&space, 0, 2 * BOUNCE_BYTES, Access::WRITE).unwrap().len(), BOUNCE_BYTES);
}

#[test]
fn r39_each_space_has_a_budget_of_its_own_and_ram_needs_none() {
    let space = space_of(|tree| {
        let ram = tree.ram("ram", page(0))?;
        tree.add(tree.root(), 0, ram)?;
        let mmio = tree.mmio("mmio", 0x2000, Device::counting(AccessRules::DEFAULT))?;
        tree.add(tree.root(), 0x1000, mmio)
    });
    let sibling = space.sibling("sibling", space.root().unwrap()).unwrap();
    let _all = map(&space, 0x1000, BOUNCE_BYTES, Access::WRITE).unwrap();
    assert!(map(&space, 0x1000, 1, Access::WRITE).is_err());
    assert!(map(&space, 0, 1, Access::WRITE).is_ok());
    assert!(map(&sibling, 0x1000, 1, Access::WRITE).is_ok());
}

#[test]
fn r39_a_copy_that_cannot_be_read_is_an_error_and_costs_nothing() {
    let space = space_of(|_| Ok(()));
    for _ in 0..2 {
        let error = map(&space, 0x10, BOUNCE_BYTES, Access::READ).err();
        assert_eq!(error, Some(MapError::Access(AccessError { gpa: Gpa(0x10), source: MemTxError::Decode })));
    }
    let memory = map(&space, 0x10, 4, Access::WRITE).unwrap();
    assert_eq!(memory.unmap(4), Err(AccessError { gpa: Gpa(0x10), source: MemTxError::Decode }));
}

#[test]
fn r40_what_is_mapped_stays_what_it_was_when_the_layout_moves_on() {
    let (old, new) = (page(1), page(2));
    let mut region = None;
    let space = space_of(|tree| {
        let ram = tree.ram("old", old.clone())?;
        tree.add(tree.root(), 0, ram)?;
        region = Some(ram);
        Ok(())
    });
    let mut memory = map(&space, 0, 4, Access::all()).unwrap();
    space
        .update(|tree| {
            tree.remove(region.unwrap())?;
            tree.destroy(region.unwrap())?;
            let ram = tree.ram("new", new.clone())?;
            tree.add(tree.root(), 0, ram)
        })
        .unwrap();
    drop(old);
    assert_eq!(bytes_of(&mut memory), [1; 4]);
    memory.bytes().copy_from(&[9u8; 4]);
    assert_eq!(bytes_of(&mut map(&space, 0, 4, Access::READ).unwrap()), [2; 4]);
}
