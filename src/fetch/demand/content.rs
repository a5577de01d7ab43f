//! What all who read one object version share: what is here of it, and what is on its way.
//!
//! A request that is under way belongs to those who wait for it, like every flight: when the last
//! one gives up, it ends. Whoever wants blocks joins the requests that bring them, whoever began
//! those, and asks S3 for the rest only. A joined request that fails for another principal is begun
//! anew by who still wants its blocks.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::{
    ahead::Streams,
    cut::{Cut, subtract},
};
use crate::{
    fetch::{BATCH, FetchError},
    object::Object,
    source::{Principal, s3::S3Source},
    store::{Lease, Sharers, Sparse, Writer},
    task::blocking,
};

/// One object version while somebody has it open.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) object: Object,
    pub(super) cut: Cut,
    /// None if the store could not keep anything: then all is read through.
    pub(super) sparse: Option<Arc<Sparse>>,
    under_way: Mutex<Vec<UnderWay>>,
    /// Whether what came last could not be kept.
    full: AtomicBool,
    /// Told whenever blocks have come.
    pub(super) landed: Notify,
    /// Whether the ETag is the MD5 of the content, once an answer has told.
    pub(super) etag_is_md5: OnceLock<bool>,
    /// Whether somebody is verifying the whole.
    pub(super) finishing: AtomicBool,
    /// The blob that it has become.
    pub(super) whole: OnceLock<Arc<Whole>>,
    /// Why nothing of it may be read any more.
    pub(super) failed: OnceLock<FetchError>,
    /// Held by those who fetch ahead.
    pub(super) share: Mutex<Weak<Share>>,
    /// Held by those who read.
    ahead: Mutex<Weak<Mutex<Ahead>>>,
}

/// What is being fetched ahead of those who read one object version. It ends with the last of them:
/// the tasks hold the content, and so it does not hold them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) streams: Streams,
    pub(super) tasks: BTreeMap<u64, Vec<AbortOnDropHandle<()>>>,
}

/// The file of a whole blob, which stays while it is held.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) file: Arc<File>,
    /// Who else may have a link to it.
    pub(super) sharers: Option<Sharers>,
    pub(super) lease: Arc<Lease>,
}

impl AsRef<File> for Whole {
    fn as_ref(&self) -> &File {
        &self.file
    }
}

/// One object version's share of what is fetched ahead on this node; counted by its clones.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) _counted: Arc<()>,
}

/// What a request has brought.
#[derive(Debug, Clone)]
pub(super) enum Landed {
    /// All of it is in the store.
    Stored,
    /// Some of it could not be kept.
    Memory(Memory),
}

/// Bytes that the store had no room for.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) blocks: Range<u64>,
    start: u64,
    chunks: Vec<Bytes>,
}

type Work = BoxFuture<'static, Result<Landed, FetchError>>;

#[derive(Debug)]
struct UnderWay {
    blocks: Range<u64>,
    by: Principal,
    work: WeakShared<Work>,
}

/// A request that somebody waits for.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) by: Principal,
    /// Whether it was begun by this call.
    pub(super) is_new: bool,
    pub(super) work: Shared<Work>,
}

impl Memory {
    /// Copies what it has of the bytes from `offset` on into `buffer`.
    pub(super) fn copy(&self, buffer: &mut [u8], offset: u64) {
        let mut at = self.start;
        for chunk in &self.chunks {
            let end = at + chunk.len() as u64;
            let (from, to) = (at.max(offset), end.min(offset + buffer.len() as u64));
            if from < to {
                let index = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
                buffer[index(from - offset)..index(to - offset)]
                    .copy_from_slice(&chunk[index(from - at)..index(to - at)]);
            }
            at = end;
        }
    }
}

impl Content {
    pub(super) fn new(object: Object, cut: Cut, sparse: Option<Arc<Sparse>>) -> Self {
        Self {
            object,
            cut,
            sparse,
            under_way: Mutex::default(),
            full: AtomicBool::new(false),
            landed: Notify::new(),
            etag_is_md5: OnceLock::new(),
            finishing: AtomicBool::new(false),
            whole: OnceLock::new(),
            failed: OnceLock::new(),
            share: Mutex::default(),
            ahead: Mutex::default(),
        }
    }

    /// What all readers share, for one of them to hold.
    pub(super) fn ahead(&self) -> Arc<Mutex<Ahead>> {
        let mut ahead = self.ahead.lock();
        ahead.upgrade().unwrap_or_else(|| {
            let new = Arc::<Mutex<Ahead>>::default();
            *ahead = Arc::downgrade(&new);
            new
        })
    }

