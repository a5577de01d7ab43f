//! A volume whose target is mounted: what it shows, where that comes from, and how its refresh
//! fares.
//!
//! The lock is never held across an await or a system call. What the volume shows changes only
//! under the target's lock (see `volumes`), and only one refresh of a volume runs at a time.

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    VolumeStatus,
    registry::{Entry, Shape, Summary},
    revision::Recipe,
    settle::Settling,
};
use crate::{
    listing::Listing,
    object::SseKeyDigest,
    source::{Principal, SealedPrincipal},
    store::Medium,
    units::Refresh,
    view::linkfarm::Retired,
    volume::{PublishArguments, ViewKind},
};

/// How long a replaced revision stays for readers that are in it.
const GRACE: Duration = Duration::from_secs(10);

/// How many intervals a volume may be behind before its condition is abnormal.
const PATIENCE: u32 = 3;

/// How often a volume without an interval is tried until it shows what S3 has now.
pub(super) const HEALING: Duration = Duration::from_mins(1);

/// The way to S3 that a principal and its customer key are.
pub(super) type Access = (Principal, Option<SseKeyDigest>);

/// A volume whose target is mounted.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) arguments: PublishArguments,
    pub(super) view: ViewKind,
    pub(super) medium: Medium,
    /// Cancelled when the volume is unpublished: its refresh ends.
    pub(super) ended: CancellationToken,
    /// Held while a refresh decides and acts.
    pub(super) refreshing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    entry: Entry,
    /// What is shown; `None` after a restart, until somebody lists.
    listing: Option<Arc<Listing>>,
    is_doubtful: bool,
    /// The last working way to S3; `None` after a restart, until the kubelet brings credentials.
    recipe: Option<Arc<Recipe>>,
    /// Replaced revisions that are still there, the oldest first, and since when.
    retired: Vec<(Retired, Instant)>,
    settling: Option<Settling>,
    health: Health,
}

/// How the refresh of a volume fares.
#[derive(Debug, Default)]
struct Health {
    failing: Option<Failing>,
    /// What the last republish found wrong.
    republish: Option<String>,
    /// Credentials that S3 refused, and when: they are not tried again at once.
    rejected: Option<(Access, Instant)>,
}

#[derive(Debug)]
struct Failing {
    reason: String,
    since: Instant,
    times: u32,
}

/// What a publish or a refresh has shown.
#[derive(Debug)]
pub(super) struct Revised {
    pub(super) listing: Arc<Listing>,
    pub(super) summary: Summary,
    /// The revision that it replaced.
    pub(super) retired: Option<Retired>,
    pub(super) principal: SealedPrincipal,
}

impl Published {
    /// A volume that an earlier process published.
    pub(super) fn found(entry: Entry, retired: Vec<Retired>) -> Self {
        let now = Instant::now();
        let retired = retired.into_iter().map(|retired| (retired, now)).collect();
        Self::with(State {
            entry,
            listing: None,
            is_doubtful: false,
            recipe: None,
            retired,
            settling: None,
            health: Health::default(),
        })
    }

    /// A volume that was just published.
    pub(super) fn new(entry: Entry, recipe: Arc<Recipe>, listing: Arc<Listing>) -> Self {
        Self::with(State {
            entry,
            listing: Some(listing),
            is_doubtful: false,
            recipe: Some(recipe),
            retired: Vec::new(),
            settling: None,
            health: Health::default(),
        })
    }

    fn with(state: State) -> Self {
        let arguments = state.entry.arguments.clone();
        let (view, medium) = (state.entry.view, state.entry.medium);
        let (ended, refreshing) = (CancellationToken::new(), tokio::sync::Mutex::default());
        Self { arguments, view, medium, ended, refreshing, state: Mutex::new(state) }
    }

    /// The record of it.
    pub(super) fn entry(&self) -> Entry {
        self.state.lock().entry.clone()
    }

    /// How it was shown at first, if that is known.
    pub(super) fn shape(&self) -> Option<Shape> {
        self.state.lock().entry.shape
    }

