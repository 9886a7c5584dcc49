//! Operands of INVEPT, INVVPID and VMFUNC, good and bad.

use ept::tlb::{InvEpt, InvVpid, VmFail};
use ept::{EptCaps, Eptp, Error, Levels, SparseMemory, VmFuncExit, eptp_switching};

use crate::world::{CAPS, WIDTH, world};

const INVALID: VmFail = VmFail(28);

#[test]
fn iv5_invept_operands() {
    let eptp = Eptp::for_root(0x5000, Levels::Four, true, CAPS, WIDTH).unwrap();
    let decode = |kind, descriptor, caps| InvEpt::decode(kind, descriptor, caps, WIDTH);
    assert_eq!(decode(1, [eptp.raw(), 0], CAPS), Ok(InvEpt::Single(eptp)));
    assert_eq!(decode(2, [0, 0], CAPS), Ok(InvEpt::All));
    let bad = [
        (0, [eptp.raw(), 0], CAPS),
        (3, [eptp.raw(), 0], CAPS),
        (1, [eptp.raw() | 3, 0], CAPS),
        (1, [eptp.raw(), 1], CAPS),
        (1, [eptp.raw(), 0], CAPS - EptCaps::INVEPT_SINGLE),
        (2, [0, 0], CAPS - EptCaps::INVEPT_ALL),
    ];
    for (kind, descriptor, caps) in bad {
        assert_eq!(decode(kind, descriptor, caps), Err(INVALID), "{kind} {descriptor:x?}");
    }
}

#[test]
fn iv5_invvpid_operands() {
    let format = world(0).guest.format;
    let decode = |kind, descriptor, caps| InvVpid::decode(kind, descriptor, caps, &format);
    let good = [
        (0, InvVpid::Address { vpid: 9, address: 0x7fff_0000_0000 }, EptCaps::INVVPID_ADDRESS),
        (1, InvVpid::Single(9), EptCaps::INVVPID_SINGLE),
        (2, InvVpid::All, EptCaps::INVVPID_ALL),
        (3, InvVpid::SingleNonGlobal(9), EptCaps::INVVPID_SINGLE_NON_GLOBAL),
    ];
    for (kind, decoded, needs) in good {
        assert_eq!(decode(kind, [9, 0x7fff_0000_0000], needs), Ok(decoded));
        assert_eq!(decode(kind, [9, 0x7fff_0000_0000], CAPS - needs), Err(INVALID), "{kind}");
        assert_eq!(decode(kind, [0x1_0009, 0], CAPS), Err(INVALID), "{kind}: reserved bits");
        let zero = decode(kind, [0, 0x7fff_0000_0000], CAPS);
        assert_eq!(zero.is_ok(), kind == 2, "{kind}: VPID 0");
    }
    assert_eq!(decode(0, [9, 0x8000_0000_0000], CAPS), Err(INVALID), "not canonical");
    assert_eq!(decode(4, [9, 0], CAPS), Err(INVALID));
}

#[test]
fn iv6_vmfunc_loads_one_of_512_eptps() {
    let mut memory = SparseMemory::default();
    memory.add_frame(0x9000);
    let at = |root, levels| Eptp::for_root(root, levels, true, CAPS, WIDTH).unwrap();
    let current = at(0x1000, Levels::Four);
    let (next, deep) = (at(0x2000, Levels::Four), at(0x3000, Levels::Five));
    for (index, entry) in [(0, next.raw()), (1, deep.raw()), (2, next.raw() | 3), (511, next.raw())] {
        memory.write_entry(0x9000 + index * 8, entry).unwrap();
    }
    let switch = |index| eptp_switching(&memory, 0x9000, index, current, CAPS, WIDTH);
    assert_eq!(switch(0), Ok(next));
    assert_eq!(switch(511), Ok(next));
    assert_eq!(switch(512), Err(VmFuncExit::Index(512)));
    assert_eq!(switch(1), Err(VmFuncExit::Levels { index: 1, entry: deep, current }));
    for index in [2, 3] {
        let exit = switch(index);
        assert!(
            matches!(exit, Err(VmFuncExit::Eptp { index: at, reason: Error::EptpMemoryType { .. } | Error::EptpLevels { .. } }) if at == index),
            "{exit:?}"
        );
    }
    let nowhere = eptp_switching(&memory, 0x1_0000, 0, current, CAPS, WIDTH);
    assert!(matches!(nowhere, Err(VmFuncExit::Memory(_))));
}

#[test]
fn iv6_a_switch_forgets_nothing() {
    use crate::world::{OTHER_RAM, RAM, page};
    let mut world = world(0);
    let first = world.read(page(0));
    assert_eq!(first, RAM + crate::world::DATA);
    let back = world.second;
    world.second = world.other;
    assert_eq!(world.read(page(0)), OTHER_RAM + crate::world::DATA);
    world.second = back;
    assert_eq!(world.reads(|world| assert_eq!(world.read(page(0)), first)), 0);
}
