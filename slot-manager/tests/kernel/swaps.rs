//! Rules K2 to K5: what readers see while a slot changes.

use memory_model::{AddrRange, Gpa, Hva};
use slot_manager::{
    Errno, GENERATION_UPDATE, KernelMemslots, KvmArch, Memslot, Side, SlotChange, SlotFault, SlotFlags,
    SlotId,
};

use crate::{LOG, PAGE, READONLY, region, two_slots};

/// Two places that slot 0 is at.
const HERE: Gpa = Gpa(0x1_0000);
const THERE: Gpa = Gpa(0x8_0000);

/// What a vCPU's fault comes to at both places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sees {
    Memory,
    Retry,
    Mmio,
}

use Sees::{Memory, Mmio, Retry};

fn sees(kernel: &KernelMemslots) -> [Sees; 2] {
    [HERE, THERE].map(|gpa| match kernel.fault(0, gpa, Side::Shared, false) {
        SlotFault::Memory(_) => Memory,
        SlotFault::Retry => Retry,
        SlotFault::Mmio => Mmio,
        SlotFault::MemoryFault => panic!("all pages are shared"),
    })
}

/// Writes down each point at which the kernel tells its MMU something, with what a vCPU sees there.
#[derive(Default)]
struct Watch {
    told: Vec<(&'static str, [Sees; 2])>,
    refuse: bool,
}

impl KvmArch for Watch {
    fn memslots_swapped(&mut self, kernel: &KernelMemslots, as_id: u32) {
        let generation = kernel.address_space(as_id).unwrap().generation();
        assert_ne!(generation & GENERATION_UPDATE, 0, "K3: readers are told that an update runs");
        self.told.push(("swap", sees(kernel)));
    }
    fn flush_shadow_memslot(&mut self, kernel: &KernelMemslots, slot: &Memslot) {
        assert!(!slot.invalid && kernel.slots().by_id(slot.id).unwrap().invalid);
        assert_eq!(kernel.generation() & GENERATION_UPDATE, 0);
        self.told.push(("flush", sees(kernel)));
    }
    fn prepare_memory_region(&mut self, _change: &SlotChange) -> Result<(), Errno> {
        if self.refuse { Err(Errno::ENOMEM) } else { Ok(()) }
    }
    fn commit_memory_region(&mut self, kernel: &KernelMemslots, _change: &SlotChange) {
        self.told.push(("commit", sees(kernel)));
    }
}

fn slots(kernel: &KernelMemslots) -> Vec<Memslot> {
    kernel.slots().iter().copied().collect()
}

/// Slot 0 of four pages, at one place.
fn slot_0(flags: u32, gpa: Gpa) -> kvm_bindings::kvm_userspace_memory_region {
    region(0, flags, gpa.0, 4 * PAGE, 0x7f00_0000_0000)
}

#[test]
fn k4_creation_and_flags_swap_once_deletion_and_move_show_an_invalid_slot_between_two_swaps() {
    let mut kernel = KernelMemslots::new();
    let gone = region(0, 0, 0, 0, 0);
    for (call, told) in [
        (slot_0(0, HERE), vec![("swap", [Memory, Mmio]), ("commit", [Memory, Mmio])]),
        (slot_0(LOG, HERE), vec![("swap", [Memory, Mmio]), ("commit", [Memory, Mmio])]),
        (slot_0(LOG, HERE), vec![]),
        (
            slot_0(0, THERE),
            vec![
                ("swap", [Retry, Mmio]),
                ("flush", [Retry, Mmio]),
                ("swap", [Mmio, Memory]),
                ("commit", [Mmio, Memory]),
            ],
        ),
        (
            gone,
            vec![
                ("swap", [Mmio, Retry]),
                ("flush", [Mmio, Retry]),
                ("swap", [Mmio, Mmio]),
                ("commit", [Mmio, Mmio]),
            ],
        ),
    ] {
        let mut watch = Watch::default();
        let before = kernel.generation();
        kernel.on(&mut watch).set_user_memory_region(&call).unwrap();
        let swaps = told.iter().filter(|(point, _)| *point == "swap").count() as u64;
        assert_eq!(watch.told, told, "{call:x?}");
        assert_eq!(kernel.generation() - before, swaps, "K3: one address space, one step a swap");
    }
    assert!(kernel.slots().is_empty());
}

#[test]
fn k4_what_cannot_be_prepared_puts_the_old_slot_back_in_both_sets() {
    for (call, told) in [
        (slot_0(0, THERE), vec!["swap", "flush", "swap"]),
        (region(0, 0, 0, 0, 0), vec!["swap", "flush", "swap"]),
        (slot_0(LOG, HERE), vec![]),
        (region(5, 0, THERE.0, PAGE, 0), vec![]),
    ] {
        let mut kernel = two_slots();
        let before = slots(&kernel);
        let mut watch = Watch { refuse: true, ..Watch::default() };
        assert_eq!(kernel.on(&mut watch).set_user_memory_region(&call), Err(Errno::ENOMEM));
        assert_eq!(watch.told.iter().map(|(point, _)| *point).collect::<Vec<_>>(), told);
        assert_eq!(slots(&kernel), before, "{call:x?}");
        assert_eq!(kernel.generation(), 2 + told.iter().filter(|point| **point == "swap").count() as u64);
        // The set that was inactive is in force after the next change: it shows the same slots.
        kernel.set_user_memory_region(&region(9, 0, 0x90_0000, PAGE, 0)).unwrap();
        assert_eq!(slots(&kernel)[..2], before, "{call:x?}");
        kernel.set_user_memory_region(&region(9, 0, 0, 0, 0)).unwrap();
        // Nothing of the refused log is left: it starts with a fresh bitmap.
        assert_eq!(kernel.get_dirty_log(0, &mut [0]), Err(Errno::ENOENT));
    }
}

#[test]
fn k2_z1_both_sets_show_every_change() {
    let mut kernel = two_slots();
    let calls = [
        slot_0(LOG, HERE),
        slot_0(LOG, THERE),
        slot_0(0, Gpa(THERE.0 + PAGE)),
        region(2, READONLY, HERE.0, PAGE, 0),
        region(1, 0, 0, 0, 0),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        kernel.set_user_memory_region(&call).unwrap();
        let now = slots(&kernel);
        // A slot elsewhere swaps the sets once.
        kernel
            .set_user_memory_region(&region(
                100 + number as u32,
                0,
                0x100_0000 + number as u64 * PAGE,
                PAGE,
                0,
            ))
            .unwrap();
        assert_eq!(slots(&kernel)[..now.len() - number], now[..now.len() - number], "{call:x?}");
    }
}

#[test]
fn k5_a_failed_call_changes_neither_slots_nor_logs_nor_the_generation() {
    let mut kernel = two_slots();
    assert!(kernel.mark_page_dirty(None, 0, Gpa(0x2_1000)));
    let (before, generation) = (slots(&kernel), kernel.generation());
    for call in [
        slot_0(0, Gpa(0x2_1000)),
        region(9, 0, 0, 0, 0),
        region(1, READONLY, 0x2_0000, 4 * PAGE, 0x7f00_0000_0000),
        region(1, 0, 0x1_0000, 4 * PAGE, 0x7f00_0000_0000),
    ] {
        kernel.set_user_memory_region(&call).unwrap_err();
        assert_eq!((slots(&kernel), kernel.generation()), (before.clone(), generation));
    }
    // A move too far: seen to be impossible when the slot is INVALID already, so the generation goes on.
    kernel.set_user_memory_region(&region(1, 0, 1 << 52, 4 * PAGE, 0x7f00_0000_0000)).unwrap_err();
    assert_eq!((slots(&kernel), kernel.generation()), (before, generation + 2));
    let mut bitmap = [0];
    kernel.get_dirty_log(1, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1 << 1]);
}

