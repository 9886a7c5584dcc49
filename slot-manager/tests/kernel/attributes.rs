//! `KVM_SET_MEMORY_ATTRIBUTES`, the memory faults that come of it, and the memory of a guest_memfd (rule R10).

use kvm_bindings::{
    KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd, kvm_memory_attributes as Call,
    kvm_userspace_memory_region2 as Region2,
};
use memory_model::{AddrRange, Gpa};
use proptest::prelude::*;
use slot_manager::{Errno, KernelCaps, KernelMemslots, KvmArch, Memslot, Side, SlotFault, SlotId};

use crate::{PAGE, READONLY, region, two_slots};

const PRIVATE: u64 = KVM_MEMORY_ATTRIBUTE_PRIVATE as u64;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ALLOCATE: i32 = libc::FALLOC_FL_KEEP_SIZE;

fn call(attributes: u64, address: u64, size: u64) -> Call {
    Call { address, size, attributes, flags: 0 }
}

fn caps(memory_attributes: Option<u64>) -> KernelMemslots {
    KernelMemslots::with_caps(KernelCaps { memory_attributes, ..KernelCaps::default() })
}

#[test]
fn r10_each_condition_decides_with_its_errno() {
    let good = call(PRIVATE, 0x1_0000, PAGE);
    let invalid = Errno::EINVAL;
    #[rustfmt::skip]
    let rows = [
        (Some(PRIVATE), Call { flags: 1, ..good }, invalid, "flags"),
        (Some(PRIVATE), Call { attributes: PRIVATE | 1, ..good }, invalid, "an attribute this VM"),
        (Some(0), good, invalid, "an attribute this VM"),
        (Some(PRIVATE), Call { size: 0, ..good }, invalid, "size 0"),
        (Some(PRIVATE), Call { address: u64::MAX - 0xfff, ..good }, invalid, "guest addresses that wrap"),
        (Some(PRIVATE), Call { address: 0x1_0800, ..good }, invalid, "an address or a size"),
        (Some(PRIVATE), Call { size: 0x1001, ..good }, invalid, "an address or a size"),
        (None, good, Errno::ENOTTY, "a kernel without"),
        (None, call(0, 0, PAGE), Errno::ENOTTY, "a kernel without"),
    ];
    for (supported, call, errno, cause) in rows {
        let mut kernel = caps(supported);
        let explained = kernel.explain_memory_attributes(&call);
        assert!(explained.is_some_and(|text| text.starts_with(cause)), "{call:x?}: {explained:?}");
        assert_eq!(kernel.set_memory_attributes(&call), Err(errno), "{cause}");
        assert_eq!(kernel.side(Gpa(0x1_0000)), Side::Shared);
    }
    // Without attributes to set, clearing them is no error.
    caps(Some(0)).set_memory_attributes(&call(0, 0, PAGE)).unwrap();
}

#[test]
fn r10_of_two_faults_in_one_call_the_first_of_the_table_decides() {
    type Fault = fn(&mut Call);
    let faults: [(&str, Fault); 5] = [
        ("flags", |call| call.flags = 1),
        ("an attribute", |call| call.attributes |= 1 << 2),
        ("size 0", |call| call.size = 0),
        ("guest addresses", |call| call.address |= 0xffff_ffff_ffff_f000),
        ("an address or a size", |call| call.address |= 0x10),
    ];
    for (first, (cause, one)) in faults.iter().enumerate() {
        for (_, other) in &faults[first..] {
            // A size that another fault made 0 does not wrap.
            let mut call = call(PRIVATE, 0x1_0000, PAGE);
            other(&mut call);
            one(&mut call);
            let explained = caps(Some(PRIVATE)).explain_memory_attributes(&call).unwrap();
            assert!(explained.starts_with(cause), "{call:x?}: {explained}, not {cause}");
            let lacking = caps(None).explain_memory_attributes(&call).unwrap();
            assert!(lacking.starts_with("a kernel without"), "{lacking}");
        }
    }
}

/// Writes down what is about to change sides, and the side it is on then.
#[derive(Default)]
struct Watch(Vec<(u32, AddrRange<Gpa>, Side)>);

impl KvmArch for Watch {
    fn pre_set_memory_attributes(&mut self, kernel: &KernelMemslots, slot: &Memslot, range: AddrRange<Gpa>) {
        assert!(slot.gpa.covers(range));
        self.0.push((slot.number(), range, kernel.side(range.first())));
    }
}

#[test]
fn r10_the_mmu_hears_of_the_pages_of_each_slot_before_they_change_and_of_no_others() {
    let mut kernel = two_slots();
    let mut watch = Watch::default();
    let pages = |first, last| AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
    let mut set = |attributes, address, size| {
        kernel.on(&mut watch).set_memory_attributes(&call(attributes, address, size)).unwrap();
        std::mem::take(&mut watch.0)
    };
    let both = |side| vec![(0, pages(0x1_2000, 0x1_3fff), side), (1, pages(0x2_0000, 0x2_0fff), side)];
    assert_eq!(set(PRIVATE, 0x1_2000, 0xf000), both(Side::Shared));
    assert_eq!(set(PRIVATE, 0x1_2000, 0xf000), []);
    assert_eq!(set(PRIVATE, 0x1_3000, 0x1000), []);
    assert_eq!(set(0, 0x2_1000, 0x8000), []);
    assert_eq!(set(0, 0x1_2000, 0xf000), both(Side::Private));
    assert_eq!(set(PRIVATE, 0x8000, 0x4000), []);
}

