//! Credentials that expire: fetched when the first request needs them, renewed before they end.
//!
//! All who need them at one time wait for one fetch, and share its failure. Credentials that are
//! good for a while yet outlive a failed renewal, so a token service that is down for a moment is
//! noticed by nobody. How long they are good is measured by a clock that nobody sets.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{chain::Chain, sts::Exchange};
use crate::{failure::FailureKind, source::SourceError};

/// How long before their end credentials are renewed at the latest, if they last long enough.
const MARGIN: Duration = Duration::from_mins(5);

/// How long credentials without an end are used: what they were read from may change.
const LOOK_AGAIN: Duration = Duration::from_mins(15);

/// Credentials count at least for so long: where this node's clock is ahead of the service's, every
/// request would fetch new ones.
const SHORTEST: Duration = Duration::from_secs(5);

/// The longest pause between attempts to renew credentials that are still good.
const PAUSE: Duration = Duration::from_secs(30);

/// Where they come from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A token service.
    Exchange(Exchange),
    /// The driver's own surroundings.
    Chain(Chain),
}

/// Credentials that are renewed, of one principal.
pub(super) struct Temporary {
    origin: Origin,
    state: Mutex<State>,
    /// Held by who fetches.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// The last failure, for those who were waiting when it happened.
    failed: Option<(Instant, SourceError)>,
}

struct Held {
    credentials: Credentials,
    renew_at: Instant,
    ends_at: Option<Instant>,
}

impl fmt::Debug for Temporary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Temporary").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Held {
    fn new(credentials: Credentials, now: Instant) -> Self {
        let life = credentials
            .expiry()
            .map(|end| end.duration_since(SystemTime::now()).unwrap_or_default().max(SHORTEST));
        let renew_at = now + life.map_or(LOOK_AGAIN, renewed_after);
        Self { credentials, renew_at, ends_at: life.map(|life| now + life) }
    }

    /// From now on they are not good any more. They stay for a request that is about to be signed:
    /// S3 tells it better than a signer without a key.
    fn end(&mut self, now: Instant) {
        (self.renew_at, self.ends_at) = (now, Some(now));
    }

    /// Goes on with what is still good; `None` if it is not.
    fn postponed(&mut self, now: Instant) -> Option<Duration> {
        let pause = match self.ends_at {
            None => PAUSE,
            Some(end) if end <= now => return None,
            Some(end) => PAUSE.min((end - now) / 2),
        };
        self.renew_at = now + pause;
        Some(pause)
    }
}

/// After how much of its life a credential is renewed: at 80 %, or five minutes before its end,
/// whichever is earlier, and never in its first half.
fn renewed_after(life: Duration) -> Duration {
    (life / 5 * 4).min(life.saturating_sub(MARGIN)).max(life / 2)
}

impl Temporary {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, state: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// The exchange that they come from.
    pub(super) fn exchange(&self) -> Option<&Exchange> {
        match &self.origin {
            Origin::Exchange(exchange) => Some(exchange),
            Origin::Chain(_) => None,
        }
    }

    /// Waits until there are credentials that are good for a while.
    ///
    /// # Errors
    /// Why there are none.
    ///
    /// # Cancellation
    /// Safe: the next one who needs them fetches them.
    pub(super) async fn ready(&self) -> Result<(), SourceError> {
        let asked_at = Instant::now();
        if self.is_fresh() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.is_fresh() {
            return Ok(());
        }
        if let Some((at, error)) = &self.state.lock().failed
            && *at >= asked_at
        {
            return Err(error.clone());
        }
        let fetched = match &self.origin {
            Origin::Exchange(exchange) => exchange.credentials().await,
            Origin::Chain(chain) => chain.credentials().await,
        };
        let (now, mut state) = (Instant::now(), self.state.lock());
        match fetched {
            Ok(credentials) => {
                *state = State { held: Some(Held::new(credentials, now)), failed: None };
                Ok(())
            }
            Err(error) => state.put_up_with(error, now),
        }
    }

