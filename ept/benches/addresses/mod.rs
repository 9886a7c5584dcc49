//! The addresses that are walked, and the paging of the tables they are walked in.

use std::cell::Cell;
use std::hint::black_box;

use ept::{Controls, Cr3, Ia32e, Levels, MaxPhyAddr, Paging, Sizes};
use memory_model::{AddrRange, Gva, PageSize};

use crate::ram::Random;

/// Where the mapped pages start.
pub const START: u64 = 0x40_0000_0000;
const MIB: u64 = 1 << 20;

/// Tables, by what they take: the name, and how many bytes they map.
pub const SIZES: [(&str, u64); 3] = [("16 KiB", 2 * MIB), ("2 MiB", 1020 * MIB), ("128 MiB", 65_400 * MIB)];

/// Pages of 4 KiB alone.
pub const SMALL: Sizes = Sizes::Only(PageSize::Size4K);

/// That many bytes from there on.
pub fn range(first: u64, bytes: u64) -> AddrRange<Gva> {
    AddrRange::new(Gva(first), bytes.into()).expect("no wrap")
}

/// Random addresses, handed out in pieces. Who walks next starts half a pool away, so that nobody finds the other's
/// entries in a cache.
pub struct Addresses {
    pub pool: Vec<u64>,
}

impl Addresses {
    const POOL: usize = 1 << 20;

    pub fn new(bytes: u64) -> Self {
        let mut random = Random::new();
        Self { pool: (0..Self::POOL).map(|_| START + random.below(bytes)).collect() }
    }

    /// Calls `work` with the next `count` addresses each time, from the `part`th half of the pool on.
    pub fn walker<'a>(
        &'a self,
        part: usize,
        count: u32,
        mut work: impl FnMut(&[u64]) + 'a,
    ) -> impl FnMut() + 'a {
        let (count, next) = (count as usize, Cell::new(part * Self::POOL / 2));
        move || {
            let from = next.get();
            next.set((from + count) % Self::POOL);
            work(&self.pool[from..from + count]);
        }
    }
}

/// Calls `translate` with each address, known beforehand.
pub fn each<T>(mut translate: impl FnMut(u64) -> T) -> impl FnMut(&[u64]) {
    move |addresses| {
        for &address in addresses {
            black_box(&translate(address));
        }
    }
}

pub fn width() -> MaxPhyAddr {
    MaxPhyAddr::new(46).expect("46 bits")
}

/// A guest's tables.
pub fn ia32e(root: u64) -> Paging {
    let machine =
        Ia32e { levels: Levels::Four, max_phy_addr: width(), no_execute: true, page_1g: true, amd: false };
    Paging::ia32e(Cr3::new(root, width()).expect("a good root"), machine, Controls::WP)
}
