//! The node's content cache: blobs keyed by object version, on one medium.
//!
//! A [`Store`] owns a directory and nothing else:
//!
//! ```text
//! <root>/v1/blobs/<id>-<size>-<crc>-<uid>-<gid>-<mode>   one file for each variant of a blob
//! <root>/v1/tmp/                                         fills under way
//! <root>/v1/volumes/<volume>/                            revisions: hard links to blobs
//! ```
//!
//! Rules. A blob's file is complete and verified before it has its name, and never changes after.
//! Ownership, mode and mtime live on the inode, so a blob has one *variant* for each combination of
//! owner and mode. A blob is handed out only to a principal whom S3 let read that very object
//! version. What a volume links (`st_nlink` above one) or a [`Lease`] pins is never evicted; the
//! link count is the kernel's, so it survives a restart and cannot drift as a counter of ours could.
//!
//! The names carry everything that the index needs: a start scans one directory and reads no file.
//!
//! No async code and no locks across system calls other than the index's own: it can be modelled.

mod blob;
mod fill;
mod index;
mod lease;

use std::{
    collections::HashMap,
    ffi::CString,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, open},
    sys::{
        stat::{Mode as Permissions, fstatat},
        statvfs::statvfs,
    },
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use thiserror::Error;

use self::index::Index;
pub use self::{
    blob::{BlobId, Variant},
    fill::{Content, Fill},
    lease::{Lease, Reservation},
};
use crate::{
    failure::FailureKind, object::ObjectVersion, source::Principal, telemetry::metrics::Metrics,
    units::ByteSize,
};

/// The version of the layout on disk; another layout gets another directory.
const LAYOUT: &str = "v1";

/// Space is counted in whole pages, which are the blocks of tmpfs and of the usual file systems.
pub const PAGE: u64 = 4096;

/// Where a store keeps its blobs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// A tmpfs; never touches a disk.
    Memory,
    /// A directory on the cache disk.
    Disk,
}

impl Medium {
    /// The name in configuration, metrics and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// Why the store could not do something.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Not enough room, even after eviction.
    #[error(
        "the {} store has no room: {needed} bytes are needed and {available} of {capacity} bytes \
         are available (the rest is in use by published volumes); raise store.{}.size, or lower \
         what volumes show",
        medium.as_str(), medium.as_str()
    )]
    Full {
        /// The medium.
        medium: Medium,
        /// Bytes that the request needs.
        needed: u64,
        /// Bytes that could be given to it.
        available: u64,
        /// The configured size.
        capacity: u64,
    },
    /// The medium's file system has no inodes left.
    #[error(
        "the {} store has no room: {needed} inodes are needed and {available} are available",
        medium.as_str()
    )]
    Inodes {
        /// The medium.
        medium: Medium,
        /// Inodes that the request needs.
        needed: u64,
        /// Inodes that are free.
        available: u64,
    },
    /// The medium's file system refused.
    #[error("failed to {action} in the {} store: {error}", medium.as_str())]
    Io {
        /// The medium.
        medium: Medium,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        #[source]
        error: Arc<io::Error>,
    },
    /// The content is not what the object version promised.
    #[error("{0}")]
    Corrupt(String),
}

impl StoreError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Full { .. } | Self::Inodes { .. } => FailureKind::Exhausted,
            Self::Io { error, .. } => io_kind(error),
            Self::Corrupt(_) => FailureKind::Corrupt,
        }
    }
}

/// The kind of an I/O error on our own files.
pub(crate) fn io_kind(error: &io::Error) -> FailureKind {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
            FailureKind::Exhausted
        }
        Some(Errno::EROFS) => FailureKind::Precondition,
        _ => FailureKind::Internal,
    }
}

/// What a revision will need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of new blobs, in whole pages.
    pub bytes: u64,
    /// New names: blobs, links, directories (each counts as an inode on a tmpfs).
    pub inodes: u64,
}

/// One medium's blobs. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    medium: Medium,
    root: PathBuf,
    blobs: OwnedFd,
    capacity: u64,
    index: Mutex<Index>,
    gauges: Gauges,
}

