//! Content that is in memory, and misbehaves when its key says so.

use std::{
    collections::HashMap,
    fs::File,
    io::{Seek, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::{Content, Hold, OpenFile, Refusal};
use crate::{failure::FailureKind, object::Object};

/// Keys that contain it are read only while the gate is open.
pub(super) const SLOW: &str = "slow";
/// A key that ends in it and the word of a failure cannot be read.
pub(super) const FAILS: &str = "fails-";
/// Keys that contain it cannot be opened.
pub(super) const LOCKED: &str = "locked";
/// Keys that contain it are answered with a byte too few.
pub(super) const SHORT: &str = "short";

#[derive(Debug)]
pub(super) struct Memory {
    bytes: Mutex<HashMap<String, Bytes>>,
    whole: bool,
    pub(super) gate: Arc<Semaphore>,
    pub(super) reads: Arc<AtomicUsize>,
    pub(super) open: Arc<()>,
    held: Arc<()>,
}

impl Memory {
    /// `whole`: files are complete from the start.
    pub(super) fn new(whole: bool) -> Self {
        Self {
            bytes: Mutex::default(),
            whole,
            gate: Arc::new(Semaphore::new(0)),
            reads: Arc::default(),
            open: Arc::default(),
            held: Arc::default(),
        }
    }

    /// What an object holds is found by its `ETag`.
    pub(super) fn put(&self, etag: &str, bytes: impl Into<Bytes>) {
        self.bytes.lock().insert(etag.to_owned(), bytes.into());
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// How many files are held.
    pub(super) fn held_files(&self) -> usize {
        Arc::strong_count(&self.held) - 1 - self.open_files()
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

impl Content for Memory {
    fn open(&self, object: &Object) -> Result<Arc<dyn OpenFile>, Refusal> {
        let key = object.version.key.to_string();
        let found = self.bytes.lock().get(object.version.etag.as_str()).cloned();
        let bytes = found.ok_or_else(|| Refusal::new(FailureKind::NotFound, "no such object"))?;
        if key.contains(LOCKED) {
            return Err(Refusal::new(FailureKind::Denied, "no"));
        }
        let whole = self.whole.then(|| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            Arc::new(file)
        });
        let (gate, reads) = (Arc::clone(&self.gate), Arc::clone(&self.reads));
        let (held, open) = (Arc::clone(&self.held), Arc::clone(&self.open));
        Ok(Arc::new(MemoryFile { key, bytes, whole, gate, reads, held, _open: open }))
    }
}

#[derive(Debug)]
struct MemoryFile {
    key: String,
    bytes: Bytes,
    whole: Option<Arc<File>>,
    gate: Arc<Semaphore>,
    reads: Arc<AtomicUsize>,
    held: Arc<()>,
    _open: Arc<()>,
}

impl OpenFile for MemoryFile {
    fn read(&self, offset: u64, size: u32) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let number = self.reads.fetch_add(1, Ordering::SeqCst);
        let (key, bytes, gate) = (self.key.clone(), self.bytes.clone(), Arc::clone(&self.gate));
        Box::pin(async move {
            if key.contains(SLOW) {
                drop(gate.acquire().await.unwrap());
            }
            // Every other read is not answered at once.
            if number % 2 == 1 {
                tokio::task::yield_now().await;
            }
            if let Some((_, word)) = key.split_once(FAILS) {
                let kind = FailureKind::ALL.into_iter().find(|kind| kind.as_str() == word);
                return Err(Refusal::new(kind.unwrap(), "as the test wants it"));
            }
            let start = usize::try_from(offset).unwrap();
            let end = start + usize::try_from(size).unwrap();
            Ok(bytes.slice(start..if key.contains(SHORT) { end - 1 } else { end }))
        })
    }

    fn whole(&self) -> Option<Arc<File>> {
        self.whole.clone()
    }

    fn hold(&self) -> Option<Hold> {
        Some(Arc::<()>::clone(&self.held))
    }
}
