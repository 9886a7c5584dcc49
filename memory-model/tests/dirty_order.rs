//! The dirty bitmap's own source, with atomics that run two threads in every order with up to three changes of
//! thread: no order loses a mark.

extern crate alloc;

use std::thread;

use memory_model::PageSize;

#[path = "../src/ram/dirty/bitmap.rs"]
#[expect(dead_code, reason = "the test needs marking and taking only")]
mod bitmap;
#[path = "../src/ram/dirty/snapshot.rs"]
#[expect(dead_code, reason = "the test needs the pages only")]
mod snapshot;

use bitmap::DirtyBitmap;
use snapshot::DirtySnapshot;

/// Who does how many atomic operations before the other goes on.
mod order {
    use std::cell::Cell;
    use std::sync::{Condvar, Mutex};

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Role {
        Marker,
        Taker,
    }

    static PLAN: Mutex<Vec<(Role, usize)>> = Mutex::new(Vec::new());
    static CHANGED: Condvar = Condvar::new();

    thread_local! {
        static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
    }

    pub fn set(plan: &[(Role, usize)]) {
        *PLAN.lock().unwrap() = plan.to_vec();
    }

    /// Runs `work` as that role. What is left of its part of the plan goes to the other then.
    pub fn play<R>(role: Role, work: impl FnOnce() -> R) -> R {
        ROLE.set(Some(role));
        let answer = work();
        PLAN.lock().unwrap().retain(|&(other, _)| other != role);
        CHANGED.notify_all();
        answer
    }

    /// Does one atomic operation when it is this thread's turn.
    pub fn step<R>(operation: impl FnOnce() -> R) -> R {
        let Some(role) = ROLE.get() else { return operation() };
        let others_turn = |plan: &mut Vec<(Role, usize)>| plan.first().is_some_and(|&(next, _)| next != role);
        let mut plan = CHANGED.wait_while(PLAN.lock().unwrap(), others_turn).unwrap();
        let answer = operation();
        if let Some((_, left)) = plan.first_mut() {
            *left -= 1;
            if *left == 0 {
                plan.remove(0);
                CHANGED.notify_all();
            }
        }
        answer
    }
}

/// Stand-ins for `core::sync::atomic`, as far as the bitmap uses it.
mod atomic {
    use std::sync::atomic::{self, Ordering};

    use super::order::step;

    pub struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> Self {
            Self(value.into())
        }
        pub fn load(&self, order: Ordering) -> u64 {
            step(|| self.0.load(order))
        }
        pub fn store(&self, value: u64, order: Ordering) {
            step(|| self.0.store(value, order));
        }
        pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
            step(|| self.0.fetch_or(bits, order))
        }
    }

    pub struct AtomicBool(atomic::AtomicBool);

    impl AtomicBool {
        pub fn new(value: bool) -> Self {
            Self(value.into())
        }
        pub fn load(&self, order: Ordering) -> bool {
            step(|| self.0.load(order))
        }
        pub fn store(&self, value: bool, order: Ordering) {
            step(|| self.0.store(value, order));
        }
        pub fn compare_exchange_weak(
            &self,
            old: bool,
            new: bool,
            yes: Ordering,
            no: Ordering,
        ) -> Result<bool, bool> {
            step(|| self.0.compare_exchange(old, new, yes, no))
        }
    }
}

/// Page 0 is marked while pages are taken; the neighbour's bit makes the taker visit the word.
fn is_lost(plan: &[(order::Role, usize)], pages: u64, neighbour: u64, snapshots: usize) -> bool {
    let dirty = DirtyBitmap::new(pages * PageSize::Size4K.bytes());
    dirty.mark(neighbour, 1);
    order::set(plan);
    let mut seen: Vec<DirtySnapshot> = thread::scope(|scope| {
        scope.spawn(|| order::play(order::Role::Marker, || dirty.mark(0, 1)));
        let take = || (0..snapshots).map(|_| dirty.snapshot_and_clear(0..u64::MAX)).collect();
        scope.spawn(move || order::play(order::Role::Taker, take)).join().unwrap()
    });
    seen.push(dirty.snapshot_and_clear(0..u64::MAX));
    !seen.iter().any(|snapshot| snapshot.contains(0))
}

#[test]
fn no_order_loses_a_mark() {
    use order::Role::{Marker, Taker};
    // A word at a time, and 64 words at once: those are looked at first and taken then, from step 69 on.
    let few = (65, [1, 64], 1..25);
    let many = (64 * 64, [1, 64], 64..74);
    for (pages, neighbours, taker_steps) in [few, many] {
        let marker_steps = 1..9;
        let mut plans = Vec::new();
        for (one, two, ones, twos) in
            [(Marker, Taker, &marker_steps, &taker_steps), (Taker, Marker, &taker_steps, &marker_steps)]
        {
            for first in ones.clone() {
                plans.extend(twos.clone().map(|second| vec![(one, first), (two, second), (one, 1000)]));
            }
        }
        for (neighbour, snapshots) in neighbours.into_iter().flat_map(|page| [(page, 1), (page, 2)]) {
            for plan in &plans {
                let steps: Vec<_> = plan.iter().map(|&(_, steps)| steps).collect();
                let starts = if plan[0].0 == Marker { "marker" } else { "taker" };
                assert!(
                    !is_lost(plan, pages, neighbour * PageSize::Size4K.bytes(), snapshots),
                    "the {starts} starts, {steps:?} operations in turn, {snapshots} snapshots, page {neighbour} \
                     of {pages} dirty"
                );
            }
        }
    }
}