    /// Reads blocks of an earlier boot through before their first use.
    pub(super) async fn settle_doubts(&self, blocks: Range<u64>) -> Result<(), FetchError> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        if !sparse.has_doubts(blocks.clone()) {
            return Ok(());
        }
        let sparse = Arc::clone(sparse);
        Ok(blocking(move || sparse.settle_doubts(blocks)).await?)
    }

    fn missing(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        match &self.sparse {
            Some(sparse) => sparse.missing(blocks),
            None if blocks.is_empty() => Vec::new(),
            None => vec![blocks],
        }
    }

    /// The requests that bring the blocks which are neither here nor `kept`: those under way, and
    /// new ones by `source`. None if all are here.
    pub(super) fn join(
        self: &Arc<Self>,
        blocks: &Range<u64>,
        kept: &[Memory],
        source: &S3Source,
    ) -> Vec<Flight> {
        let kept: Vec<_> = kept.iter().map(|memory| memory.blocks.clone()).collect();
        let mut under_way = self.under_way.lock();
        let missing = subtract(self.missing(blocks.clone()), &kept);
        let (mut joined, mut covered) = (Vec::new(), Vec::new());
        under_way.retain(|one| {
            let work = one.work.upgrade().filter(|work| work.peek().is_none());
            let Some(work) = work else { return false };
            let overlaps =
                |run: &Range<u64>| run.start < one.blocks.end && one.blocks.start < run.end;
            if missing.iter().any(overlaps) {
                joined.push(Flight { by: one.by, is_new: false, work });
                covered.push(one.blocks.clone());
            }
            true
        });
        for blocks in self.cut.requests(subtract(missing, &covered)) {
            let running = Arc::clone(self).fetch(blocks.clone(), source.clone());
            // Those who joined must hear of a defect of ours as well.
            let running = AssertUnwindSafe(running).catch_unwind();
            let work = running.map(|outcome| outcome.unwrap_or(Err(FetchError::Panicked)));
            let (work, by) = (work.boxed().shared(), source.principal());
            let weak = work.downgrade();
            under_way.extend(weak.map(|work| UnderWay { blocks, by, work }));
            joined.push(Flight { by, is_new: true, work });
        }
        joined
    }

    async fn fetch(
        self: Arc<Self>,
        blocks: Range<u64>,
        source: S3Source,
    ) -> Result<Landed, FetchError> {
        source.retried(|| self.attempt(&blocks, &source)).await
    }

    /// Asks for the blocks, but for those that an earlier attempt has brought.
    async fn attempt(&self, blocks: &Range<u64>, source: &S3Source) -> Result<Landed, FetchError> {
        let missing = self.missing(blocks.clone());
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
            return Ok(Landed::Stored);
        };
        let blocks = first.start..last.end;
        let bytes = self.cut.bytes(&blocks);
        let _bytes = source.bytes(bytes.end - bytes.start).await;
        let writer = self.writer(&blocks).await;
        let mut body = source.get(&self.object, Some(bytes.clone())).await?;
        // S3 has begun to send what it would not show to others.
        self.sparse.iter().for_each(|sparse| sparse.permit(source.principal()));
        // Others may have heard it first; it is the same for all.
        let _heard = self.etag_is_md5.set(body.etag_is_md5());
        let mut arrival = Arrival { content: self, writer, at: bytes.start, kept: Vec::new() };
        let (mut batch, mut length) = (Vec::new(), 0);
        while let Some(chunk) = body.next().await? {
            length += chunk.len();
            batch.push(chunk);
            if length >= BATCH {
                arrival.take(std::mem::take(&mut batch)).await;
                length = 0;
            }
        }
        arrival.take(batch).await;
        Ok(arrival.end(blocks))
    }

    /// Room in the store for blocks, if there is. Reading goes on without.
    async fn writer(&self, blocks: &Range<u64>) -> Option<Writer> {
        let (sparse, blocks) = (Arc::clone(self.sparse.as_ref()?), blocks.clone());
        let writer = blocking(move || sparse.writer(blocks)).await;
        self.full.store(writer.is_err(), Ordering::Relaxed);
        writer.inspect_err(|error| self.not_kept(error)).ok()
    }

    fn not_kept(&self, error: &crate::store::StoreError) {
        let (bucket, key) = (self.object.version.bucket.as_str(), self.object.version.key.as_str());
        tracing::debug!(
            s3.bucket = bucket, s3.key = key, %error,
            "what is read cannot be kept, and goes through memory"
        );
    }

    /// Whether there was no room for what came last: fetching ahead would be of no use.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.sparse.as_ref().is_some_and(|sparse| sparse.is_complete())
    }

    /// Whether this caller is the one to verify the whole, which is here.
    pub(super) fn begin_to_finish(&self) -> bool {
        self.whole.get().is_none()
            && self.is_complete()
            && !self.finishing.swap(true, Ordering::AcqRel)
    }
}

/// A body on its way into the store, or past it.
struct Arrival<'a> {
    content: &'a Content,
    writer: Option<Writer>,
    /// Where what is kept in memory begins.
    at: u64,
    kept: Vec<Bytes>,
}

impl Arrival<'_> {
    async fn take(&mut self, batch: Vec<Bytes>) {
        let Some(mut writer) = self.writer.take() else {
            self.kept.extend(batch);
            return;
        };
        let length: u64 = batch.iter().map(|chunk| chunk.len() as u64).sum();
        let (writer, batch, written) = blocking(move || {
            let written = writer.write(&batch);
            (writer, batch, written)
        })
        .await;
        match written {
            Ok(()) => {
                self.writer = Some(writer);
                self.at += length;
                self.content.landed.notify_waiters();
            }
            Err(error) => {
                self.content.not_kept(&error);
                self.content.full.store(true, Ordering::Relaxed);
                self.kept.extend(batch);
            }
        }
    }

    /// What came of `blocks`. The beginning of a block that was cut by the end of the room is in the
    /// file, but not in the map: it is read back.
    fn end(self, blocks: Range<u64>) -> Landed {
        if self.kept.is_empty() {
            return Landed::Stored;
        }
        let cut = self.content.cut;
        let first = self.at / cut.block;
        let (mut start, mut chunks) = (self.at, self.kept);
        let head = first * cut.block..self.at;
        if !head.is_empty()
            && let Some(sparse) = &self.content.sparse
        {
            let mut bytes = vec![0; usize::try_from(head.end - head.start).unwrap_or(0)];
            if crate::store::read_exact(sparse.file(), &mut bytes, head.start).is_ok() {
                start = head.start;
                chunks.insert(0, Bytes::from(bytes));
            }
        }
        // Without its beginning, a block does not count.
        let first = if start > first * cut.block { first + 1 } else { first };
        Landed::Memory(Memory { blocks: first..blocks.end, start, chunks })
    }
}
