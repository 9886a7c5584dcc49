//! KVM's descriptors of its tables (`kvm_mmu_page`), and the lists that they are in.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::LiveError;
use super::btf::Field;
use super::kernel::{Kernel, Record};
use super::layout::Layout;
use super::vm::LiveVm;
use crate::format::MAX_LEVEL;

/// A table of KVM's, as its descriptor has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LivePage {
    /// The kernel's address of the 512 entries (`spt`).
    pub(super) table: u64,
    /// The kernel's address of what each entry is made of (`shadowed_translation`); 0 of a direct one.
    pub(super) translation: u64,
    /// The first guest frame that it translates, or the frame of the guest's table that it is the shadow of.
    pub gfn: u64,
    /// Level of its entries: 1 to 5.
    pub level: u8,
    /// It is no shadow of a guest's table: it translates guest-physical addresses, or is a part of one large page of the
    /// guest's (`role.direct`).
    pub direct: bool,
    /// The guest may write its table, so that this one may lag behind.
    pub unsync: bool,
    /// It belongs to system management mode.
    pub smm: bool,
    /// It belongs to a guest of the guest.
    pub nested: bool,
    /// Hardware sets no accessed and dirty flags in its entries.
    pub flags_off: bool,
    /// On its way out.
    pub(super) invalid: bool,
}

impl LivePage {
    fn new(record: &Record, layout: &Layout) -> Self {
        let is_set = |field| record.get(field) != 0;
        Self {
            table: record.get(layout.page_table),
            translation: if is_set(layout.page_direct) { 0 } else { record.get(layout.page_translation) },
            gfn: record.get(layout.page_gfn),
            level: record.get(layout.page_level) as u8,
            direct: is_set(layout.page_direct),
            unsync: is_set(layout.page_unsync),
            smm: is_set(layout.page_smm),
            nested: is_set(layout.page_guest_mode),
            flags_off: is_set(layout.page_ad_disabled),
            invalid: is_set(layout.page_invalid),
        }
    }
}

impl LiveVm {
    /// The tables of the shadow MMU (`active_mmu_pages`), which also builds direct tables where the TDP MMU is off.
    pub(super) fn active_pages(&self) -> Result<Vec<LivePage>, LiveError> {
        pages(&self.kernel, self.kvm, self.kernel.layout.kvm_pages)
    }

    /// The roots of the TDP MMU (`tdp_mmu_roots`). Tables below them are in no list.
    pub(super) fn tdp_roots(&self) -> Result<Vec<LivePage>, LiveError> {
        pages(&self.kernel, self.kvm, self.kernel.layout.kvm_tdp_roots)
    }
}

/// The descriptors in a list of the kernel's: a ring of links, of which the first is in `struct kvm`.
fn pages(kernel: &Kernel, kvm: u64, list: Field) -> Result<Vec<LivePage>, LiveError> {
    let layout = &kernel.layout;
    let head = kvm.wrapping_add(list.offset());
    let (mut pages, mut seen) = (Vec::new(), BTreeSet::new());
    let mut link = kernel.word(head)?;
    // Without the TDP MMU its list is not even made.
    if link == 0 {
        return Ok(pages);
    }
    while link != head {
        // A descriptor that moves to another list takes the reader along.
        if !seen.insert(link) {
            return Err(LiveError::Unreadable { address: link });
        }
        let record = kernel.record(link.wrapping_sub(layout.page_link.offset()), layout.page_bytes)?;
        let page = LivePage::new(&record, layout);
        if !(1..=MAX_LEVEL).contains(&usize::from(page.level)) {
            return Err(LiveError::Unreadable { address: link });
        }
        pages.push(page);
        link = record.word(layout.page_link);
    }
    Ok(pages)
}
