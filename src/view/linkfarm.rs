//! The `tmpfs` and `disk` views: revisions are directories of hard links to blobs.
//!
//! ```text
//! <volumes>/<volume>/root/               what the pod's bind mount refers to; never recreated
//!     layout symlinks                    layout files
//!     keystore.jks -> ..data/...         keystore.jks
//!     ..data -> ..1                      lib/app.py
//!     ..1/keystore.jks
//! ```
//!
//! `symlinks` is the kubelet's own layout for Secrets: everything is reached through `..data`, one
//! rename(2) of which swaps all files at once. Top-level names beginning with `..` are therefore
//! ours (listings keep them free).
//!
//! The cache *is* the view: a file costs one link, not a copy, however many volumes show it.
//! All functions block.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, renameat},
    sys::stat::{Mode as Permissions, fchmod, mkdirat},
    unistd::{Gid, Uid, fchown, symlinkat},
};
use thiserror::Error;

use crate::{
    failure::FailureKind,
    listing::{Entry, Listing},
    relpath::RelPath,
    store::{BlobId, Lease, Reservation, StoreError, Variant},
    volume::{Layout, Ownership},
};

/// The name through which everything is reached in the layout `symlinks`.
const DATA: &str = "..data";
const NEW_DATA: &str = "..data.new";

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
}

impl ViewError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Io { error, .. } => crate::store::io_kind(error),
            Self::Link { error, .. } => error.kind(),
        }
    }
}

