//! From sources to blobs: resolving listings and fetching what they name, each once.
//!
//! A [`Fetcher`] is the node's only way to content. It joins fetches of one object version by one
//! principal into one, and joins publishes that may share a listing. (Requests and bytes in flight
//! are bounded below it.) A flight belongs to those who wait for it: when the last one gives up, it
//! is dropped, and its half-written file with it.

mod demand;
mod flights;
mod parts;
mod resolve;
mod verify;

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt, TryFutureExt, TryStreamExt,
    future::{try_join, try_join_all},
    stream,
};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Handle;

use self::{
    demand::Demand,
    flights::{Flights, Turns},
    verify::Verifier,
};
pub use self::{
    demand::{Opening, Reading},
    resolve::ResolveError,
};
use crate::{
    config::FetchConfig,
    failure::FailureKind,
    listing::Listing,
    object::{Object, SseKeyDigest},
    source::{Principal, SourceError, Transient, s3::S3Source},
    store::{BlobId, Content, Lease, Medium, Reservation, Store, StoreError, Variant},
    task::{Queue, blocking, spawn_owned},
    volume::VolumeSpec,
};

/// Up to this size in bytes, an object is small: going to another thread and back costs as much as
/// the few system calls that storing it takes. So it is stored together with others.
const SMALL: u64 = 64 << 10;

/// How many bytes are collected before they are written: fewer visits to the blocking threads, and
/// still a fraction of a part.
const BATCH: usize = 1 << 20;

/// Up to so many small objects go into a tmpfs in passing, which waits for no disk.
const FEW: usize = 64;

/// In how many tasks objects are fetched, for each thread. A few, so that a handful of objects, as
/// most volumes have, is all asked for at the same moment.
const LANES: usize = 2;

/// Why content could not be brought here.
#[derive(Debug, Clone, Error)]
pub enum FetchError {
    /// S3 refused, or could not be reached.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store has no room, or its medium failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are not those of the object version.
    #[error("{0}")]
    Corrupt(Arc<str>),
    /// A defect of ours ended the task; its message is in the log.
    #[error("the fetch ended by a defect of s3view; its log says where")]
    Panicked,
}

impl FetchError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Corrupt(_) => FailureKind::Corrupt,
            Self::Panicked => FailureKind::Internal,
        }
    }
}

impl Transient for FetchError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Source(error) => error.is_transient(),
            // A file of an earlier run turned out to be bad, and is gone now.
            Self::Store(error) => error.kind() == FailureKind::Corrupt,
            Self::Corrupt(_) => true,
            Self::Panicked => false,
        }
    }
}

/// How far a fetch has come; read while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    objects: AtomicU64,
    bytes: AtomicU64,
    all_objects: AtomicU64,
    all_bytes: AtomicU64,
}

impl Progress {
    fn begin(&self, missing: &[Object]) {
        self.all_objects.store(missing.len() as u64, Ordering::Relaxed);
        let bytes = missing.iter().map(|object| object.version.size).sum();
        self.all_bytes.store(bytes, Ordering::Relaxed);
        self.objects.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        match read(&self.all_objects) {
            0 => f.write_str("the sources are being listed"),
            all => write!(
                f,
                "{} of {all} objects and {} of {} bytes are fetched",
                read(&self.objects),
                read(&self.bytes),
                read(&self.all_bytes)
            ),
        }
    }
}

/// One fetch of content for one principal into one medium.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FlightKey {
    principal: Principal,
    medium: Medium,
    blob: BlobId,
}

/// Volumes with equal keys resolve to equal listings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListingKey {
    principal: Principal,
    /// Part of every object version in the listing.
    sse_key: Option<SseKeyDigest>,
    sources: String,
}

impl ListingKey {
    /// The key of what `spec` asks for over `source`.
    pub fn new(source: &S3Source, spec: &VolumeSpec) -> Self {
        Self {
            principal: source.principal(),
            sse_key: source.sse_key_digest(),
            sources: spec.sources_key(),
        }
    }

    /// A key without a source.
    #[cfg(test)]
    pub(crate) fn for_tests(principal: Principal, sources: &str) -> Self {
        Self { principal, sse_key: None, sources: sources.to_owned() }
    }

    /// Who asks.
    pub fn principal(&self) -> Principal {
        self.principal
    }

    /// The customer key that the objects are encrypted with.
    pub fn sse_key(&self) -> Option<SseKeyDigest> {
        self.sse_key
    }

    /// What is asked for, as text: different for different sources and customer keys.
    pub fn subject(&self) -> String {
        let sse_key = self.sse_key.map(|digest| hex::encode(digest.0)).unwrap_or_default();
        format!("{sse_key} {}", self.sources)
    }
}

