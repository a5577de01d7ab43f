//! The background part of a publish: everything up to a revision that only has to be mounted.
//!
//! It does not end with the call that began it: a retry joins it and finds it further or done. It
//! ends when an unpublish cancels it, when nobody has asked for [`PATIENCE`], or with the plugin;
//! then it removes what it made.

use std::{
    collections::HashMap,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Context, NodeError,
    quota::Claim,
    records::{Recorded, Records},
    refresh::Current,
    registry::Entry,
    revision::{self, Need, Recipe, View},
    settle::Settling,
};
use crate::{
    config::NamespaceLimits,
    failure::{FailureKind, full_message},
    fetch::Progress,
    listing::Listing,
    store::{BlobId, Medium, PAGE, Store, Wanted},
    task::{blocking, for_count},
    view::linkfarm::{Leases, LinkFarm},
    volume::{PublishArguments, WhenUnavailable},
};

/// How long work goes on without a call that waits for it.
const PATIENCE: Duration = Duration::from_mins(10);

/// How many names are made in passing.
const FEW: u64 = 64;

/// How many bytes may have to be copied for them (for another owner), in passing.
const LITTLE: u64 = 1 << 20;

/// A publish under way.
#[derive(Debug)]
pub(super) struct Preparation {
    pub(super) target: PathBuf,
    pub(super) arguments: PublishArguments,
    /// What it counts for its namespace.
    pub(super) claim: Arc<Claim>,
    pub(super) cancel: CancellationToken,
    progress: Arc<Progress>,
    outcome: watch::Sender<Option<Result<Prepared, NodeError>>>,
    calls: Mutex<Calls>,
}

/// A revision that is complete.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) entry: Entry,
    /// Keeps the client, and with it the credentials, for the volume's life.
    pub(super) recipe: Arc<Recipe>,
    pub(super) shown: Current,
    /// Set if it is not what S3 has now.
    pub(super) fallback: Option<Fallback>,
}

/// Why a volume shows what was read before.
#[derive(Debug, Clone)]
pub(super) struct Fallback {
    /// Why S3 could not be reached.
    pub(super) reason: String,
    /// When S3 confirmed what is shown: seconds since the epoch.
    pub(super) confirmed: u64,
}

/// What is to be prepared.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) entry: Entry,
    pub(super) recipe: Arc<Recipe>,
    /// As they were when the publish was called.
    pub(super) limits: NamespaceLimits,
}

#[derive(Debug)]
struct Calls {
    waiting: usize,
    last: Instant,
}

/// Counts a call as waiting while it lives.
struct Waiting<'a>(&'a Preparation);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut calls = self.0.calls.lock();
        calls.waiting -= 1;
        calls.last = Instant::now();
    }
}

