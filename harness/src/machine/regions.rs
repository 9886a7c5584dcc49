//! The regions of a machine, as its manifest describes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_tests::{BackingSpec, KindSpec, Manifest, PagesOf, RegionSpec};
use memory_model::{
    AccessRules, Backing, MemTxAttrs, MemTxError, MemoryError, MmioOps, Pages, RamBlock, RamOptions,
    RegionId, RegionTree,
};

use crate::HarnessError;

/// The tree that a manifest describes; its regions by name.
pub(super) fn add(
    tree: &mut RegionTree,
    manifest: &Manifest,
) -> Result<BTreeMap<String, RegionId>, HarnessError> {
    let mut named = BTreeMap::new();
    for spec in std::iter::once(&manifest.main_ram()).chain(&manifest.regions) {
        let id = create_region(tree, spec, &named)?;
        tree.set_enabled(id, spec.enabled)?;
        if spec.readonly {
            tree.set_readonly(id, true)?;
        }
        tree.add_with_priority(tree.root(), spec.gpa.0, id, spec.priority)?;
        named.insert(spec.name.clone(), id);
    }
    Ok(named)
}

fn create_region(
    tree: &mut RegionTree,
    spec: &RegionSpec,
    named: &BTreeMap<String, RegionId>,
) -> Result<RegionId, MemoryError> {
    let block = || {
        let (backing, shared) = match spec.backing {
            BackingSpec::Anonymous => (Backing::Anonymous, false),
            BackingSpec::Memfd => (Backing::Memfd, true),
        };
        let pages = match spec.pages {
            PagesOf::Usual => Pages::Usual,
            PagesOf::Small => Pages::Small,
            PagesOf::Thp => Pages::Thp,
        };
        RamBlock::create(&spec.name, spec.size.0, RamOptions { backing, shared, pages, ..Default::default() })
    };
    let device = || Arc::new(FixedAnswer(spec.value.unwrap_or(0)));
    match spec.kind {
        KindSpec::Ram => tree.ram(&spec.name, block()?),
        KindSpec::Rom => tree.rom(&spec.name, block()?),
        KindSpec::RomDevice => tree.rom_device(&spec.name, block()?, device()),
        KindSpec::Mmio => tree.mmio(&spec.name, spec.size.0.into(), device()),
        KindSpec::Alias => {
            let target = spec.target.as_ref().and_then(|target| named.get(target));
            let target = target.expect("the manifest was checked: an alias names a region before it");
            tree.alias(&spec.name, *target, spec.offset.map_or(0, |offset| offset.0), spec.size.0.into())
        }
    }
}

/// A device that answers every read with the same number, and forgets what is written.
struct FixedAnswer(u64);

impl MmioOps for FixedAnswer {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(self.0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules::ANY
    }
}
