//! A large object: parallel ranged GETs into one file, verified as a whole.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    FetchError, Job, corrupt,
    verify::{Expected, Verifier},
};
use crate::{
    failure::FailureKind,
    source::{SourceError, s3::Checksum},
    store::{Content, Fill, Lease},
    task::{blocking, spawn_owned},
};

/// How many bytes are collected before they are written: fewer visits to the blocking threads, and
/// still a fraction of a part.
const BATCH: usize = 1 << 20;

/// What the parts of one object share.
struct Parts<'a> {
    job: &'a Job,
    fill: Arc<Fill>,
    checksum: Option<Checksum>,
    ranges: Vec<Range<u64>>,
    finished: Sender<usize>,
    etag_is_md5: AtomicBool,
}

/// Fetches the job's object in parts.
///
/// # Errors
/// The first part that failed after its retries, or that the whole is not what it should be.
pub(super) async fn fetch(job: &Job) -> Result<Lease, FetchError> {
    let checksum = checksum(job).await?;
    let (store, version) = (job.order.store.clone(), job.object.version.clone());
    let fill = Arc::new(blocking(move || store.fill(&version)).await?);
    let ranges = ranges(job.object.version.size, job.engine.0.part_size);
    let (finished, finished_parts) = channel();
    let expected = Expected::of(&job.object.version.etag, checksum.as_ref());
    let ordered = match expected.clone() {
        None => None,
        Some(expected) => {
            let (written, ranges) = (fill.reader()?, ranges.clone());
            Some(spawn_owned(blocking(move || expected.check(&written, &ranges, &finished_parts))))
        }
    };
    let etag_is_md5 = AtomicBool::new(true);
    let parts = Parts { job, fill, checksum, ranges, finished, etag_is_md5 };
    let crc = parts.fetch_all().await?;
    let Parts { fill, etag_is_md5, .. } = parts;
    if let (Some(expected), Some(ordered)) = (expected, ordered) {
        let outcome = ordered.await.map_err(|error| corrupt(&job.object, &error.to_string()))?;
        let matches = outcome.map_err(|error| corrupt(&job.object, &error.to_string()))?;
        // Whether an ETag is an MD5 at all is known only from the answers.
        let counts = matches!(expected, Expected::Sha256(_)) || etag_is_md5.into_inner();
        if counts && matches == Some(false) {
            return Err(corrupt(&job.object, &expected.mismatch()));
        }
    }
    let fill = Arc::into_inner(fill).expect("all parts are done");
    let content = Content { crc, modified: job.object.last_modified };
    let (principal, variant) = (job.order.source.principal(), job.order.variant);
    let reservation = Arc::clone(&job.reservation);
    Ok(blocking(move || fill.commit(principal, variant, content, &reservation)).await?)
}

/// The object's checksum, which only a HEAD tells: an answer to a ranged GET has none, and not
/// every service says in its listings which objects have one. One small request for each large
/// object.
async fn checksum(job: &Job) -> Result<Option<Checksum>, FetchError> {
    let version = &job.object.version;
    let version_id = job.object.version_id.as_ref();
    let head = job.order.source.head(&version.bucket, &version.key, version_id).await?;
    if head.object.version != *version {
        let text = format!("the object {:?} changed while it was read", version.key.as_str());
        return Err(SourceError::new(FailureKind::Stale, text).into());
    }
    Ok(head.checksum)
}

impl Parts<'_> {
    async fn fetch_all(&self) -> Result<u64, FetchError> {
        let mut verifiers: Vec<Option<Verifier>> = self.ranges.iter().map(|_| None).collect();
        let mut parts = stream::iter(0..self.ranges.len())
            .map(|index| async move { self.fetch_part(index).await.map(|part| (index, part)) })
            .buffer_unordered(self.job.engine.0.requests);
        while let Some((index, verifier)) = parts.try_next().await? {
            verifiers[index] = Some(verifier);
            // Nobody listens where nothing needs the parts in order.
            let _unheard = self.finished.send(index);
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
        let _bytes = self.job.engine.bytes(range.end - range.start).await;
        self.job.order.source.retried(|| self.attempt_part(range)).await
    }

    async fn attempt_part(&self, range: &Range<u64>) -> Result<Verifier, FetchError> {
        let mut body = self.job.order.source.get(&self.job.object, Some(range.clone())).await?;
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