impl Preparation {
    pub(super) fn new(
        target: PathBuf,
        arguments: PublishArguments,
        claim: Claim,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            target,
            arguments,
            claim: Arc::new(claim),
            cancel,
            progress: Arc::default(),
            outcome: watch::Sender::new(None),
            calls: Mutex::new(Calls { waiting: 0, last: Instant::now() }),
        }
    }

    /// Waits for the outcome until `deadline`.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<Prepared, NodeError> {
        self.calls.lock().waiting += 1;
        let _waiting = Waiting(self);
        let mut outcome = self.outcome.subscribe();
        let known = outcome.wait_for(Option::is_some);
        match tokio::time::timeout_at(deadline, known).await {
            Err(_) => Err(NodeError::Deadline { progress: self.progress.to_string() }),
            Ok(Err(_)) => Err(NodeError::ShuttingDown),
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(NodeError::ShuttingDown)),
        }
    }

    /// Waits until the work has ended, one way or the other.
    pub(super) async fn ended(&self) {
        let mut outcome = self.outcome.subscribe();
        // The sender is ours, so the only way out is an outcome.
        drop(outcome.wait_for(Option::is_some).await);
    }

    /// Completes once nobody has waited for [`PATIENCE`].
    pub(super) async fn forgotten(&self) {
        loop {
            let due = {
                let calls = self.calls.lock();
                let since = if calls.waiting > 0 { Instant::now() } else { calls.last };
                since + PATIENCE
            };
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }

    /// What it failed with, if it did.
    pub(super) fn failure(&self) -> Option<NodeError> {
        self.outcome.borrow().as_ref().and_then(|outcome| outcome.as_ref().err().cloned())
    }

    /// Tells all who wait.
    pub(super) fn finish(&self, outcome: Result<Prepared, NodeError>) {
        self.outcome.send_replace(Some(outcome));
    }

    /// Work that may be dropped at any await, and is when the preparation must end. What has
    /// effects on the volume's own files is never inside: dropped, it would go on unseen.
    async fn unless_ended<T>(
        &self,
        context: &Context,
        work: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(context.cancelled()),
            () = self.forgotten() => Err(NodeError::Forgotten),
            outcome = work => outcome,
        }
    }

    /// Does the work. The caller removes what a failed one made, and calls
    /// [`Preparation::finish`].
    pub(super) async fn run(&self, context: &Context, plan: &Plan) -> Result<Prepared, NodeError> {
        // A listing leaves nothing on the node, so its record is written while S3 answers: in
        // passing, since a tmpfs waits for no disk, and once the request is on its way.
        let record = async {
            tokio::task::yield_now().await;
            context.registry.write(&plan.entry)
        };
        let (first, recorded) = futures::join!(self.list(context, plan), record);
        recorded?;
        let shown = match first {
            Ok(first) => self.show(context, plan, first).await,
            Err(error) => Err(error),
        };
        let (listed, fallback) = match shown {
            Ok(listed) => (listed, None),
            Err(error) => self.show_recorded(context, plan, error).await?,
        };
        let (recipe, skipped) = (Arc::clone(&plan.recipe), listed.listing.skipped());
        context.metrics.skipped_keys.inc_by(skipped.count());
        if skipped.count() > 0 {
            let volume_id = plan.entry.arguments.volume_id();
            tracing::warn!(volume.id = volume_id, %skipped, "some keys cannot be shown as files");
        }
        let mut summary = revision::summarise(&listed.listing, &recipe.spec, 1, self.claim.share());
        if let Some(Fallback { confirmed, .. }) = &fallback {
            summary.resolved_at = *confirmed;
        }
        let mut entry = plan.entry.clone().showing(summary, context.seal(&recipe));
        entry.is_fallback = fallback.is_some();
        Ok(Prepared { entry, recipe, shown: listed, fallback })
    }

    async fn list(&self, context: &Context, plan: &Plan) -> Result<Current, NodeError> {
        let Recipe { source, spec, .. } = &*plan.recipe;
        let asked_at = Instant::now();
        let resolve = context.fetcher.resolve(source, spec);
        let listing = self.unless_ended(context, async { Ok(resolve.await?) }).await?;
        revision::check_size(&listing, spec)?;
        self.take(context, plan, &listing).await?;
        Ok(Current { asked_at, listing })
    }

    /// Counts a listing for the volume's namespace, before anything of it is fetched.
    async fn take(
        &self,
        context: &Context,
        plan: &Plan,
        listing: &Arc<Listing>,
    ) -> Result<(), NodeError> {
        let (recipe, counted) = (Arc::clone(&plan.recipe), Arc::clone(listing));
        let share = for_count(listing.len(), move || recipe.share(&counted)).await;
        Ok(context.volumes.take(&self.claim, share, &plan.limits)?)
    }

    /// Makes a listing the volume's first revision, and lists again while it is not true any more
    /// or has to settle.
    async fn show(
        &self,
        context: &Context,
        plan: &Plan,
        mut listed: Current,
    ) -> Result<Current, NodeError> {
        let (mut relists, mut settling) = (0, None);
        loop {
            let settle = plan.recipe.spec.settle;
            let wait = Settling::wait(&mut settling, &listed.listing, settle);
            let pause = if wait.is_zero() {
                match self.bring_and_show(context, plan, &listed.listing).await {
                    Err(error)
                        if error.kind() == FailureKind::Stale && relists < revision::RELISTS =>
                    {
                        relists += 1;
                        tracing::debug!(%error, relists, "an object changed; listing again");
                        revision::pause_before(relists)
                    }
                    shown => return shown.map(|()| listed),
                }
            } else {
                wait
            };
            self.unless_ended(context, async {
                sleep(pause).await;
                Ok(())
            })
            .await?;
            listed = self.list(context, plan).await?;
        }
    }

    /// Makes one listing the volume's revision: sets room aside, fetches what is missing, links.
    async fn bring_and_show(
        &self,
        context: &Context,
        plan: &Plan,
        listing: &Arc<Listing>,
    ) -> Result<(), NodeError> {
        let View::LinkFarm(farm) = &plan.recipe.view else { return Ok(()) };
        let in_passing = is_little(&plan.recipe.store, listing);
        // What is all here already is shown in the same visit to the blocking threads.
        let admitted = {
            let (recipe, listing) = (Arc::clone(&plan.recipe), Arc::clone(listing));
            let farm = farm.clone();
            let work = move || {
                let admitted = revision::admit(&recipe, &listing, &Need::All)?;
                if admitted.is_complete() {
                    farm.create(&listing, &admitted.leases)?;
                    return Ok::<_, NodeError>(None);
                }
                Ok(Some(admitted))
            };
            if in_passing { work() } else { blocking(work).await }?
        };
        if let Some(admitted) = admitted {
            let fetch = revision::complete(context, &plan.recipe, admitted, &self.progress);
            let leases = self.unless_ended(context, fetch).await?;
            let (farm, listing) = (farm.clone(), Arc::clone(listing));
            let work = move || farm.create(&listing, &leases);
            if in_passing { work() } else { blocking(work).await }?;
        }
        if plan.recipe.spec.when_unavailable == WhenUnavailable::Cached {
            let (records, recipe) = (context.records.clone(), Arc::clone(&plan.recipe));
            let listing = Arc::clone(listing);
            blocking(move || records.keep(&recipe, &listing)).await;
        }
        Ok(())
    }

    /// After `error`: shows what this principal was allowed to read before, if S3 cannot be reached
    /// and the volume wants that.
    ///
    /// # Errors
    /// `error` itself, with what stood against it.
    async fn show_recorded(
        &self,
        context: &Context,
        plan: &Plan,
        error: NodeError,
    ) -> Result<(Current, Option<Fallback>), NodeError> {
        let wanted = plan.recipe.spec.when_unavailable == WhenUnavailable::Cached;
        let is_ours = matches!(error, NodeError::Forgotten | NodeError::ShuttingDown);
        if matches!(error.kind(), FailureKind::Denied | FailureKind::Unauthenticated) {
            context.records.forget(&plan.recipe);
        }
        if !wanted || is_ours || error.kind() != FailureKind::Unavailable {
            return Err(error);
        }
        let not_cached =
            |why: String| NodeError::NotCached { error: Box::new(error.clone()), why: why.into() };
        let (records, recipe) = (context.records.clone(), Arc::clone(&plan.recipe));
        let found = blocking(move || find_recorded(&records, &recipe)).await.map_err(not_cached)?;
        let (listing, confirmed) = (Arc::new(found.listing), found.confirmed);
        let taken = self.take(context, plan, &listing).await;
        taken.map_err(|error| not_cached(error.to_string()))?;
        let (recipe, shown) = (Arc::clone(&plan.recipe), Arc::clone(&listing));
        blocking(move || show_recorded(&recipe, &shown)).await.map_err(not_cached)?;
        let reason = full_message(&error);
        tracing::warn!(
            volume.id = plan.entry.arguments.volume_id(),
            %reason,
            "S3 cannot be reached; showing what was read before"
        );
        let confirmed = confirmed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let listed = Current { asked_at: Instant::now(), listing };
        Ok((listed, Some(Fallback { reason, confirmed })))
    }
}

