//! What a `fuse` volume reads: its files, the credentials that they are read with, and what is known
//! about who may read them.
//!
//! A file is opened at S3 with its first read, not before: a pod may walk a tree and open what it
//! never reads. What is here already is opened at once, so that the kernel can read it alone.
//!
//! Credentials are only in memory. After a restart of the plugin they return with the kubelet's next
//! publish; reads that need S3 before that wait, and then fail.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use tokio::{
    sync::{OnceCell, Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    near::{Near, SMALL},
    proofs::Proofs,
};
use crate::{
    config::{Config, FuseConfig, Sharing},
    failure::{FailureKind, full_message},
    fetch::{FetchError, Fetcher, Opening, Reading},
    node::Context,
    object::Object,
    source::{SealedPrincipal, s3::S3Source},
    store::{BlobId, Medium, Sharers, Store, pages},
    task::spawn_owned,
    view::fuse::{Content, Hold, OpenFile, Refusal, Siblings},
};

/// How many small files are fetched ahead at a time, for each volume.
const AHEAD: usize = 32;

/// How long a read that failed stands in the volume condition.
const REMEMBERED: Duration = Duration::from_mins(5);

/// The content of one volume. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::node) struct VolumeContent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    fetcher: Fetcher,
    store: Store,
    sharers: Option<Sharers>,
    waits: FuseConfig,
    /// The last working way to S3; `None` after a restart, until the kubelet brings credentials.
    source: watch::Sender<Option<S3Source>>,
    proofs: Mutex<Proofs>,
    /// Who has to hear of new credentials; some of them are closed.
    files: Mutex<Vec<Weak<VolumeFile>>>,
    near: Mutex<Near>,
    ahead: Mutex<Vec<AbortOnDropHandle<()>>>,
    turns: Semaphore,
    trouble: Mutex<Option<Trouble>>,
    failures: IntCounterVec,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    at: Instant,
}

/// A file that a pod has open.
#[derive(Debug)]
struct VolumeFile {
    shared: Arc<Shared>,
    object: Object,
    reading: OnceCell<Reading>,
    is_noted: AtomicBool,
}

/// The handle's share in it: reads outlive the call that begins them.
#[derive(Debug)]
struct Handle(Arc<VolumeFile>);

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(
        "no credentials since the node plugin started: the kubelet's next publish brings them, and \
         none came within {0:?} (fuse.waitForCredentials)"
    )]
    NoCredentials(Duration),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl ReadError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::NoCredentials(_) => FailureKind::Unavailable,
            Self::Fetch(error) => error.kind(),
        }
    }
}

impl VolumeContent {
    /// The content of a volume for which nobody has brought credentials yet. `directory` keeps what
    /// is known about who may read it over a restart.
    ///
    /// # Blocking
    /// Reads a file.
    pub(in crate::node) fn new(context: &Context, directory: &Path) -> Self {
        let config = context.config();
        let shared = Shared {
            fetcher: context.fetcher.clone(),
            store: context.stores.get(Medium::Disk).clone(),
            sharers: readers(&config),
            waits: config.fuse.clone(),
            source: watch::Sender::new(None),
            proofs: Mutex::new(Proofs::open(directory)),
            files: Mutex::default(),
            near: Mutex::default(),
            ahead: Mutex::default(),
            turns: Semaphore::new(AHEAD),
            trouble: Mutex::default(),
            failures: context.metrics.fuse_read_failures.clone(),
        };
        Self(Arc::new(shared))
    }

    /// Reads with these credentials from now on, in files that are open as well. `principal` is how
    /// they stand in records: what was proven for another one counts no more.
    pub(in crate::node) fn renew(&self, source: &S3Source, principal: &SealedPrincipal) {
        let shared = &*self.0;
        shared.proofs.lock().belong_to(source.principal(), principal);
        shared.source.send_replace(Some(source.clone()));
        let files = {
            let mut files = shared.files.lock();
            files.retain(|file| file.strong_count() > 0);
            files.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        for file in files {
            file.renew(source);
        }
    }

    /// Gives up what is fetched ahead: nobody will read it here.
    pub(in crate::node) fn give_up(&self) {
        self.0.ahead.lock().clear();
    }

    /// Why reads failed lately.
    pub(in crate::node) fn trouble(&self) -> Option<String> {
        let trouble = self.0.trouble.lock();
        let recent = trouble.as_ref().filter(|trouble| trouble.at.elapsed() < REMEMBERED);
        recent.map(|trouble| trouble.reason.clone())
    }
}

/// Whose links may be on files that volumes read on demand: those of all, where all may share, and
/// else nobody's, since no volume is of that name.
fn readers(config: &Config) -> Option<Sharers> {
    match config.store.share {
        Sharing::Node => None,
        Sharing::Namespace => Some(Sharers::of_volume("read on demand")),
    }
}

impl Content for VolumeContent {
    fn beside(&self, siblings: &Siblings<'_>, is_here: bool) {
        let shared = &self.0;
        let (directory, position) = (siblings.directory(), siblings.position());
        let places = shared.near.lock().note(directory, position, is_here);
        if places.is_empty() {
            return;
        }
        let end = places.end;
        let mut missing = siblings.at(places);
        missing.retain(|object| shared.is_worth_fetching(object));
        if missing.is_empty() {
            shared.near.lock().is_over(directory, end);
        }
        for object in missing {
            Shared::fetch_ahead(shared, object);
        }
    }

