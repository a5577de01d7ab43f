//! When the sources of a group of volumes are listed again. Monotonic time only: the node's clock
//! may jump.

use std::time::Duration;

use tokio::time::Instant;

/// The longest pause after failures, unless the interval itself is longer.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The timer of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// When the last listing was asked for.
    started: Instant,
    /// From 0.9 to 1: nodes that began together do not ask together for ever, and nobody waits
    /// longer than the interval.
    jitter: f64,
    /// Attempts since the last success.
    failures: u32,
    /// Something waits for this moment (see `settle`).
    earlier: Option<Instant>,
}

impl Pace {
    /// After a listing that was asked for at `started` and succeeded.
    pub(super) fn since(started: Instant) -> Self {
        Self { started, jitter: jitter(), failures: 0, earlier: None }
    }

    /// Notes a success.
    pub(super) fn succeeded(&mut self, started: Instant) {
        *self = Self::since(started);
    }

    /// Notes a failure: the next attempt comes later.
    pub(super) fn failed(&mut self, now: Instant) {
        let failures = self.failures.saturating_add(1);
        *self = Self { started: now, jitter: jitter(), failures, earlier: None };
    }

    /// Asks for a listing at `moment` at the latest.
    pub(super) fn not_after(&mut self, moment: Instant) {
        self.earlier = Some(self.earlier.map_or(moment, |known| known.min(moment)));
    }

    /// When to list next, if every volume may be at most `interval` behind.
    pub(super) fn due(&self, interval: Duration) -> Instant {
        let due = self.started + pause(interval, self.failures).mul_f64(self.jitter);
        self.earlier.map_or(due, |earlier| earlier.min(due))
    }
}

/// The pause before an attempt: the interval, doubled for each failure before it.
fn pause(interval: Duration, failures: u32) -> Duration {
    let doubled = interval.saturating_mul(1 << failures.min(20));
    doubled.min(LONGEST_PAUSE.max(interval))
}

fn jitter() -> f64 {
    0.9 + 0.1 * fastrand::f64()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn failures_double_the_pause_up_to_five_minutes() {
        let minute = Duration::from_mins(1);
        let pauses: Vec<_> = (0..5).map(|n| pause(minute, n).as_secs()).collect();
        assert_eq!(pauses, [60, 120, 240, 300, 300]);
        let hour = Duration::from_hours(1);
        assert_eq!(pause(hour, 9), hour, "never more often than asked for, and never less");
        assert_eq!(pause(Duration::from_secs(1), u32::MAX), LONGEST_PAUSE);
    }

    proptest! {
        #[test]
        fn jitter_only_shortens(seconds in 1..100_000_u64) {
            let (now, interval) = (Instant::now(), Duration::from_secs(seconds));
            let wait = Pace::since(now).due(interval) - now;
            prop_assert!(wait <= interval && wait >= interval.mul_f64(0.899));
        }
    }

    #[test]
    fn a_success_forgets_the_failures() {
        let (now, interval) = (Instant::now(), Duration::from_secs(10));
        let mut pace = Pace::since(now);
        pace.failed(now);
        assert!(pace.due(interval) > now + interval);
        pace.not_after(now + Duration::from_secs(1));
        assert_eq!(pace.due(interval), now + Duration::from_secs(1));
        pace.succeeded(now);
        assert!(pace.due(interval) <= now + interval);
    }
}
