//! The background part of a publish: everything up to a revision that only has to be mounted.
//!
//! It does not end with the call that began it: a retry joins it and finds it further or done. It
//! ends when an unpublish cancels it, when nobody has asked for [`PATIENCE`], or with the plugin;
//! then it removes what it made.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Context, NodeError, registry::Entry, registry::Summary};
use crate::{
    failure::FailureKind,
    fetch::{Order, Progress},
    listing::Listing,
    object::Object,
    source::s3::S3Source,
    store::{BlobId, Medium, PAGE, Store, Wanted},
    task::blocking,
    units::ByteSize,
    view::linkfarm::{Leases, LinkFarm},
    volume::{PublishArguments, VolumeSpec},
};

/// How long work goes on without a call that waits for it.
const PATIENCE: Duration = Duration::from_mins(10);

/// How often a listing is made again because an object changed under it.
const RELISTS: usize = 5;

/// How many names are made in passing.
const FEW: u64 = 64;

/// A publish under way.
#[derive(Debug)]
pub(super) struct Preparation {
    pub(super) arguments: PublishArguments,
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
    pub(super) source: S3Source,
}

/// What is to be prepared.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) entry: Entry,
    pub(super) spec: Arc<VolumeSpec>,
    pub(super) source: S3Source,
    pub(super) store: Store,
    pub(super) farm: LinkFarm,
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
    pub(super) fn new(arguments: PublishArguments, cancel: CancellationToken) -> Self {
        Self {
            arguments,
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
        let recorded = {
            let (registry, entry) = (context.registry.clone(), plan.entry.clone());
            blocking(move || registry.write(&entry))
        };
        // A listing leaves nothing on the node, so it need not wait for the record.
        let (recorded, listing) = futures::join!(recorded, self.list(context, plan));
        recorded?;
        let mut listing = listing?;
        let mut attempt = 0;
        let listing = loop {
            match self.bring_and_show(context, plan, &listing).await {
                Err(error) if error.kind() == FailureKind::Stale && attempt < RELISTS => {
                    attempt += 1;
                    tracing::debug!(%error, attempt, "an object changed meanwhile; listing again");
                    let pause = async {
                        sleep(Duration::from_millis(50 << attempt)).await;
                        Ok(())
                    };
                    self.unless_ended(context, pause).await?;
                    listing = self.list(context, plan).await?;
                }
                shown => break shown.map(|()| listing)?,
            }
        };
        context.metrics.skipped_keys.inc_by(listing.skipped().count());
        if listing.skipped().count() > 0 {
            tracing::warn!(
                volume.id = plan.entry.arguments.volume_id(),
                skipped = %listing.skipped(),
                "some keys cannot be shown as files"
            );
        }
        let entry = plan.entry.clone().showing(summarise(&listing, &plan.spec));
        Ok(Prepared { entry, source: plan.source.clone() })
    }

    async fn list(&self, context: &Context, plan: &Plan) -> Result<Arc<Listing>, NodeError> {
        let resolve = context.fetcher.resolve(&plan.source, &plan.spec);
        let listing = self.unless_ended(context, async { Ok(resolve.await?) }).await?;
        check_size(&listing, &plan.spec)?;
        Ok(listing)
    }

    /// Makes one listing the volume's revision: sets room aside, fetches what is missing, links.
    async fn bring_and_show(
        &self,
        context: &Context,
        plan: &Plan,
        listing: &Arc<Listing>,
    ) -> Result<(), NodeError> {
        let order = Order {
            source: plan.source.clone(),
            store: plan.store.clone(),
            variant: LinkFarm::variant(&plan.spec.ownership),
            progress: Arc::clone(&self.progress),
        };
        let in_passing = is_little(&plan.store, listing);
        // What is all here already is shown in the same visit to the blocking threads.
        let admitted = {
            let (order, farm, listing) = (order.clone(), plan.farm.clone(), Arc::clone(listing));
            let work = move || admit(&order, &listing)?.show_if_complete(&farm, &listing);
            if in_passing { work() } else { blocking(work).await }?
        };
        let Some(Admitted { mut leases, missing }) = admitted else { return Ok(()) };
        let fetch =
            async { Ok(context.fetcher.fetch(&order, missing, &leases.reservation).await?) };
        let fetched = self.unless_ended(context, fetch).await?;
        leases.blobs.extend(fetched);
        let (farm, listing) = (plan.farm.clone(), Arc::clone(listing));
        let work = move || farm.create(&listing, &leases);
        Ok(if in_passing { work() } else { blocking(work).await }?)
    }
}

/// Whether a listing is shown in passing: in a tmpfs, which waits for no disk, a few files take less
/// time than going to another thread and back, unless others have to be evicted first.
fn is_little(store: &Store, listing: &Listing) -> bool {
    let names = LinkFarm::names(listing) + listing.entries().len() as u64;
    store.medium() == Medium::Memory && names <= FEW && store.has_room(listing.bytes(PAGE), names)
}

/// What a listing finds in the store.
struct Admitted {
    leases: Leases,
    missing: Vec<Object>,
}

impl Admitted {
    /// Shows the listing if nothing is missing; gives itself back otherwise.
    fn show_if_complete(
        self,
        farm: &LinkFarm,
        listing: &Listing,
    ) -> Result<Option<Self>, NodeError> {
        if self.missing.is_empty() {
            farm.create(listing, &self.leases)?;
            return Ok(None);
        }
        Ok(Some(self))
    }
}

/// Pins what is here and sets room aside for the rest, before anything is fetched.
fn admit(order: &Order, listing: &Listing) -> Result<Admitted, NodeError> {
    let principal = order.source.principal();
    let mut blobs = HashMap::new();
    let mut missing: HashMap<BlobId, Object> = HashMap::new();
    let mut wanted = Vec::new();
    for entry in listing.entries() {
        let (object, id) = (&entry.object, BlobId::of(&entry.object.version));
        if blobs.contains_key(&id) || missing.contains_key(&id) {
            continue;
        }
        let lease = order.store.lookup(principal, &object.version);
        // What is here for somebody else is compared with, not written again.
        if !order.store.holds(&object.version, order.variant) {
            wanted.push(Wanted { id, variant: order.variant, size: object.version.size });
        }
        match lease {
            Some(lease) => drop(blobs.insert(id, Arc::new(lease))),
            None => drop(missing.insert(id, object.clone())),
        }
    }
    let reservation = Arc::new(order.store.reserve(wanted, LinkFarm::names(listing))?);
    let leases = Leases { blobs, reservation };
    Ok(Admitted { leases, missing: missing.into_values().collect() })
}

fn check_size(listing: &Listing, spec: &VolumeSpec) -> Result<(), NodeError> {
    let size = listing.bytes(PAGE);
    match spec.max_size {
        Some(limit) if size > limit.bytes() => {
            Err(NodeError::TooLarge { size, limit: limit.bytes() })
        }
        _ => Ok(()),
    }
}

fn summarise(listing: &Listing, spec: &VolumeSpec) -> Summary {
    let skipped = listing.skipped();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Summary {
        objects: listing.entries().len() as u64,
        directories: listing.directories().len() as u64,
        bytes: listing.bytes(1),
        max_bytes: spec.max_size.map(ByteSize::bytes),
        max_objects: spec.max_objects,
        skipped: if skipped.count() > 0 { skipped.to_string() } else { String::new() },
        resolved_at: now.map_or(0, |since| since.as_secs()),
    }
}
