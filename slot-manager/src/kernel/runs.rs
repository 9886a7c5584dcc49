//! Values of pages, kept by runs: a terabyte of one value is one entry.

use std::collections::BTreeMap;
use std::ops::Range;

/// Runs of pages that have one value, each by its first page. Those that touch differ; a page in none has no value.
#[derive(Debug)]
pub(super) struct Runs<V>(BTreeMap<u64, Run<V>>);

#[derive(Clone, Copy, Debug)]
struct Run<V> {
    end: u64,
    value: V,
}

impl<V> Default for Runs<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Copy + Eq> Runs<V> {
    /// The value of a page.
    pub(super) fn get(&self, page: u64) -> Option<V> {
        let (_, run) = self.0.range(..=page).next_back()?;
        (page < run.end).then_some(run.value)
    }

    /// Gives `pages` a value, or takes theirs.
    pub(super) fn set(&mut self, pages: Range<u64>, value: Option<V>) {
        if pages.is_empty() {
            return;
        }
        self.cut(pages.start);
        self.cut(pages.end);
        while let Some((&start, _)) = self.0.range(pages.clone()).next() {
            self.0.remove(&start);
        }
        if let Some(value) = value {
            self.0.insert(pages.start, Run { end: pages.end, value });
        }
        self.join(pages.end);
        self.join(pages.start);
    }

    /// Whether each of `pages` has that value, or none has one.
    pub(super) fn all(&self, pages: Range<u64>, value: Option<V>) -> bool {
        match value {
            Some(value) => {
                let run = self.0.range(..=pages.start).next_back();
                run.is_some_and(|(_, run)| run.end >= pages.end && run.value == value)
            }
            None => self.0.range(..pages.end).next_back().is_none_or(|(_, run)| run.end <= pages.start),
        }
    }

    /// The runs, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, V)> {
        self.0.iter().map(|(&start, run)| (start..run.end, run.value))
    }

    /// Makes a run that goes past `page` two.
    fn cut(&mut self, page: u64) {
        if let Some((_, run)) = self.0.range_mut(..page).next_back()
            && run.end > page
        {
            let behind = Run { ..*run };
            run.end = page;
            self.0.insert(page, behind);
        }
    }

    /// Makes two runs of one value that touch at `page` one.
    fn join(&mut self, page: u64) {
        let Some(&behind) = self.0.get(&page) else { return };
        if let Some((_, run)) = self.0.range_mut(..page).next_back()
            && run.end == page
            && run.value == behind.value
        {
            run.end = behind.end;
            self.0.remove(&page);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 24;

    proptest! {
        #[test]
        fn runs_say_what_an_array_of_pages_says(
            steps in prop::collection::vec((0..PAGES, 0..=PAGES, prop::option::of(0..3_u8)), 1..40),
        ) {
            let (mut runs, mut pages) = (Runs::default(), [None; PAGES as usize]);
            for (start, end, value) in steps {
                let span = start..end.max(start);
                runs.set(span.clone(), value);
                span.for_each(|page| pages[page as usize] = value);
            }
            let found: Vec<_> = (0..PAGES).map(|page| runs.get(page)).collect();
            prop_assert_eq!(&found[..], &pages[..]);
            // As few runs as there can be.
            let edges = pages.iter().scan(None, |before, &now| Some((std::mem::replace(before, now), now)));
            let starts = edges.filter(|&(before, now)| now.is_some() && before != now).count();
            prop_assert_eq!(runs.iter().count(), starts);
            for start in 0..PAGES {
                for end in start + 1..=PAGES {
                    let span = &pages[start as usize..end as usize];
                    for value in [None, Some(0), Some(1)] {
                        let all = span.iter().all(|&page| page == value);
                        prop_assert_eq!(runs.all(start..end, value), all, "{:?}", (start, end, value));
                    }
                }
            }
        }
    }
}
