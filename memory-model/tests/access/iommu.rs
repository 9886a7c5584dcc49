//! Accesses that IOMMUs send on.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, OnceLock};

use memory_model::{
    Access, AccessError, AccessRules, AddressSpace, Gpa, IommuEntry, IommuNotifiers, IommuOps, MemTxAttrs,
    MemTxError, MemoryError, RegionTree, Unassigned,
};

use crate::device::{Call, Device, add_page, space_of};

const PAGE: u64 = 0x1000;

/// An IOMMU with a table: the n-th page of the region goes to the n-th entry.
struct Table {
    target: OnceLock<Arc<AddressSpace>>,
    pages: Vec<Option<(u64, Access)>>,
    notifiers: IommuNotifiers,
}

impl Table {
    fn new(pages: Vec<Option<(u64, Access)>>) -> Arc<Self> {
        Arc::new(Self { target: OnceLock::new(), pages, notifiers: IommuNotifiers::default() })
    }
}

impl IommuOps for Table {
    fn translate(&self, iova: u64, _: Access, _: MemTxAttrs) -> Option<IommuEntry> {
        let (page, perm) = (*self.pages.get((iova / PAGE) as usize)?)?;
        let target = self.target.get().unwrap().view();
        Some(IommuEntry { target, translated: Gpa(page), mask: PAGE - 1, perm })
    }

    fn notifiers(&self) -> Option<&IommuNotifiers> {
        Some(&self.notifiers)
    }
}

const BOTH: Access = Access::all();

/// The space of a device behind `table`, which leads to `target`.
fn behind(table: &Arc<Table>, target: &Arc<AddressSpace>) -> Arc<AddressSpace> {
    assert!(table.target.set(target.clone()).is_ok());
    Arc::new(space_of(|tree| add_iommu(tree, table)))
}

fn add_iommu(tree: &mut RegionTree, table: &Arc<Table>) -> Result<(), MemoryError> {
    let iommu = tree.iommu("iommu", 1 << 64, table.clone())?;
    tree.add(tree.root(), 0, iommu)
}

fn failed(at: u64, source: MemTxError) -> Result<(), AccessError> {
    Err(AccessError { gpa: Gpa(at), source })
}

#[test]
fn an_access_goes_on_page_by_page_where_each_is_translated_to() {
    let memory = Arc::new(space_of(|tree| {
        add_page(tree, 0x8000, 0x88)?;
        add_page(tree, 0x3000, 0x33).map(|_| ())
    }));
    let dma = behind(&Table::new(vec![Some((0x8000, BOTH)), Some((0x3000, BOTH))]), &memory);
    let view = dma.view();
    let mut bytes = [0; 4];
    view.bus().read(Gpa(0xffe), &mut bytes).unwrap();
    assert_eq!(bytes, [0x88, 0x88, 0x33, 0x33]);
    view.bus().write(Gpa(0xffe), &[1, 2, 3, 4]).unwrap();
    memory.view().bus().read(Gpa(0x8ffe), &mut bytes[..2]).unwrap();
    memory.view().bus().read(Gpa(0x3000), &mut bytes[2..]).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    // The translation is asked for each access: what it leads to is the memory of now.
    memory.update(|tree| tree.set_enabled(tree.root(), false)).unwrap();
    assert_eq!(view.bus().read(Gpa(0), &mut bytes), failed(0, MemTxError::Decode));
}

#[test]
fn what_is_not_translated_or_not_allowed_is_as_if_nothing_were_there() {
    let memory = Arc::new(space_of(|tree| add_page(tree, 0, 0x11).map(|_| ())));
    let pages = vec![None, Some((0, Access::READ)), Some((0, Access::WRITE)), Some((0, Access::empty()))];
    let dma = behind(&Table::new(pages), &memory);
    let view = dma.view();
    let read = |at| view.bus().read(Gpa(at), &mut [0]);
    let write = |at| view.bus().write(Gpa(at), &[0x11]);
    for (at, readable, writable) in [
        (0, false, false),
        (0x1000, true, false),
        (0x2000, false, true),
        (0x3000, false, false),
        (1 << 40, false, false),
    ] {
        let expected = |allowed| if allowed { Ok(()) } else { failed(at, MemTxError::Decode) };
        assert_eq!((read(at), write(at)), (expected(readable), expected(writable)), "{at:#x}");
    }
    // Only the page without a translation is missing.
    let mut bytes = vec![0xaa; 0x1001];
    assert_eq!(view.bus().read(Gpa(0), &mut bytes), failed(0, MemTxError::Decode));
    assert_eq!((bytes[0xfff], bytes[0x1000]), (0, 0x11));
    view.bus().unassigned(Unassigned::AllOnes).read(Gpa(0xfff), &mut bytes[..2]).unwrap();
    assert_eq!(bytes[..2], [0xff, 0x11]);
}

#[test]
fn a_device_behind_an_iommu_sees_no_more_than_the_page() {
    let device = Arc::new(Device::new(AccessRules::ANY, vec![0; 0x2000]));
    let memory = Arc::new(space_of(|tree| {
        let mmio = tree.mmio("mmio", 0x10_0000, device.clone())?;
        tree.add(tree.root(), 0x1000, mmio)
    }));
    let dma = behind(&Table::new(vec![Some((0x1000, BOTH)), None]), &memory);
    assert_eq!(dma.view().bus().write(Gpa(0xffc), &[0; 8]), failed(0x1000, MemTxError::Decode));
    assert_eq!(device.calls(), [Call::Write { offset: 0xffc, size: 4, value: 0 }]);
}

