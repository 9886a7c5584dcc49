//! EPTP and CR3, as a VM entry and MOV to CR3 check them.

use ept::{Cr3, EptCaps, Eptp, Error, Levels, MaxPhyAddr};

const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();
const GOOD: u64 = 0x1234_5000 | 1 << 6 | 3 << 3 | 6;

#[test]
fn a_good_eptp_is_taken_apart() {
    let eptp = Eptp::new(GOOD, EptCaps::all(), WIDTH).unwrap();
    assert_eq!((eptp.root(), eptp.levels(), eptp.accessed_dirty()), (0x1234_5000, Levels::Four, true));
    assert_eq!(Eptp::for_root(0x1234_5000, Levels::Four, true, EptCaps::all(), WIDTH), Ok(eptp));
    let five = Eptp::for_root(0x5000, Levels::Five, false, EptCaps::all(), WIDTH).unwrap();
    assert_eq!(
        (five.raw(), five.levels(), five.accessed_dirty()),
        (0x5000 | 4 << 3 | 6, Levels::Five, false)
    );
}

#[test]
fn e1_memory_type_is_uc_or_wb_as_offered() {
    for memory_type in 0..8u8 {
        let eptp = GOOD & !7 | u64::from(memory_type);
        let refused = Err(Error::EptpMemoryType { eptp, memory_type });
        for caps in
            [EptCaps::all(), EptCaps::all() - EptCaps::UNCACHEABLE, EptCaps::all() - EptCaps::WRITE_BACK]
        {
            let accepted = memory_type == 0 && caps.contains(EptCaps::UNCACHEABLE)
                || memory_type == 6 && caps.contains(EptCaps::WRITE_BACK);
            let result = Eptp::new(eptp, caps, WIDTH);
            assert_eq!(result.is_ok(), accepted, "{eptp:#x} {caps:?}");
            assert!(accepted || result == refused, "{result:?}");
        }
    }
}

#[test]
fn e2_walk_length_is_4_or_5_as_offered() {
    for field in 0..8u64 {
        let eptp = GOOD & !(7 << 3) | field << 3;
        for (caps, good) in [
            (EptCaps::all(), field == 3 || field == 4),
            (EptCaps::all() - EptCaps::LEVELS_5, field == 3),
            (EptCaps::all() - EptCaps::LEVELS_4, field == 4),
        ] {
            let result = Eptp::new(eptp, caps, WIDTH);
            assert_eq!(result.is_ok(), good, "{eptp:#x} {caps:?}");
            assert!(good || result == Err(Error::EptpLevels { eptp, levels: field as u8 + 1 }));
        }
    }
}

#[test]
fn e3_flags_need_their_capability_and_reserved_bits_are_zero() {
    let without = EptCaps::all() - EptCaps::ACCESSED_DIRTY;
    assert_eq!(Eptp::new(GOOD, without, WIDTH), Err(Error::EptpAccessedDirty { eptp: GOOD }));
    assert!(Eptp::new(GOOD & !(1 << 6), without, WIDTH).is_ok());
    for bit in 0..64 {
        let reserved = (8..12).contains(&bit) || bit >= 46;
        let root = GOOD | 1 << bit;
        let result = Eptp::new(root, EptCaps::all(), WIDTH);
        if reserved {
            assert_eq!(result, Err(Error::RootReservedBits { root, bits: 1 << bit }));
        } else if bit >= 12 {
            assert!(result.is_ok(), "bit {bit}");
        }
    }
}

#[test]
fn e4_bit_7_needs_its_capability() {
    let eptp = GOOD | 1 << 7;
    assert!(Eptp::new(eptp, EptCaps::all(), WIDTH).unwrap().supervisor_shadow_stack());
    let without = EptCaps::all() - EptCaps::SUPERVISOR_SHADOW_STACK;
    let refused = Err(Error::RootReservedBits { root: eptp, bits: 1 << 7 });
    assert_eq!(Eptp::new(eptp, without, WIDTH), refused);
}

#[test]
fn e5_the_capability_bits_are_the_registers() {
    assert_eq!(EptCaps::from_bits_retain(0x15 << 48).hlat_prefix_size(), 0x15);
    for (cap, n) in [
        (EptCaps::EXECUTE_ONLY, 0),
        (EptCaps::INVEPT, 20),
        (EptCaps::ADVANCED_EXIT_INFO, 22),
        (EptCaps::INVEPT_SINGLE, 25),
        (EptCaps::INVEPT_ALL, 26),
        (EptCaps::INVVPID, 32),
        (EptCaps::INVVPID_ADDRESS, 40),
        (EptCaps::INVVPID_SINGLE, 41),
        (EptCaps::INVVPID_ALL, 42),
        (EptCaps::INVVPID_SINGLE_NON_GLOBAL, 43),
    ] {
        assert_eq!(cap.bits(), 1 << n);
    }
}

#[test]
fn cr3_bits_above_maxphyaddr_are_reserved() {
    for bit in 0..64 {
        let root = 1 << bit;
        match Cr3::new(root, WIDTH) {
            Ok(cr3) => assert_eq!((cr3.root(), bit < 46), (root & !0xfff, true)),
            refused => {
                assert_eq!((refused, bit >= 46), (Err(Error::RootReservedBits { root, bits: root }), true))
            }
        }
    }
}

#[test]
fn maxphyaddr_has_32_to_52_bits() {
    let accepted: Vec<_> = (0..=255).filter_map(MaxPhyAddr::new).map(MaxPhyAddr::bits).collect();
    assert_eq!(accepted, (32..=52).collect::<Vec<_>>());
}
