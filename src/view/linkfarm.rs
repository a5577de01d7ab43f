//! The `tmpfs` and `disk` views: revisions are directories of hard links to blobs.
//!
//! ```text
//! <volumes>/<volume>/root/               what the pod's bind mount refers to; never recreated
//!     layout symlinks                    layout files
//!     keystore.jks -> ..data/...         keystore.jks
//!     ..data -> ..2                      lib/app.py
//!     ..2/keystore.jks                   ../next/0       staged; only during a replacement
//!     ..1/keystore.jks                   retired; until nobody can be reading there
//!     ..3/ ..data.new                    half built; only during a replacement
//! ```
//!
//! `symlinks` is the kubelet's own layout for Secrets: everything is reached through `..data`, one
//! rename(2) of which swaps all files at once. Top-level names beginning with `..` are therefore
//! ours (listings keep them free). `files` replaces each file by itself.
//!
//! The cache *is* the view: a file costs one link, not a copy, however many volumes show it. A
//! replacement links what is unchanged from what it replaces, without a look at the store.
//!
//! What stands on the disk is the only truth: a replacement starts from it, whatever an earlier
//! one, or a crash, left. Revisions are numbered upwards; a directory with a higher number than the
//! one that `..data` leads to was never shown. A revision that was shown is removed only when the
//! caller says so, and then only if no mount shows a part of it (the kubelet binds the directory of
//! a `subPath` by itself, so that container goes on seeing one revision).
//!
//! One caller at a time to each volume. All functions block.

mod build;
mod directory;
mod effect;
mod files;
mod shown;
mod swap;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::errno::Errno;
use thiserror::Error;

pub use self::shown::Shown;
use self::{directory::Directory, swap::Root};
use crate::{
    failure::FailureKind,
    listing::{Entry, Listing, Row},
    mount::{MountError, table},
    relpath::RelPath,
    store::{BlobId, Lease, Reservation, Sharers, StoreError, Variant},
    volume::{Layout, Ownership},
};

/// What the pod's mount refers to, in the volume's directory.
const ROOT: &str = "root";

/// Why a revision could not be shown.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The file system refused.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A blob could not be linked.
    #[error("failed to show {path}")]
    Link {
        /// The file in the volume.
        path: RelPath,
        /// Why.
        #[source]
        error: StoreError,
    },
    /// Nobody could tell whether a revision is bound elsewhere.
    #[error("failed to see whether {} is mounted elsewhere", path.display())]
    Mounts {
        /// The revision.
        path: PathBuf,
        /// Why.
        #[source]
        error: MountError,
    },
}

impl ViewError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Io { error, .. } => crate::store::io_kind(error),
            Self::Link { error, .. } => error.kind(),
            Self::Mounts { error, .. } => error.kind(),
        }
    }
}

impl ViewError {
    /// Whether room on the medium would help.
    pub fn wants_room(&self) -> bool {
        match self {
            Self::Io { error, .. } => error.kind() == io::ErrorKind::StorageFull,
            Self::Link { error, .. } => error.wants_room(),
            Self::Mounts { .. } => false,
        }
    }
}

/// The blobs of a revision, pinned while they are linked, and room for the variants of them that
/// have to be made.
#[derive(Debug)]
pub struct Leases {
    /// As which variant they are shown.
    pub variant: Variant,
    /// Each entry's blob; entries that are kept need none.
    pub blobs: HashMap<BlobId, Arc<Lease>>,
    /// Set aside when the listing was admitted.
    pub reservation: Arc<Reservation>,
}

/// What a replacement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// The number of what is shown now; plain files have none, which is 0.
    pub revision: u64,
    /// What was shown before, if it still stands.
    pub retired: Option<Retired>,
}

/// A revision that is shown no more and may still be read by who resolved `..data` before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Retired {
    revision: u64,
}

impl Retired {
    /// Its number.
    pub fn revision(self) -> u64 {
        self.revision
    }
}

/// The files of one volume.
#[derive(Debug, Clone)]
pub struct LinkFarm {
    directory: PathBuf,
    layout: Layout,
    ownership: Ownership,
}

impl LinkFarm {
    /// The link farm at `directory`, which it owns.
    pub fn new(directory: PathBuf, layout: Layout, ownership: Ownership) -> Self {
        Self { directory, layout, ownership }
    }

