//! A volume whose target is mounted: what it shows, where that comes from, and how its refresh
//! fares.
//!
//! The lock is never held across an await or a system call. What the volume shows changes only
//! under the target's lock (see `volumes`), and only one refresh of a volume runs at a time.

use std::{
    fmt::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    VolumeStatus,
    fused::Fused,
    quota::{Claim, Share},
    refresh::Current,
    registry::{Entry, Shape, Summary},
    revision::{self, Recipe},
    settle::Settling,
};
use crate::{
    listing::Listing,
    object::SseKeyDigest,
    source::{Principal, SealedPrincipal},
    store::Medium,
    units::Refresh,
    view::linkfarm::{Replaced, Retired},
    volume::{PublishArguments, ViewKind},
};

/// How long a replaced revision stays for readers that are in it.
const GRACE: Duration = Duration::from_secs(10);

/// How many intervals a volume may be behind before its condition is abnormal.
const PATIENCE: u32 = 3;

/// How long a listing and what it brings may take beside the intervals.
const SLACK: Duration = Duration::from_secs(30);

/// How often a volume without an interval is tried until it shows what S3 has now.
pub(super) const HEALING: Duration = Duration::from_mins(1);

/// The way to S3 that a principal and its customer key are.
pub(super) type Access = (Principal, Option<SseKeyDigest>);

/// A volume whose target is mounted.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) target: PathBuf,
    pub(super) arguments: PublishArguments,
    pub(super) view: ViewKind,
    pub(super) medium: Medium,
    /// What it counts for its namespace.
    pub(super) claim: Arc<Claim>,
    /// Cancelled when the volume is unpublished: its refresh ends.
    pub(super) ended: CancellationToken,
    /// Held while a refresh decides and acts.
    pub(super) refreshing: tokio::sync::Mutex<()>,
    /// Of a `fuse` view: its mount.
    pub(super) fused: Option<Fused>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    entry: Entry,
    /// What is shown; `None` after a restart, until somebody lists, and in a `fuse` view.
    listing: Option<Arc<Listing>>,
    /// When this process asked for that, or for an equal one later.
    asked_at: Option<Instant>,
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
    /// What the last republish brought that cannot be used.
    republish: Option<String>,
    /// New credentials that do not work, so far or for good.
    trial: Option<Trial>,
}

#[derive(Debug)]
struct Trial {
    access: Access,
    reason: String,
    /// Since when S3 refuses them: they are not tried again at once.
    refused: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    reason: String,
    since: Instant,
    times: u32,
}

impl Published {
    /// A volume that an earlier process published.
    pub(super) fn found(entry: Entry, retired: Vec<Retired>) -> Self {
        let now = Instant::now();
        let retired = retired.into_iter().map(|retired| (retired, now)).collect();
        let share = entry.summary.share.clone();
        let claim = Claim::new(entry.namespace.clone(), entry.medium, share);
        let claim = Arc::new(claim);
        Self::with(
            claim,
            State {
                entry,
                listing: None,
                asked_at: None,
                is_doubtful: false,
                recipe: None,
                retired,
                settling: None,
                health: Health::default(),
            },
        )
    }

    /// A volume that was just published.
    pub(super) fn new(
        entry: Entry,
        claim: Arc<Claim>,
        recipe: Arc<Recipe>,
        shown: &Current,
    ) -> Self {
        Self::with(
            claim,
            State {
                entry,
                listing: Some(Arc::clone(&shown.listing)),
                asked_at: Some(shown.asked_at),
                is_doubtful: false,
                recipe: Some(recipe),
                retired: Vec::new(),
                settling: None,
                health: Health::default(),
            },
        )
    }

    /// The same volume, served as a `fuse` view, if it is one: the mount knows what it shows.
    pub(super) fn served_as(self, fused: Option<Fused>) -> Self {
        if fused.is_some() {
            self.state.lock().listing = None;
        }
        Self { fused, ..self }
    }