struct Gauges {
    bytes: IntGauge,
    blobs: IntGauge,
    hits: IntCounter,
    misses: IntCounter,
    evictions: IntCounter,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.0.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store below `directory`, which must exist; finds the blobs of earlier runs and
    /// removes what earlier runs left half done.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// Reads one directory; 100,000 blobs take well under a second.
    pub fn open(
        medium: Medium,
        directory: &Path,
        capacity: ByteSize,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let failed = |action| move |error: io::Error| io_error(medium, action, error);
        let root = directory.join(LAYOUT);
        let tmp = root.join("tmp");
        if tmp.exists() {
            std::fs::remove_dir_all(&tmp).map_err(failed("remove unfinished blobs"))?;
        }
        for name in ["blobs", "tmp", "volumes"] {
            create_private(&root.join(name)).map_err(failed("create a directory"))?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let blobs = open(&root.join("blobs"), flags, Permissions::empty())
            .map_err(|errno| failed("open the blobs")(errno.into()))?;
        let index = Index::scan(&root.join("blobs")).map_err(failed("read the blobs"))?;
        let label = &[medium.as_str()];
        let capacity = capacity.bytes();
        metrics.store_capacity_bytes.with_label_values(label).set(gauge(capacity));
        let lookups =
            |outcome| metrics.store_lookups.with_label_values(&[medium.as_str(), outcome]);
        let gauges = Gauges {
            bytes: metrics.store_bytes.with_label_values(label),
            blobs: metrics.store_blobs.with_label_values(label),
            hits: lookups("hit"),
            misses: lookups("miss"),
            evictions: metrics.store_evictions.with_label_values(label),
        };
        let index = Mutex::new(index);
        let store = Self(Arc::new(Inner { medium, root, blobs, capacity, index, gauges }));
        store.0.show(&store.0.index.lock());
        Ok(store)
    }

    /// The medium.
    pub fn medium(&self) -> Medium {
        self.0.medium
    }

    /// The directory of all volumes' revisions.
    pub fn volumes(&self) -> PathBuf {
        self.0.root.join("volumes")
    }

    /// A lease on the blob, if it is here and `principal` was allowed to read it.
    pub fn lookup(&self, principal: Principal, version: &ObjectVersion) -> Option<Lease> {
        let lease = self.lease(principal, version);
        let gauges = &self.0.gauges;
        if lease.is_some() { &gauges.hits } else { &gauges.misses }.inc();
        lease
    }

    /// As [`Store::lookup`], for those who have looked before: it is not counted again.
    pub fn lease(&self, principal: Principal, version: &ObjectVersion) -> Option<Lease> {
        let id = BlobId::of(version);
        let leased = self.0.index.lock().pin_for(&id, principal);
        leased.then(|| Lease { store: self.clone(), id })
    }

    /// Sets room aside, evicting the least recently used blobs that no volume links.
    ///
    /// # Errors
    /// [`StoreError::Full`] or [`StoreError::Inodes`] with what is needed and what there is.
    ///
    /// # Blocking
    /// A few system calls; more when it evicts.
    pub fn reserve(&self, need: Need) -> Result<Reservation, StoreError> {
        let Inner { medium, capacity, .. } = *self.0;
        let mut index = self.0.index.lock();
        let mut room = self.0.room(&index)?;
        if !room.holds(need) {
            self.0.evict(&mut index, room.missing(need));
            room = self.0.room(&index)?;
        }
        if room.bytes < need.bytes {
            let (needed, available) = (need.bytes, room.bytes);
            return Err(StoreError::Full { medium, needed, available, capacity });
        }
        if room.inodes < need.inodes {
            let (needed, available) = (need.inodes, room.inodes);
            return Err(StoreError::Inodes { medium, needed, available });
        }
        index.reserve(need.bytes);
        self.0.show(&index);
        Ok(Reservation { store: self.clone(), bytes: Mutex::new(need.bytes) })
    }

    /// Starts writing the content of `version`.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn fill(&self, version: &ObjectVersion) -> Result<Fill, StoreError> {
        Fill::begin(self.clone(), version)
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let medium = self.0.medium;
        move |error| io_error(medium, action, error)
    }
}

impl Inner {
    fn show(&self, index: &Index) {
        self.gauges.bytes.set(gauge(index.used()));
        self.gauges.blobs.set(gauge(index.len() as u64));
    }

    /// What can still be taken: by our own count, and by what the file system has.
    fn room(&self, index: &Index) -> Result<Need, StoreError> {
        let space = statvfs(&self.root)
            .map_err(|errno| io_error(self.medium, "ask for free space", errno.into()))?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        let counted = self.capacity.saturating_sub(index.used());
        // Some file systems (btrfs) do not count inodes and report none in all.
        let inodes = if space.files() == 0 { u64::MAX } else { space.files_available() };
        Ok(Need { bytes: counted.min(free.saturating_sub(index.reserved())), inodes })
    }

    /// Removes unlinked, unpinned variants, least recently used first, until `wanted` is free.
    fn evict(&self, index: &mut Index, wanted: Need) {
        let mut freed = Need::default();
        for name in index.candidates() {
            if freed.holds(wanted) {
                break;
            }
            let file = name.to_string();
            let linked = fstatat(&self.blobs, file.as_str(), AtFlags::empty())
                .is_ok_and(|stat| stat.st_nlink > 1);
            if linked {
                continue;
            }
            match unlinkat(&self.blobs, file.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {
                    freed.bytes += pages(name.size);
                    freed.inodes += 1;
                    index.remove(&name);
                    self.gauges.evictions.inc();
                }
                Err(errno) => tracing::warn!(blob = file, %errno, "failed to evict a blob"),
            }
        }
    }
}

impl Need {
    fn holds(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.inodes >= other.inodes
    }

    /// What `other` needs beyond this.
    fn missing(self, other: Self) -> Self {
        Self {
            bytes: other.bytes.saturating_sub(self.bytes),
            inodes: other.inodes.saturating_sub(self.inodes),
        }
    }
}

/// Rounds a size up to whole pages.
pub fn pages(size: u64) -> u64 {
    size.div_ceil(PAGE).saturating_mul(PAGE)
}

fn io_error(medium: Medium, action: &'static str, error: io::Error) -> StoreError {
    StoreError::Io { medium, action, error: Arc::new(error) }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The stores of a node, by medium.
#[derive(Debug, Clone)]
pub struct Stores(HashMap<Medium, Store>);

impl Stores {
    /// One store for each medium.
    pub fn new(stores: impl IntoIterator<Item = Store>) -> Self {
        Self(stores.into_iter().map(|store| (store.medium(), store)).collect())
    }

    /// The store on `medium`, if the node has it.
    pub fn get(&self, medium: Medium) -> Option<&Store> {
        self.0.get(&medium)
    }

    /// All stores.
    pub fn iter(&self) -> impl Iterator<Item = &Store> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests;
