//! Writing a blob: into a temporary file, verified by the caller, then renamed into place.

use std::{
    fs::{File, FileTimes, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt, fchown},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use nix::fcntl::copy_file_range;
use tempfile::NamedTempFile;

use super::{
    Lease, Reservation, Store, StoreError,
    blob::{BlobId, BlobName, Variant},
    index::Known,
    pages,
};
use crate::{object::ObjectVersion, source::Principal};

/// A blob that is being written. Dropped before [`Fill::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Fill {
    store: Store,
    id: BlobId,
    size: u64,
    file: NamedTempFile,
}

/// What a finished blob is, as its writer verified it.
#[derive(Debug, Clone, Copy)]
pub struct Content {
    /// CRC-64/NVME over all bytes.
    pub crc: u64,
    /// The object's Last-Modified: becomes the file's mtime.
    pub modified: SystemTime,
}

impl Fill {
    pub(super) fn begin(store: Store, version: &ObjectVersion) -> Result<Self, StoreError> {
        let failed = store.io("create a temporary file");
        let file = NamedTempFile::new_in(store.0.root.join("tmp")).map_err(failed)?;
        Ok(Self { id: BlobId::of(version), size: version.size, store, file })
    }

    /// Another handle on the file, for reading back what was written.
    ///
    /// # Errors
    /// Descriptors may run out.
    pub fn reader(&self) -> Result<File, StoreError> {
        self.file.as_file().try_clone().map_err(self.store.io("open a temporary file"))
    }

    /// Writes `chunks` one after the other from byte `offset` on.
    ///
    /// # Errors
    /// What the file system answers; `ENOSPC` has kind `Exhausted`.
    ///
    /// # Blocking
    /// Writes to the page cache; may wait for the disk.
    pub fn write_at(&self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let mut at = offset;
        for chunk in chunks {
            let written = self.file.as_file().write_all_at(chunk, at);
            written.map_err(self.store.io("write a blob"))?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Makes the file a blob that `principal` may read, as the given variant.
    ///
    /// The caller has written and verified every byte. If this process has the blob already (for
    /// another principal), that one stays and the new file is dropped.
    ///
    /// # Errors
    /// What the file system answers; `Corrupt` if the same object version was fetched before with
    /// other bytes.
    ///
    /// # Blocking
    /// A few system calls.
    pub fn commit(
        self,
        principal: Principal,
        variant: Variant,
        content: Content,
        reservation: &Reservation,
    ) -> Result<Lease, StoreError> {
        let Self { store, id, size, file } = self;
        let name = BlobName { id, size, crc: content.crc, variant };
        dress(file.as_file(), variant, content.modified).map_err(store.io("set a blob's owner"))?;
        let mut index = store.0.index.lock();
        match index.known(&name) {
            Known::Same => {}
            Known::Differs => {
                let text = "the same ETag and size were seen before with other bytes";
                return Err(StoreError::Corrupt(text.to_owned()));
            }
            Known::Missing => {
                let path = store.0.root.join("blobs").join(name.to_string());
                let renamed = file.persist(path).map_err(|error| error.error);
                drop(renamed.map_err(store.io("rename a blob into place"))?);
                for old in index.add(name, true) {
                    // Only the name goes; volumes that link it keep their content.
                    remove_stale(&store, &old);
                }
                reservation.spend(&mut index, pages(size));
            }
        }
        index.admit(&id, principal);
        store.0.show(&index);
        drop(index);
        Ok(Lease { store, id })
    }
}

/// Makes another variant of a blob by copying it within the medium.
pub(super) fn copy_variant(
    store: &Store,
    base: &BlobName,
    variant: Variant,
) -> Result<BlobName, StoreError> {
    let file = temporary_copy(store, &base.to_string(), variant)?;
    let name = BlobName { variant, ..*base };
    let mut index = store.0.index.lock();
    if index.known(&name) == Known::Missing {
        let path = store.0.root.join("blobs").join(name.to_string());
        let renamed = file.persist(path).map_err(|error| error.error);
        drop(renamed.map_err(store.io("rename a blob into place"))?);
        for old in index.add(name, true) {
            remove_stale(store, &old);
        }
        store.0.show(&index);
    }
    Ok(name)
}

/// A temporary file with a blob's content and mtime and a variant's owner and mode.
pub(super) fn temporary_copy(
    store: &Store,
    blob: &str,
    variant: Variant,
) -> Result<NamedTempFile, StoreError> {
    let copy = || -> io::Result<NamedTempFile> {
        let source = File::open(store.0.root.join("blobs").join(blob))?;
        let metadata = source.metadata()?;
        let target = NamedTempFile::new_in(store.0.root.join("tmp"))?;
        let mut left = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        while left > 0 {
            match copy_file_range(&source, None, target.as_file(), None, left)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                copied => left -= copied,
            }
        }
        dress(target.as_file(), variant, metadata.modified()?)?;
        Ok(target)
    };
    copy().map_err(store.io("copy a blob"))
}

/// Owner first: changing it would clear bits of the mode. A new file is root's already.
fn dress(file: &File, variant: Variant, modified: SystemTime) -> io::Result<()> {
    if (variant.uid, variant.gid) != (0, 0) {
        fchown(file, Some(variant.uid), Some(variant.gid))?;
    }
    file.set_permissions(Permissions::from_mode(u32::from(variant.mode)))?;
    file.set_times(FileTimes::new().set_modified(modified).set_accessed(modified))
}

fn remove_stale(store: &Store, name: &BlobName) {
    let removed = std::fs::remove_file(store.0.root.join("blobs").join(name.to_string()));
    if let Err(error) = removed {
        tracing::warn!(blob = %name, error = %Arc::new(error), "failed to remove a stale blob");
    }
}