/// What is being fetched, for whom, and where to.
#[derive(Debug, Clone)]
pub struct Order {
    /// The asking principal's way to the endpoint.
    pub source: S3Source,
    /// Where the blobs go.
    pub store: Store,
    /// The owner and mode that the asking volume shows.
    pub variant: Variant,
    /// Where to count.
    pub progress: Arc<Progress>,
}

/// The node's fetching engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fetcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    part_size: u64,
    requests: usize,
    /// Store small objects: a slow disk must not keep those waiting that go into memory.
    to_memory: Queue,
    to_disk: Queue,
    blobs: Flights<FlightKey, Result<Arc<Lease>, FetchError>>,
    listings: Turns<ListingKey, Result<Arc<Listing>, ResolveError>>,
    demand: Demand,
}

impl Fetcher {
    /// An engine with the configured bounds.
    pub fn new(config: &FetchConfig) -> Self {
        Self(Arc::new(Inner {
            part_size: config.part_size.bytes(),
            requests: config.requests,
            to_memory: Queue::default(),
            to_disk: Queue::default(),
            blobs: Flights::default(),
            listings: Turns::default(),
            demand: Demand::new(config.bytes_in_flight.bytes()),
        }))
    }

    /// Resolves a volume's sources, together with everybody who asks for the same before the first
    /// request is sent: whoever joins sees every object written before the call.
    ///
    /// # Errors
    /// What S3 answers, or why the answers make no listing.
    ///
    /// # Cancellation
    /// Safe; the others who wait carry on.
    pub async fn resolve(
        &self,
        source: &S3Source,
        spec: &Arc<VolumeSpec>,
    ) -> Result<Arc<Listing>, ResolveError> {
        let key = ListingKey::new(source, spec);
        let (source, spec) = (source.clone(), Arc::clone(spec));
        let work = move || async move { resolve::resolve(&source, &spec).await.map(Arc::new) };
        self.0.listings.join(key, work).await
    }

    /// Fetches `objects` in parallel; the leases come in no order.
    ///
    /// # Errors
    /// The first failure; what else was under way for this call alone is dropped.
    ///
    /// # Cancellation
    /// Safe; fetches that others wait for carry on.
    pub async fn fetch(
        &self,
        order: &Order,
        objects: Vec<Object>,
        reservation: &Arc<Reservation>,
    ) -> Result<Vec<(BlobId, Arc<Lease>)>, FetchError> {
        order.progress.begin(&objects);
        // A few lanes to each thread: a task for each object would cost more than most objects do.
        let threads = Handle::current().metrics().num_workers();
        let at_once = self.0.requests.min(objects.len());
        let lanes = (LANES * threads).min(at_once).max(1);
        let call = Arc::new(Call {
            engine: self.clone(),
            order: order.clone(),
            reservation: Arc::clone(reservation),
            in_passing: order.store.medium() == Medium::Memory && objects.len() <= FEW,
            waiting: Mutex::new(objects.into_iter()),
        });
        let lane = || Arc::clone(&call).lane(at_once.div_ceil(lanes).max(1));
        let others = (1..lanes).map(|_| spawn_owned(lane()));
        let others =
            try_join_all(others.map(|lane| lane.unwrap_or_else(|_| Err(FetchError::Panicked))));
        let (mut leases, others) = try_join(lane(), others).await?;
        leases.extend(others.into_iter().flatten());
        Ok(leases)
    }

    fn queue(&self, medium: Medium) -> &Queue {
        match medium {
            Medium::Memory => &self.0.to_memory,
            Medium::Disk => &self.0.to_disk,
        }
    }
}

/// One call to fetch objects.
#[derive(Debug)]
struct Call {
    engine: Fetcher,
    order: Order,
    reservation: Arc<Reservation>,
    /// Whether small objects may be stored in passing.
    in_passing: bool,
    waiting: Mutex<std::vec::IntoIter<Object>>,
}

impl Call {
    /// Fetches what waits, so many objects at once, until nothing does.
    async fn lane(
        self: Arc<Self>,
        at_once: usize,
    ) -> Result<Vec<(BlobId, Arc<Lease>)>, FetchError> {
        stream::iter(std::iter::from_fn(|| self.waiting.lock().next()))
            .map(|object| self.fetch_one(object))
            .buffer_unordered(at_once)
            .try_collect()
            .await
    }

