//! Which pages of a guest's a shadow leaf has been met for.
//!
//! A guest may have a page at several addresses, and then its shadow has it in several leaves. Its frame counts once: at
//! the leaf that is met first.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::Gpa;

use super::slots::Stretch;

/// A bit for each page of each guest that has shadows, shared by all who look.
#[derive(Debug)]
pub(super) struct Met(Vec<Vec<AtomicU64>>);

impl Met {
    /// None is met yet. `has_shadows` says it of each guest.
    pub fn new(spaces: &[Vec<Stretch>], has_shadows: impl Fn(usize) -> bool) -> Self {
        let words = |(guest, space): (usize, &Vec<Stretch>)| {
            let pages = space.last().filter(|_| has_shadows(guest)).map_or(0, Stretch::pages_to_end);
            (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
        };
        Self(spaces.iter().enumerate().map(words).collect())
    }

    /// Whether `gpa`, in a stretch of the guest's slots, is met for the first time.
    pub fn is_first(&self, guest: usize, stretch: &Stretch, gpa: Gpa) -> bool {
        let page = stretch.page_of(gpa);
        let word = self.0[guest].get((page / 64) as usize);
        let bit = 1 << (page % 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }
}
