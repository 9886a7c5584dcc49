//! Whether KVM has this VMM's guest memory where the VMM thinks it has.

use harness::{Witness, vmm};
use kvm_bindings::kvm_userspace_memory_region;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use your_vmm::Vmm;

const RAM: [(GuestAddress, usize); 2] = [(GuestAddress(0), 0x10_0000), (GuestAddress(0x20_0000), 0x10_0000)];

/// `mov word [0x5000], 0x1234; hlt`
const WRITE: &[u8] = &[0xc7, 0x06, 0x00, 0x50, 0x34, 0x12, 0xf4];

/// What is wrong with a VM's memory; `None` where it cannot be seen.
fn findings(vmm: &Vmm) -> Option<Vec<String>> {
    match vmm::check(&vmm.vm, &vmm.memory, None) {
        Witness::Seen(found) => Some(found.findings),
        Witness::Absent => panic!("KVM knows no such VM"),
        Witness::NotShown(why) => {
            println!("not checked: {why}");
            None
        }
    }
}

#[test]
fn all_guest_memory_is_where_the_vmm_has_it() {
    let mut vmm = Vmm::new(&RAM).unwrap();
    vmm.run(WRITE).unwrap();
    assert_eq!(vmm.memory.read_obj::<u16>(GuestAddress(0x5000)).unwrap(), 0x1234);
    assert!(findings(&vmm).is_none_or(|findings| findings.is_empty()));
}

#[test]
fn a_page_is_followed_to_its_frame() {
    let mut vmm = Vmm::new(&RAM).unwrap();
    vmm.run(WRITE).unwrap();
    let Witness::Seen(found) = vmm::check(&vmm.vm, &vmm.memory, Some(harness::Gpa(0x5000))) else { return };
    let page = found.gpa.unwrap();
    let host = vmm.memory.get_host_address(GuestAddress(0x5000)).unwrap();
    assert_eq!(page.hva.unwrap().raw(), host as u64);
    assert!(page.hpa.is_some() && page.leaves.iter().all(|leaf| Some(leaf.hpa) == page.hpa));
}

#[test]
fn a_slot_with_the_wrong_address_is_found() {
    let vmm = Vmm::new(&RAM).unwrap();
    let host = vmm.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    // The second range gets the memory of the first.
    let wrong = kvm_userspace_memory_region {
        slot: 1,
        flags: 0,
        guest_phys_addr: 0x20_0000,
        memory_size: 0,
        userspace_addr: 0,
    };
    let again = kvm_userspace_memory_region { memory_size: 0x10_0000, userspace_addr: host, ..wrong };
    // SAFETY: both are memory of this VMM's, which outlives the VM.
    unsafe { vmm.vm.set_user_memory_region(wrong).and_then(|()| vmm.vm.set_user_memory_region(again)) }
        .unwrap();
    if let Some(findings) = findings(&vmm) {
        assert!(findings[0].starts_with("guest memory at 0x200000: the VMM has it at 0x"), "{findings:?}");
        assert!(findings[0].ends_with(&format!("slot 1 at {host:#x}")), "{findings:?}");
    }
}

#[test]
fn a_slot_that_is_missing_is_found() {
    let vmm = Vmm::new(&RAM).unwrap();
    let gone = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0,
        userspace_addr: 0,
    };
    // SAFETY: it takes memory away.
    unsafe { vmm.vm.set_user_memory_region(gone) }.unwrap();
    if let Some(findings) = findings(&vmm) {
        assert_eq!(findings, ["guest memory at 0x0: no slot has it"]);
    }
}