/// A space behind `count` IOMMUs, the last of which leads to a page of memory.
fn chain(count: usize) -> Arc<AddressSpace> {
    let memory = Arc::new(space_of(|tree| add_page(tree, 0x5000, 0x77).map(|_| ())));
    (0..count).fold(memory, |target, _| behind(&Table::new(vec![Some((0x5000, BOTH)); 6]), &target))
}

#[test]
fn iommus_can_be_chained_but_not_without_end() {
    for count in 0..=8 {
        let mut byte = [0];
        chain(count).view().bus().read(Gpa(0x5123), &mut byte).unwrap();
        assert_eq!(byte, [0x77], "{count}");
    }
    let mut byte = [0xaa];
    assert_eq!(chain(9).view().bus().read(Gpa(0x5123), &mut byte), failed(0x5123, MemTxError::Translation));
    assert_eq!(byte, [0]);
}

#[test]
fn an_iommu_that_leads_to_itself_is_an_error() {
    let table = Table::new(vec![Some((0, BOTH))]);
    let space = Arc::new(space_of(|tree| add_iommu(tree, &table)));
    assert!(table.target.set(space.clone()).is_ok());
    assert_eq!(space.view().bus().read(Gpa(0), &mut [0]), failed(0, MemTxError::Translation));
    assert_eq!(space.view().bus().write(Gpa(0), &[0]), failed(0, MemTxError::Translation));
    let error = space.view().bus().translate(Gpa(0), 1, Access::READ).unwrap_err();
    assert_eq!(error.source, MemTxError::Translation);
}

/// An IOMMU whose tables lie behind itself.
#[derive(Default)]
struct Ouroboros {
    space: OnceLock<Arc<AddressSpace>>,
    result: Mutex<Option<Result<(), AccessError>>>,
}

impl IommuOps for Ouroboros {
    fn translate(&self, iova: u64, _: Access, _: MemTxAttrs) -> Option<IommuEntry> {
        let result = self.space.get().unwrap().view().bus().read(Gpa(iova + 8), &mut [0; 8]);
        *self.result.lock().unwrap() = Some(result);
        None
    }
}

#[test]
fn an_iommu_that_needs_itself_to_translate_gets_an_access_error() {
    let iommu = Arc::new(Ouroboros::default());
    let space = Arc::new(space_of(|tree| {
        let region = tree.iommu("iommu", 1 << 32, iommu.clone())?;
        tree.add(tree.root(), 0, region)
    }));
    assert!(iommu.space.set(space.clone()).is_ok());
    assert_eq!(space.view().bus().read(Gpa(0), &mut [0]), failed(0, MemTxError::Decode));
    assert_eq!(*iommu.result.lock().unwrap(), Some(failed(8, MemTxError::Access)));
}

#[test]
fn a_translation_can_be_kept_with_the_piece_it_leads_to() {
    let device = Device::counting(AccessRules::ANY);
    let memory = Arc::new(space_of(|tree| {
        let page = add_page(tree, 0x8000, 0)?;
        let alias = tree.alias("alias", page, 0x800, 0x800)?;
        tree.add(tree.root(), 0x3000, alias)?;
        let mmio = tree.mmio("mmio", 0x1000, device.clone())?;
        tree.add(tree.root(), 0x4000, mmio)
    }));
    let dma = behind(&Table::new(vec![Some((0x3000, Access::READ)), Some((0x4000, BOTH))]), &memory);
    let view = dma.view();
    let translate = |at, len, access| {
        let found = view.bus().translate(Gpa(at), len, access)?;
        Ok((found.name.to_string(), found.offset, found.range.first().0, found.range.bytes()))
    };
    let nothing = |at| Err(AccessError { gpa: Gpa(at), source: MemTxError::Decode });
    assert_eq!(translate(0x10, 8, Access::READ), Ok(("ram".to_string(), 0x810, 0x3010, 8)));
    assert_eq!(
        translate(0x7fc, 8, Access::READ),
        Ok(("ram".to_string(), 0xffc, 0x37fc, 4)),
        "cut by its end"
    );
    assert_eq!(translate(0x1ffe, 8, Access::WRITE), Ok(("mmio".to_string(), 0xffe, 0x4ffe, 2)));
    assert_eq!(translate(0x10, 8, Access::WRITE), nothing(0x10));
    assert_eq!(translate(0x800, 8, Access::READ), nothing(0x800));
    assert_eq!(device.calls(), [] as [Call; 0]);
}

#[test]
fn who_keeps_translations_hears_of_those_that_end_in_its_range() {
    let table = Table::new(vec![]);
    let heard: Arc<Mutex<Vec<RangeInclusive<u64>>>> = Arc::default();
    let hear = {
        let heard = heard.clone();
        move |range| heard.lock().unwrap().push(range)
    };
    let notifiers = IommuOps::notifiers(&*table).unwrap();
    let registration = notifiers.register(0x1000..=0x2fff, hear);
    notifiers.unmapped(0..=0xfff);
    notifiers.unmapped(0..=0x1fff);
    notifiers.unmapped(0..=u64::MAX);
    assert_eq!(*heard.lock().unwrap(), [0x1000..=0x1fff, 0x1000..=0x2fff]);
    drop(registration);
    notifiers.unmapped(0..=u64::MAX);
    assert_eq!(heard.lock().unwrap().len(), 2);
}
