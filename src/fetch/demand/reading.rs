//! One open object.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::OnceCell,
    task::yield_now,
    time::{Duration, Instant, sleep, timeout_at},
};

use super::{
    Opening,
    content::{Ahead, Content, Flight, Landed, Memory, Whole},
    cut::Cut,
};
use crate::{
    failure::FailureKind,
    fetch::{FetchError, Fetcher, Order, Progress},
    object::Object,
    source::{Principal, SourceError, s3::S3Source},
    store::{BlobId, Lease, Sparse, StoreError, Variant, Wanted, read_exact, read_resident},
    task::{blocking, blocking_here, spawn_owned},
};

/// How long to wait before S3 is tried again after all retries of a request.
const PAUSE: Duration = Duration::from_secs(1);

/// An open object version. Dropped, it gives up what is being fetched for it alone; what is being
/// fetched ahead goes with the last who reads the same.
#[derive(Debug)]
pub struct Reading {
    engine: Fetcher,
    opening: RwLock<Opening>,
    object: Object,
    /// Whether S3 let the principal read it, or will not be asked again.
    proven: AtomicBool,
    whole: OnceCell<Arc<Whole>>,
    content: OnceCell<Arc<Content>>,
    ahead: OnceLock<Arc<Mutex<Ahead>>>,
    /// What the last read had no room for: the next may want more of it.
    recent: Mutex<Vec<Memory>>,
}

impl Reading {
    pub(super) async fn open(
        engine: Fetcher,
        opening: Opening,
        object: Object,
    ) -> Result<Self, FetchError> {
        let reading = Self::new(engine, opening, object);
        if reading.object.version.size > 0 {
            reading.within(|| reading.begin()).await?;
        }
        Ok(reading)
    }

    /// Opens what needs nothing but to be opened.
    pub(super) fn here(engine: &Fetcher, opening: &Opening, object: &Object) -> Option<Self> {
        let Opening { source, store, sharers, allowed, .. } = opening;
        let principal = source.principal();
        let lease = store.lease_ready(principal, &object.version, *allowed, *sharers)?;
        // Whatever stands against it is met again, and told, by who opens it in the other way.
        let file = Arc::new(lease.open(*sharers).ok()?);
        let reading = Self::new(engine.clone(), opening.clone(), object.clone());
        reading.proven.store(true, Ordering::Release);
        let whole = Whole { file, sharers: *sharers, lease: Arc::new(lease) };
        drop(reading.whole.set(Arc::new(whole)));
        Some(reading)
    }

    fn new(engine: Fetcher, opening: Opening, object: Object) -> Self {
        Self {
            engine,
            proven: AtomicBool::new(opening.allowed),
            opening: RwLock::new(opening),
            object,
            whole: OnceCell::new(),
            content: OnceCell::new(),
            ahead: OnceLock::new(),
            recent: Mutex::default(),
        }
    }

    /// The object's length in bytes.
    pub fn size(&self) -> u64 {
        self.object.version.size
    }

    /// The file with all of the content, verified, once there is one: it may be read in place of
    /// this, as by the kernel, while this is open.
    pub fn whole(&self) -> Option<Arc<File>> {
        self.found_whole().map(|whole| Arc::clone(&whole.file))
    }

    /// What keeps that file in the store; it opens no file.
    pub fn lease(&self) -> Option<Arc<Lease>> {
        self.found_whole().map(|whole| Arc::clone(&whole.lease))
    }

    fn found_whole(&self) -> Option<&Arc<Whole>> {
        let shared = || {
            let content = self.content.get().filter(|_| self.is_proven())?;
            // A file of other sharers may have been changed by them.
            let sharers = self.opening.read().sharers;
            content.whole.get().filter(|whole| whole.sharers == sharers)
        };
        self.whole.get().or_else(shared)
    }

    /// The principal that S3 let read this very version, if that is the one that reads it now.
    pub fn proven_for(&self) -> Option<Principal> {
        let opening = self.opening.read();
        self.is_proven().then(|| opening.source.principal())
    }

    /// Asks S3 in this way from now on: credentials have been renewed. Another principal needs a
    /// proof of its own, unless `allowed`.
    pub fn renew(&self, source: S3Source, allowed: bool) {
        let mut opening = self.opening.write();
        if source.principal() != opening.source.principal() {
            self.proven.store(allowed, Ordering::Release);
        }
        (opening.source, opening.allowed) = (source, allowed);
    }

