//! A guest with several address spaces over the same memory, run on each kind of MMU.

use std::cell::RefCell;

use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, Shadow, ShadowOptions, SlotLookup,
    Tdp, TdpOptions,
};
use ept::{
    Access, Ept, EptCaps, Error, Flags, Format, FrameAllocator, Ia32e, Levels, MaxPhyAddr, MemoryError,
    NestedFault, Paging, PhysMemory, SparseMemory, nested_translate, translate,
};
use memory_model::{Gpa, Gva, Hpa, Hva, PageSize};

/// What every address space maps.
pub const MEMORY_BYTES: u64 = 64 << 20;

const PAGE: u64 = 0x1000;
const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();
/// Where address spaces have the memory.
const GVA: u64 = 1 << 30;
/// The guest keeps its tables behind its memory; of each address space one of level 4, 3 and 2, and those of level 1.
const GUEST_TABLES: u64 = MEMORY_BYTES;
const TABLES_EACH: u64 = 3 + MEMORY_BYTES / (512 * PAGE);
/// The MMU's tables are above all memory.
const TABLES: u64 = 1 << 40;

/// Bytes of all tables, each page of memory mapped and written by each address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Those that the guest keeps for itself, whatever is below.
    pub guest: u64,
    /// Of [`Tdp`] with EPT.
    pub ept: u64,
    /// Of [`Tdp`] with NPT.
    pub npt: u64,
    /// Of [`Shadow`].
    pub shadow: u64,
}

/// Runs that many address spaces on each kind of MMU.
pub fn cost(spaces: u64) -> Result<Cost, Error> {
    let ept = Format::ept(Ept { accessed_dirty: true, ..Ept::new(Levels::Four, EptCaps::all(), WIDTH) });
    let npt = Format::npt(Ia32e::new(Levels::Four, WIDTH));
    Ok(Cost {
        guest: spaces * TABLES_EACH * PAGE,
        ept: tdp(ept, spaces)?,
        npt: tdp(npt, spaces)?,
        shadow: shadow(spaces)?,
    })
}

fn tdp(format: Format, spaces: u64) -> Result<u64, Error> {
    let (host, slots) = (Host::new(spaces), Slots::new(spaces));
    let tdp = Tdp::new(format, TdpOptions::default(), &host)?;
    for guest in (0..spaces).map(guest_paging) {
        for gva in (GVA..GVA + MEMORY_BYTES).step_by(PAGE as usize) {
            while let Err(refused) =
                nested_translate(&host, Some(&guest), tdp.paging(), Gva(gva), Access::WRITE, Flags::Set)
            {
                let (NestedFault::Final { gpa, fault } | NestedFault::Table { gpa, fault }) = refused else {
                    panic!("the guest maps {gva:#x}: {refused:?}");
                };
                fixed(tdp.exit(gpa, fault, &slots, &host)?);
            }
        }
    }
    Ok(tdp.table_bytes())
}

fn shadow(spaces: u64) -> Result<u64, Error> {
    let (host, slots) = (Host::new(spaces), Slots::new(spaces));
    let mut shadow = Shadow::new(ShadowOptions { max_phy_addr: WIDTH, max_tables: usize::MAX });
    let mut cpu = shadow.context(&host)?;
    for guest in (0..spaces).map(guest_paging) {
        shadow.load(&mut cpu, Some(&guest), &slots, &host)?;
        for gva in (GVA..GVA + MEMORY_BYTES).step_by(PAGE as usize) {
            while translate(&host, cpu.paging(), gva, Access::WRITE, Flags::Set).is_err() {
                fixed(shadow.fault(&mut cpu, gva, Access::WRITE, &slots, &host)?);
            }
        }
    }
    Ok(shadow.table_bytes())
}

fn fixed(outcome: FaultOutcome) {
    assert!(matches!(outcome, FaultOutcome::Fixed { .. }), "{outcome:?}");
}

/// The tables of an address space.
fn guest_paging(space: u64) -> Paging {
    Paging::new(Format::ia32e(Ia32e::new(Levels::Four, WIDTH)), first_table(space))
}

fn first_table(space: u64) -> u64 {
    GUEST_TABLES + space * TABLES_EACH * PAGE
}

/// A host that has its pages where the guest has them.
struct Host(RefCell<SparseMemory>);

impl Host {
    /// With the guest's tables in its memory.
    fn new(spaces: u64) -> Self {
        let mut memory = SparseMemory::allocating_from(TABLES);
        for space in 0..spaces {
            let first = first_table(space);
            (first..first + TABLES_EACH * PAGE)
                .step_by(PAGE as usize)
                .for_each(|table| memory.add_frame(table));
            let table = |number: u64| first + number * PAGE;
            let put = |table: u64, level: u32, address: u64, entry: u64| {
                let index = address >> (12 + 9 * (level - 1)) & 511;
                memory.write_entry(table + index * 8, entry | 0x7).expect("a frame is there");
            };
            put(table(0), 4, GVA, table(1));
            put(table(1), 3, GVA, table(2));
            for gpa in (0..MEMORY_BYTES).step_by(PAGE as usize) {
                let lowest = table(3 + gpa / (512 * PAGE));
                put(table(2), 2, GVA + gpa, lowest);
                put(lowest, 1, GVA + gpa, gpa);
            }
        }
        Self(RefCell::new(memory))
    }
}

impl PhysMemory for Host {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.0.borrow().read_entry(address)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.borrow().compare_exchange(address, current, new)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, _write: bool) -> Result<HostFrame, HostFault> {
        let hpa = Hpa(hva.align_down(PageSize::Size4K).raw());
        Ok(HostFrame { hpa, size: PageSize::Size4K, writable: true })
    }

    fn allocate_table(&self) -> Option<u64> {
        self.0.borrow_mut().allocate_table()
    }

    fn free_table(&self, frame: u64) {
        self.0.borrow_mut().free_table(frame);
    }
}

/// One slot for all of it.
struct Slots(Memslot);

impl Slots {
    fn new(spaces: u64) -> Self {
        Self(Memslot {
            base: Gpa(0),
            bytes: first_table(spaces),
            hva: Hva(0),
            readonly: false,
            log_dirty: false,
        })
    }
}

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        Some(self.0).filter(|slot| slot.hva_of(gpa).is_some()).into()
    }

    fn mark_page_dirty(&self, _gpa: Gpa) {}
}
