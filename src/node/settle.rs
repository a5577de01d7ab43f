//! When a changed listing may be shown: `settle` gives an upload of several objects time to finish,
//! so that a key and its certificate, uploaded one after the other, appear together.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::listing::Listing;

/// A listing that waits to be shown.
#[derive(Debug)]
pub(super) struct Settling {
    listing: Arc<Listing>,
    since: Instant,
}

impl Settling {
    /// How long `listing` must still wait; zero if it may be shown. `seen` is what the last look
    /// left, and is brought up to date.
    pub(super) fn wait(
        seen: &mut Option<Self>,
        listing: &Arc<Listing>,
        settle: Duration,
    ) -> Duration {
        if settle.is_zero() {
            return Duration::ZERO;
        }
        let same = seen.take().filter(|it| listing.changes_from(&it.listing).is_empty());
        let since = same.map_or_else(Instant::now, |it| it.since);
        let left = left(settle, listing.newest(), SystemTime::now(), since.elapsed());
        if !left.is_zero() {
            *seen = Some(Self { listing: Arc::clone(listing), since });
        }
        left
    }
}

/// What is left of `settle`, by the clock that has seen more of it: the service's (the age of the
/// newest object), or our own (how long the listing has stood still while we looked). So a clock
/// that is wrong, ours or the service's, never holds a listing back for longer than `settle`.
fn left(
    settle: Duration,
    newest: Option<SystemTime>,
    now: SystemTime,
    stood_still: Duration,
) -> Duration {
    let age = match newest {
        None => settle,
        Some(newest) => now.duration_since(newest).unwrap_or_default(),
    };
    settle.saturating_sub(age.max(stood_still))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const MINUTE: u64 = 60;

    #[test_case(Some(-61), 0, 0; "old enough")]
    #[test_case(Some(-20), 0, 40; "young")]
    #[test_case(Some(-20), 50, 10; "young, and watched for longer")]
    #[test_case(Some(3600), 0, 60; "written in the future by another clock")]
    #[test_case(Some(3600), 60, 0; "the future does not hold it back for ever")]
    #[test_case(None, 0, 0; "nothing to wait for")]
    fn a_listing_waits_for_its_newest_object(newest: Option<i64>, seen: u64, expected: u64) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1000);
        let newest = newest.map(|offset| {
            let distance = Duration::from_secs(offset.unsigned_abs());
            if offset < 0 { now - distance } else { now + distance }
        });
        let wait = left(Duration::from_secs(MINUTE), newest, now, Duration::from_secs(seen));
        assert_eq!(wait.as_secs(), expected);
    }
}