    /// What it shows, if a listing says it.
    pub(super) fn listing(&self) -> Option<Arc<Listing>> {
        self.state.lock().listing.clone()
    }

    /// The last working way to S3.
    pub(super) fn recipe(&self) -> Option<Arc<Recipe>> {
        self.state.lock().recipe.clone()
    }

    /// Whom it was shown for.
    pub(super) fn principal(&self) -> Option<SealedPrincipal> {
        self.state.lock().entry.principal.clone()
    }

    /// Notes that S3 confirmed what is shown, and that `recipe` is a way to it. Returns the entry
    /// if it should be recorded anew.
    pub(super) fn confirm(
        &self,
        recipe: &Arc<Recipe>,
        listing: &Arc<Listing>,
        summary: Summary,
        principal: &SealedPrincipal,
    ) -> Option<Entry> {
        let mut state = self.state.lock();
        let is_new = state.entry.principal.as_ref() != Some(principal)
            || state.entry.summary.resolved_at == 0
            || state.entry.summary.skipped != summary.skipped;
        state.entry.principal = Some(principal.clone());
        state.entry.shape.get_or_insert(recipe.shape);
        state.entry.summary = Summary { revision: state.entry.summary.revision, ..summary };
        state.listing = Some(Arc::clone(listing));
        state.recipe = Some(Arc::clone(recipe));
        state.health.recovered(recipe);
        is_new.then(|| state.entry.clone())
    }

    /// Notes a new revision; returns the entry to record.
    pub(super) fn revise(&self, recipe: &Arc<Recipe>, revised: Revised) -> Entry {
        let Revised { listing, summary, retired, principal } = revised;
        let mut state = self.state.lock();
        let now = Instant::now();
        state.retired.extend(retired.map(|retired| (retired, now)));
        state.entry.principal = Some(principal);
        state.entry.shape.get_or_insert(recipe.shape);
        state.entry.summary = summary;
        (state.listing, state.is_doubtful) = (Some(listing), false);
        state.recipe = Some(Arc::clone(recipe));
        state.settling = None;
        state.health.recovered(recipe);
        state.entry.clone()
    }

    /// Takes over a way to S3 that is not needed now.
    pub(super) fn hold(&self, recipe: &Arc<Recipe>) {
        self.state.lock().recipe = Some(Arc::clone(recipe));
    }

    /// After a replacement that failed: nothing is certain of what is shown but what the files say,
    /// and nothing of it is taken over by the next one. `older` are the revisions that are still
    /// there.
    pub(super) fn doubt(&self, older: Vec<Retired>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.retired = older.into_iter().map(|retired| (retired, now)).collect();
        (state.listing, state.is_doubtful) = (None, true);
    }

    /// Whether the last replacement failed.
    pub(super) fn is_doubtful(&self) -> bool {
        self.state.lock().is_doubtful
    }

    /// How long `listing` has to wait before it is shown.
    pub(super) fn settling(&self, listing: &Arc<Listing>, settle: Duration) -> Duration {
        Settling::wait(&mut self.state.lock().settling, listing, settle)
    }

    /// Notes that a refresh failed; true if that is news.
    pub(super) fn failed(&self, reason: String) -> bool {
        let mut state = self.state.lock();
        let health = &mut state.health;
        let news = health.failing.as_ref().is_none_or(|failing| failing.reason != reason);
        let (since, times) =
            health.failing.as_ref().map_or((Instant::now(), 0), |it| (it.since, it.times));
        health.failing = Some(Failing { reason, since, times: times.saturating_add(1) });
        news
    }

    /// Whether its last refresh failed.
    pub(super) fn is_failing(&self) -> bool {
        self.state.lock().health.failing.is_some()
    }

    /// What the last republish found wrong, for the volume condition.
    pub(super) fn note_republish(&self, trouble: Option<String>) {
        self.state.lock().health.republish = trouble;
    }

    /// Notes that S3 refused new credentials while the earlier ones work.
    pub(super) fn reject(&self, access: Access, reason: &str) {
        let mut state = self.state.lock();
        state.health.rejected = Some((access, Instant::now()));
        state.health.republish = Some(format!(
            "the last republish's credentials are not used, because a refresh with them failed: \
             {reason}"
        ));
    }

