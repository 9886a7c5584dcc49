//! The host's frames by size: which are free, and what each 4 KiB of them is used for.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memory_model::{AddrRange, Hpa, PageSize};

use super::chunked::Chunked;
use super::record::Record;

/// log2 of a zone's length in frames of 4 KiB: 256 GiB.
const ZONE_SHIFT: u32 = 26;

/// Odd, so that multiplying by it meets every number of a zone once.
const SCATTER: u64 = 0x9e3_779b;
/// Its inverse, modulo 2^64 and so modulo each smaller power of two.
const GATHER: u64 = {
    // Newton's iteration: each step doubles the number of right bits; an odd number is its own inverse modulo 8.
    let mut inverse = SCATTER;
    let mut bits = 3;
    while bits < 64 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(SCATTER.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
};
const _: () = assert!(SCATTER.wrapping_mul(GATHER) == 1);

/// The zones: frames of 4 KiB from 512 GiB down, of 2 MiB from 512 GiB on, of 1 GiB from 768 GiB on. No small guest has
/// an address that could be mistaken for one of these. A frame's number (its address by 4096) says its zone.
pub(super) struct Zones([Zone; 3]);

impl Zones {
    /// Zones of so many frames of 4 KiB, 2 MiB and 1 GiB.
    pub(super) fn new(frames: [u64; 3]) -> Self {
        let sizes = PageSize::ALL.into_iter().zip(frames).zip(1..);
        let mut zones = sizes.map(|((size, limit), zone)| Zone::new(size, zone << ZONE_SHIFT, limit));
        Self(std::array::from_fn(|_| zones.next().expect("three sizes")))
    }

    /// From the lowest frame that was ever used to the highest, by whole windows.
    pub(super) fn span(&self) -> AddrRange<Hpa> {
        let used = self.0.iter().filter_map(Zone::span);
        let hull = used.reduce(|one, other| one.start.min(other.start)..one.end.max(other.end));
        let Range { start, end } = hull.unwrap_or(1 << ZONE_SHIFT..2 << ZONE_SHIFT);
        let bytes = |frames: u64| frames << PageSize::Size4K.shift();
        AddrRange::new(Hpa(bytes(start)), bytes(end - start).into()).expect("not empty")
    }

    /// The number of a frame of that size, of its first 4 KiB if it is larger. Its records are as they were left: free.
    pub(super) fn allocate(&self, size: PageSize) -> Option<u64> {
        self.0.iter().find(|zone| zone.size == size)?.allocate()
    }

    /// What the frame is used for; free if it is none.
    #[inline]
    pub(super) fn record(&self, frame: u64) -> Record {
        let record = self.zone(frame).and_then(|zone| zone.records.get(zone.index(frame)));
        record.map_or(Record::FREE, |record| Record::from_bits(record.load(Ordering::Acquire)))
    }

    /// Notes what a frame that was allocated is used for.
    pub(super) fn set_record(&self, frame: u64, record: Record) {
        if let Some(zone) = self.zone(frame) {
            zone.records.at(zone.index(frame)).store(record.bits(), Ordering::Release);
        }
    }

    /// Gives 4 KiB back. A larger frame is free when all of it has been given back.
    pub(super) fn free(&self, frame: u64) {
        if let Some(zone) = self.zone(frame) {
            zone.free(frame);
        }
    }

    /// How much of the frame of 2 MiB or 1 GiB around this is in use, in frames of 4 KiB.
    pub(super) fn in_use(&self, frame: u64) -> u64 {
        self.zone(frame).map_or(0, |zone| zone.in_use(zone.index(frame) >> zone.order).into())
    }

    /// The pieces of the frame of 2 MiB or 1 GiB that begins here.
    pub(super) fn large(&self, frame: u64) -> Option<Range<u64>> {
        let order = self.zone(frame)?.order;
        (order > 0 && frame.trailing_zeros() >= order).then(|| frame..frame + (1 << order))
    }

    /// All frames that were ever used, in pieces of 4 KiB.
    pub(super) fn frames(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(Zone::frames)
    }

    #[inline]
    fn zone(&self, frame: u64) -> Option<&Zone> {
        self.0.get((frame >> ZONE_SHIFT).checked_sub(1)? as usize)
    }
}

/// The frames of one size. Numbered densely they are 0, 1, 2 .. in the order in which they were first used; the frame
/// numbers are these, scattered over windows of 128 MiB (8 GiB for frames of 1 GiB), so that no address is right by
/// accident.
struct Zone {
    size: PageSize,
    /// log2 of a frame's length in frames of 4 KiB.
    order: u32,
    /// A window's length in frames of this zone, less one.
    window: u64,
    /// What turns an offset to the opposite end of the zone, where that is the first.
    turn: u64,
    /// The first frame number.
    first: u64,
    /// How many frames there are.
    limit: u64,
    supply: Supply,
    /// For each 4 KiB: by dense number, and place in the frame.
    records: Chunked<AtomicU64, 512>,
    /// For each larger frame: how many 4 KiB of it are in use.
    in_use: Chunked<AtomicU32, 16>,
}

/// Which frames a zone can give out. On cache lines of its own: accesses read the rest of a zone, and faults write this.
#[derive(Default)]
#[repr(align(128))]
struct Supply {
    /// How many were used ever.
    used: AtomicU64,
    /// The free frames that were used before, a stack linked through their first records: dense number + 1 of the top
    /// in the low half, 0 if there is none; in the high half a count of the changes, so that a top that went and came
    /// back is not taken for one that stayed.
    free: AtomicU64,
}

impl Zone {
    fn new(size: PageSize, first: u64, limit: u64) -> Self {
        let order = size.shift() - PageSize::Size4K.shift();
        let most = 1 << (ZONE_SHIFT - order);
        let window = match size {
            PageSize::Size4K => 15,
            PageSize::Size1G => 3,
            PageSize::Size2M | PageSize::Size4M => 6,
        };
        Self {
            size,
            order,
            window: (1 << window) - 1,
            turn: if order == 0 { (1 << ZONE_SHIFT) - 1 } else { 0 },
            first,
            limit: limit.min(most),
            supply: Supply::default(),
            records: Chunked::default(),
            in_use: Chunked::default(),
        }
    }

    /// Frames that were never used come first: an old address shows longest that nothing is there any more.
    fn allocate(&self) -> Option<u64> {
        let unused = |used| (used < self.limit).then_some(used + 1);
        let dense = match self.supply.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, unused) {
            Ok(dense) => dense,
            Err(_) => self.pop()?,
        };
        if self.order > 0 {
            self.in_use.at(dense).store(1 << self.order, Ordering::Relaxed);
        }
        Some(self.number(dense))
    }

    /// The first frame of 4 KiB of a frame with that dense number. Frames of 4 KiB are used from the zone's end down and
    /// larger ones from its start up: what a small VM uses is near together.
    #[inline]
    fn number(&self, dense: u64) -> u64 {
        let mask = self.window;
        let scattered = dense & !mask | dense.wrapping_add(1).wrapping_mul(SCATTER) & mask;
        self.first + ((scattered << self.order) ^ self.turn)
    }

    /// The frames of 4 KiB of all windows that were ever used.
    fn span(&self) -> Option<Range<u64>> {
        let used = self.supply.used.load(Ordering::Acquire);
        let windows = used.next_multiple_of(self.window + 1) << self.order;
        let first = self.first + if self.turn == 0 { 0 } else { (1 << ZONE_SHIFT) - windows };
        (used > 0).then(|| first..first + windows)
    }

    /// The place of a frame's record.
    #[inline]
    fn index(&self, frame: u64) -> u64 {
        let (order, mask) = (self.order, self.window);
        let offset = (frame - self.first) ^ self.turn;
        let scattered = offset >> order;
        let dense = scattered & !mask | scattered.wrapping_mul(GATHER).wrapping_sub(1) & mask;
        (dense << order) | (offset & ((1 << order) - 1))
    }

    fn free(&self, frame: u64) {
        let index = self.index(frame);
        self.records.at(index).store(Record::FREE.bits(), Ordering::Release);
        let dense = index >> self.order;
        if self.order == 0 || self.in_use.at(dense).fetch_sub(1, Ordering::AcqRel) == 1 {
            self.push(dense);
        }
    }

    fn push(&self, dense: u64) {
        let record = self.records.at(dense << self.order);
        self.change_top(|top| {
            record.store(Record::free_before(top).bits(), Ordering::Release);
            Some(dense as u32 + 1)
        });
    }

    fn pop(&self) -> Option<u64> {
        let next = |top: u32| {
            let record = self.records.get(u64::from(top.checked_sub(1)?) << self.order)?;
            Some(Record::from_bits(record.load(Ordering::Acquire)).next_free())
        };
        Some(u64::from(self.change_top(next)?) - 1)
    }

    /// Puts in the place of the free stack's top what `new` says; the old one, if anything was changed.
    fn change_top(&self, mut new: impl FnMut(u32) -> Option<u32>) -> Option<u32> {
        let change = |free: u64| {
            let changes = (free >> 32).wrapping_add(1);
            Some((changes << 32) | u64::from(new(free as u32)?))
        };
        self.supply
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
            .ok()
            .map(|free| free as u32)
    }

    fn in_use(&self, dense: u64) -> u32 {
        match self.order {
            0 => 1,
            _ => self.in_use.get(dense).map_or(0, |count| count.load(Ordering::Acquire)),
        }
    }

    fn frames(&self) -> impl Iterator<Item = u64> {
        let each = move |dense| (0..1 << self.order).map(move |piece| self.number(dense) + piece);
        (0..self.supply.used.load(Ordering::Acquire)).flat_map(each)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn frames_are_different_aligned_and_found_again_by_number() {
        let zones = Zones::new([5000, 300, 300]);
        for size in PageSize::ALL {
            let frames: Vec<u64> = std::iter::from_fn(|| zones.allocate(size)).collect();
            // No zone is longer than 256 GiB.
            let expected = [5000, 300, 256][size.level() as usize - 1];
            assert_eq!(frames.iter().collect::<HashSet<_>>().len(), expected, "{size}");
            assert!(frames.iter().all(|frame| (frame << 12) % size.bytes() == 0));
            let zone = zones.zone(frames[0]).unwrap();
            let dense = frames.iter().map(|&frame| zone.index(frame) >> zone.order);
            assert!(dense.eq(0..expected as u64));
            assert!(frames.iter().all(|frame| frame >> ZONE_SHIFT == u64::from(size.level())));
        }
    }

    #[test]
    fn a_frame_comes_again_when_none_is_new_and_a_large_one_when_all_of_it_is_free() {
        let zones = Zones::new([3, 1, 0]);
        let [one, other, last] = std::array::from_fn(|_| zones.allocate(PageSize::Size4K).unwrap());
        zones.free(one);
        zones.free(last);
        zones.free(other);
        let again: Vec<u64> = std::iter::from_fn(|| zones.allocate(PageSize::Size4K)).collect();
        assert_eq!(again, [other, last, one]);
        let large = zones.allocate(PageSize::Size2M).unwrap();
        for piece in (0..512).rev() {
            assert_eq!((zones.allocate(PageSize::Size2M), zones.in_use(large)), (None, piece + 1));
            zones.free(large + piece);
        }
        assert_eq!(zones.allocate(PageSize::Size2M), Some(large));
        assert_eq!(zones.allocate(PageSize::Size1G), None);
    }

    #[test]
    fn threads_take_and_give_back_without_one_frame_in_two_hands() {
        let zones = Zones::new([64, 0, 0]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let zones = &zones;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let Some(frame) = zones.allocate(PageSize::Size4K) else { continue };
                        let mine = Record::table(thread);
                        zones.set_record(frame, mine);
                        assert_eq!(zones.record(frame), mine);
                        zones.free(frame);
                    }
                });
            }
        });
        assert_eq!(std::iter::from_fn(|| zones.allocate(PageSize::Size4K)).count(), 64);
    }
}
