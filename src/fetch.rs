//! From sources to blobs: resolving listings and fetching what they name, each once.
//!
//! A [`Fetcher`] is the node's only way to content. It bounds the bytes in flight (requests are
//! bounded below it), joins fetches of one object version by one principal into one, and joins
//! publishes that may share a listing. A flight belongs to those who wait for it: when the last one
//! gives up, it is dropped, and its half-written file with it.

mod flights;
mod parts;
mod resolve;
mod verify;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::resolve::ResolveError;
use self::{
    flights::{Flights, Turns},
    verify::Verifier,
};
use crate::{
    config::FetchConfig,
    failure::FailureKind,
    listing::Listing,
    object::{Object, SseKeyDigest},
    source::{Principal, SourceError, Transient, s3::S3Source},
    store::{BlobId, Content, Lease, Medium, Reservation, Store, StoreError, Variant},
    task::{blocking, spawn_owned},
    volume::VolumeSpec,
};

/// The unit in which bytes in flight are counted, so that a semaphore's `u32` reaches terabytes.
const UNIT: u64 = 1024;

/// Up to this size in bytes, an object goes into a tmpfs without a visit to the blocking threads: it
/// waits for no disk, and going there and back costs as much as the few system calls that it takes.
const IN_PASSING: u64 = 64 << 10;

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
    bytes: Arc<Semaphore>,
    blobs: Flights<FlightKey, Result<Arc<Lease>, FetchError>>,
    listings: Turns<ListingKey, Result<Arc<Listing>, ResolveError>>,
}

impl Fetcher {
    /// An engine with the configured bounds.
    pub fn new(config: &FetchConfig) -> Self {
        let units = usize::try_from(config.bytes_in_flight.bytes().div_ceil(UNIT));
        let units = units.unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            part_size: config.part_size.bytes(),
            requests: config.requests,
            bytes: Arc::new(Semaphore::new(units)),
            blobs: Flights::default(),
            listings: Turns::default(),
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
        stream::iter(objects)
            .map(|object| self.fetch_one(order, object, reservation))
            .buffer_unordered(self.0.requests)
            .try_collect()
            .await
    }

    async fn fetch_one(
        &self,
        order: &Order,
        object: Object,
        reservation: &Arc<Reservation>,
    ) -> Result<(BlobId, Arc<Lease>), FetchError> {
        let blob = BlobId::of(&object.version);
        let size = object.version.size;
        let (principal, medium) = (order.source.principal(), order.store.medium());
        let key = FlightKey { principal, medium, blob };
        let lease = self
            .0
            .blobs
            .join(key, || {
                let job = Job {
                    engine: self.clone(),
                    order: order.clone(),
                    object,
                    reservation: Arc::clone(reservation),
                };
                let task = spawn_owned(job.run());
                async move { task.await.unwrap_or(Err(FetchError::Panicked)).map(Arc::new) }
            })
            .await?;
        order.progress.objects.fetch_add(1, Ordering::Relaxed);
        order.progress.bytes.fetch_add(size, Ordering::Relaxed);
        Ok((blob, lease))
    }

    /// Waits until `size` more bytes may be on their way.
    async fn bytes(&self, size: u64) -> OwnedSemaphorePermit {
        let units = u32::try_from(size.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.0.bytes).acquire_many_owned(units).await;
        permit.expect("the byte bound is never closed")
    }
}

/// The fetch of one object.
#[derive(Debug)]
struct Job {
    engine: Fetcher,
    order: Order,
    object: Object,
    reservation: Arc<Reservation>,
}

impl Job {
    async fn run(self) -> Result<Lease, FetchError> {
        // Another flight may have landed since the caller looked.
        let principal = self.order.source.principal();
        if let Some(lease) = self.order.store.lease(principal, &self.object.version) {
            return Ok(lease);
        }
        if self.object.version.size > self.engine.0.part_size {
            return match parts::fetch(&self).await {
                // A bad file of an earlier run, which is removed now.
                Err(FetchError::Store(StoreError::Corrupt(_))) => parts::fetch(&self).await,
                outcome => outcome,
            };
        }
        self.order.source.retried(|| self.in_one_piece()).await
    }

    /// A small object: one request, and one visit to the blocking threads.
    async fn in_one_piece(&self) -> Result<Lease, FetchError> {
        let _bytes = self.engine.bytes(self.object.version.size).await;
        let mut body = self.order.source.get(&self.object, None).await?;
        let mut chunks = Vec::new();
        while let Some(chunk) = body.next().await? {
            chunks.push(chunk);
        }
        let etag_is_md5 = body.etag_is_md5();
        drop(body);
        let (order, object) = (self.order.clone(), self.object.clone());
        let reservation = Arc::clone(&self.reservation);
        let in_passing =
            order.store.medium() == Medium::Memory && object.version.size <= IN_PASSING;
        let store = move || {
            let crc = Verifier::whole(&chunks, etag_is_md5.then_some(&object.version.etag))
                .map_err(|problem| corrupt(&object, &problem))?;
            let fill = order.store.fill(&object.version, reservation)?;
            fill.write_at(0, &chunks)?;
            let content = Content { crc, modified: object.last_modified };
            Ok(fill.commit(order.source.principal(), order.variant, content)?)
        };
        if in_passing { store() } else { blocking(store).await }
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
