//! When all blocks are here: verifying the whole, which becomes a blob.
//!
//! Each part was checked by its length and asked for by its ETag; what only the whole tells (the
//! ETag where it is an MD5, the service's checksum) is compared here, beside the reads that go on
//! meanwhile. It costs one HEAD, and one look at the file where a CRC of the blocks does not do.

use std::sync::{Arc, atomic::Ordering};

use super::{
    Demand, Opening,
    content::{Content, Whole},
};
use crate::{
    failure::FailureKind,
    fetch::{FetchError, corrupt, parts, verify},
    source::s3::Checksum,
    store::{self, Sparse, Variant},
    task::{blocking, spawn_owned},
};

impl Demand {
    /// Verifies the whole in a task of its own, if all of it is here and nobody does.
    pub(super) fn finish(&self, content: &Arc<Content>, opening: impl FnOnce() -> Opening) {
        if !content.begin_to_finish() {
            return;
        }
        let task = spawn_owned(finish(Arc::clone(content), opening()));
        let mut finishing = self.finishing.lock();
        finishing.retain(|task| !task.is_finished());
        finishing.push(task);
    }
}

async fn finish(content: Arc<Content>, opening: Opening) {
    let Some(sparse) = content.sparse.clone() else { return };
    let object = &content.object;
    let key = object.version.key.as_str();
    let outcome = whole(&content, &sparse, &opening).await;
    match outcome {
        Ok(whole) => drop(content.whole.set(Arc::new(whole))),
        Err(error) if error.kind() == FailureKind::Corrupt => {
            tracing::warn!(s3.key = key, %error, "an object that was read in parts is damaged");
            blocking(move || sparse.discard()).await;
            drop(content.failed.set(error));
        }
        Err(error) => {
            tracing::debug!(s3.key = key, %error, "a whole object cannot be verified yet");
            // What has changed is read as it is here. All else may pass, or be another principal's to
            // do: the next read tries again.
            let again = error.kind() != FailureKind::Stale;
            content.finishing.store(!again, Ordering::Release);
        }
    }
    content.landed.notify_waiters();
}

async fn whole(
    content: &Arc<Content>,
    sparse: &Arc<Sparse>,
    opening: &Opening,
) -> Result<Whole, FetchError> {
    let (source, object) = (&opening.source, &content.object);
    let checksum = parts::checksum(source, object).await?;
    let is_md5 = match content.etag_is_md5.get() {
        Some(is_md5) => *is_md5,
        // All of it is of an earlier run: only an answer to a GET tells.
        None if object.version.etag.md5().is_none() => false,
        None => source.retried(|| source.get(object, Some(0..1))).await?.etag_is_md5(),
    };
    let (content, sparse, opening) = (Arc::clone(content), Arc::clone(sparse), opening.clone());
    blocking(move || keep(&content, &sparse, &opening, checksum.as_ref(), is_md5)).await
}

/// Blocks: reads the file where its checksum is no CRC-64.
fn keep(
    content: &Content,
    sparse: &Sparse,
    opening: &Opening,
    checksum: Option<&Checksum>,
    is_md5: bool,
) -> Result<Whole, FetchError> {
    let object = &content.object;
    let crc = sparse.crc()?;
    let etag = is_md5.then_some(&object.version.etag);
    verify::file(sparse.file(), object.version.size, crc, checksum, etag)
        .map_err(|problem| corrupt(object, &problem))?;
    let made = store::Content { crc, modified: object.last_modified };
    let sharers = opening.sharers;
    let variant = Variant::shown_by_none(sharers);
    let lease = sparse.complete(opening.source.principal(), variant, made)?;
    let file = lease.open(sharers)?;
    Ok(Whole { file: Arc::new(file), sharers, lease: Arc::new(lease) })
}
