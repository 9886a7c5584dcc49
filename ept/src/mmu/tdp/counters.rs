//! Counters that processors add to at the same time, without waiting for each other.

use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::{Gpa, PageSize};

use crate::mmu::Stats;

macro_rules! counts {
    ($($count:ident => $field:ident,)*) => {
        /// What is counted.
        #[derive(Clone, Copy)]
        pub(super) enum Count {
            $($count,)*
        }

        const COUNTS: usize = [$(Count::$count),*].len();

        /// The counts, each by what it is called outside.
        fn stats(sum: impl Fn(Count) -> u64) -> Stats {
            Stats { $($field: sum(Count::$count),)* }
        }
    };
}

counts! {
    Taken => pf_taken,
    Fixed => pf_fixed,
    Fast => pf_fast,
    Spurious => pf_spurious,
    Emulate => pf_emulate,
    MmioCreated => pf_mmio_spte_created,
    Pages4K => pages_4k,
    Pages2M => pages_2m,
    Pages1G => pages_1g,
    NxSplits => nx_lpage_splits,
    Zapped => zapped,
    Flushes => remote_tlb_flush_requests,
}

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
        stats(|count| {
            let counts = self.lines.iter().map(|line| line.0[count as usize].load(Ordering::Relaxed));
            counts.fold(0, u64::wrapping_add)
        })
    }
}
