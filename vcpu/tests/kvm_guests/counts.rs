//! What KVM counts of a guest: by the files that it gives to its owner, and in its own structures. Both say the same, and
//! as much as there is.

use ept::live::{KvmStats, LeafFinding};
use vcpu::{Entry, Exit, HostView};

use crate::guest::Guest;
use crate::live::{PAGES, pagemap, ram, touch};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    each_page_that_is_touched_first_is_a_fault_that_is_fixed,
    files_and_structures_count_alike,
    leaves_that_no_fault_has_made_are_found,
);

/// A guest that has touched its pages, one after the other, which were not there before.
fn touched() -> Guest {
    let mut guest = Guest::ring3_on(ram(memory_model::Pages::Small), touch);
    assert!(matches!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    guest
}

fn each_page_that_is_touched_first_is_a_fault_that_is_fixed() {
    let guest = touched();
    let stats = KvmStats::of(&guest.vm).unwrap();
    assert!(stats.id().unwrap().starts_with("kvm-"));
    assert!(stats.names().unwrap().any(|name| name == "pages_4k"));
    let small = stats.get("pages_4k").unwrap().unwrap();
    assert!((PAGES..PAGES + 64).contains(&small), "its pages, code, tables: {small}");
    let taken = guest.vm.violations().expect("the vCPU counts, as the VM does");
    // Pages next to one that is touched may be mapped with it, but for those that the host does not have yet.
    assert!(taken >= PAGES, "{taken}");
    assert_eq!(stats.get("pages_8k").unwrap(), None);
}

fn files_and_structures_count_alike() {
    let guest = touched();
    let vm = guest.live();
    let tables = vm.tables().unwrap();
    assert_eq!(tables.counted_by_file(), Some(tables.counted()));
    assert_eq!(tables.count("pf_taken"), guest.vm.violations());
    let stats = KvmStats::of(&guest.vm).unwrap();
    let of_vm = tables.counts().filter(|(name, _)| !name.starts_with("pf_"));
    for (name, count) in of_vm {
        assert_eq!(stats.get(name).unwrap(), Some(count), "{name}");
    }
    assert!(tables.count("pf_fixed").unwrap() >= PAGES);
}

fn leaves_that_no_fault_has_made_are_found() {
    let guest = touched();
    let vm = guest.live();
    let mut tables = vm.tables().unwrap();
    assert!(tables.check(&pagemap()).unwrap().is_clean());
    if !tables.set_count("pf_fixed", 1) {
        return println!("not checked: this kernel does not count the faults that it fixes");
    }
    let report = tables.check(&pagemap()).unwrap();
    let leaves = report.leaves.iter().sum();
    let expected = match tables.second_level() {
        ept::live::SecondLevel::Shadow => vec![LeafFinding::Faults { leaves, fixed: 1 }],
        _ => vec![],
    };
    assert_eq!(report.findings, expected);
}