    /// Reads from `offset` on: exactly `size` bytes, or all up to the end of the object.
    ///
    /// # Errors
    /// Kind `Stale` if the object was replaced and what is asked for was not here yet; `Unavailable`
    /// if S3 did not answer in the time given when it was opened; `Corrupt` if S3 sent what the
    /// object cannot be; `Denied` and others as S3 answers; what the store's file system answers.
    ///
    /// # Cancellation
    /// Safe; requests that others wait for carry on.
    pub async fn read(&self, offset: u64, size: usize) -> Result<Bytes, FetchError> {
        let end = self.size().min(offset.saturating_add(size as u64));
        if offset >= end {
            return Ok(Bytes::new());
        }
        if let Some(whole) = self.found_whole() {
            return read_at(whole, offset..end).await;
        }
        if let Some((content, sparse)) = self.ready(offset..end) {
            self.fetch_ahead(content, offset..end);
            self.engine.0.demand.finish(content, || self.opening());
            return read_at(sparse, offset..end).await;
        }
        // Who asks polls once where nothing may wait: the rest is for a task.
        yield_now().await;
        self.within(|| self.read_through(offset..end)).await
    }

    fn opening(&self) -> Opening {
        self.opening.read().clone()
    }

    fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    /// The content and its file, if all of the range is here and may be given out.
    fn ready(&self, range: Range<u64>) -> Option<(&Arc<Content>, &Arc<Sparse>)> {
        let content = self.content.get().filter(|_| self.is_proven())?;
        let sparse = content.sparse.as_ref().filter(|_| content.failed.get().is_none())?;
        sparse.has_all(content.cut.blocks(range)).then_some((content, sparse))
    }

    /// Repeats `attempt` while S3 is unavailable, until the time is over.
    async fn within<T, F: Future<Output = Result<T, FetchError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, FetchError> {
        let wait = self.opening.read().wait;
        let deadline = Instant::now() + wait;
        let mut last = None;
        loop {
            match timeout_at(deadline, attempt()).await {
                Err(_) => return Err(last.unwrap_or_else(|| self.unanswered(wait))),
                Ok(Err(error)) if error.kind() == FailureKind::Unavailable => {
                    if Instant::now() + PAUSE >= deadline {
                        return Err(error);
                    }
                    last = Some(error);
                    sleep(PAUSE).await;
                }
                Ok(outcome) => return outcome,
            }
        }
    }

    fn unanswered(&self, wait: Duration) -> FetchError {
        let version = &self.object.version;
        let (endpoint, bucket) = (version.endpoint.url(), version.bucket.as_str());
        let text = format!(
            "endpoint {endpoint}, bucket {bucket:?}, key {:?}: no answer within {wait:?}",
            version.key.as_str()
        );
        SourceError::new(FailureKind::Unavailable, text).into()
    }

    /// Finds what is here, and asks whether it may be read.
    async fn begin(&self) -> Result<(), FetchError> {
        let opening = self.opening();
        let (store, version) = (&opening.store, &self.object.version);
        let mut lease = store.lookup(opening.source.principal(), version);
        if lease.is_none() && store.has(version) {
            self.prove().await?;
            lease = self.vouched(&opening).await?;
        }
        if let Some(lease) = lease {
            self.proven.store(true, Ordering::Release);
            match self.opened(lease.into(), &opening).await {
                // Nobody else can have this reading yet; a repeated attempt finds the same.
                Ok(whole) => drop(self.whole.set(whole)),
                Err(FetchError::Store(error)) if is_about_the_medium(&error) => {
                    tracing::debug!(%error, "what is read cannot be kept");
                }
                Err(error) => return Err(error),
            }
        } else if store.has_part_of(version) {
            self.prove().await?;
        }
        Ok(())
    }

    /// A lease on the blob, for who just proved to be allowed to read it, or is told to be.
    async fn vouched(&self, opening: &Opening) -> Result<Option<Lease>, FetchError> {
        let (opening, version) = (opening.clone(), self.object.version.clone());
        let Opening { source, store, allowed, .. } = opening;
        let find = move || {
            if allowed { store.hold(&version) } else { store.vouch(source.principal(), &version) }
        };
        Ok(blocking(find).await?)
    }

    /// Opens the blob's file, copying one if those there are belong to others.
    async fn opened(&self, lease: Arc<Lease>, opening: &Opening) -> Result<Arc<Whole>, FetchError> {
        let opening = opening.clone();
        let (id, size) = (BlobId::of(&self.object.version), self.object.version.size);
        blocking(move || open_blob(lease, &opening, id, size)).await
    }

