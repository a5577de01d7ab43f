//! The node's content cache: blobs keyed by object version, on one medium.
//!
//! A [`Store`] owns a directory and nothing else:
//!
//! ```text
//! <root>/v1/blobs/<id>-<size>-<crc>-<uid>-<gid>-<mode>   one file for each variant of a blob
//!        .../<the same>-<sharers>-<digest>               one that not everybody may link
//! <root>/v1/tmp/                                         fills, where O_TMPFILE is missing
//! <root>/v1/parts/<id>-<size>-<block>, <the same>.map    what is here in part
//! <root>/v1/volumes/<volume>/                            revisions: hard links to blobs
//! <root>/v1/records/                                     what principals were allowed to read
//! ```
//!
//! Rules. A blob's file is complete and verified before it has its name, and never changes after.
//! Ownership, mode and mtime live on the inode, so a blob has one *variant* for each combination of
//! owner and mode, and for each circle of sharers where not everybody may have a link to the same
//! inode. A variant is copied from another; a copy for other sharers is checked against a digest that
//! nobody can forge, because whoever holds a link may have changed the file. A blob is handed out only to a principal whom S3 let read that very object
//! version, not too long ago: it fetched it, or the caller vouches for it. A file of an earlier run on the disk is read
//! through before it is handed out. What a volume links (`st_nlink` above one) or a [`Lease`] pins is never evicted; the
//! link count is the kernel's, so it survives a restart and cannot drift as a counter of ours could.
//!
//! The names carry everything that the index needs: a start scans one directory and reads no file.
//!
//! No async code, and no locks across system calls other than the store's own: it can be modelled.

mod blob;
mod error;
mod fill;
mod index;
mod lease;
mod resident;
mod sparse;
mod unnamed;
mod verify;

use std::{
    fmt,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, open},
    sys::{
        stat::{Mode as Permissions, fstatat},
        statvfs::{FsFlags, statvfs},
    },
    unistd::{UnlinkatFlags, unlinkat},
};
use parking_lot::{Mutex, MutexGuard};
use prometheus::{IntCounter, IntGauge};

