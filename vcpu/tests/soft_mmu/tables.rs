//! Tables that run out.

use vcpu::soft::SoftOptions;

use crate::machine::*;

#[test]
fn k5_a_guest_goes_on_with_few_tables() {
    for options in columns() {
        // Far fewer than one for each 2 MiB.
        let max_tables = Some(8);
        let mut machine = Machine::new(&SoftOptions { max_tables, ..options });
        for round in 0..3 {
            for page in (DATA..BYTES).step_by(0x9_d000) {
                machine.writes(page, page + round);
                machine.assert_clean();
            }
            for page in (DATA..BYTES).step_by(0x9_d000) {
                assert_eq!(machine.reads(page), page + round, "{options:?}");
            }
        }
        let bytes = machine.vm.kernel().mmu.table_bytes();
        assert!(bytes <= 8 * PAGE, "{options:?}: {bytes:#x} bytes of tables");
    }
}