    fn open(&self, object: &Object) -> Result<Arc<dyn OpenFile>, Refusal> {
        let shared = &self.0;
        let reading = shared.open_here(object);
        let file = Arc::new(VolumeFile {
            shared: Arc::clone(shared),
            object: object.clone(),
            reading: OnceCell::new_with(reading),
            is_noted: AtomicBool::new(false),
        });
        let mut files = shared.files.lock();
        if files.len() == files.capacity() {
            files.retain(|file| file.strong_count() > 0);
        }
        files.push(Arc::downgrade(&file));
        Ok(Arc::new(Handle(file)))
    }
}

impl OpenFile for Handle {
    fn read(&self, offset: u64, size: u32) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let file = Arc::clone(&self.0);
        Box::pin(async move {
            let bytes = file.read(offset, size as usize).await;
            bytes.map_err(|error| file.shared.fail(&file.object, error))
        })
    }

    fn whole(&self) -> Option<Arc<File>> {
        self.0.reading.get().and_then(Reading::whole)
    }

    fn hold(&self) -> Option<Hold> {
        let lease = self.0.reading.get().and_then(Reading::lease)?;
        Some(lease)
    }
}

impl Shared {
    fn opening(&self, source: S3Source, object: &Object) -> Opening {
        Opening {
            source,
            store: self.store.clone(),
            sharers: self.sharers,
            allowed: self.proofs.lock().has(&BlobId::of(&object.version)),
            wait: self.waits.wait_for_s3,
        }
    }

    fn open_here(&self, object: &Object) -> Option<Reading> {
        let source = self.source.borrow().clone()?;
        self.fetcher.open_here(&self.opening(source, object), object)
    }

    /// The way to S3, once there is one.
    async fn source(&self) -> Result<S3Source, ReadError> {
        let patience = self.waits.wait_for_credentials;
        let mut changes = self.source.subscribe();
        let coming = timeout(patience, changes.wait_for(Option::is_some));
        let found = coming.await.ok().and_then(|found| found.ok()?.clone());
        found.ok_or(ReadError::NoCredentials(patience))
    }

    fn is_worth_fetching(&self, object: &Object) -> bool {
        let size = object.version.size;
        (1..=SMALL).contains(&size)
            && !self.store.has(&object.version)
            && self.store.has_room(pages(size), 1)
    }

    /// Fetches a small file before anybody asks for it. Whoever reads it finds out what went wrong.
    fn fetch_ahead(shared: &Arc<Self>, object: Object) {
        // Nobody waits for credentials to fetch what nobody reads.
        let Some(source) = shared.source.borrow().clone() else { return };
        let opening = shared.opening(source, &object);
        let ahead = Arc::clone(shared);
        let task = spawn_owned(async move {
            let Ok(_turn) = ahead.turns.acquire().await else { return };
            let version = BlobId::of(&object.version);
            let reading = ahead.fetcher.open(opening, object).await;
            if let Ok(reading) = reading
                && reading.read(0, 1).await.is_ok()
            {
                ahead.proofs.lock().note(&version, reading.proven_for());
            }
        });
        let mut tasks = shared.ahead.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Tells of a read that failed: the process that reads learns a number only.
    fn fail(&self, object: &Object, error: ReadError) -> Refusal {
        let kind = error.kind();
        self.failures.with_label_values(&[kind.as_str()]).inc();
        let reason = format!("{}: {}", object.version.key, full_message(&error));
        *self.trouble.lock() = Some(Trouble { reason, at: Instant::now() });
        Refusal::because(kind, error)
    }
}

impl VolumeFile {
    async fn read(&self, offset: u64, size: usize) -> Result<Bytes, ReadError> {
        let reading = match self.reading.get() {
            Some(reading) => reading,
            None => self.reading.get_or_try_init(|| self.open()).await?,
        };
        let bytes = reading.read(offset, size).await?;
        if !self.is_noted.swap(true, Ordering::Relaxed) {
            let version = BlobId::of(&self.object.version);
            self.shared.proofs.lock().note(&version, reading.proven_for());
        }
        Ok(bytes)
    }

    async fn open(&self) -> Result<Reading, ReadError> {
        let source = self.shared.source().await?;
        let opening = self.shared.opening(source.clone(), &self.object);
        let reading = self.shared.fetcher.open(opening, self.object.clone()).await?;
        // Credentials that came meanwhile were told to readings that existed.
        let newest = self.shared.source.borrow().clone();
        if let Some(newest) = newest.filter(|newest| newest.principal() != source.principal()) {
            let allowed = self.is_allowed();
            reading.renew(newest, allowed);
        }
        Ok(reading)
    }

    fn renew(&self, source: &S3Source) {
        self.is_noted.store(false, Ordering::Relaxed);
        if let Some(reading) = self.reading.get() {
            reading.renew(source.clone(), self.is_allowed());
        }
    }

    fn is_allowed(&self) -> bool {
        self.shared.proofs.lock().has(&BlobId::of(&self.object.version))
    }
}
