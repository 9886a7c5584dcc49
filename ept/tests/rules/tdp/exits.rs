//! Steps 1 and 2: what hardware says, as one error code; and entries for MMIO (rules I1, I2).

use ept::mmu::{FaultOutcome, PageFault, TdpOptions};
use ept::{
    Access, EptCaps, Error, Fault, Flags, Ia32e, Levels, MaxPhyAddr, Misconfiguration, PageFaultCode,
    Qualification, translate,
};
use ept::{Format, mmu::Memslot};
use memory_model::{Gpa, Hva, PageSize};

use super::host::{G1, HostMapping, K4, M2, WIDTH, World, ept_format, npt, world};

#[test]
fn an_exit_becomes_kvms_error_code() {
    use PageFaultCode as P;
    use Qualification as Q;
    let code = |why| PageFaultCode::of_exit(why);
    for (qualification, expected) in [
        (Q::READ, P::USER | P::NPT_TABLE),
        (Q::READ | Q::LINEAR_VALID | Q::FINAL, P::USER | P::NPT_FINAL),
        (Q::WRITE | Q::READABLE | Q::FINAL, P::WRITE | P::PRESENT | P::NPT_FINAL),
        (Q::FETCH | Q::EXECUTABLE, P::FETCH | P::PRESENT | P::NPT_TABLE),
        (Q::WRITE | Q::WRITABLE, P::WRITE | P::PRESENT | P::NPT_TABLE),
        (Q::WRITE | Q::USER_EXECUTABLE, P::WRITE | P::NPT_TABLE),
    ] {
        assert_eq!(code(Fault::EptViolation { qualification }), expected, "{qualification:?}");
    }
    let reason = Misconfiguration::WriteWithoutRead;
    assert_eq!(code(Fault::EptMisconfiguration { reason }), P::RESERVED);
    let own = P::WRITE | P::USER | P::NPT_FINAL;
    assert_eq!(code(Fault::PageFault { code: own }), own);
}

const CACHING: TdpOptions = TdpOptions {
    mmio_caching: true,
    nx_huge_pages: false,
    eager_page_split: false,
    dirty_bits: false,
    max_tables: None,
};

const SLOT: Memslot =
    Memslot { base: Gpa(M2), bytes: 4 * M2, hva: Hva(G1), readonly: false, log_dirty: false };

fn caching(format: Format) -> World {
    let mapping = HostMapping { hva: G1, bytes: 4 * M2, hpa: 4 * G1, size: PageSize::Size4K, writable: true };
    let mut world = World::with(format, CACHING, SLOT, mapping);
    world.slots.generation = Some(0x7_a5a5);
    world
}

fn formats() -> [Format; 4] {
    [
        ept_format(true, EptCaps::all()),
        ept_format(false, EptCaps::all()),
        npt(Levels::Four),
        npt(Levels::Five),
    ]
}

/// The entry that a walk for `gpa` ends at.
fn last(world: &World, gpa: u64) -> u64 {
    ept::walk(&world.host, world.tdp.paging(), gpa, Access::READ, Flags::Keep).path.last().unwrap().entry
}

#[test]
fn i1_the_second_access_to_a_hole_is_known_by_its_entry() {
    const HOLE: u64 = 0xfee0_0123;
    let mmio = Err(FaultOutcome::Mmio { gpa: Gpa(HOLE) });
    for format in formats() {
        let mut world = caching(format);
        assert_eq!(world.access(HOLE, Access::READ), mmio);
        let stats = world.tdp.stats();
        assert_eq!((stats.pf_taken, stats.pf_emulate, stats.pf_mmio_spte_created), (1, 1, 1));
        let low = if format.kind() == ept::Kind::Ept { 0b110 } else { 1 << 51 | 1 };
        let generation = 0xa5 << 3 | 0x7a5 << 52;
        assert_eq!(last(&world, HOLE), 0xfee0_0000 | low | generation);
        // No slot is asked for.
        world.slots.invalid = true;
        world.slots.slots[0].base = Gpa(0xfee0_0000);
        for access in [Access::READ, Access::WRITE, Access::FETCH] {
            assert_eq!(world.access(HOLE, access), mmio);
        }
        assert_eq!(world.tdp.stats().pf_taken, 1);
    }
}

