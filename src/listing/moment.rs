//! Points in time, in few bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time as the kernel takes it: seconds since the epoch may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// What is left of a second, in nanoseconds.
    pub nanos: u32,
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let (length, is_past) = match time.duration_since(UNIX_EPOCH) {
            Ok(length) => (length, false),
            Err(before) => (before.duration(), true),
        };
        let (seconds, nanos) = (length.as_secs().cast_signed(), length.subsec_nanos());
        match (is_past, nanos) {
            (false, _) => Self { seconds, nanos },
            (true, 0) => Self { seconds: seconds.wrapping_neg(), nanos },
            (true, _) => Self { seconds: -1 - seconds, nanos: 1_000_000_000 - nanos },
        }
    }
}

impl From<Moment> for SystemTime {
    fn from(Moment { seconds, nanos }: Moment) -> Self {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let base =
            if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        base.unwrap_or(UNIX_EPOCH) + Duration::from_nanos(nanos.into())
    }
}
