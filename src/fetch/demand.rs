//! Reading on demand: an object version is opened, and any range of it can be read.
//!
//! What a read needs is fetched by ranged GETs into the store's sparse file, once for the node: see
//! [`content`]. The unit is a block of 128 KiB (larger only for objects beyond 512 GiB), not a part
//! of 8 MiB: a random read of 4 KiB then costs one request of 128 KiB, which at 100 MB/s takes a
//! millisecond beside the ten or so of any request, where a part would take 80 and fill the store
//! with what nobody asked for. A smaller block would save next to nothing and cost the next read
//! nearby another request. What is read in order is fetched ahead in requests that grow up to whole
//! parts (see [`ahead`]), so a large file takes little more requests than it has parts.
//!
//! An object of at most one part is fetched by one GET, verified, and is a blob before its first
//! byte is given out. A larger one becomes a blob when all of it is here and verified; bytes given
//! out before that were checked by length and `If-Match` only.
//!
//! Rules. Reads give exactly what was asked for, cut off at the end of the object, or an error.
//! Bytes go only to a principal whom S3 let read that very version: it fetched some of it, or a
//! one-byte GET succeeded; a [`Reading`] keeps that proof while it is open. What has no room in the
//! store goes through memory. A read of what is here takes no task, no timer and no lock that is
//! held across an await: one copy out of the page cache, on the thread that asks, unless the disk
//! must be waited for.

mod ahead;
mod content;
mod cut;
mod finish;
mod reading;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

pub use self::reading::Reading;
use self::{
    content::{Content, Share},
    cut::Cut,
};
use super::{FetchError, Fetcher, flights::Flights};
use crate::{
    object::Object,
    source::{Principal, SourceError, s3::S3Source},
    store::{BlobId, Sharers, Store},
    task::blocking,
};

/// How an object is opened, and for whom.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The asking principal's way to the endpoint.
    pub source: S3Source,
    /// Where content is kept.
    pub store: Store,
    /// Whose volumes may link the files that hold it. Where not everybody may, a circle in which no
    /// volume links any: readers of all namespaces read one file while it fills.
    pub sharers: Option<Sharers>,
    /// Whether the caller holds S3's word that the principal may read this very version (a volume
    /// keeps its own while it is published): then nobody is asked for it again.
    pub allowed: bool,
    /// How long an open or a read waits for S3.
    pub wait: Duration,
}

/// What all readings of the node share.
#[derive(Debug)]
pub(super) struct Demand {
    contents: Mutex<HashMap<BlobId, Weak<Content>>>,
    opening: Flights<BlobId, Arc<Content>>,
    proofs: Flights<(Principal, BlobId), Result<(), SourceError>>,
    finishing: Mutex<Vec<AbortOnDropHandle<()>>>,
    /// Cloned by each object that is being fetched ahead of.
    streams: Arc<()>,
    /// How many bytes may be fetched ahead, for all.
    ahead: u64,
}

impl Demand {
    /// Half of what may be in flight is for what nobody waits for yet.
    pub(super) fn new(bytes_in_flight: u64) -> Self {
        Self {
            contents: Mutex::default(),
            opening: Flights::default(),
            proofs: Flights::default(),
            finishing: Mutex::default(),
            streams: Arc::new(()),
            ahead: bytes_in_flight / 2,
        }
    }

    fn share_of(&self, content: &Content) -> Arc<Share> {
        let mut share = content.share.lock();
        share.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Share { _counted: Arc::clone(&self.streams) });
            *share = Arc::downgrade(&new);
            new
        })
    }

    /// How many bytes may be fetched ahead of one object, of which one part always may.
    fn ahead_of_one(&self, part: u64) -> u64 {
        let streams = (Arc::strong_count(&self.streams) as u64).saturating_sub(1).max(1);
        (self.ahead / streams).max(part)
    }

    fn known(&self, id: &BlobId) -> Option<Arc<Content>> {
        let content = self.contents.lock().get(id).and_then(Weak::upgrade);
        content.filter(|content| content.failed.get().is_none())
    }
}

impl Fetcher {
    /// Opens an object version. What is cached is given to the principal of `opening` only after S3
    /// let it read that version: where no proof is known that costs one GET of one byte. An object of
    /// which nothing is here costs nothing until it is read.
    ///
    /// # Errors
    /// What S3 answers to that request: kind `Stale` if the object is not what was listed any more;
    /// `Unavailable` if S3 did not answer in time. What the store's file system answers.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn open(&self, opening: Opening, object: Object) -> Result<Reading, FetchError> {
        Reading::open(self.clone(), opening, object).await
    }

    /// As [`Fetcher::open`], if all of the object is here and its principal is known to be allowed to
    /// read it, by the store or by `opening`: S3 is asked nothing.
    ///
    /// # Blocking
    /// One open(2) of a local file.
    pub fn open_here(&self, opening: &Opening, object: &Object) -> Option<Reading> {
        Reading::here(self, opening, object)
    }

    /// The content that all who read this object version share.
    async fn content(&self, store: &Store, object: &Object) -> Arc<Content> {
        let id = BlobId::of(&object.version);
        if let Some(content) = self.0.demand.known(&id) {
            return content;
        }
        let (engine, store, object) = (self.clone(), store.clone(), object.clone());
        let open = || async move {
            if let Some(content) = engine.0.demand.known(&id) {
                return content;
            }
            let cut = Cut::new(object.version.size, engine.0.part_size);
            let version = object.version.clone();
            let sparse = blocking(move || store.sparse(&version, cut.block)).await;
            let sparse = sparse.inspect_err(|error| {
                tracing::debug!(%error, "what is read cannot be kept, and goes through memory");
            });
            let content = Arc::new(Content::new(object, cut, sparse.ok().map(Arc::new)));
            let mut contents = engine.0.demand.contents.lock();
            if contents.len() == contents.capacity() {
                contents.retain(|_, content| content.strong_count() > 0);
            }
            contents.insert(id, Arc::downgrade(&content));
            content
        };
        self.0.demand.opening.join(id, open).await
    }
}
