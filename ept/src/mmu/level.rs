//! How large a page a fault may map: rules L1 to L4.

use memory_model::PageSize;

use super::page_fault::{Faultin, PageFault};
use crate::format::Format;

/// The largest page that all of them allow and the format has: no dirty log (L1), inside the slot and GPA congruent to
/// HVA (L2), no larger than the host's own mapping (L3) and than the fault allows (L4). `allowed` says what else forbids a
/// size: guest tables in the page that are tracked (L2). What is executed may have to be smaller still (L5).
pub(super) fn mapping_size(
    format: &Format,
    fault: &PageFault,
    faultin: &Faultin,
    allowed: impl Fn(PageSize) -> bool,
) -> PageSize {
    let Faultin { slot, hva, host, .. } = faultin;
    let gpa = fault.gpa;
    let fits = |size: PageSize| {
        let congruent = || {
            gpa.page_offset(size) == hva.page_offset(size)
                && gpa.align_down(PageSize::Size4K).page_offset(size) == host.hpa.page_offset(size)
        };
        format.has_size(size) && slot.covers_page(gpa, size) && congruent() && allowed(size)
    };
    let most = if slot.log_dirty { PageSize::Size4K } else { host.size.min(fault.max_size) };
    let sizes = [PageSize::Size1G, PageSize::Size2M].into_iter().filter(|&size| size <= most);
    sizes.into_iter().find(|&size| fits(size)).unwrap_or(PageSize::Size4K)
}