    fn is_fresh(&self) -> bool {
        let state = self.state.lock();
        state.held.as_ref().is_some_and(|held| Instant::now() < held.renew_at)
    }

    /// What an error of a request means whose credentials these are. Those that S3 does not accept
    /// are not used again.
    pub(super) fn judge(&self, error: SourceError) -> SourceError {
        if error.kind() != FailureKind::Unauthenticated {
            return error;
        }
        if let Some(held) = &mut self.state.lock().held {
            held.end(Instant::now());
        }
        let from = match &self.origin {
            Origin::Exchange(exchange) => {
                format!("come from {}, not from a Secret", exchange.what())
            }
            Origin::Chain(_) => "are the driver's own, not from a Secret".to_owned(),
        };
        let text = format!("{error} (these credentials {from}; the next attempt fetches new ones)");
        SourceError::new(FailureKind::Unauthenticated, text)
    }
}

impl State {
    fn put_up_with(&mut self, error: SourceError, now: Instant) -> Result<(), SourceError> {
        if let Some(pause) = self.held.as_mut().and_then(|held| held.postponed(now)) {
            tracing::warn!(%error, ?pause, "credentials cannot be renewed yet; they are still good");
            return Ok(());
        }
        self.failed = Some((now, error.clone()));
        Err(error)
    }
}

/// Hands to the SDK what [`Temporary::ready`] has fetched.
#[derive(Debug)]
pub(super) struct Fetched(pub(super) Arc<Temporary>);

impl ProvideCredentials for Fetched {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let held = self.0.state.lock().held.as_ref().map(|held| held.credentials.clone());
        future::ProvideCredentials::ready(held.ok_or_else(CredentialsError::not_loaded_no_source))
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(3600, 2880; "an hour: at 80 %")]
    #[test_case(1500, 1200; "25 minutes: both are the same")]
    #[test_case(900, 600; "15 minutes: 5 before the end")]
    #[test_case(600, 300; "10 minutes: half")]
    #[test_case(60, 30; "a minute: never in its first half")]
    #[test_case(0, 0; "none")]
    fn renewal_comes_before_the_end(life: u64, after: u64) {
        assert_eq!(renewed_after(Duration::from_secs(life)), Duration::from_secs(after));
    }

    fn held(life: Option<Duration>, now: Instant) -> Held {
        let end = life.map(|life| SystemTime::now() + life);
        Held::new(Credentials::new("id", "secret", None, end, "test"), now)
    }

    #[test]
    fn good_credentials_outlive_a_failed_renewal() {
        let now = Instant::now();
        let error = || SourceError::new(FailureKind::Unavailable, "down");
        let mut state =
            State { held: Some(held(Some(Duration::from_mins(15)), now)), failed: None };
        let later = now + Duration::from_mins(14);
        state.put_up_with(error(), later).unwrap();
        let pause = state.held.as_ref().unwrap().renew_at - later;
        assert!((Duration::from_secs(28)..=Duration::from_secs(30)).contains(&pause), "{pause:?}");
        let failed = state.put_up_with(error(), now + Duration::from_mins(15));
        assert_eq!(failed.unwrap_err().kind(), FailureKind::Unavailable);
        let held = state.held.unwrap();
        assert!(held.renew_at < now + Duration::from_mins(15), "the next one fetches anew");
    }

    #[test]
    fn what_s3_refuses_is_good_for_nothing() {
        let now = Instant::now();
        let mut held = held(Some(Duration::from_mins(15)), now);
        held.end(now);
        assert!(held.renew_at <= now);
        assert_eq!(held.postponed(now), None);
    }

    #[test]
    fn a_clock_that_is_ahead_makes_no_storm() {
        let now = Instant::now();
        assert_eq!(held(Some(Duration::ZERO), now).renew_at - now, SHORTEST / 2);
    }

    #[test]
    fn what_has_no_end_is_looked_at_again() {
        let now = Instant::now();
        let mut held = held(None, now);
        assert_eq!(held.renew_at - now, LOOK_AGAIN);
        assert_eq!(held.postponed(now + Duration::from_hours(1)), Some(PAUSE));
    }
}
