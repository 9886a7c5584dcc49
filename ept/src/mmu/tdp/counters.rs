//! Counters that processors add to at the same time, without waiting for each other.

use core::array;
use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::{Gpa, PageSize};

use crate::mmu::Stats;

/// What is counted. The order is that of [`Counters::stats`].
#[derive(Clone, Copy)]
pub(super) enum Count {
    Taken,
    Fixed,
    Fast,
    Spurious,
    Emulate,
    MmioCreated,
    Pages4K,
    Pages2M,
    Pages1G,
    NxSplits,
    Zapped,
    Flushes,
}

const COUNTS: usize = Count::Flushes as usize + 1;

impl Count {
    /// Leaves of that size.
    pub const fn pages(size: PageSize) -> Self {
        match size {
            PageSize::Size4K => Self::Pages4K,
            PageSize::Size2M | PageSize::Size4M => Self::Pages2M,
            PageSize::Size1G => Self::Pages1G,
        }
    }
}

/// Counters in several cache lines: processors that fault in different memory seldom meet in one. Only sums mean
/// something; a single one may be below zero.
#[derive(Debug, Default)]
pub(super) struct Counters {
    lines: [Line; LINES],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; COUNTS]);

const LINES: usize = 16;

impl Counters {
    /// Adds to a count, on account of something at `gpa`.
    #[inline]
    pub fn add(&self, gpa: Gpa, count: Count, number: u64) {
        // Fibonacci hashing of the 2 MiB around it.
        let line = (gpa.raw() >> 21).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - LINES.ilog2());
        self.lines[line as usize].0[count as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// Takes away from a count.
    #[inline]
    pub fn sub(&self, gpa: Gpa, count: Count, number: u64) {
        self.add(gpa, count, number.wrapping_neg());
    }

    /// All sums.
    pub fn stats(&self) -> Stats {
        let sum = |count: usize| {
            let counts = self.lines.iter().map(|line| line.0[count].load(Ordering::Relaxed));
            counts.fold(0, u64::wrapping_add)
        };
        let sums: [u64; COUNTS] = array::from_fn(sum);
        let [
            pf_taken,
            pf_fixed,
            pf_fast,
            pf_spurious,
            pf_emulate,
            pf_mmio_spte_created,
            pages_4k,
            pages_2m,
            pages_1g,
            nx_lpage_splits,
            zapped,
            remote_tlb_flush_requests,
        ] = sums;
        Stats {
            pf_taken,
            pf_fixed,
            pf_fast,
            pf_spurious,
            pf_emulate,
            pf_mmio_spte_created,
            pages_4k,
            pages_2m,
            pages_1g,
            nx_lpage_splits,
            zapped,
            remote_tlb_flush_requests,
        }
    }
}
