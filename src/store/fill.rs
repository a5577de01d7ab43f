//! Writing a blob: into a file without a name, verified by the caller, which then gets its name.
//!
//! Where the store has the content already, for another principal or from an earlier run, a fill
//! writes nothing: what S3 sends is verified as ever, and only compared with what is here. That
//! takes no space, so a restarted plugin can serve a store that is nearly full of its own blobs.

use std::{
    fs::{File, FileTimes, Metadata, Permissions},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{OFlag, copy_file_range, openat},
    sys::stat::Mode,
};

use super::{
    Lease, Reservation, Store, StoreError,
    blob::{BlobId, BlobName, ContentDigest, Variant},
    index::Known,
    unnamed::Unnamed,
    verify,
};
use crate::{object::ObjectVersion, source::Principal};

/// A blob that is being fetched. Dropped before [`Fill::commit`], it leaves nothing. Dropping frees
/// a file's space, so it belongs on the blocking threads.
#[derive(Debug)]
pub struct Fill {
    store: Store,
    id: BlobId,
    size: u64,
    target: Target,
    written: Written,
    /// Held until the blob is here or given up.
    _reservation: Arc<Reservation>,
}

#[derive(Debug)]
enum Target {
    New(Unnamed),
    /// A file that is here; `verified` unless it is of an earlier run and was not read through yet.
    Here {
        name: BlobName,
        file: File,
        verified: bool,
    },
}