    /// Whether these credentials were refused less than `interval` ago.
    pub(super) fn has_rejected(&self, access: Access, interval: Duration) -> bool {
        let state = self.state.lock();
        let recent = |(known, at): &(Access, Instant)| *known == access && at.elapsed() < interval;
        state.health.rejected.as_ref().is_some_and(recent)
    }

    /// Takes out the replaced revisions that may go now: never the last one before the next swap,
    /// and none that was replaced less than ten seconds ago, unless room is needed.
    pub(super) fn take_retired(&self, room_is_needed: bool) -> Vec<(Retired, Instant)> {
        let mut state = self.state.lock();
        if room_is_needed {
            return std::mem::take(&mut state.retired);
        }
        let older = state.retired.len().saturating_sub(1);
        let due = state.retired[..older].iter().take_while(|(_, at)| at.elapsed() >= GRACE).count();
        state.retired.drain(..due).collect()
    }

    /// Puts back what could not go (a subPath shows it): it is looked at again later.
    pub(super) fn put_back(&self, kept: Vec<Retired>) {
        let now = Instant::now();
        let kept = kept.into_iter().map(|retired| (retired, now));
        self.state.lock().retired.splice(..0, kept);
    }

    /// What it shows and how it fares.
    pub(super) fn status(&self, is_mounted: bool) -> VolumeStatus {
        let state = self.state.lock();
        let summary = state.entry.summary.clone();
        let interval = state.recipe.as_ref().map_or(HEALING, |recipe| interval(recipe));
        let lags = |failing: &Failing| failing.since.elapsed() >= interval * PATIENCE;
        let abnormal = !is_mounted || state.health.failing.as_ref().is_some_and(lags);
        let mut message = describe(&summary);
        state.health.describe(&mut message, &summary);
        if state.recipe.is_none() && state.health.failing.is_none() {
            message.push_str("; refreshes go on when the kubelet has brought credentials again");
        }
        if !is_mounted {
            message.push_str("; it is not mounted any more");
        }
        VolumeStatus { summary, abnormal, message }
    }
}

/// How often the volume looks for changes, or for a first success.
pub(super) fn interval(recipe: &Recipe) -> Duration {
    match recipe.spec.refresh {
        Refresh::Every(interval) => interval,
        Refresh::Never => HEALING,
    }
}

impl Health {
    fn recovered(&mut self, recipe: &Recipe) {
        self.failing = None;
        if self.rejected.take_if(|(access, _)| *access == recipe.access()).is_some() {
            self.republish = None;
        }
    }

    fn describe(&self, message: &mut String, summary: &Summary) {
        if let Some(Failing { reason, times, .. }) = &self.failing {
            let age = age(summary.resolved_at);
            let failed = if *times == 1 {
                "the last refresh".into()
            } else {
                format!("the last {times} refreshes")
            };
            let written =
                write!(message, "; {failed} failed, the last success was {age}: {reason}");
            written.expect("text can be written to memory");
        }
        if let Some(republish) = &self.republish {
            message.push_str("; ");
            message.push_str(republish);
        }
    }
}

/// `12s ago`; the clock may have jumped.
fn age(at: u64) -> String {
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return "unknown".into() };
    if at == 0 {
        return "before the node plugin started".into();
    }
    let seconds = now.as_secs().saturating_sub(at);
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        _ => format!("{}h ago", seconds / 3600),
    }
}

fn describe(summary: &Summary) -> String {
    let Summary { objects, bytes, skipped, resolved_at, .. } = summary;
    let resolved = jiff::Timestamp::from_second(i64::try_from(*resolved_at).unwrap_or(0));
    let as_of =
        resolved.map_or_else(|_| String::new(), |time| format!(", confirmed by S3 at {time}"));
    let mut text = match resolved_at {
        0 => "adopted after its record was lost: its figures are not known".to_owned(),
        _ => format!("{objects} objects, {bytes} bytes{as_of}"),
    };
    if !skipped.is_empty() {
        text.push_str("; ");
        text.push_str(skipped);
    }
    text
}