    /// What the pod's mount refers to.
    pub fn root(directory: &Path) -> PathBuf {
        directory.join(ROOT)
    }

    /// What a volume's files are, for who may have links to them.
    pub fn variant(ownership: &Ownership, sharers: Option<Sharers>) -> Variant {
        let Ownership { uid, gid, file_mode, .. } = *ownership;
        Variant { uid, gid, mode: file_mode.bits(), sharers }
    }

    /// How the files of a volume directory stand; `None` if there are none yet.
    pub fn layout_of(directory: &Path) -> Option<Layout> {
        let root = find_root(directory).ok().flatten()?;
        let is_linked = root.target(swap::DATA).is_ok_and(|target| target.is_some());
        Some(if is_linked { Layout::Symlinks } else { Layout::Files })
    }

    /// How many names a listing needs, shown first or as a replacement: what a tmpfs counts as
    /// inodes.
    pub fn names(listing: &Listing) -> u64 {
        // The symlinks at the top, and the directories that every volume has.
        let own = top_names(listing).len() + 5;
        (listing.len() + listing.directories().len() + own) as u64
    }

    /// Builds the volume's first revision from nothing, replacing what an unfinished attempt left.
    ///
    /// # Errors
    /// What the file system answers; the directory is then incomplete and must be removed.
    ///
    /// # Blocking
    /// One link for each file, four calls for each directory.
    pub fn create(&self, listing: &Listing, leases: &Leases) -> Result<(), ViewError> {
        if !make_new(&self.directory)? {
            self.remove()?;
            make_new(&self.directory)?;
        }
        let root = open(&self.directory)?.make_private(ROOT)?;
        let link = swap::keeping(None, |_| false, leases);
        match self.layout {
            Layout::Files => build::build(&root, listing, &self.ownership, link)?,
            Layout::Symlinks => {
                swap::replace(&root, &Root::default(), listing, &self.ownership, link)?;
            }
        }
        root.own(&self.ownership)
    }

    /// Removes all of the volume's files; blobs stay in the store.
    ///
    /// # Errors
    /// What the file system answers; a missing directory is fine.
    pub fn remove(&self) -> Result<(), ViewError> {
        remove_all(&self.directory)
    }

    /// What the volume shows, for who does not remember it: after a restart of the plugin, or a
    /// replacement that failed.
    ///
    /// # Errors
    /// What the file system answers; an error if there is nothing.
    ///
    /// # Blocking
    /// Reads each directory once; no call for each file.
    pub fn read(&self) -> Result<Shown, ViewError> {
        let root = open(&self.directory)?.enter(ROOT)?;
        match self.layout {
            Layout::Files => Shown::read(&root, 0),
            Layout::Symlinks => {
                let revision = swap::current(&root)?;
                Shown::read(&root.enter(&swap::revision_name(revision))?, revision)
            }
        }
    }

    /// Shows `listing` instead of what is shown: all at once, or not at all, with `symlinks`; file
    /// by file with `files`.
    ///
    /// Entries for which `keep` is true must stand at the same path with the same content in what
    /// is shown; they are taken from there if they do stand there, and need no lease. All others
    /// are linked from `leases`. The revision that was shown stays: see
    /// [`LinkFarm::remove_retired`].
    ///
    /// # Errors
    /// What the file system answers; stale if a blob is gone, or an entry to be kept is not there
    /// (or has as many links as a file can have) and was not leased. After an error nothing is
    /// certain: with `symlinks` either revision may be shown (the new one only if a name at the top
    /// could not be made or removed), with `files` a mix of both. Each path is whole or absent all
    /// the same. The caller asks [`LinkFarm::tidy`] for what is left over and [`LinkFarm::read`]
    /// for what can be kept, and replaces again.
    ///
    /// # Blocking
    /// With `symlinks`, one link for each file and four calls for each directory. With `files`, one
    /// link and one rename for each change, and a read of each directory.
    pub fn replace(
        &self,
        listing: &Listing,
        keep: impl Fn(&Entry) -> bool,
        leases: &Leases,
    ) -> Result<Replaced, ViewError> {
        let volume = open(&self.directory)?;
        let root = volume.enter(ROOT)?;
        match self.layout {
            Layout::Files => {
                let standing = Shown::read(&root, 0)?;
                let plan = files::Plan::new(&standing, listing, keep);
                files::replace(&volume, &root, &plan, leases, &self.ownership)?;
                Ok(Replaced { revision: 0, retired: None })
            }
            Layout::Symlinks => {
                let found = Root::read(&root)?;
                let previous = root.find(&swap::revision_name(found.current))?;
                let link = swap::keeping(previous.as_ref(), keep, leases);
                swap::replace(&root, &found, listing, &self.ownership, link)
            }
        }
    }

