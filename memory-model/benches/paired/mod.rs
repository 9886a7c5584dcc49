//! Two ways of doing the same, timed in turn, so that a noisy or drifting machine strikes both alike.

use std::time::{Duration, Instant};

/// Work that was done: timed from outside, unless it says itself what of that time counts.
pub trait Work {
    /// The time it took, of the time from its beginning to its end.
    fn took(self, wall: Duration) -> Duration;
}

impl Work for () {
    fn took(self, wall: Duration) -> Duration {
        wall
    }
}

impl Work for Duration {
    fn took(self, _wall: Duration) -> Duration {
        self
    }
}

/// Prints the head of a table of [`compare`] rows.
pub fn head(title: &str) {
    println!("\n{title}\n{:<44} {:>12} {:>12} {:>8} {:>10}", "", "ours", "peer", "ratio", "target");
}

/// Runs `ours` and `peer` in turn, `rounds` times after one of each to warm up, each doing `per_round` pieces of
/// work; prints the median time of a piece and the median of the rounds' ratios, beside the highest ratio that
/// is wanted, if one is.
pub fn compare<Ours: Work, Peer: Work>(
    row: &str,
    target: Option<f64>,
    rounds: usize,
    per_round: u32,
    mut ours: impl FnMut() -> Ours,
    mut peer: impl FnMut() -> Peer,
) {
    let mut round = || (time(&mut ours), time(&mut peer));
    round();
    let pairs: Vec<(Duration, Duration)> = (0..rounds).map(|_| round()).collect();
    let piece = |times: Vec<Duration>| {
        median(times.iter().map(Duration::as_secs_f64).collect()) / f64::from(per_round)
    };
    let (ours, peer): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let ratio = median(pairs.iter().map(|(ours, peer)| ours.as_secs_f64() / peer.as_secs_f64()).collect());
    let target = target.map_or("-".into(), |target| format!("<= {target:.2}x"));
    let (ours, peer) = (readable(piece(ours)), readable(piece(peer)));
    println!("{row:<44} {ours:>12} {peer:>12} {ratio:>7.2}x {target:>10}");
}

fn time<W: Work>(work: &mut impl FnMut() -> W) -> Duration {
    let start = Instant::now();
    let work = work();
    work.took(start.elapsed())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn readable(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.2} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2} us", s * 1e6),
        s => format!("{:.2} ms", s * 1e3),
    }
}
