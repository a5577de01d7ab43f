//! Times, medians, and what the compared things make of them.

use std::{
    fmt::{self, Display},
    future::Future,
    time::{Duration, Instant},
};

/// How long `work` takes.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> Duration {
    let began = Instant::now();
    work.await;
    began.elapsed()
}

/// The middle one of the times: their p50.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// The mean of some figures.
pub(crate) fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / float(figures.len() as u64)
}

/// How many requests each turn made.
pub(crate) fn per_turn(requests: u64, turns: u32) -> f64 {
    float(requests) / f64::from(turns)
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "what is counted here is far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The times of two things that took turns.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

impl Pairs {
    /// Adds one turn of each.
    pub(crate) fn add(&mut self, ours: Duration, theirs: Duration) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// The p50 of ours.
    pub(crate) fn ours(&self) -> Duration {
        median(&self.ours)
    }

    /// How many times longer ours takes.
    pub(crate) fn slowdown(&self) -> f64 {
        median(&self.ours).as_secs_f64() / median(&self.theirs).as_secs_f64()
    }

    /// How many times faster ours is: the ratio of the throughputs.
    pub(crate) fn speedup(&self) -> f64 {
        self.slowdown().recip()
    }
}

impl Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = (median(&self.ours), median(&self.theirs));
        write!(f, "{ours:.2?} against {theirs:.2?}, p50 of {} pairs", self.ours.len())
    }
}