pub(crate) use self::error::io_kind;
use self::{
    blob::BlobName,
    error::io_error,
    index::{Index, Victim},
    sparse::Partials,
    verify::Readings,
};
pub use self::{
    blob::{BlobId, Sharers, Variant},
    error::StoreError,
    fill::{Content, Fill},
    lease::{Lease, Reservation},
    resident::{read_exact, read_resident},
    sparse::{Room as BlockRoom, Sparse, Writer},
};
use crate::{
    object::ObjectVersion, source::Principal, telemetry::metrics::Metrics, units::ByteSize,
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

/// What can still be taken.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// What the store may hold.
    capacity: u64,
    /// What it holds or has promised: more than it may, after the configured size was lowered.
    used: u64,
    /// Bytes that the file system has and nobody was promised.
    free: u64,
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
    readings: Readings,
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
    /// removes what earlier runs left half done. A store that is there is opened on a read-only
    /// file system too: it shows what it has, and takes writes once the file system does.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// Reads the names in one directory and opens no blob; 100,000 blobs take well under a second.
    pub fn open(
        medium: Medium,
        directory: &Path,
        capacity: ByteSize,
        metrics: &Metrics,
    ) -> Result<Self, StoreError> {
        let failed = |action| move |error: io::Error| io_error(medium, action, error);
        let root = directory.join(LAYOUT);
        for name in ["", "blobs", "tmp", "volumes", "parts"] {
            let path = root.join(name);
            create_private(&path).map_err(failed("create a directory"))?;
        }
        let lock = open_lock(&root.join("lock")).map_err(failed("open the lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::Locked { medium, root: root.clone() })?;
        empty(&root.join("tmp"));
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let blobs = open(&root.join("blobs"), flags, Permissions::empty())
            .map_err(|errno| failed("open the blobs")(errno.into()))?;
        let mut index =
            Index::scan(&root.join("blobs"), medium).map_err(failed("read the blobs"))?;
        let is_blob = |id: &BlobId| index.find(id).is_some();
        index.partials = Partials::scan(&root.join("parts"), is_blob)
            .map_err(failed("read the sparse files"))?;
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
        let (readings, adding) = (Readings::default(), Mutex::default());
        let inner =
            Inner { medium, root, blobs, capacity, index, readings, adding, gauges, _lock: lock };
        inner.show(&inner.index.lock());
        Ok(Self(Arc::new(inner)))
    }

    /// The medium.
    pub fn medium(&self) -> Medium {
        self.0.medium
    }

    /// The configured size in bytes.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// The directory of all volumes' revisions.
    pub fn volumes(&self) -> PathBuf {
        self.0.root.join("volumes")
    }

    /// The directory for records of what principals were allowed to read; made by who writes one.
    pub fn records(&self) -> PathBuf {
        self.0.root.join("records")
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

    /// A lease on the blob for a caller whom S3 just let read this very object version as
    /// `principal`; from now on it is handed out to that principal. None if the blob is not here: the
    /// caller fetches it. Not counted as a lookup.
    ///
    /// # Errors
    /// As [`Store::hold`].
    ///
    /// # Blocking
    /// As [`Store::hold`].
    pub fn vouch(
        &self,
        principal: Principal,
        version: &ObjectVersion,
    ) -> Result<Option<Lease>, StoreError> {
        let Some(lease) = self.hold(version)? else { return Ok(None) };
        let permitted = self.0.index.lock().permit(&lease.id, principal);
        Ok(permitted.then_some(lease))
    }

    /// A lease on the blob, for a caller who knows that it may be shown in this one case: a record
    /// says that S3 allowed it once. Proves nothing for others. None if the blob is not here.
    ///
    /// A file of an earlier run is verified first. One that is damaged is removed, and told in the
    /// log; volumes that link it keep what they have.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// May read all of the blob; waits for another thread that does.
    pub fn hold(&self, version: &ObjectVersion) -> Result<Option<Lease>, StoreError> {
        let id = BlobId::of(version);
        // Pinned first, so that nobody evicts what is being read.
        if !self.0.index.lock().pin(&id) {
            return Ok(None);
        }
        let lease = Lease { store: self.clone(), id };
        loop {
            let found = self.0.index.lock().find(&id);
            match found {
                None => return Ok(None),
                Some((_, true)) => return Ok(Some(lease)),
                // Whatever the verdict, the next look finds another.
                Some((name, false)) => drop(verify::verify(self, &name)?),
            }
        }
    }

    /// The inode number of the blob's file, if that variant is here, verified or not. A path with
    /// this inode on this medium shows this blob.
    pub fn inode(&self, id: &BlobId, variant: Variant) -> Option<u64> {
        self.0.index.lock().inode(id, variant)
    }

    /// Sets room aside for blobs, and `names` links and directories beside them, evicting the least
    /// recently used blobs that no volume links. Room that somebody else has set aside for the same
    /// blob is shared: of all who wait for it, one fetches it.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::NoSpace`] or [`StoreError::Inodes`] with what is needed
    /// and what there is; [`StoreError::ReadOnly`].
    ///
    /// # Blocking
    /// A few system calls; more when it evicts.
    pub fn reserve(&self, wanted: Vec<Wanted>, names: u64) -> Result<Reservation, StoreError> {
        let inodes = names + wanted.len() as u64;
        let need = |index: &Index| Need { bytes: index.uncovered(&wanted), inodes };
        let mut index = self.0.make_room(need)?;
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
        room.is_ok_and(|room| room.missing(Need { bytes, inodes }) == Need::default())
    }

    /// Sets how long S3's word that a principal may read a blob counts (10 minutes at first).
    pub fn set_proof_lifetime(&self, lifetime: Duration) {
        self.0.index.lock().set_proof_lifetime(lifetime);
    }

    /// Whether any content of `version` is here, for whomever and as whichever variant.
    pub fn has(&self, version: &ObjectVersion) -> bool {
        self.0.index.lock().find(&BlobId::of(version)).is_some()
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

    fn path_of(&self, name: &BlobName) -> PathBuf {
        self.root.join("blobs").join(name.to_string())
    }

    /// What can still be taken: by our own count, and by what the file system has.
    fn room(&self, index: &Index) -> Result<Room, StoreError> {
        let space = statvfs(&self.root)
            .map_err(|errno| io_error(self.medium, "ask for free space", errno.into()))?;
        if space.flags().contains(FsFlags::ST_RDONLY) {
            return Err(StoreError::ReadOnly { medium: self.medium, root: self.root.clone() });
        }
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        Ok(Room {
            capacity: self.capacity,
            used: index.used(),
            free: free.saturating_sub(index.outstanding()),
            // Some file systems (btrfs) do not count inodes and report none in all.
            inodes: if space.files() == 0 { u64::MAX } else { space.files_available() },
        })
    }

    /// Evicts what must go before there is room for `need`, and keeps the index locked, so that the
    /// room can be taken.
    fn make_room(
        &self,
        need: impl Fn(&Index) -> Need,
    ) -> Result<MutexGuard<'_, Index>, StoreError> {
        let mut index = self.index.lock();
        let mut room = self.room(&index)?;
        let missing = room.missing(need(&index));
        if missing != Need::default() {
            let candidates = index.candidates();
            drop(index);
            let unlinked = self.unlinked(candidates, missing);
            index = self.index.lock();
            self.evict(&mut index, unlinked);
            room = self.room(&index)?;
        }
        self.check_room(room, need(&index))?;
        Ok(index)
    }

    fn check_room(&self, room: Room, need: Need) -> Result<(), StoreError> {
        let Self { medium, capacity, .. } = *self;
        let needed = need.bytes;
        let counted = capacity.saturating_sub(room.used);
        if counted < needed {
            let available = counted.min(room.free);
            return Err(StoreError::Full { medium, needed, available, capacity });
        }
        if room.free < needed {
            let available = room.free;
            return Err(StoreError::NoSpace { medium, root: self.root.clone(), needed, available });
        }
        if room.inodes < need.inodes {
            let (needed, available) = (need.inodes, room.inodes);
            return Err(StoreError::Inodes { medium, needed, available });
        }
        Ok(())
    }

    /// The first of `candidates` that no volume links, as many as `wanted` takes.
    ///
    /// Asks the kernel about each without holding the index: with 100,000 blobs that takes a while.
    fn unlinked(&self, candidates: Vec<Victim>, wanted: Need) -> Vec<Victim> {
        let mut found = Need::default();
        let is_unlinked = |name: &BlobName| {
            fstatat(&self.blobs, name.to_string().as_str(), AtFlags::empty())
                .is_ok_and(|stat| stat.st_nlink == 1)
        };
        let mut unlinked = Vec::new();
        for victim in candidates {
            if found.holds(wanted) {
                break;
            }
            match victim {
                Victim::Blob(name) if is_unlinked(&name) => {
                    found.bytes += pages(name.size);
                    found.inodes += 1;
                }
                Victim::Blob(_) => continue,
                Victim::Partial { bytes, .. } => {
                    found.bytes += bytes;
                    found.inodes += 2;
                }
            }
            unlinked.push(victim);
        }
        unlinked
    }

    /// Removes what nobody has leased since it was found unlinked: links are made by leases only.
    fn evict(&self, index: &mut Index, unlinked: Vec<Victim>) {
        for victim in unlinked {
            match victim {
                Victim::Blob(name) => self.evict_blob(index, &name),
                Victim::Partial { name, token, .. } => {
                    if index.partials.is_idle(&name.id, token) {
                        index.partials.remove(&name.id, token);
                        sparse::remove_files(&self.root, &name);
                        self.gauges.evictions.inc();
                    }
                }
            }
        }
    }

    fn evict_blob(&self, index: &mut Index, name: &BlobName) {
        if !index.is_idle(&name.id) {
            return;
        }
        let file = name.to_string();
        match unlinkat(&self.blobs, file.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {
                index.remove(name);
                self.gauges.evictions.inc();
            }
            Err(errno) => tracing::warn!(blob = file, %errno, "failed to evict a blob"),
        }
    }
}

impl Room {
    /// What must go before there is room for `need`.
    fn missing(self, need: Need) -> Need {
        let by_count = self.used.saturating_add(need.bytes).saturating_sub(self.capacity);
        let by_file_system = need.bytes.saturating_sub(self.free);
        Need {
            // Who needs nothing more waits for nothing.
            bytes: if need.bytes == 0 { 0 } else { by_count.max(by_file_system) },
            inodes: need.inodes.saturating_sub(self.inodes),
        }
    }
}

impl Need {
    fn holds(self, other: Self) -> bool {
        self.bytes >= other.bytes && self.inodes >= other.inodes
    }
}

/// Rounds a size up to whole pages.
pub fn pages(size: u64) -> u64 {
    size.div_ceil(PAGE).saturating_mul(PAGE)
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Makes a directory for root alone. Its mode is set even if it exists: below a setgid directory it
/// would hand its group on to our files. One that exists on a read-only file system is left alone.
fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let private = std::fs::Permissions::from_mode(0o700);
    if std::fs::metadata(path)?.permissions().mode() & 0o7777 == private.mode() {
        return Ok(());
    }
    match std::fs::set_permissions(path, private) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        set => set,
    }
}

/// Opens the lock's file for reading, so that it can be on a read-only file system, and does not keep
/// one from becoming read-only.
fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            drop(File::create(path)?);
            File::open(path)
        }
        opened => opened,
    }
}

/// Removes the files in a directory, as far as it can. The directory stays: where no file can be
/// made, no directory can be made again either.
fn empty(directory: &Path) {
    let failed = |error: &io::Error| {
        let path = directory.display();
        tracing::warn!(%error, %path, "failed to remove an unfinished blob");
    };
    let files = std::fs::read_dir(directory).inspect_err(failed).into_iter().flatten();
    for file in files {
        drop(file.and_then(|file| std::fs::remove_file(file.path())).inspect_err(failed));
    }
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
