//! A process's pages, asked for in stretches of 2 MiB, each once: leaves come in no order, and a call of the kernel costs more
//! than many pages of one.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use std::thread;

use memory_model::{AddrRange, Hva};

use crate::verify::{HostMap, HostPage};

const PAGES: u64 = 512;
type Stretch = Box<[HostPage; PAGES as usize]>;

/// Where a large guest begins, in stretches: then threads are worth it.
pub(super) const MANY: usize = 64;

/// What a host tells of some stretches.
pub(super) struct Stretches<'a> {
    host: &'a dyn HostMap,
    /// By the number of the first page, in stretches.
    known: BTreeMap<u64, Stretch>,
    /// Memory of which the host cannot tell what a guest has.
    hidden: Vec<AddrRange<Hva>>,
}

impl<'a> Stretches<'a> {
    /// Asks for all stretches around those pages: where there are many, in all processors, for the kernel takes its time.
    pub fn around(host: &'a dyn HostMap, pages: impl Iterator<Item = Hva>) -> Self {
        let (mut wanted, mut last) = (BTreeSet::new(), None);
        for page in pages {
            let stretch = page.page_number() / PAGES;
            if last.replace(stretch) != Some(stretch) {
                wanted.insert(stretch);
            }
        }
        let wanted: Vec<u64> = wanted.into_iter().collect();
        // To ask how many processors there are takes longer than to ask for a few stretches.
        let threads = match wanted.len() {
            0..MANY => 1,
            _ => thread::available_parallelism().map_or(1, usize::from),
        };
        let mut parts = wanted.chunks(wanted.len().div_ceil(threads).max(1));
        let read = |part: &[u64]| -> Vec<(u64, Stretch)> {
            part.iter().map(|&stretch| (stretch, read(host, stretch))).collect()
        };
        let mine = parts.next().unwrap_or_default();
        let known = thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(move || read(part))).collect();
            // A thread that has failed leaves its part unknown.
            let mine = read(mine);
            mine.into_iter()
                .chain(others.into_iter().flat_map(|other| other.join().unwrap_or_default()))
                .collect()
        });
        Self { host, known, hidden: Vec::new() }
    }

    /// The same, without what the host says of those ranges.
    pub fn without(self, hidden: Vec<AddrRange<Hva>>) -> Self {
        Self { hidden, ..self }
    }

    /// Whether there is enough to do for several threads.
    pub fn are_many(&self) -> bool {
        self.known.len() >= MANY
    }
}

fn read(host: &dyn HostMap, stretch: u64) -> Stretch {
    let mut pages = Box::new([HostPage::UNKNOWN; PAGES as usize]);
    host.pages(Hva((stretch * PAGES) << 12), &mut pages[..]);
    pages
}

impl HostMap for Stretches<'_> {
    fn pages(&self, hva: Hva, mut pages: &mut [HostPage]) {
        let mut number = hva.page_number();
        while !pages.is_empty() {
            let at = (number % PAGES) as usize;
            let (now, later) = pages.split_at_mut(pages.len().min(PAGES as usize - at));
            match self.known.get(&(number / PAGES)) {
                Some(stretch) => now.copy_from_slice(&stretch[at..][..now.len()]),
                None => self.host.pages(Hva(number << 12), now),
            }
            for (page, to) in (number..).zip(now.iter_mut()).filter(|_| !self.hidden.is_empty()) {
                if self.hidden.iter().any(|range| range.contains(Hva(page << 12))) {
                    *to = HostPage::UNKNOWN;
                }
            }
            number += now.len() as u64;
            pages = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use std::sync::Mutex;

    use memory_model::Hpa;

    use super::*;

    /// Each page is at its own address; what was asked for is written down.
    #[derive(Default)]
    struct Counted(Mutex<Vec<(u64, usize)>>);

    impl HostMap for Counted {
        fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
            self.0.lock().unwrap().push((hva.raw(), pages.len()));
            for (page, to) in (hva.page_number()..).zip(pages) {
                *to = HostPage::at(Hpa(page << 12));
            }
        }
    }

    #[test]
    fn a_stretch_is_asked_for_once_whatever_is_wanted_of_it() {
        let host = Counted::default();
        let around = [0x20_3000, 0x20_1000, 0, 0x20_5000].map(Hva);
        let stretches = Stretches::around(&host, around.into_iter());
        for (first, count) in [(0x20_3000, 1), (0x20_0000, 512), (0x1f_f000, 2), (0, 1200)] {
            let mut pages = vec![HostPage::UNKNOWN; count];
            stretches.pages(Hva(first), &mut pages);
            let expected = (0..count as u64).map(|page| HostPage::at(Hpa(first + (page << 12))));
            assert!(pages.into_iter().eq(expected), "{first:#x}");
        }
        let asked = host.0.into_inner().unwrap();
        assert_eq!(asked, [(0, 512), (0x20_0000, 512), (0x40_0000, 176)], "the last one was not expected");
    }

    #[test]
    fn what_is_hidden_is_unknown() {
        let hidden = AddrRange::new(Hva(0x1000), 0x2000).unwrap();
        let host = Counted::default();
        let stretches = Stretches::around(&host, [Hva(0)].into_iter()).without(vec![hidden]);
        let mut pages = [HostPage::ABSENT; 4];
        stretches.pages(Hva(0), &mut pages);
        let known = |hpa| HostPage::at(Hpa(hpa));
        assert_eq!(pages, [known(0), HostPage::UNKNOWN, HostPage::UNKNOWN, known(0x3000)]);
    }

    #[test]
    fn many_stretches_are_asked_for_by_several_threads() {
        let host = Counted::default();
        let all = (0..200).map(|stretch| Hva(stretch << 21));
        let stretches = Stretches::around(&host, all.clone());
        assert!(stretches.are_many());
        for hva in all {
            let mut page = [HostPage::UNKNOWN];
            stretches.pages(hva, &mut page);
            assert_eq!(page, [HostPage::at(Hpa(hva.raw()))]);
        }
        assert_eq!(host.0.into_inner().unwrap().len(), 200);
    }
}