#[test]
fn a_call_tells_what_it_changed() {
    let mut kernel = KernelMemslots::new();
    let mut call = region(3, 0, 0x1000, 0x2000, 0x5000);
    let Ok(SlotChange::Created(first)) = kernel.set_user_memory_region(&call) else { panic!("created") };
    assert_eq!((first.base_gfn(), first.npages(), first.userspace_addr), (1, 2, Hva(0x5000)));
    assert_eq!((first.id, first.number()), (SlotId(3), 3));
    assert_eq!(kernel.set_user_memory_region(&call), Ok(SlotChange::Nothing));
    call.flags = LOG;
    let second = Memslot { flags: SlotFlags::LOG_DIRTY_PAGES, ..first };
    let changed = SlotChange::FlagsChanged { old: first, new: second };
    assert_eq!(kernel.set_user_memory_region(&call), Ok(changed));
    // A move may overlap its own old place, and change LOG_DIRTY_PAGES in the same call.
    (call.flags, call.guest_phys_addr) = (0, 0x2000);
    let third = Memslot { gpa: AddrRange::new(Gpa(0x2000), 0x2000).unwrap(), ..first };
    assert_eq!(kernel.set_user_memory_region(&call), Ok(SlotChange::Moved { old: second, new: third }));
    call.memory_size = 0;
    assert_eq!(kernel.set_user_memory_region(&call), Ok(SlotChange::Deleted(third)));
    assert!(kernel.slots().is_empty());
}

#[test]
fn a_write_into_a_read_only_slot_is_mmio_and_a_read_is_not() {
    let mut kernel = KernelMemslots::new();
    kernel.set_user_memory_region(&region(0, READONLY, 0, PAGE, 0)).unwrap();
    assert_eq!(kernel.fault(0, Gpa(0x123), Side::Shared, true), SlotFault::Mmio);
    assert!(
        matches!(kernel.fault(0, Gpa(0x123), Side::Shared, false), SlotFault::Memory(slot) if slot.id == SlotId(0))
    );
    assert_eq!(kernel.fault(0, Gpa(PAGE), Side::Shared, false), SlotFault::Mmio);
    assert_eq!(kernel.fault(7, Gpa(0), Side::Shared, false), SlotFault::Mmio);
}