/// The blobs of a revision, pinned while they are linked, and room for the variants of them that
/// have to be made.
#[derive(Debug)]
pub struct Leases {
    /// Each entry's blob.
    pub blobs: HashMap<BlobId, Arc<Lease>>,
    /// Set aside when the listing was admitted.
    pub reservation: Arc<Reservation>,
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
        directory.join("root")
    }

    /// The owner and mode of this volume's files.
    pub fn variant(ownership: &Ownership) -> Variant {
        let Ownership { uid, gid, file_mode, .. } = *ownership;
        Variant { uid, gid, mode: file_mode.bits() }
    }

    /// How many names a listing needs: what a tmpfs counts as inodes.
    pub fn names(listing: &Listing) -> u64 {
        // The symlinks at the top, and the directories that every volume has.
        let own = top_names(listing).len() + 5;
        (listing.entries().len() + listing.directories().len() + own) as u64
    }

    /// Builds the volume's first revision from nothing, replacing what an unfinished attempt left.
    ///
    /// # Errors
    /// What the file system answers; the directory is then incomplete and must be removed.
    ///
    /// # Blocking
    /// One link for each file, four calls for each directory.
    pub fn create(&self, listing: &Listing, leases: &Leases) -> Result<(), ViewError> {
        self.remove()?;
        let root = Self::root(&self.directory);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|error| io_error("create", &root, error))?;
        let top = open_directory(AT_FDCWD, root.as_path()).map_err(|e| failed("open", &root, e))?;
        match self.layout {
            Layout::Files => self.build(top.as_fd(), &root, listing, leases)?,
            Layout::Symlinks => self.show_first(&top, &root, listing, leases)?,
        }
        self.own(&top, &root)
    }

    /// Removes all of the volume's files; blobs stay in the store.
    ///
    /// # Errors
    /// What the file system answers; a missing directory is fine.
    pub fn remove(&self) -> Result<(), ViewError> {
        remove_all(&self.directory)
    }

    fn show_first(
        &self,
        top: &OwnedFd,
        root: &Path,
        listing: &Listing,
        leases: &Leases,
    ) -> Result<(), ViewError> {
        let (name, path) = ("..1", root.join("..1"));
        let revision = self.make_directory(top, name, &path)?;
        self.build(revision.as_fd(), &path, listing, leases)?;
        symlinkat(name, top, NEW_DATA).map_err(|e| failed("link", &root.join(NEW_DATA), e))?;
        renameat(top, NEW_DATA, top, DATA).map_err(|e| failed("swap", &root.join(DATA), e))?;
        for name in top_names(listing) {
            let target = format!("{DATA}/{name}");
            symlinkat(target.as_str(), top, name)
                .map_err(|errno| failed("link", &root.join(name), errno))?;
        }
        Ok(())
    }

    /// Makes all directories and links below an empty directory.
    ///
    /// Directories and entries are both in path order, so one walk with a stack of open directories
    /// does it: no path is resolved twice, and no more descriptors are open than the tree is deep.
    fn build(
        &self,
        top: std::os::fd::BorrowedFd<'_>,
        path: &Path,
        listing: &Listing,
        leases: &Leases,
    ) -> Result<(), ViewError> {
        let variant = Self::variant(&self.ownership);
        let mut stack: Vec<(&RelPath, OwnedFd)> = Vec::new();
        let mut directories = listing.directories().iter().peekable();
        let mut entries = listing.entries().iter().peekable();
        loop {
            let directory_first = match (directories.peek(), entries.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(directory), Some(entry)) => **directory < entry.path,
            };
            let next = if directory_first { directories.next() } else { None };
            let name = match (next, entries.peek()) {
                (Some(directory), _) => directory,
                (None, Some(entry)) => &entry.path,
                (None, None) => return Ok(()),
            };
            let parent = name.parent();
            while stack.last().is_some_and(|(open, _)| Some(*open) != parent.as_ref()) {
                stack.pop();
            }
            let inside = stack.last().map_or(top, |(_, fd)| fd.as_fd());
            if let Some(directory) = next {
                let full = path.join(directory.as_str());
                let made = self.make_directory(inside, directory.file_name(), &full)?;
                stack.push((directory, made));
            } else if let Some(entry) = entries.next() {
                link(entry, leases, variant, inside)?;
            }
        }
    }

    fn make_directory(
        &self,
        parent: impl AsFd,
        name: &str,
        path: &Path,
    ) -> Result<OwnedFd, ViewError> {
        mkdirat(&parent, name, Permissions::S_IRWXU).map_err(|e| failed("create", path, e))?;
        let made = open_directory(&parent, name).map_err(|e| failed("open", path, e))?;
        self.own(&made, path)?;
        Ok(made)
    }

    fn own(&self, directory: &OwnedFd, path: &Path) -> Result<(), ViewError> {
        let Ownership { uid, gid, dir_mode, .. } = self.ownership;
        // What we make is root's already: no directory of the store hands its group on.
        if (uid, gid) != (0, 0) {
            fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|errno| failed("set the owner of", path, errno))?;
        }
        fchmod(directory, Permissions::from_bits_truncate(u32::from(dir_mode.bits())))
            .map_err(|errno| failed("set the mode of", path, errno))
    }
}

/// Removes a volume's directory with everything in it; a missing one is fine.
///
/// # Errors
/// What the file system answers.
pub fn remove_all(directory: &Path) -> Result<(), ViewError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", directory, error))
        }
        _ => Ok(()),
    }
}

fn link(
    entry: &Entry,
    leases: &Leases,
    variant: Variant,
    directory: impl AsFd,
) -> Result<(), ViewError> {
    let lease = leases.blobs.get(&BlobId::of(&entry.object.version));
    let lease = lease.expect("every entry's blob was leased before it is linked");
    lease
        .link(variant, directory, entry.path.file_name())
        .map_err(|error| ViewError::Link { path: entry.path.clone(), error })
}

/// The names at the top of the volume.
fn top_names(listing: &Listing) -> BTreeSet<&str> {
    let paths = listing.entries().iter().map(|entry| &entry.path).chain(listing.directories());
    paths.filter_map(|path| path.components().next()).collect()
}

fn open_directory(at: impl AsFd, path: &(impl nix::NixPath + ?Sized)) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, path, flags, Permissions::empty())
}

fn failed(action: &'static str, path: &Path, errno: Errno) -> ViewError {
    io_error(action, path, errno.into())
}

fn io_error(action: &'static str, path: &Path, error: io::Error) -> ViewError {
    ViewError::Io { action, path: path.to_owned(), error }
}