    fn with(claim: Arc<Claim>, state: State) -> Self {
        let arguments = state.entry.arguments.clone();
        let (view, medium) = (state.entry.view, state.entry.medium);
        let target = state.entry.target.clone();
        let (ended, refreshing) = (CancellationToken::new(), tokio::sync::Mutex::default());
        let (fused, state) = (None, Mutex::new(state));
        Self { target, arguments, view, medium, claim, ended, refreshing, fused, state }
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

    /// Whether it shows what was asked for after `moment`: a listing of that moment may be older.
    pub(super) fn is_ahead_of(&self, moment: Instant) -> bool {
        self.state.lock().asked_at.is_some_and(|asked_at| asked_at > moment)
    }

    /// The last working way to S3.
    pub(super) fn recipe(&self) -> Option<Arc<Recipe>> {
        self.state.lock().recipe.clone()
    }

    /// Whom it was shown for.
    pub(super) fn principal(&self) -> Option<SealedPrincipal> {
        self.state.lock().entry.principal.clone()
    }

    /// Whether what it shows is not what S3 had when it was published.
    pub(super) fn is_fallback(&self) -> bool {
        self.state.lock().entry.is_fallback
    }

    /// Notes that S3 confirmed what is shown, and that `recipe` is a way to it. Returns the entry
    /// if it should be recorded anew.
    pub(super) fn confirm(
        &self,
        recipe: &Arc<Recipe>,
        current: &Current,
        principal: SealedPrincipal,
    ) -> Option<Entry> {
        self.read_as(recipe, &principal);
        let mut state = self.state.lock();
        let before = state.entry.clone();
        let revision = before.summary.revision;
        let is_same = state.listing.as_ref().is_some_and(|it| Arc::ptr_eq(it, &current.listing));
        if is_same {
            state.entry.summary.resolved_at = revision::now();
        } else {
            // The same content counts the same; it is not known of a volume that was adopted.
            let known = Some(before.summary.share.clone()).filter(Share::is_known);
            let share = known.unwrap_or_else(|| recipe.share(&current.listing));
            let listing = &current.listing;
            state.entry.summary = revision::summarise(listing, &recipe.spec, revision, share);
            self.claim.shows(&state.entry.summary.share);
        }
        state.shows(recipe, current, principal);
        self.keep_listing(&mut state, current);
        let is_news = |entry: &Entry| {
            entry.principal != before.principal
                || entry.is_fallback != before.is_fallback
                || entry.summary.skipped != before.summary.skipped
                || before.summary.resolved_at == 0
        };
        is_news(&state.entry).then(|| state.entry.clone())
    }

    /// Notes a new revision; returns the entry to record.
    pub(super) fn revise(
        &self,
        recipe: &Arc<Recipe>,
        current: &Current,
        replaced: Replaced,
        principal: SealedPrincipal,
    ) -> Entry {
        self.read_as(recipe, &principal);
        let (listing, share) = (&current.listing, recipe.share(&current.listing));
        let mut state = self.state.lock();
        state.retired.extend(replaced.retired.map(|retired| (retired, Instant::now())));
        let revision = replaced.revision.max(state.entry.summary.revision + 1);
        state.entry.summary = revision::summarise(listing, &recipe.spec, revision, share);
        self.claim.shows(&state.entry.summary.share);
        state.settling = None;
        state.shows(recipe, current, principal);
        self.keep_listing(&mut state, current);
        state.entry.clone()
    }

    fn keep_listing(&self, state: &mut State, current: &Current) {
        state.listing = self.fused.is_none().then(|| Arc::clone(&current.listing));
    }

    /// Takes over a way to S3 that is not needed now.
    pub(super) fn hold(&self, recipe: &Arc<Recipe>, principal: &SealedPrincipal) {
        self.read_as(recipe, principal);
        let mut state = self.state.lock();
        state.health.recovered(recipe);
        state.recipe = Some(Arc::clone(recipe));
    }

    /// Has a `fuse` view read with a recipe's credentials. What the new principal may not read is
    /// not shown to it: each file is proven when it is read.
    pub(super) fn read_as(&self, recipe: &Recipe, principal: &SealedPrincipal) {
        if let Some(fused) = &self.fused {
            fused.content.renew(&recipe.source, principal);
        }
    }

    /// After a replacement that failed: nothing is certain of what is shown but what the files say,
    /// and nothing of it is taken over by the next one. `older` are the revisions that are still
    /// there, if somebody could look.
    pub(super) fn doubt(&self, older: Option<Vec<Retired>>) {
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(older) = older {
            state.retired = older.into_iter().map(|retired| (retired, now)).collect();
        }
        (state.listing, state.is_doubtful) = (None, true);
    }

    /// Whether the last replacement failed.
    pub(super) fn is_doubtful(&self) -> bool {
        self.state.lock().is_doubtful
    }

    /// How long `listing` has to wait before it is shown. S3 answers again, in any case.
    pub(super) fn settling(&self, listing: &Arc<Listing>, settle: Duration) -> Duration {
        let mut state = self.state.lock();
        let wait = Settling::wait(&mut state.settling, listing, settle);
        if !wait.is_zero() {
            state.health.failing = None;
        }
        wait
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

    /// What the last republish brought that cannot be used, for the volume condition.
    pub(super) fn note_republish(&self, trouble: Option<String>) {
        let mut state = self.state.lock();
        (state.health.republish, state.health.trial) = (trouble, None);
    }

    /// Notes that new credentials do not work, while the earlier ones do.
    pub(super) fn note_trial(&self, access: Access, reason: String, is_refused: bool) {
        let refused = is_refused.then(Instant::now);
        self.state.lock().health.trial = Some(Trial { access, reason, refused });
    }

    /// Whether S3 refused these credentials less than `interval` ago.
    pub(super) fn has_refused(&self, access: Access, interval: Duration) -> bool {
        let state = self.state.lock();
        let trial = state.health.trial.as_ref().filter(|trial| trial.access == access);
        trial.and_then(|trial| trial.refused).is_some_and(|at| at.elapsed() < interval)
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

    /// Whether there are replaced revisions.
    pub(super) fn has_retired(&self) -> bool {
        !self.state.lock().retired.is_empty()
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
        let patience = interval * PATIENCE;
        let fails = |failing: &Failing| failing.since.elapsed() >= patience;
        // A listing that takes too long is no failure yet, and as bad.
        let follows = state.recipe.as_ref().is_some_and(|it| it.spec.refresh != Refresh::Never);
        let age = state.asked_at.map(|at| at.elapsed()).filter(|_| follows);
        let is_behind = age.is_some_and(|age| age >= patience + SLACK);
        let is_dead = self.fused.as_ref().is_some_and(|fused| !fused.is_served());
        let trouble = self.fused.as_ref().and_then(|fused| fused.content.trouble());
        let abnormal = !is_mounted
            || is_behind
            || is_dead
            || trouble.is_some()
            || state.health.failing.as_ref().is_some_and(fails);
        let mut message = describe(&summary);
        state.health.describe(&mut message, &summary);
        if is_behind && state.health.failing.is_none() {
            message.push_str("; the refresh that is under way takes long");
        }
        if state.recipe.is_none() && state.health.failing.is_none() {
            message.push_str("; refreshes go on when the kubelet has brought credentials again");
        }
        if !is_mounted {
            message.push_str("; it is not mounted any more");
        } else if is_dead {
            message.push_str(
                "; nobody serves it, because node plugin and keeper both ended: the kubelet's next \
                 publish mounts it again, and containers that run have to be restarted",
            );
        }
        if let Some(reason) = trouble {
            message.push_str("; a read failed lately: ");
            message.push_str(&reason);
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

impl State {
    /// What is shown is what S3 had at that moment, and `principal` may read it.
    fn shows(&mut self, recipe: &Arc<Recipe>, current: &Current, principal: SealedPrincipal) {
        self.entry.principal = Some(principal);
        if self.entry.shape.is_none() {
            // Its record was lost: whose it is, is what the request says that it went on with.
            self.entry.shape = Some(recipe.shape);
            self.entry.namespace = recipe.tenant.as_ref().map(|it| it.namespace.clone());
        }
        self.entry.is_fallback = false;
        self.is_doubtful = false;
        self.asked_at = Some(current.asked_at);
        self.recipe = Some(Arc::clone(recipe));
        self.health.recovered(recipe);
    }
}

impl Health {
    fn recovered(&mut self, recipe: &Recipe) {
        self.failing = None;
        self.trial.take_if(|trial| trial.access == recipe.access());
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
        if let Some(Trial { reason, refused, .. }) = &self.trial {
            let verdict = if refused.is_some() { "are not used" } else { "could not be tried yet" };
            message.push_str("; the last republish's credentials ");
            message.push_str(verdict);
            message.push_str(": ");
            message.push_str(reason);
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