    async fn fetch_one(
        self: &Arc<Self>,
        object: Object,
    ) -> Result<(BlobId, Arc<Lease>), FetchError> {
        let order = &self.order;
        let blob = BlobId::of(&object.version);
        let size = object.version.size;
        let (principal, medium) = (order.source.principal(), order.store.medium());
        let key = FlightKey { principal, medium, blob };
        let begin = || {
            let job = Arc::new(Job { call: Arc::clone(self), object });
            async move {
                // Those who joined must hear of a defect of ours as well.
                let running = AssertUnwindSafe(job.run()).catch_unwind();
                running.await.unwrap_or(Err(FetchError::Panicked)).map(Arc::new)
            }
        };
        let lease = self.engine.0.blobs.join(key, begin).await?;
        order.progress.objects.fetch_add(1, Ordering::Relaxed);
        order.progress.bytes.fetch_add(size, Ordering::Relaxed);
        Ok((blob, lease))
    }
}

/// The fetch of one object.
#[derive(Debug)]
struct Job {
    call: Arc<Call>,
    object: Object,
}

impl Job {
    fn order(&self) -> &Order {
        &self.call.order
    }

    fn engine(&self) -> &Fetcher {
        &self.call.engine
    }

    async fn run(self: Arc<Self>) -> Result<Lease, FetchError> {
        // Another flight may have landed since the caller looked.
        let principal = self.order().source.principal();
        if let Some(lease) = self.order().store.lease(principal, &self.object.version) {
            return Ok(lease);
        }
        if self.order().store.has(&self.object.version)
            && let Some(lease) = self.proven().await?
        {
            return Ok(lease);
        }
        if self.object.version.size <= SMALL {
            return self.order().source.retried(|| self.in_one_piece()).await;
        }
        // In a task of its own, so that large objects do not take turns on one thread.
        let job = Arc::clone(&self);
        let task = spawn_owned(async move { job.run_large().await });
        task.await.unwrap_or(Err(FetchError::Panicked))
    }

    /// What is here for others, once S3 let this principal read it too; none if it turns out to be
    /// damaged, or is gone.
    async fn proven(self: &Arc<Self>) -> Result<Option<Lease>, FetchError> {
        self.order().source.prove(&self.object).await?;
        let job = Arc::clone(self);
        let vouch = move || {
            let Order { source, store, .. } = job.order();
            Ok(store.vouch(source.principal(), &job.object.version)?)
        };
        blocking(vouch).await
    }

    async fn run_large(self: &Arc<Self>) -> Result<Lease, FetchError> {
        if self.object.version.size <= self.engine().0.part_size {
            return self.order().source.retried(|| self.in_one_piece()).await;
        }
        match parts::fetch(self).await {
            // A bad file of an earlier run, which is removed now.
            Err(FetchError::Store(StoreError::Corrupt(_))) => parts::fetch(self).await,
            outcome => outcome,
        }
    }

    /// An object of one request, which is in memory before it is stored.
    async fn in_one_piece(self: &Arc<Self>) -> Result<Lease, FetchError> {
        let size = self.object.version.size;
        let _bytes = self.order().source.bytes(size).await;
        let mut body = self.order().source.get(&self.object, None).await?;
        let mut chunks = Vec::new();
        while let Some(chunk) = body.next().await? {
            chunks.push(chunk);
        }
        let etag_is_md5 = body.etag_is_md5();
        drop(body);
        let job = Arc::clone(self);
        let store = move || job.store(&chunks, etag_is_md5);
        if size > SMALL {
            blocking(store).await
        } else if self.call.in_passing {
            store()
        } else {
            self.engine().queue(self.order().store.medium()).run(store).await
        }
    }

    /// Verifies and stores the content. Blocks.
    fn store(&self, chunks: &[Bytes], etag_is_md5: bool) -> Result<Lease, FetchError> {
        let Self { call, object } = self;
        let Order { source, store, variant, .. } = &call.order;
        let crc = Verifier::whole(chunks, etag_is_md5.then_some(&object.version.etag))
            .map_err(|problem| corrupt(object, &problem))?;
        let fill = store.fill(&object.version, Arc::clone(&call.reservation))?;
        fill.write_at(0, chunks)?;
        let content = Content { crc, modified: object.last_modified };
        Ok(fill.commit(source.principal(), *variant, content)?)
    }
}

/// The error for content that is not what its object version promises.
fn corrupt(object: &Object, problem: &str) -> FetchError {
    let version = &object.version;
    let (endpoint, bucket, key) = (version.endpoint.url(), &version.bucket, &version.key);
    let text =
        format!("endpoint {endpoint}, bucket \"{bucket}\", key {:?}: {problem}", key.as_str());
    FetchError::Corrupt(text.into())
}