    /// Removes a retired revision of the volume at `directory`; false if it has to stay, because it is shown (again) or a mount
    /// shows a part of it.
    ///
    /// # Errors
    /// What the file system answers, or the mount table; what is left can be removed later.
    ///
    /// # Blocking
    /// Reads the mount table unless there is nothing to remove; one call for each file.
    pub fn remove_retired(directory: &Path, retired: Retired) -> Result<bool, ViewError> {
        let Some(root) = find_root(directory)? else { return Ok(true) };
        let name = swap::revision_name(retired.revision);
        if root.find(&name)?.is_none() {
            return Ok(true);
        }
        if swap::current(&root)? == retired.revision || is_bound(directory, &name)? {
            return Ok(false);
        }
        root.remove(&name)?;
        Ok(true)
    }

    /// Finishes or undoes what a replacement left half done in a volume's directory, by a crash or
    /// an error. Returns the older revisions that are still there, oldest first.
    ///
    /// With `files`, what was half replaced stays so until the next replacement. A directory that
    /// does not exist, or shows nothing yet, is fine.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// A few calls, and one for each file that is removed.
    pub fn tidy(directory: &Path) -> Result<Vec<Retired>, ViewError> {
        let Some(volume) = Directory::open(directory)? else { return Ok(Vec::new()) };
        files::tidy(&volume)?;
        match volume.find(ROOT)? {
            Some(root) if swap::current(&root)? > 0 => swap::tidy(&root),
            _ => Ok(Vec::new()),
        }
    }
}

/// Whether some mount shows that revision or something below it.
fn is_bound(directory: &Path, revision: &str) -> Result<bool, ViewError> {
    let root = LinkFarm::root(directory);
    let mounts =
        table::mounts().map_err(|error| ViewError::Mounts { path: root.join(revision), error })?;
    // The volume's own name is enough: what is above it may have other names in a container.
    let volume = directory.file_name().unwrap_or_default();
    let place = Path::new(volume).join(ROOT).join(revision);
    Ok(mounts.iter().any(|mount| mount.shows(&place)))
}

/// Removes a volume's directory with everything in it, below open directories; a missing one is fine.
///
/// # Errors
/// What the file system answers.
pub fn remove_all(directory: &Path) -> Result<(), ViewError> {
    let name = directory.file_name().and_then(|name| name.to_str());
    let volumes = directory.parent().map(Directory::open).transpose()?.flatten();
    match (volumes, name) {
        (Some(volumes), Some(name)) => volumes.remove(name),
        _ => Ok(()),
    }
}

/// Makes a volume's directory, with those above it; false if it is there.
fn make_new(directory: &Path) -> Result<bool, ViewError> {
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700);
    let made = match private.create(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private.recursive(true).create(directory)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        made => made,
    };
    made.map(|()| true).map_err(|error| io_error("create", directory, error))
}

/// Opens a volume's directory, which must be there.
fn open(directory: &Path) -> Result<Directory, ViewError> {
    let missing = || io_error("open", directory, Errno::ENOENT.into());
    Directory::open(directory)?.ok_or_else(missing)
}

fn find_root(directory: &Path) -> Result<Option<Directory>, ViewError> {
    Directory::open(directory)?.map_or(Ok(None), |volume| volume.find(ROOT))
}

/// The names at the top of the volume.
fn top_names(listing: &Listing) -> BTreeSet<&str> {
    let directories = listing.directories().iter().map(RelPath::as_str);
    let paths = listing.rows().map(Row::path).chain(directories);
    paths.filter_map(|path| path.split('/').next()).collect()
}

fn io_error(action: &'static str, path: &Path, error: io::Error) -> ViewError {
    ViewError::Io { action, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
