//! 32-bit and PAE paging, and how control registers select a paging mode.

use ept::{
    Access, Caching, Controls, Entry, Error, Fault, Flags, Format, Kind, Legacy32, MaxPhyAddr,
    Misconfiguration, Pae, PageFaultCode, Paging, PhysMemory, Processor, Registers, Rights, SparseMemory,
    pdptes, translate, walk,
};
use memory_model::PageSize;

const WIDTH: MaxPhyAddr = MaxPhyAddr::new(36).unwrap();
const PG_PE_WP: u64 = 1 << 31 | 1 << 16 | 1;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const LME: u64 = 1 << 8;
const NXE: u64 = 1 << 11;

fn processor() -> Processor {
    Processor::new(WIDTH)
}

fn memory_of(words: &[(u64, u64)]) -> SparseMemory {
    let mut memory = SparseMemory::default();
    for &(address, value) in words {
        memory.add_frame(address);
        memory.write_entry(address, value).unwrap();
    }
    memory
}

/// Rules I3: two levels of 32-bit entries, two of which lie in eight bytes.
#[test]
fn i3_32_bit_tables_translate_4_kib_and_4_mib_pages() {
    // PDEs 0 and 1: a table, and 4 MiB at 0xc_0040_0000 (PSE-36: bits 35:32 at 16:13). PTEs 2 and 3.
    let pdes = 0x2000 | 0x7 | (0x0040_0000 | 0xc << 13 | 1 << 7 | 0x3) << 32;
    let ptes = 0x1234_5000 | 0x5 | 0x89ab_c007 << 32;
    let memory = memory_of(&[(0x1000, pdes), (0x2008, ptes)]);
    let registers = Registers { cr0: PG_PE_WP, cr3: 0x1018, cr4: PSE, ..Registers::default() };
    let paging = Paging::from_registers(&registers, processor()).unwrap().unwrap();
    assert_eq!((paging.format.kind(), paging.format.levels(), paging.root), (Kind::Legacy32, 2, 0x1000));

    let read = |address| translate(&memory, &paging, address, Access::READ.by_user(), Flags::Keep);
    let page = read(0x2abc).unwrap();
    assert_eq!((page.address, page.size), (0x1234_5abc, PageSize::Size4K));
    assert_eq!(page.rights(), Rights::READ | Rights::EXEC | Rights::USER);
    assert_eq!(read(0x3abc).unwrap().address, 0x89ab_cabc);

    let large = walk(&memory, &paging, 0x0056_789a, Access::WRITE, Flags::Keep);
    let leaf = large.outcome.unwrap();
    assert_eq!((leaf.address, leaf.frame(), leaf.size), (0xc_0056_789a, 0xc_0040_0000, PageSize::Size4M));
    assert_eq!((large.path.len(), large.path[0].entry_address(), large.path[0].index), (1, 0x1004, 1));

    let code = |bits| Err(Fault::PageFault { code: PageFaultCode::from_bits_retain(bits) });
    assert_eq!(read(0x0056_789a), code(0b101), "U is clear");
    assert_eq!(translate(&memory, &paging, 0x2000, Access::WRITE, Flags::Keep), code(0b011));
    assert_eq!(read(0x0080_0000), code(0b100), "no PDE");
    assert_eq!(read(1 << 32), Err(Fault::TooWide { address: 1 << 32 }));
}

#[test]
fn i3_reserved_bits_of_32_bit_entries() {
    let format = |page_4m, pse_36| Format::legacy32(Legacy32 { page_4m, pse_36 });
    for (pse_36, reserved) in [(None, 0x3f_e000), (Some(WIDTH), 0x3e_0000), (MaxPhyAddr::new(40), 0x20_0000)]
    {
        let format = format(true, pse_36);
        assert_eq!(format.reserved(2, true) & 0xffff_ffff, reserved);
        assert_eq!(format.reserved(1, true) & 0xffff_ffff, 0, "none in 4 KiB entries");
        assert_eq!(format.reserved(2, false) & 0xffff_ff7f, 0);
        assert_eq!(
            format.decode(2, 0x81 | 1 << 21),
            Entry::Malformed(Misconfiguration::ReservedBits(1 << 21))
        );
    }
    // Without PSE bit 7 is ignored: the entry points to a table.
    assert_eq!(format(false, None).decode(2, 0x5081), Entry::Table(0x5000));
    assert!(!format(false, None).has_size(PageSize::Size4M));
    assert_eq!(format(true, None).decode(2, 0x40_0081), Entry::Leaf(0x40_0000, PageSize::Size4M));
    assert_eq!(format(true, None).caching(2, 0x40_1099), Caching::Pat(7));
}

#[test]
fn i3_flags_of_a_32_bit_entry_leave_its_neighbour_alone() {
    for odd in [0, 1] {
        let entry = |value: u64| value << (32 * odd) | 0xffff_ffff << (32 - 32 * odd);
        let memory = memory_of(&[(0x1000, entry(0x2003)), (0x2000, entry(0x5003))]);
        let registers = Registers { cr0: PG_PE_WP, cr3: 0x1000, ..Registers::default() };
        let paging = Paging::from_registers(&registers, processor()).unwrap().unwrap();
        let address = odd << 22 | odd << 12;
        let leaf = translate(&memory, &paging, address, Access::WRITE, Flags::Set).unwrap();
        assert_eq!(leaf.address, 0x5000);
        let read = |address| memory.read_entry(address).unwrap();
        assert_eq!((read(0x1000), read(0x2000)), (entry(0x2023), entry(0x5063)));
    }
}

