//! Frames that more than one leaf maps, and tables that a leaf maps: found by bits, named in a second pass.

use alloc::vec::Vec;

use memory_model::{Gpa, Hpa};

use super::finding::{Finding, Input, Place, Violation};
use super::frames::FrameSet;
use super::host::HostPage;
use super::report::{Lowest, NO_LEVEL, Tally, Unchecked};
use super::tree::Root;
use super::work::{At, Sink, table_mapped};
use crate::walk::Path;

/// First pass: which frames are mapped, and which of them more than once.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub seen: FrameSet,
    pub twice: FrameSet,
    /// Scratch space.
    words: Vec<(usize, u64)>,
}

impl Mark {
    pub fn new(like: &FrameSet) -> Self {
        Self { seen: like.cleared(), twice: like.cleared(), words: Vec::new() }
    }

    pub fn merge(&mut self, other: &Self) {
        self.seen.merge(&other.seen, &mut self.twice);
        self.twice.union(&other.twice);
    }
}

impl Sink for Mark {
    fn frames(&mut self, _: &At<'_>, _: Gpa, hpa: Hpa, count: u64, tally: &mut Tally) {
        let outside = self.seen.insert_run(hpa.page_number(), count, &mut self.twice);
        tally.unchecked(Unchecked::OutsideRam, outside);
    }

    /// Mostly the frames follow each other, and are marked a word at a time.
    #[inline]
    fn table(&mut self, _: At<'_>, pages: &[HostPage], tally: &mut Tally) {
        let first = pages.first().map_or(0, |page| page.raw());
        let in_turn = |(index, page): (usize, &HostPage)| page.raw() ^ (first + ((index as u64) << 12));
        let outside = if pages.iter().enumerate().fold(0, |wrong, page| wrong | in_turn(page)) == 0 {
            self.seen.insert_run(first >> 12, pages.len() as u64, &mut self.twice)
        } else {
            self.seen.insert_all(pages.iter().map(|page| page.raw()), &mut self.twice, &mut self.words)
        };
        tally.unchecked(Unchecked::OutsideRam, outside);
    }
}

/// Second pass, if the first has found anything: who maps those frames.
pub(super) struct Name<'a> {
    pub twice: &'a FrameSet,
    /// How often frames of `twice` were mapped.
    pub uses: u64,
    /// The lowest of those leaves, by frame.
    pub users: Lowest<(Hpa, Place), Path>,
    /// What this pass finds: leaves that map tables.
    pub mapped: Tally,
}

impl Sink for Name<'_> {
    fn frames(&mut self, at: &At<'_>, gpa: Gpa, hpa: Hpa, count: u64, _: &mut Tally) {
        for index in 0..count {
            let hpa = Hpa(hpa.raw().wrapping_add(index << 12));
            let gpa = Gpa(gpa.raw().wrapping_add(index << 12));
            if at.table.shadowed.is_none() && at.tree.frames.contains(hpa.page_number()) {
                table_mapped(at, gpa.raw(), hpa, &mut self.mapped);
            }
            if self.twice.contains(hpa.page_number()) {
                self.uses += 1;
                let Root { guest, number, .. } = *at.root();
                let key = (hpa, Place { guest, root: number, address: Input::Gpa(gpa) });
                if self.users.wants(&key) {
                    self.users.insert(key, at.path());
                }
            }
        }
    }
}

impl Name<'_> {
    /// The findings: all leaves of a frame but the first.
    pub fn finish(self) -> Tally {
        let mut tally = self.mapped;
        let mut first: Option<(Hpa, Place)> = None;
        let mut listed = 0;
        for (&(hpa, place), path) in self.users.iter() {
            match first.filter(|&(frame, _)| frame == hpa) {
                None => first = Some((hpa, place)),
                Some((_, other)) => {
                    let Place { guest, root, address } = place;
                    let violation = Violation::Alias { hpa, other };
                    let head = Finding { guest, root, address, path: *path, violation };
                    let level = path.last().map_or(NO_LEVEL, |step| step.level);
                    tally.found(level, 0, head, || *path);
                    listed += 1;
                }
            }
        }
        let all = self.uses.saturating_sub(self.twice.len());
        tally.count(super::Invariant::NoAlias, all.saturating_sub(listed));
        tally
    }
}