#[test]
fn i2_an_entry_from_before_a_change_of_the_slots_is_looked_up_again() {
    for format in formats() {
        let mut world = caching(format);
        let _ = world.access(G1, Access::READ);
        world.slots.slots[0].base = Gpa(G1);
        world.slots.generation = Some(0x7_a5a6);
        assert_eq!(world.access(G1, Access::WRITE).unwrap().address, 4 * G1);
        assert_eq!(world.sizes(), [1, 0, 0]);
        // While the slots are changing nothing is known, and nothing is remembered.
        let _ = world.access(M2, Access::READ);
        world.slots.generation = None;
        assert_eq!(world.access(M2, Access::READ), Err(FaultOutcome::Mmio { gpa: Gpa(M2) }));
        assert_eq!(world.access(M2 + K4, Access::READ), Err(FaultOutcome::Mmio { gpa: Gpa(M2 + K4) }));
        assert_eq!(last(&world, M2 + K4), 0);
        assert_eq!(world.tdp.stats().pf_mmio_spte_created, 2);
    }
}

#[test]
fn i2_a_slot_that_came_meanwhile_is_not_taken_for_a_hole() {
    let mut world = caching(ept_format(true, EptCaps::all()));
    let fault = PageFault::of_tdp(Gpa(G1), Access::READ);
    let hole = fault.resolve(world.tdp.invalidations().seq(), &world.slots, &world.host);
    world.slots.slots[0].base = Gpa(G1);
    world.slots.generation = Some(0x7_a5a6);
    let outcome = world.tdp.map(&fault, hole, &world.slots, &world.host);
    assert_eq!(outcome, Ok(FaultOutcome::Mmio { gpa: Gpa(G1) }), "this access came before the slot");
    assert_eq!(world.access(G1, Access::READ).unwrap().address, 4 * G1);
}

#[test]
fn i2_when_the_generation_starts_anew_everything_goes() {
    let mut world = caching(ept_format(true, EptCaps::all()));
    world.touch_all();
    let _ = world.access(G1, Access::READ);
    assert_eq!(world.tdp.invalidate_mmio(0x7_ffff, &world.host).unwrap().leaves, 0);
    assert_eq!(world.tdp.invalidate_mmio(0x8_0000, &world.host).unwrap().leaves, 2048);
    assert_eq!((world.sizes(), last(&world, G1)), ([0; 3], 0));
}

#[test]
fn i1_without_a_reserved_bit_or_the_option_nothing_is_remembered() {
    let widest = Format::npt(Ia32e::new(Levels::Four, MaxPhyAddr::MAX));
    let off = world(PageSize::Size4K);
    for world in [caching(widest), off] {
        let _ = world.access(G1, Access::READ);
        assert_eq!(world.tdp.pages(&world.host).unwrap().len(), 1);
    }
}

#[test]
fn a_broken_entry_is_no_mmio() {
    let world = world(PageSize::Size4K);
    world.access(M2, Access::READ).unwrap();
    let step = world.leaf(M2).step;
    world.host.tables.write(step.entry_address(), step.entry | 1 << WIDTH.bits());
    let why = translate(&world.host, world.tdp.paging(), M2, Access::READ, Flags::Keep).unwrap_err();
    let refused = world.tdp.exit(Gpa(M2), why, &world.slots, &world.host);
    assert!(matches!(refused, Err(Error::Malformed { level: 1, .. })), "{refused:?}");
    // Somebody mends it in time.
    world.host.tables.write(step.entry_address(), step.entry);
    assert_eq!(world.tdp.exit(Gpa(M2), why, &world.slots, &world.host), Ok(FaultOutcome::Retry));
}
