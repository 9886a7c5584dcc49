//! Two-dimensional paging needs one set of tables a VM, shadow paging one for each address space of its guest.

#[path = "../examples/table_bytes/cost.rs"]
mod cost;

use cost::{Cost, cost};

/// The root of a processor that has not switched paging on yet.
const RESET_ROOT: u64 = 0x1000;

#[test]
fn a_second_level_is_one_for_all_address_spaces_and_shadows_are_one_for_each() {
    let one = cost(1).unwrap();
    for spaces in [8, 64] {
        let Cost { guest, ept, npt, shadow } = cost(spaces).unwrap();
        assert_eq!(guest, spaces * one.guest);
        assert_eq!(shadow, guest + RESET_ROOT, "a shadow for each of the guest's tables");
        // The guest's own tables are memory too: a second level grows by what maps those.
        let pages = (guest - one.guest) >> 12;
        assert!(ept - one.ept <= pages.div_ceil(512) << 12, "EPT: {ept:#x} after {:#x}", one.ept);
        assert_eq!((npt, one.npt), (ept, one.ept), "EPT and NPT are alike");
    }
    assert_eq!(one.shadow, one.guest + RESET_ROOT);
}