proptest! {
    #[test]
    fn r10_attributes_are_those_of_a_table_with_an_entry_a_page(
        calls in prop::collection::vec((0..48_u64, 1..24_u64, any::<bool>(), prop::option::of(0..2_u32)), 1..30),
    ) {
        // Slots take pages 16 to 19 and 32 to 35. They come and go meanwhile, which is all one to the attributes.
        let (mut kernel, mut pages) = (two_slots(), [Side::Shared; 72]);
        for (first, count, private, gone) in calls {
            let (attributes, side) = if private { (PRIVATE, Side::Private) } else { (0, Side::Shared) };
            kernel.set_memory_attributes(&call(attributes, first * PAGE, count * PAGE)).unwrap();
            pages[first as usize..(first + count) as usize].fill(side);
            if let Some(slot) = gone {
                let _ = kernel.set_user_memory_region(&region(slot, 0, 0, 0, 0));
            }
        }
        for (page, side) in (0..).zip(pages) {
            prop_assert_eq!(kernel.side(Gpa(page * PAGE + 0xabc)), side, "page {}", page);
        }
    }
}

/// Slot 0 has private memory and slot 1 has none: four pages each, at 0 and 0x10000. Slot 2 is read-only.
fn private_slot() -> (KernelMemslots, u32) {
    let mut kernel = KernelMemslots::new();
    let fd =
        kernel.create_guest_memfd(&kvm_create_guest_memfd { size: 8 * PAGE, ..Default::default() }).unwrap();
    let slot = Region2 { flags: 4, memory_size: 4 * PAGE, guest_memfd: fd, ..Default::default() };
    kernel.set_user_memory_region2(&slot).unwrap();
    kernel.set_user_memory_region(&region(1, 0, 0x1_0000, 4 * PAGE, 0)).unwrap();
    kernel.set_user_memory_region(&region(2, READONLY, 0x2_0000, PAGE, 0)).unwrap();
    (kernel, fd)
}

#[test]
fn r10_an_access_that_finds_its_page_on_the_other_side_is_a_memory_fault() {
    let (mut kernel, fd) = private_slot();
    for address in [PAGE, 0x1_1000, 0x2_0000, 0x9_0000] {
        kernel.set_memory_attributes(&call(PRIVATE, address, PAGE)).unwrap();
    }
    let id = |kernel: &KernelMemslots, gpa, side| match kernel.fault(0, Gpa(gpa), side, true) {
        SlotFault::Memory(slot) => Ok(slot.id),
        SlotFault::Retry => Err("retry"),
        SlotFault::Mmio => Err("mmio"),
        SlotFault::MemoryFault => Err("memory fault"),
    };
    #[rustfmt::skip]
    let rows = [
        (0x0000, Ok(SlotId(0)), Err("memory fault")),
        (0x1fff, Err("memory fault"), Ok(SlotId(0))),
        (0x2000, Ok(SlotId(0)), Err("memory fault")),
        (0x1_0000, Ok(SlotId(1)), Err("memory fault")),
        // Private, but its slot has no such memory.
        (0x1_1000, Err("memory fault"), Err("memory fault")),
        (0x2_0000, Err("memory fault"), Err("memory fault")),
        // The side counts before there is a slot or not.
        (0x9_0000, Err("memory fault"), Err("mmio")),
        (0x8_0000, Err("mmio"), Err("memory fault")),
    ];
    for (gpa, shared, private) in rows {
        assert_eq!(
            (id(&kernel, gpa, Side::Shared), id(&kernel, gpa, Side::Private)),
            (shared, private),
            "{gpa:#x}"
        );
    }
    kernel.close_file(fd).unwrap();
    assert_eq!(id(&kernel, PAGE, Side::Private), Err("memory fault"));
}

#[test]
fn r10_a_guest_memfd_gets_and_gives_back_memory_by_pages() {
    let (mut kernel, fd) = private_slot();
    let other = kernel.open_other_file();
    let huge = i64::MAX as u64;
    for (fd, mode, offset, len, errno) in [
        (999, PUNCH, 0, PAGE, Errno::EBADF),
        (other, PUNCH, 0, PAGE, Errno::ENODEV),
        (fd, PUNCH, 0, 0, Errno::EINVAL),
        (fd, PUNCH, 1 << 63, PAGE, Errno::EINVAL),
        (fd, PUNCH, u64::MAX, u64::MAX, Errno::EINVAL),
        (fd, 0, 0, PAGE, Errno::EOPNOTSUPP),
        (fd, libc::FALLOC_FL_PUNCH_HOLE, 0, PAGE, Errno::EOPNOTSUPP),
        (fd, ALLOCATE | libc::FALLOC_FL_ZERO_RANGE, 0x800, PAGE, Errno::EOPNOTSUPP),
        (fd, PUNCH, 0x800, PAGE, Errno::EINVAL),
        (fd, PUNCH, 0, 0x800, Errno::EINVAL),
        (fd, ALLOCATE, 7 * PAGE, 2 * PAGE, Errno::EINVAL),
        (fd, ALLOCATE, huge, huge, Errno::EINVAL),
    ] {
        assert_eq!(kernel.fallocate(fd, mode, offset, len), Err(errno), "{mode:#x} {offset:#x} {len:#x}");
    }
    assert_eq!(kernel.guest_memfd_data(fd).unwrap(), []);
    kernel.fallocate(fd, ALLOCATE, 0, 8 * PAGE).unwrap();
    kernel.fallocate(fd, PUNCH, 2 * PAGE, 3 * PAGE).unwrap();
    kernel.fallocate(fd, PUNCH, 7 * PAGE, 9 * PAGE).unwrap();
    assert_eq!(kernel.guest_memfd_data(fd).unwrap(), [0..2 * PAGE, 5 * PAGE..7 * PAGE]);
    assert_eq!(kernel.guest_memfd_data(other), Err(Errno::EINVAL));
    assert_eq!(kernel.guest_memfd_data(999), Err(Errno::EBADF));
}
