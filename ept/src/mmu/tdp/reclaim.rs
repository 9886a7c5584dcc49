//! A limit on tables, and what gives way.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use memory_model::{AddrRange, Gpa};

use super::Tdp;
use super::table::Table;
use super::zap::Gone;
use crate::error::Error;
use crate::mmu::{HostFrames, Zapped};

impl Tdp {
    /// Frees tables after a fault came to [`Error::OutOfTables`], so that it can be taken again: those without a page
    /// first; and if that is not enough for any fault, a part of the others with what they map, each in its turn.
    pub fn reclaim(&mut self, host: &impl HostFrames) -> Result<Zapped, Error> {
        let all = self.root().range();
        let mut gone = Gone::default();
        let mut done = self.free_empty(host, &mut gone);
        let count = self.tables.load(Ordering::Relaxed);
        let most = self.options.max_tables.map_or(count, |most| most.max(self.least_tables()));
        // Enough for a fault, and a share that makes the next one wait.
        let wanted = (self.least_tables() - 1).max(most / 8);
        while done.is_ok() && gone.zapped.tables < wanted && self.tables.load(Ordering::Relaxed) > 1 {
            done = self.zap_at_hand(host, &mut gone);
        }
        self.settle(all, gone, done)
    }

    /// Frees the tables below which no page is mapped.
    fn free_empty(&self, host: &impl HostFrames, gone: &mut Gone) -> Result<(), Error> {
        self.each_table(self.root(), self.root().range(), host, &mut |spot, table| {
            if self.is_empty(table, host)? { self.take_table(spot, table, host, gone) } else { Ok(()) }
        })
    }

    /// Zaps what the next lowest table maps, and moves on.
    fn zap_at_hand(&mut self, host: &impl HostFrames, gone: &mut Gone) -> Result<(), Error> {
        let mut lowest: Vec<Table> = Vec::new();
        self.each_table(self.root(), self.root().range(), host, &mut |_, table| {
            // Children come first: one that holds another is behind it.
            let leads = lowest.last().is_some_and(|last| table.range().covers(last.range()));
            if !leads {
                lowest.push(table);
            }
            Ok(())
        })?;
        let behind = lowest.iter().find(|table| table.base >= self.hand.raw());
        let Some(&table) = behind.or(lowest.first()) else { return Ok(()) };
        let range: AddrRange<Gpa> = table.range();
        self.hand = range.last();
        self.zap_below(self.root(), range, host, gone)
    }
}
