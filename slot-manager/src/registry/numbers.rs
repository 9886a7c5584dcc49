//! Numbers that are free.

use std::collections::BTreeMap;

/// All 32-bit numbers but those taken, as runs: first and last. As long as the lowest is taken first, there are few.
#[derive(Clone, Debug)]
pub(super) struct FreeNumbers(BTreeMap<u32, u32>);

impl Default for FreeNumbers {
    fn default() -> Self {
        Self(BTreeMap::from([(0, u32::MAX)]))
    }
}

impl FreeNumbers {
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(|(&first, &last)| first..=last)
    }

    /// Takes a number that is free.
    pub(super) fn take(&mut self, number: u32) {
        let Some((&first, &last)) = self.0.range(..=number).next_back() else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
        }
    }

    /// Gives a number back that was taken.
    pub(super) fn give_back(&mut self, number: u32) {
        let below = self.0.range(..number).next_back().map(|(&first, &last)| (first, last));
        let first = below.filter(|(_, last)| last + 1 == number).map_or(number, |(first, _)| first);
        let above = number.checked_add(1).and_then(|next| self.0.remove(&next));
        self.0.insert(first, above.unwrap_or(number));
    }
}
