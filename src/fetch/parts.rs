//! A large object: parallel ranged GETs into one file, verified as a whole.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    BATCH, FetchError, Job, corrupt,
    verify::{Expected, InOrder, Verifier},
};
use crate::{
    failure::FailureKind,
    object::Object,
    source::{
        SourceError,
        s3::{Checksum, S3Source},
    },
    store::{Content, Fill, Lease},
    task::{blocking, spawn_owned},
};

/// What the parts of one object share.
struct Parts<'a> {
    job: &'a Job,
    fill: Arc<Fill>,
    checksum: Option<Checksum>,
    ranges: Vec<Range<u64>>,
    etag_is_md5: AtomicBool,
}

/// Fetches the job's object in parts.
///
/// # Errors
/// The first part that failed after its retries, or that the whole is not what it should be.
pub(super) async fn fetch(job: &Job) -> Result<Lease, FetchError> {
    let checksum = checksum(&job.order().source, &job.object).await?;
    let fill = {
        let (store, version) = (job.order().store.clone(), job.object.version.clone());
        let reservation = Arc::clone(&job.call.reservation);
        Arc::new(blocking(move || store.fill(&version, reservation)).await?)
    };
    let ranges = ranges(job.object.version.size, job.engine().0.part_size);
    let expected = Expected::of(&job.object.version.etag, checksum.as_ref());
    let (finished, finished_parts) = unbounded_channel();
    let ordered = expected.as_ref().map(|expected| {
        let (fill, ranges) = (Arc::clone(&fill), ranges.clone());
        spawn_owned(hash_in_order(expected.hasher(), fill, ranges, finished_parts))
    });
    let parts = Parts { job, fill, checksum, ranges, etag_is_md5: AtomicBool::new(true) };
    let crc = parts.fetch_all(finished).await?;
    if let (Some(expected), Some(ordered)) = (expected, ordered) {
        let hash = ordered.await.map_err(|_| FetchError::Panicked)??;
        // Whether an ETag is an MD5 at all is known only from the answers.
        let is_md5 = parts.etag_is_md5.load(Ordering::Relaxed);
        let counts = is_md5 || matches!(expected, Expected::Sha256(_));
        if counts && !expected.matches(hash) {
            return Err(corrupt(&job.object, &expected.mismatch()));
        }
    }
    let fill = Arc::into_inner(parts.fill).expect("all parts and the hash are done");
    let content = Content { crc, modified: job.object.last_modified };
    let (principal, variant) = (job.order().source.principal(), job.order().variant);
    Ok(blocking(move || fill.commit(principal, variant, content)).await?)
}

/// Hashes each part as soon as it and all before it are written, one short visit to the blocking
/// threads at a time: none of them ever waits for a part.
async fn hash_in_order(
    mut hash: InOrder,
    fill: Arc<Fill>,
    ranges: Vec<Range<u64>>,
    mut finished: UnboundedReceiver<usize>,
) -> Result<InOrder, FetchError> {
    let mut done = vec![false; ranges.len()];
    for (index, range) in ranges.into_iter().enumerate() {
        while !done[index] {
            match finished.recv().await {
                Some(part) => done[part] = true,
                // The fetch has failed, and nobody will ask for the hash.
                None => return Ok(hash),
            }
        }
        let fill = Arc::clone(&fill);
        hash = blocking(move || fill.read(|file| hash.update(file, range))).await?;
    }
    Ok(hash)
}

/// The object's checksum, which only a HEAD tells: an answer to a ranged GET has none, and not
/// every service says in its listings which objects have one. One small request for each large
/// object.
pub(super) async fn checksum(
    source: &S3Source,
    object: &Object,
) -> Result<Option<Checksum>, FetchError> {
    let version = &object.version;
    let head = source.head(&version.bucket, &version.key, object.version_id.as_ref()).await;
    let head = head.map_err(SourceError::stale_if_gone)?;
    if head.object.version != *version {
        let text = format!("the object {:?} changed while it was read", version.key.as_str());
        return Err(SourceError::new(FailureKind::Stale, text).into());
    }
    Ok(head.checksum)
}

impl Parts<'_> {
    async fn fetch_all(&self, finished: UnboundedSender<usize>) -> Result<u64, FetchError> {
        let mut verifiers: Vec<Option<Verifier>> = self.ranges.iter().map(|_| None).collect();
        let mut parts = stream::iter(0..self.ranges.len())
            .map(|index| async move { self.fetch_part(index).await.map(|part| (index, part)) })
            .buffer_unordered(self.job.engine().0.requests);
        while let Some((index, verifier)) = parts.try_next().await? {
            verifiers[index] = Some(verifier);
            // Nobody listens where nothing needs the parts in order.
            let _unheard = finished.send(index);
        }
        let whole = verifiers.into_iter().flatten().reduce(|mut whole, part| {
            whole.append(&part);
            whole
        });
        let whole = whole.expect("a large object has parts");
        let checked = whole.finish(self.checksum.as_ref());
        checked.map_err(|problem| corrupt(&self.job.object, &problem))
    }

    async fn fetch_part(&self, index: usize) -> Result<Verifier, FetchError> {
        let range = &self.ranges[index];
        self.job.order().source.retried(|| self.attempt_part(range)).await
    }

    async fn attempt_part(&self, range: &Range<u64>) -> Result<Verifier, FetchError> {
        let _bytes = self.job.order().source.bytes(range.end - range.start).await;
        let mut body = self.job.order().source.get(&self.job.object, Some(range.clone())).await?;
        self.etag_is_md5.fetch_and(body.etag_is_md5(), Ordering::Relaxed);
        let mut verifier = Verifier::new(self.checksum.as_ref());
        let (mut batch, mut length, mut at) = (Vec::new(), 0, range.start);
        while let Some(chunk) = body.next().await? {
            length += chunk.len();
            batch.push(chunk);
            if length >= BATCH {
                verifier = self.write(std::mem::take(&mut batch), at, verifier).await?;
                at += length as u64;
                length = 0;
            }
        }
        self.write(batch, at, verifier).await
    }

    async fn write(
        &self,
        batch: Vec<Bytes>,
        at: u64,
        mut verifier: Verifier,
    ) -> Result<Verifier, FetchError> {
        let fill = Arc::clone(&self.fill);
        blocking(move || {
            fill.write_at(at, &batch)?;
            for chunk in &batch {
                verifier.update(chunk);
            }
            Ok(verifier)
        })
        .await
    }
}

fn ranges(size: u64, part_size: u64) -> Vec<Range<u64>> {
    let starts = (0..size).step_by(usize::try_from(part_size).unwrap_or(usize::MAX));
    starts.map(|start| start..size.min(start + part_size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_the_object_once() {
        assert_eq!(ranges(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(ranges(8, 4), [0..4, 4..8]);
    }
}