    /// Asks S3 whether the principal may read it, unless that is known.
    async fn prove(&self) -> Result<(), FetchError> {
        let Opening { source, store, .. } = self.opening();
        let version = &self.object.version;
        if self.is_proven() {
            return Ok(());
        }
        if !store.permits_parts(version, source.principal()) {
            let key = (source.principal(), BlobId::of(version));
            let (asking, object) = (source.clone(), self.object.clone());
            let ask = || async move { asking.prove(&object).await };
            self.engine.0.demand.proofs.join(key, ask).await?;
            store.permit_parts(version, source.principal());
        }
        self.note_proof(&source);
        Ok(())
    }

    /// S3 has answered `source`, which may have been replaced meanwhile.
    fn note_proof(&self, source: &S3Source) {
        let opening = self.opening.read();
        if opening.source.principal() == source.principal() {
            self.proven.store(true, Ordering::Release);
        }
    }

    async fn read_through(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        let opening = self.opening();
        if self.size() <= self.engine.0.part_size {
            let whole = self.whole.get_or_try_init(|| self.fetch_whole(&opening)).await;
            match whole {
                Ok(whole) => return read_at(whole, range).await,
                Err(FetchError::Store(error)) if is_about_the_medium(&error) => {
                    tracing::debug!(%error, "what is read cannot be kept");
                }
                Err(error) => return Err(error),
            }
        }
        let content = self.content.get_or_init(|| self.shared(&opening)).await;
        self.fetch_ahead(content, range.clone());
        let blocks = content.cut.blocks(range.clone());
        let kept = self.wait_for(content, &blocks, &opening.source).await?;
        self.prove().await?;
        self.engine.0.demand.finish(content, || opening);
        let bytes = assemble(content, range, &kept).await;
        *self.recent.lock() = kept;
        bytes
    }

    /// An object of one request: fetched like those of the other views.
    async fn fetch_whole(&self, opening: &Opening) -> Result<Arc<Whole>, FetchError> {
        let variant = Variant::shown_by_none(opening.sharers);
        let (id, size) = (BlobId::of(&self.object.version), self.object.version.size);
        let store = opening.store.clone();
        let reserve = || store.reserve(vec![Wanted { id, variant, size }], 0);
        let reservation = Arc::new(blocking_here(reserve)?);
        let (source, store) = (opening.source.clone(), opening.store.clone());
        let progress = Arc::new(Progress::default());
        let order = Order { source, store, variant, progress };
        let leases = self.engine.fetch(&order, vec![self.object.clone()], &reservation).await?;
        let (_, lease) = leases.into_iter().next().ok_or(StoreError::Gone)?;
        self.note_proof(&opening.source);
        // One open(2): what was just stored needs no copy and no verification.
        blocking_here(|| open_blob(lease, opening, id, size))
    }

    async fn shared(&self, opening: &Opening) -> Arc<Content> {
        if self.size() <= self.engine.0.part_size {
            // There was no room for all of it; blocks of it would be no better.
            let cut = Cut::new(self.size(), self.engine.0.part_size);
            return Arc::new(Content::new(self.object.clone(), cut, None));
        }
        self.engine.content(&opening.store, &self.object).await
    }

    /// Waits until all blocks are here, asking for those that nobody has asked for. Returns those
    /// that could not be kept.
    async fn wait_for(
        &self,
        content: &Arc<Content>,
        blocks: &Range<u64>,
        source: &S3Source,
    ) -> Result<Vec<Memory>, FetchError> {
        let mut kept = self.recent.lock().clone();
        // What this call began is not given up when its blocks are here: it is about to end.
        let mut begun = Vec::new();
        let mut waiting = FuturesUnordered::new();
        loop {
            if let Some(error) = content.failed.get() {
                return Err(error.clone());
            }
            content.settle_doubts(blocks.clone()).await?;
            let mut landed = Box::pin(content.landed.notified());
            landed.as_mut().enable();
            let joined = content.join(blocks, &kept, source);
            if joined.is_empty() {
                break;
            }
            begun.extend(joined.iter().filter(|flight| flight.is_new).cloned());
            // Joined before the last ones are let go: a request ends when nobody waits for it.
            drop(std::mem::replace(&mut waiting, joined.into_iter().map(outcome_of).collect()));
            tokio::select! {
                Some((flight, outcome)) = waiting.next() => match outcome {
                    Ok(landed) => self.note_landed(landed, &flight, source, &mut kept),
                    Err(error) if flight.by == source.principal() => return Err(error),
                    // Whoever else asked may not read it; this one asks for itself.
                    Err(_) => {}
                },
                () = &mut landed => {}
            }
        }
        for flight in begun {
            if let Ok(landed) = flight.work.clone().await {
                self.note_landed(landed, &flight, source, &mut kept);
            }
        }
        let overlaps = |m: &Memory| m.blocks.start < blocks.end && blocks.start < m.blocks.end;
        kept.retain(overlaps);
        Ok(kept)
    }

