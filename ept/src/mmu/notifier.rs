//! The host takes pages away while faults are under way: rules N1 to N3.

use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::{AddrRange, Gpa};

/// How many invalidations had ended when a fault asked the host (`mmu_invalidate_seq`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidateSeq(u64);

/// The invalidations of a VM: those that are over, and those under way. They are changed with the MMU held
/// exclusively and read at any time.
#[derive(Debug, Default)]
pub struct Invalidations {
    seq: AtomicU64,
    /// `mmu_invalidate_in_progress`.
    in_progress: u64,
    /// What those under way cover together: one interval, so that more than they cover may be retried, never less.
    range: Option<AddrRange<Gpa>>,
}

impl Invalidations {
    /// What a fault notes before it asks the host for a frame (rule N3).
    pub fn seq(&self) -> InvalidateSeq {
        InvalidateSeq(self.seq.load(Ordering::Acquire))
    }

    /// `kvm_mmu_invalidate_begin`: from now on nothing of `range` is installed. What is mapped of it must go next.
    pub fn begin(&mut self, range: AddrRange<Gpa>) {
        self.in_progress += 1;
        self.range = Some(self.range.map_or(range, |under_way| under_way.hull(range)));
    }

    /// `kvm_mmu_invalidate_end`. What was looked up before is stale even if the invalidation is over when it is to be
    /// installed: the count goes up first. Calls beyond those of [`begin`](Self::begin) only count.
    pub fn end(&mut self) {
        *self.seq.get_mut() += 1;
        self.in_progress = self.in_progress.saturating_sub(1);
        if self.in_progress == 0 {
            self.range = None;
        }
    }

    /// Rule N2: whether a frame looked up at `seq` may be gone from a part of `page`, the page that is to be mapped. Asked
    /// with the MMU held, so that nothing begins or ends between this and the installation.
    pub fn retry(&self, seq: InvalidateSeq, page: AddrRange<Gpa>) -> bool {
        self.range.is_some_and(|range| range.overlaps(page)) || self.seq() != seq
    }
}
