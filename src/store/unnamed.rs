//! Files that are being written: they have no name, so a crash leaves nothing of them.
//!
//! Where the file system has no `O_TMPFILE`, they have a temporary name in `tmp/`, which the next
//! start empties. Source: open(2), `O_TMPFILE`.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::Mode as Permissions,
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use tempfile::NamedTempFile;

use super::Store;

/// The mode of new files: that of most variants, so that it seldom has to be changed.
const MODE: Permissions =
    Permissions::S_IRUSR.union(Permissions::S_IRGRP).union(Permissions::S_IROTH);

/// A file on a store's medium that is no blob yet. Dropped without a name, it is gone.
#[derive(Debug)]
pub(super) enum Unnamed {
    /// Without any name.
    File(File),
    /// In `tmp/`.
    Temporary(NamedTempFile),
    /// Elsewhere on the medium, by a name that is its owner's to remove.
    Named(File, PathBuf),
}

impl Unnamed {
    /// Makes an empty file.
    pub(super) fn new(store: &Store) -> io::Result<Self> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        match openat(&store.0.blobs, ".", flags, MODE) {
            Ok(file) => Ok(Self::File(file.into())),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR) => Self::temporary(store),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Likewise where the file system wants a name.
    pub(super) fn temporary(store: &Store) -> io::Result<Self> {
        NamedTempFile::new_in(store.0.root.join("tmp")).map(Self::Temporary)
    }

    /// The file, open for reading and writing.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::File(file) | Self::Named(file, _) => file,
            Self::Temporary(file) => file.as_file(),
        }
    }

    /// Gives the file a name in `directory`, which must be free.
    pub(super) fn link(&self, directory: impl AsFd, name: &str) -> Result<(), Errno> {
        match self {
            Self::File(file) => match linkat(file, "", &directory, name, AtFlags::AT_EMPTY_PATH) {
                // Without CAP_DAC_READ_SEARCH (in a user namespace), kernels before 6.10 want to be
                // told by a path.
                Err(Errno::ENOENT) => {
                    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                    let follow = AtFlags::AT_SYMLINK_FOLLOW;
                    linkat(AT_FDCWD, path.as_str(), &directory, name, follow)
                }
                linked => linked,
            },
            Self::Temporary(file) => {
                linkat(AT_FDCWD, file.path(), &directory, name, AtFlags::empty())
            }
            Self::Named(_, path) => {
                linkat(AT_FDCWD, path.as_path(), &directory, name, AtFlags::empty())
            }
        }
    }

    /// Likewise; a file that has the name loses it.
    pub(super) fn replace(&self, directory: impl AsFd, name: &str) -> Result<(), Errno> {
        match self.link(&directory, name) {
            Err(Errno::EEXIST) => {
                unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir)?;
                self.link(&directory, name)
            }
            linked => linked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, path::Path};

    use super::*;
    use crate::{store::Medium, telemetry::metrics::Metrics, units::ByteSize};

    /// With a name or without, for file systems that have `O_TMPFILE` and those that do not.
    const KINDS: [fn(&Store) -> io::Result<Unnamed>; 2] = [Unnamed::new, Unnamed::temporary];

    fn store(directory: &Path) -> Store {
        let capacity = ByteSize::from_bytes(1 << 20);
        Store::open(Medium::Disk, directory, capacity, &Metrics::new()).unwrap()
    }

    fn count(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_file_gets_its_name_with_all_of_its_content() {
        for make in KINDS {
            let directory = tempfile::tempdir().unwrap();
            let store = store(directory.path());
            let blobs = directory.path().join("v1/blobs");
            std::fs::write(blobs.join("name"), "what was there").unwrap();
            let unnamed = make(&store).unwrap();
            unnamed.file().write_all(b"content").unwrap();
            assert_eq!(std::fs::read(blobs.join("name")).unwrap(), b"what was there");
            assert_eq!(unnamed.link(&store.0.blobs, "name"), Err(Errno::EEXIST));
            unnamed.replace(&store.0.blobs, "name").unwrap();
            drop(unnamed);
            assert_eq!(std::fs::read(blobs.join("name")).unwrap(), b"content");
            assert_eq!((count(&blobs), count(&directory.path().join("v1/tmp"))), (1, 0));
        }
    }

    #[test]
    fn a_file_without_its_name_leaves_nothing() {
        for make in KINDS {
            let directory = tempfile::tempdir().unwrap();
            let store = store(directory.path());
            make(&store).unwrap().file().write_all(b"half").unwrap();
            let left = ["v1/blobs", "v1/tmp"].map(|name| count(&directory.path().join(name)));
            assert_eq!(left, [0, 0]);
        }
    }
}
