//! Faults: what a test makes go wrong.
//!
//! Faults act on the HTTP exchange, outside the S3 service, because a service can neither reset a
//! connection nor break the promise of its own Content-Length. Of the faults that match a request
//! all delays add up, and the first other action is carried out.

use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::calls::Call;

/// What happens to a request that a [`Fault`] matches.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// The request waits before it is looked at.
    Delay(Duration),
    /// An error answer with this HTTP status and S3 error code.
    Status(StatusCode, &'static str),
    /// The connection is reset (RST) instead of an answer.
    Reset,
    /// The connection is reset after this many bytes of the body; shorter bodies pass whole.
    ResetAfter(u64),
    /// The connection is closed after this many bytes of the body, although Content-Length promised
    /// more; shorter bodies pass whole.
    Truncate(u64),
    /// Nothing more comes after this many bytes of the body; shorter bodies pass whole.
    Stall(u64),
    /// The object is overwritten before the request is answered, so that If-Match fails.
    ChangeETag,
    /// The first byte of the body is wrong; ETag and checksums stay.
    Corrupt,
}

impl Action {
    /// 503 `SlowDown`: too many requests.
    pub(crate) const SLOW_DOWN: Self = Self::Status(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
    /// 500 `InternalError`.
    pub(crate) const INTERNAL_ERROR: Self =
        Self::Status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    /// 403 `AccessDenied`.
    pub(crate) const ACCESS_DENIED: Self = Self::Status(StatusCode::FORBIDDEN, "AccessDenied");
    /// 400 `ExpiredToken`.
    pub(crate) const EXPIRED_TOKEN: Self = Self::Status(StatusCode::BAD_REQUEST, "ExpiredToken");
}

/// Which requests suffer, how often, and what.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// Only this operation.
    pub(crate) operation: Option<&'static str>,
    /// Only keys with this prefix; of a listing, only prefixes asked for that begin so.
    pub(crate) key: Option<String>,
    /// Only requests of this access key.
    pub(crate) access_key: Option<String>,
    /// So many times; none means until removed.
    pub(crate) times: Option<u32>,
    /// The chance, from 0 to 1, that a matching request is hit; repeatable by the server's seed.
    pub(crate) probability: f64,
    /// What happens.
    pub(crate) action: Action,
}

impl Fault {
    /// `action` for every request, until removed.
    pub(crate) fn new(action: Action) -> Self {
        let (operation, key, access_key, times) = (None, None, None, None);
        Self { operation, key, access_key, times, probability: 1.0, action }
    }

    /// `action` for every `GetObject`.
    pub(crate) fn get(action: Action) -> Self {
        Self::new(action).on("GetObject")
    }

    /// Only this operation.
    pub(crate) fn on(self, operation: &'static str) -> Self {
        Self { operation: Some(operation), ..self }
    }

    /// Only keys with this prefix.
    pub(crate) fn key(self, prefix: &str) -> Self {
        Self { key: Some(prefix.to_owned()), ..self }
    }

    /// Only requests of this access key.
    pub(crate) fn access_key(self, access_key: &str) -> Self {
        Self { access_key: Some(access_key.to_owned()), ..self }
    }

    /// Only so many times.
    pub(crate) fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only with this chance.
    pub(crate) fn probability(self, probability: f64) -> Self {
        Self { probability, ..self }
    }

    fn matches(&self, call: &Call) -> bool {
        self.times != Some(0)
            && self.operation.is_none_or(|operation| operation == call.operation)
            && self.key.as_deref().is_none_or(|prefix| call.key.starts_with(prefix))
            && (self.access_key.is_none() || self.access_key == call.access_key)
    }
}

/// Names an added fault, to remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FaultId(u64);

/// What the faults decided for one request.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How long the request waits.
    pub(crate) delay: Duration,
    /// What happens then.
    pub(crate) action: Option<Action>,
}

/// The faults of a server.
#[derive(Debug)]
pub(crate) struct Faults(Mutex<State>);

#[derive(Debug)]
struct State {
    added: Vec<(FaultId, Fault)>,
    next: u64,
    random: StdRng,
}

impl Faults {
    /// No faults; `seed` makes those with a probability repeatable.
    pub(crate) fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self(Mutex::new(State { added: Vec::new(), next: 0, random }))
    }

    /// Adds a fault; earlier ones go first.
    pub(crate) fn add(&self, fault: Fault) -> FaultId {
        let mut state = self.0.lock();
        let id = FaultId(state.next);
        state.next += 1;
        state.added.push((id, fault));
        id
    }

    /// Removes a fault.
    pub(crate) fn remove(&self, id: FaultId) {
        self.0.lock().added.retain(|(added, _)| *added != id);
    }

    /// Removes every fault.
    pub(crate) fn clear(&self) {
        self.0.lock().added.clear();
    }

    /// What happens to `call`; uses up one of the times of each fault that takes part.
    pub(crate) fn decide(&self, call: &Call) -> Verdict {
        let mut state = self.0.lock();
        let State { added, random, .. } = &mut *state;
        let mut verdict = Verdict::default();
        for (_, fault) in added.iter_mut().filter(|(_, fault)| fault.matches(call)) {
            let is_delay = matches!(fault.action, Action::Delay(_));
            if (!is_delay && verdict.action.is_some()) || !random.random_bool(fault.probability) {
                continue;
            }
            fault.times = fault.times.map(|times| times - 1);
            match fault.action {
                Action::Delay(delay) => verdict.delay += delay,
                ref action => verdict.action = Some(action.clone()),
            }
        }
        verdict
    }
}