/// Whether a listing is shown in passing: in a tmpfs, which waits for no disk, a few files take less
/// time than going to another thread and back, unless others have to be evicted first.
fn is_little(store: &Store, listing: &Listing) -> bool {
    let names = LinkFarm::names(listing) + listing.len() as u64;
    let bytes = listing.bytes(PAGE);
    let is_little = names <= FEW && bytes <= LITTLE;
    is_little && store.medium() == Medium::Memory && store.has_room(bytes, names)
}

/// The recorded listing of a recipe, if the volume may show it. Blocks.
///
/// # Errors
/// Why it cannot be shown, for people.
fn find_recorded(records: &Records, recipe: &Recipe) -> Result<Recorded, String> {
    let recorded = records
        .find(recipe)
        .ok_or("nothing that this credential was allowed to read is recorded on this node")?;
    revision::check_size(&recorded.listing, &recipe.spec).map_err(|error| error.to_string())?;
    Ok(recorded)
}

/// Makes a recorded listing the volume's revision, if all of it is here. Blocks.
///
/// # Errors
/// Why it cannot be shown, for people.
fn show_recorded(recipe: &Recipe, listing: &Listing) -> Result<(), String> {
    let View::LinkFarm(farm) = &recipe.view else { return Err("the view is served".into()) };
    let described = |error: &dyn std::error::Error| error.to_string();
    let variant = recipe.variant();
    let (mut blobs, mut wanted) = (HashMap::new(), Vec::new());
    for entry in listing.entries() {
        let (version, id) = (&entry.object.version, BlobId::of(&entry.object.version));
        if blobs.contains_key(&id) {
            continue;
        }
        let lease = recipe.store.hold(version);
        let lease = lease.map_err(|error| described(&error))?;
        let lease = lease.ok_or_else(|| format!("the content of {} is not here", entry.path))?;
        if !recipe.store.holds(version, variant) {
            wanted.push(Wanted { id, variant, size: version.size });
        }
        blobs.insert(id, Arc::new(lease));
    }
    let names = LinkFarm::names(listing);
    let reservation = recipe.store.reserve(wanted, names).map_err(|error| described(&error))?;
    let leases = Leases { variant, blobs, reservation: Arc::new(reservation) };
    farm.create(listing, &leases).map_err(|error| described(&error))
}
