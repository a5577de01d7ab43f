//! The node's content cache: blobs keyed by object version, on one medium.
//!
//! A [`Store`] owns a directory and nothing else:
//!
//! ```text
//! <root>/v1/blobs/<id>-<size>-<crc>-<uid>-<gid>-<mode>   one file for each variant of a blob
//! <root>/v1/tmp/                                         fills, where O_TMPFILE is missing
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
//! No async code, and no locks across system calls other than the store's own: it can be modelled.

mod blob;
mod fill;
mod index;
mod lease;
mod unnamed;

use std::{
    fmt,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, open},
    sys::{
        stat::{Mode as Permissions, fstatat},
        statvfs::statvfs,
    },
    unistd::{UnlinkatFlags, unlinkat},
};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use thiserror::Error;

use self::{blob::BlobName, index::Index};
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
         are available (the rest is shown by volumes or reserved by publishes under way); raise \
         store.{}.size, or lower what volumes show",
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
    /// Another process has the store.
    #[error(
        "another node plugin uses the {} store at {}; give each a directory of its own",
        medium.as_str(), root.display()
    )]
    Locked {
        /// The medium.
        medium: Medium,
        /// Where it is.
        root: PathBuf,
    },
    /// A blob's file is not there any more; listing and fetching again will help.
    #[error("a blob disappeared from the store")]
    Gone,
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
            Self::Locked { .. } => FailureKind::Precondition,
            Self::Gone => FailureKind::Stale,
            Self::Corrupt(_) => FailureKind::Corrupt,
        }
    }
}

/// The kind of an I/O error on our own files.
///
/// By `ErrorKind` where there is one: tempfile wraps errors so that nothing but kind and text of
/// what the system answered remains.
pub(crate) fn io_kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            FailureKind::Exhausted
        }
        io::ErrorKind::ReadOnlyFilesystem => FailureKind::Precondition,
        _ if error.to_string().contains("Too many open files") => FailureKind::Exhausted,
        _ => FailureKind::Internal,
    }
}

/// A variant of a blob that is not here yet.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Which blob.
    pub id: BlobId,
    /// Whose and with which mode.
    pub variant: Variant,
    /// The content's length in bytes.
    pub size: u64,
}