#[test]
fn i2_pae_walks_start_at_the_pointers_that_cr3_loaded() {
    let memory = memory_of(&[
        (0x1020, 0x2001),
        (0x1030, 0x3009),
        (0x2000, 0x20_0000 | 1 << 7 | 0x7),
        (0x3ff8, 0x4007),
        (0x4008, 1 << 63 | 0xf_1234_5000 | 0x7),
    ]);
    let cr3 = ept::Cr3::new(0x1020, WIDTH).unwrap();
    let pdptes = pdptes(&memory, cr3).unwrap();
    assert_eq!(pdptes, [0x2001, 0, 0x3009, 0]);
    let registers =
        Registers { cr0: PG_PE_WP, cr3: 0x1020, cr4: PAE, efer: NXE, pdptes, ..Registers::default() };
    let paging = Paging::from_registers(&registers, processor()).unwrap().unwrap();
    // What memory holds now does not matter.
    memory.write_entry(0x1020, 0).unwrap();
    let read = |address| translate(&memory, &paging, address, Access::READ.by_user(), Flags::Keep);
    assert_eq!(read(0x1234).unwrap().address, 0x20_1234);
    let found = walk(&memory, &paging, 0xbfe0_1abc, Access::READ, Flags::Keep);
    let leaf = found.outcome.unwrap();
    assert_eq!((leaf.address, leaf.size), (0xf_1234_5abc, PageSize::Size4K));
    assert_eq!(leaf.rights(), Rights::READ | Rights::WRITE | Rights::USER);
    assert_eq!(found.path.iter().map(|step| step.level).collect::<Vec<_>>(), [2, 1]);
    let absent = Err(Fault::PageFault { code: PageFaultCode::USER });
    assert_eq!((read(0x4000_0000), read(0xc000_0000)), (absent, absent));
    assert_eq!(read(1 << 32), Err(Fault::TooWide { address: 1 << 32 }));
}

#[test]
fn i2_reserved_bits_are_refused_at_the_load_of_a_pointer_and_fault_below_it() {
    for bit in 1..64 {
        let pdpte = 1 | 1 << bit;
        let registers =
            |pdpte| Registers { cr0: PG_PE_WP, cr4: PAE, pdptes: [0, 0, pdpte, 0], ..Registers::default() };
        let reserved = (1..3).contains(&bit) || (5..9).contains(&bit) || bit >= 36;
        let selected = Paging::from_registers(&registers(pdpte), processor());
        let refused = Error::PdpteReservedBits { index: 2, pdpte, bits: 1 << bit };
        assert_eq!(selected.err(), reserved.then_some(refused), "bit {bit}");
        assert!(Paging::from_registers(&registers(1 << bit), processor()).is_ok(), "not present");

        for (level, base, no_execute) in [(1, 1, false), (1, 1, true), (2, 1, false), (2, 0x81, true)] {
            let format = Format::pae(Pae { max_phy_addr: WIDTH, no_execute });
            let mut reserved = (36..63).contains(&bit) || bit == 63 && !no_execute;
            reserved |= base == 0x81 && (13..21).contains(&bit);
            let malformed = matches!(format.decode(level, base | 1 << bit), Entry::Malformed(_));
            assert_eq!(malformed, reserved, "bit {bit} of {base:#x} at {level}, NX {no_execute}");
        }
    }
}

#[test]
fn registers_select_the_mode() {
    let select = |cr0, cr4, efer| {
        let registers = Registers { cr0, cr3: 0x1000, cr4, efer, ..Registers::default() };
        Paging::from_registers(&registers, processor())
            .map(|paging| paging.map(|paging| (paging.format.kind(), paging.format.levels())))
    };
    assert_eq!(select(1, PAE, LME), Ok(None), "paging is off");
    assert_eq!(select(PG_PE_WP, 0, 0), Ok(Some((Kind::Legacy32, 2))));
    assert_eq!(select(PG_PE_WP, PAE, 0), Ok(Some((Kind::Pae, 2))));
    assert_eq!(select(PG_PE_WP, PAE, LME), Ok(Some((Kind::Ia32e, 4))));
    assert_eq!(select(PG_PE_WP, PAE | 1 << 12, LME), Ok(Some((Kind::Ia32e, 5))));
    let refused = |cr0, cr4, efer| Err(Error::PagingMode { cr0, cr4, efer });
    assert_eq!(select(1 << 31, 0, 0), refused(1 << 31, 0, 0));
    assert_eq!(select(PG_PE_WP, 0, LME), refused(PG_PE_WP, 0, LME));
    let wide = Registers { cr0: PG_PE_WP, cr3: 1 << 36, cr4: PAE, efer: LME, ..Registers::default() };
    let bits = Error::RootReservedBits { root: 1 << 36, bits: 1 << 36 };
    assert_eq!(Paging::from_registers(&wide, processor()).unwrap_err(), bits);
}

#[test]
fn registers_set_the_control_bits() {
    let all = 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 24;
    let select = |cr0, cr4| {
        let registers = Registers { cr0, cr4: cr4 | PAE, efer: LME, ..Registers::default() };
        Paging::from_registers(&registers, processor()).unwrap().unwrap().controls
    };
    assert_eq!(select(1 << 31 | 1, 0), Controls::empty());
    assert_eq!(select(PG_PE_WP, all), Controls::all());
    let bits = [Controls::SMEP, Controls::SMAP, Controls::PKE, Controls::CET, Controls::PKS];
    for (n, control) in bits.into_iter().enumerate() {
        assert_eq!(select(1 << 31 | 1, 1 << (20 + n)), control);
    }
}