    fn note_landed(
        &self,
        landed: Landed,
        flight: &Flight,
        source: &S3Source,
        kept: &mut Vec<Memory>,
    ) {
        if flight.by == source.principal() {
            self.note_proof(source);
        }
        if let Landed::Memory(memory) = landed {
            kept.push(memory);
        }
    }

    /// Takes note of a read, and begins what is worth fetching before anybody asks. Nothing before
    /// S3 has let this principal read some of it, and nothing that cannot be kept.
    fn fetch_ahead(&self, content: &Arc<Content>, range: Range<u64>) {
        let Some(sparse) = content.sparse.as_ref() else { return };
        let part = content.cut.part * content.cut.block;
        let demand = &self.engine.0.demand;
        let shared = self.ahead.get_or_init(|| content.ahead());
        let is_of_use = self.is_proven() && !sparse.is_complete() && !content.is_full();
        // What would not be fetched now is left to the next read.
        let most = if is_of_use { demand.ahead_of_one(part) } else { 0 };
        let mut ahead = shared.lock();
        let decision = ahead.streams.note(range, Arc::strong_count(shared), most, content.cut);
        for ended in decision.ended {
            ahead.tasks.remove(&ended);
        }
        let blocks = content.cut.blocks(decision.ahead);
        if blocks.is_empty() {
            return;
        }
        let opening = self.opening();
        let flights = content.join(&blocks, &[], &opening.source);
        if flights.is_empty() {
            return;
        }
        let share = demand.share_of(content);
        let tasks = ahead.tasks.entry(decision.stream).or_default();
        tasks.retain(|task| !task.is_finished());
        for flight in flights {
            let (engine, content) = (self.engine.clone(), Arc::clone(content));
            let (opening, share) = (opening.clone(), Arc::clone(&share));
            tasks.push(spawn_owned(async move {
                // Whoever reads there will find out what is missing.
                drop(flight.work.await);
                drop(share);
                engine.0.demand.finish(&content, || opening);
            }));
        }
    }
}

/// Blocks.
fn open_blob(
    lease: Arc<Lease>,
    opening: &Opening,
    id: BlobId,
    size: u64,
) -> Result<Arc<Whole>, FetchError> {
    let Opening { store, sharers, .. } = opening;
    let variant = Variant::shown_by_none(*sharers);
    let wanted = || vec![Wanted { id, variant, size }];
    let _room = (!lease.opens(*sharers)).then(|| store.reserve(wanted(), 0)).transpose()?;
    let file = Arc::new(lease.open(*sharers)?);
    Ok(Arc::new(Whole { file, sharers: *sharers, lease }))
}

async fn outcome_of(flight: Flight) -> (Flight, Result<Landed, FetchError>) {
    let outcome = flight.work.clone().await;
    (flight, outcome)
}

/// Whether reading can go on without the store.
fn is_about_the_medium(error: &StoreError) -> bool {
    match error {
        StoreError::Full { .. }
        | StoreError::NoSpace { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Inodes { .. }
        | StoreError::Io { .. }
        // Somebody else needed the room before it could be opened.
        | StoreError::Gone => true,
        StoreError::Locked { .. } | StoreError::Corrupt(_) => false,
    }
}

/// Puts together what is in the store and what is in memory.
async fn assemble(
    content: &Arc<Content>,
    range: Range<u64>,
    kept: &[Memory],
) -> Result<Bytes, FetchError> {
    match &content.sparse {
        Some(sparse) if kept.is_empty() => read_at(sparse, range).await,
        sparse => {
            let mut bytes = vec![0; length(&range)];
            if let Some(sparse) = sparse {
                // Holes are zeros here, and come from memory.
                bytes = read_at(sparse, range.clone()).await?.into();
            }
            for memory in kept {
                memory.copy(&mut bytes, range.start);
            }
            Ok(bytes.into())
        }
    }
}

/// Reads a range of a file that has all of it: on this thread what is in memory, the rest elsewhere.
async fn read_at<H>(held: &Arc<H>, range: Range<u64>) -> Result<Bytes, FetchError>
where
    H: AsRef<File> + Send + Sync + 'static,
{
    let mut bytes = vec![0; length(&range)];
    let resident = read_resident((**held).as_ref(), &mut bytes, range.start);
    if resident == bytes.len() {
        return Ok(bytes.into());
    }
    let held = Arc::clone(held);
    blocking(move || {
        let at = range.start + resident as u64;
        read_exact((*held).as_ref(), &mut bytes[resident..], at)?;
        Ok(bytes.into())
    })
    .await
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