/// Room: what is there, or what is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Need {
    /// In whole pages.
    bytes: u64,
    /// Blobs, links, directories: each counts on a tmpfs.
    inodes: u64,
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
    /// Held while a blob gets its name; taken before the index.
    adding: Mutex<()>,
    gauges: Gauges,
    /// One plugin to a store; released by the kernel when the process ends.
    _lock: Flock<File>,
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
        create_private(&root).map_err(failed("create a directory"))?;
        let lock = File::options().create(true).append(true).open(root.join("lock"));
        // A read-only medium still shows what it has.
        let lock = lock.or_else(|_| File::open(root.join("lock")));
        let lock = lock.map_err(failed("open the lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::Locked { medium, root: root.clone() })?;
        if tmp.exists()
            && let Err(error) = std::fs::remove_dir_all(&tmp)
        {
            tracing::warn!(%error, path = %tmp.display(), "failed to remove unfinished blobs");
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
        let adding = Mutex::default();
        let inner = Inner { medium, root, blobs, capacity, index, adding, gauges, _lock: lock };
        let store = Self(Arc::new(inner));
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

    /// Sets room aside for blobs, and `names` links and directories beside them, evicting the least
    /// recently used blobs that no volume links. Room that somebody else has set aside for the same
    /// blob is shared: of all who wait for it, one fetches it.
    ///
    /// # Errors
    /// [`StoreError::Full`] or [`StoreError::Inodes`] with what is needed and what there is.
    ///
    /// # Blocking
    /// A few system calls; more when it evicts.
    pub fn reserve(&self, wanted: Vec<Wanted>, names: u64) -> Result<Reservation, StoreError> {
        let Inner { medium, capacity, .. } = *self.0;
        let inodes = names + wanted.len() as u64;
        let need = |index: &Index| Need { bytes: index.uncovered(&wanted), inodes };
        let mut index = self.0.index.lock();
        let mut room = self.0.room(&index)?;
        if !room.holds(need(&index)) {
            let (candidates, missing) = (index.candidates(), room.missing(need(&index)));
            drop(index);
            let unlinked = self.0.unlinked(candidates, missing);
            index = self.0.index.lock();
            self.0.evict(&mut index, unlinked);
            room = self.0.room(&index)?;
        }
        let needed = need(&index);
        if room.bytes < needed.bytes {
            let (needed, available) = (needed.bytes, room.bytes);
            return Err(StoreError::Full { medium, needed, available, capacity });
        }
        if room.inodes < needed.inodes {
            let (needed, available) = (needed.inodes, room.inodes);
            return Err(StoreError::Inodes { medium, needed, available });
        }
        index.reserve(&wanted);
        self.0.show(&index);
        Ok(Reservation { store: self.clone(), wanted })
    }

    /// Whether so much can be reserved without evicting anything, as things stand.
    ///
    /// # Blocking
    /// One system call.
    pub fn has_room(&self, bytes: u64, inodes: u64) -> bool {
        let room = self.0.room(&self.0.index.lock());
        room.is_ok_and(|room| room.holds(Need { bytes, inodes }))
    }

    /// Whether the content of `version` is here as that variant, for whomever.
    pub fn holds(&self, version: &ObjectVersion, variant: Variant) -> bool {
        self.0.index.lock().holds(&BlobId::of(version), variant)
    }

    /// Starts receiving the content of `version`, into room that was reserved.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn fill(
        &self,
        version: &ObjectVersion,
        reservation: Arc<Reservation>,
    ) -> Result<Fill, StoreError> {
        Fill::begin(self.clone(), version, reservation)
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
        Ok(Need { bytes: counted.min(free.saturating_sub(index.outstanding())), inodes })
    }

    /// The first of `candidates` that no volume links, as many as `wanted` takes.
    ///
    /// Asks the kernel about each without holding the index: with 100,000 blobs that takes a while.
    fn unlinked(&self, candidates: Vec<BlobName>, wanted: Need) -> Vec<BlobName> {
        let mut found = Need::default();
        let is_unlinked = |name: &BlobName| {
            fstatat(&self.blobs, name.to_string().as_str(), AtFlags::empty())
                .is_ok_and(|stat| stat.st_nlink == 1)
        };
        let mut unlinked = Vec::new();
        for name in candidates {
            if found.holds(wanted) {
                break;
            }
            if is_unlinked(&name) {
                found.bytes += pages(name.size);
                found.inodes += 1;
                unlinked.push(name);
            }
        }
        unlinked
    }

    /// Removes what nobody has leased since it was found unlinked: links are made by leases only.
    fn evict(&self, index: &mut Index, unlinked: Vec<BlobName>) {
        for name in unlinked {
            if !index.is_idle(&name.id) {
                continue;
            }
            let file = name.to_string();
            match unlinkat(&self.blobs, file.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {
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

/// Makes a directory for root alone. Its mode is set even if it exists: below a setgid directory it
/// would hand its group on to our files.
fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let private = std::fs::Permissions::from_mode(0o700);
    if std::fs::metadata(path)?.permissions().mode() & 0o7777 == private.mode() {
        return Ok(());
    }
    std::fs::set_permissions(path, private)
}

/// The stores of a node: one on each medium.
#[derive(Debug, Clone)]
pub struct Stores {
    memory: Store,
    disk: Store,
}

impl Stores {
    /// The stores of both media.
    pub fn new(memory: Store, disk: Store) -> Self {
        Self { memory, disk }
    }

    /// The store on `medium`.
    pub fn get(&self, medium: Medium) -> &Store {
        match medium {
            Medium::Memory => &self.memory,
            Medium::Disk => &self.disk,
        }
    }

    /// Both stores.
    pub fn iter(&self) -> impl Iterator<Item = &Store> {
        [&self.memory, &self.disk].into_iter()
    }
}

#[cfg(test)]
mod tests;
