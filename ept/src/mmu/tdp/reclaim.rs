//! A limit on tables, and what gives way.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use memory_model::{AddrRange, Gpa};

use super::Tdp;
use super::zap::Gone;
use crate::error::Error;
use crate::mmu::{HostFrames, Zapped};

impl Tdp {
    /// Frees tables after a fault came to [`Error::OutOfTables`], so that it can be taken again: those without a page; and
    /// if they are not enough for any fault, a part of the others with what they map, each in its turn.
    pub fn reclaim(&mut self, host: &impl HostFrames) -> Result<Zapped, Error> {
        let most = self.tables.load(Ordering::Relaxed);
        let mut gone = Gone::default();
        let mut done = self.free_empty(host, &mut gone);
        let enough = self.least_tables() - 1;
        if gone.zapped.tables < enough && done.is_ok() {
            // A share of all, so that the next fault need not reclaim again.
            done = self.zap_at_hand(enough.max(most / 8), host, &mut gone);
        }
        self.settle(self.root().range(), gone, done)
    }

    /// Frees the tables below which no page is mapped.
    fn free_empty(&self, host: &impl HostFrames, gone: &mut Gone) -> Result<(), Error> {
        self.each_table(self.root(), self.root().range(), host, &mut |spot, table| {
            if self.is_empty(table, host)? { self.take_table(spot, table, host, gone) } else { Ok(()) }
        })
    }

    /// Zaps what the lowest tables map, from where it was left the last time, until that many tables are gone.
    fn zap_at_hand(&mut self, wanted: u64, host: &impl HostFrames, gone: &mut Gone) -> Result<(), Error> {
        let mut lowest: Vec<AddrRange<Gpa>> = Vec::new();
        self.each_table(self.root(), self.root().range(), host, &mut |_, table| {
            // Children come first: one that holds another is behind it.
            if !lowest.last().is_some_and(|last| table.range().covers(*last)) {
                lowest.push(table.range());
            }
            Ok(())
        })?;
        let hand = lowest.partition_point(|range| range.first() <= self.hand);
        for range in lowest[hand..].iter().chain(&lowest[..hand]) {
            if gone.zapped.tables >= wanted {
                break;
            }
            self.hand = range.first();
            self.zap_below(self.root(), *range, host, gone)?;
        }
        Ok(())
    }
}