/// Bytes of an unfinished fill: the file system counts them as used, and so must not count them as
/// reserved as well.
#[derive(Debug)]
struct Written {
    store: Store,
    bytes: AtomicU64,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.store.0.index.lock().unwrite(self.bytes.load(Ordering::Relaxed));
    }
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
    pub(super) fn begin(
        store: Store,
        version: &ObjectVersion,
        reservation: Arc<Reservation>,
    ) -> Result<Self, StoreError> {
        let (id, size) = (BlobId::of(version), version.size);
        let target = match open_here(&store, &id)? {
            Some(here) => here,
            None => Target::New(Unnamed::new(&store).map_err(store.io("create a file"))?),
        };
        let written = Written { store: store.clone(), bytes: AtomicU64::new(0) };
        Ok(Self { id, size, store, target, written, _reservation: reservation })
    }

    /// Reads back what was written.
    ///
    /// # Errors
    /// What `read` answers.
    pub fn read<T>(&self, read: impl FnOnce(&File) -> io::Result<T>) -> Result<T, StoreError> {
        let file = match &self.target {
            Target::New(file) => file.file(),
            Target::Here { file, .. } => file,
        };
        read(file).map_err(self.store.io("read a blob"))
    }

    /// Writes `chunks` one after the other from byte `offset` on.
    ///
    /// # Errors
    /// What the file system answers; `ENOSPC` has kind `Exhausted`.
    ///
    /// # Blocking
    /// Writes to the page cache; may wait for the disk.
    pub fn write_at(&self, offset: u64, chunks: &[Bytes]) -> Result<(), StoreError> {
        let Target::New(file) = &self.target else { return Ok(()) };
        let mut at = offset;
        for chunk in chunks {
            let written = file.file().write_all_at(chunk, at);
            written.map_err(self.store.io("write a blob"))?;
            at += chunk.len() as u64;
        }
        self.store.0.index.lock().write(at - offset);
        self.written.bytes.fetch_add(at - offset, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the content a blob that `principal` may read; a new file becomes the given variant.
    ///
    /// The caller has received and verified every byte.
    ///
    /// # Errors
    /// What the file system answers; `Corrupt` if the same object version is here with other
    /// bytes. A bad file of an earlier run is removed then, so that the next fill writes anew.
    ///
    /// # Blocking
    /// A few system calls; reads a file of an earlier run once.
    pub fn commit(
        self,
        principal: Principal,
        variant: Variant,
        content: Content,
    ) -> Result<Lease, StoreError> {
        let Self { store, id, size, target, written: _written, _reservation } = self;
        match target {
            Target::Here { name, verified: true, .. } if name.crc == content.crc => {}
            Target::Here { verified: true, .. } => return Err(differs()),
            Target::Here { name, file, .. } => {
                if !verify::verify(&store, &name)? {
                    return Err(differs());
                }
                if name.crc != content.crc {
                    let metadata = file.metadata().map_err(store.io("inspect a blob"))?;
                    verify::discard(&store, &name, &metadata);
                    return Err(differs());
                }
            }
            Target::New(file) => name_blob(&store, &file, (id, size), variant, content)?,
        }
        let admitted = store.0.index.lock().admit(&id, principal);
        // Evicted between two locks: whoever asked will find it missing and fetch again.
        if !admitted {
            return Err(StoreError::Gone);
        }
        Ok(Lease { store, id })
    }
}

/// Opens the content of `id`, if the store has it.
fn open_here(store: &Store, id: &BlobId) -> Result<Option<Target>, StoreError> {
    let Some((name, verified)) = store.0.index.lock().find(id) else { return Ok(None) };
    match open_blob(store, &name.to_string()) {
        Ok(file) => Ok(Some(Target::Here { name, file, verified })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            store.0.index.lock().remove(&name);
            Ok(None)
        }
        // It is here all the same (EMFILE): forgotten, it would be counted no more.
        Err(error) => Err(store.io("open a blob")(error)),
    }
}

/// Opens a blob's file. A symlink in its place is nobody's blob, and as good as missing: what is put
/// next takes the name from it.
pub(super) fn open_blob(store: &Store, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    match openat(&store.0.blobs, name, flags, Mode::empty()) {
        Err(Errno::ELOOP) => Err(Errno::ENOENT.into()),
        opened => Ok(opened?.into()),
    }
}

/// Makes a file with all of a blob's content that blob, unless it came first.
pub(super) fn name_blob(
    store: &Store,
    file: &Unnamed,
    (id, size): (BlobId, u64),
    variant: Variant,
    content: Content,
) -> Result<(), StoreError> {
    let digest = variant.sharers.map(|_| verify::digest_of(file.file())).transpose();
    let digest = digest.map_err(store.io("read a blob"))?;
    let name = BlobName { id, size, crc: content.crc, variant, digest };
    let dressed = dress(file.file(), variant, content.modified);
    dressed.map_err(store.io("set a blob's owner"))?;
    add(store, file, name)
}

/// Gives a dressed file its name, unless the same blob came first.
///
/// The index is not held while the file system works: whoever looks something up would wait for the
/// disk. Those who add wait for each other, so that one object version has one content.
fn add(store: &Store, file: &Unnamed, name: BlobName) -> Result<(), StoreError> {
    let _adding = store.0.adding.lock();
    match store.0.index.lock().known(&name) {
        Known::Same => return Ok(()),
        Known::Differs => return Err(differs()),
        Known::Missing => {}
    }
    let inode = file.file().metadata().map_err(store.io("inspect a blob"))?.ino();
    let named = file.replace(&store.0.blobs, &name.to_string());
    named.map_err(|errno| store.io("name a blob")(errno.into()))?;
    let mut index = store.0.index.lock();
    index.add(name, inode);
    index.spend(name.id, name.variant);
    store.0.show(&index);
    Ok(())
}

fn differs() -> StoreError {
    StoreError::Corrupt("the same ETag and size were seen before with other bytes".to_owned())
}

/// Makes another variant of a blob by copying it within the medium.
///
/// A file that others link may have been changed by a pod with rights over the node that no file mode
/// holds back. What is copied for those who share nothing with them is what was fetched, or nothing:
/// the bytes are looked at in the copy, which nobody else can reach.
pub(super) fn copy_variant(
    store: &Store,
    base: &BlobName,
    variant: Variant,
) -> Result<BlobName, StoreError> {
    let (file, metadata) = unnamed_copy(store, base, variant)?;
    let digest = if base.variant.sharers == variant.sharers {
        base.digest
    } else {
        let Some(digest) = digest_as_fetched(&file, base).map_err(store.io("read a blob"))? else {
            tracing::warn!(blob = %base, "a blob was changed by who shows it; it is removed");
            verify::discard(store, base, &metadata);
            return Err(StoreError::Gone);
        };
        variant.sharers.map(|_| digest)
    };
    let name = BlobName { variant, digest, ..*base };
    add(store, &file, name)?;
    Ok(name)
}

/// The digest of a copy of `base`; none if it does not hold what was fetched. Files that everybody
/// shares have a CRC for that, which finds damage and no forgery.
fn digest_as_fetched(copy: &Unnamed, base: &BlobName) -> io::Result<Option<ContentDigest>> {
    let digest = verify::digest_of(copy.file())?;
    let is_so = match base.digest {
        Some(fetched) => fetched == digest,
        None => verify::crc_of(copy.file(), base.size)? == Some(base.crc),
    };
    Ok(is_so.then_some(digest))
}

/// A file without a name with a blob's content and mtime and a variant's owner and mode, and what the
/// blob's file was.
pub(super) fn unnamed_copy(
    store: &Store,
    blob: &BlobName,
    variant: Variant,
) -> Result<(Unnamed, Metadata), StoreError> {
    let copy = || -> io::Result<(Unnamed, Metadata)> {
        let source = open_blob(store, &blob.to_string())?;
        let metadata = source.metadata()?;
        let target = Unnamed::new(store)?;
        // Room was reserved for so much, whatever has become of the file.
        let length = metadata.len().min(blob.size);
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        while left > 0 {
            match copy_file_range(&source, None, target.file(), None, left)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                copied => left -= copied,
            }
        }
        dress(target.file(), variant, metadata.modified()?)?;
        Ok((target, metadata))
    };
    copy().map_err(store.io("copy a blob"))
}

/// Owner first: changing it would clear bits of the mode. What is right already is left alone: each
/// change is a transaction of the file system.
fn dress(file: &File, variant: Variant, modified: SystemTime) -> io::Result<()> {
    let (found, mode) = (file.metadata()?, u32::from(variant.mode));
    if (found.uid(), found.gid()) != (variant.uid, variant.gid) {
        fchown(file, Some(variant.uid), Some(variant.gid))?;
    }
    if found.mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.set_times(FileTimes::new().set_modified(modified).set_accessed(modified))
}
