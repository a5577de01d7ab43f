//! Whether a file of an earlier run is still what its name says.
//!
//! A disk may lose or change what was written to it, so a file that this process did not write is
//! read through before its first use. That it was is remembered on the file itself, for this boot
//! only: an extended attribute holds the boot's id. It is read when the file is about to be used,
//! never at start, which reads names only, and it is not written with a new file, which would cost
//! every fill a system call for a restart that may never come. Where the file system has no
//! extended attributes, each process reads the file once.
//!
//! A tmpfs cannot lose what it was given: it lives and dies with the memory that it is.

use std::{
    collections::BTreeSet,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::LazyLock,
};

use crc_fast::{CrcAlgorithm, Digest};
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use sha2::{Digest as _, Sha256};

use super::{
    Store, StoreError,
    blob::{BlobName, ContentDigest},
    fill::open_blob,
};

/// The attribute that holds the id of the boot in which the file was read through.
pub(super) const MARK: &str = "user.s3view.verified";

/// Changes with every boot; none where /proc does not tell.
pub(super) static BOOT_ID: LazyLock<Option<String>> = LazyLock::new(|| {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
});

/// The files that are being read through: each by one thread, while others that want the same file
/// wait for its verdict.
#[derive(Debug, Default)]
pub(super) struct Readings {
    running: Mutex<BTreeSet<BlobName>>,
    ended: Condvar,
}

/// The right to read one file through.
struct Turn<'a> {
    readings: &'a Readings,
    name: BlobName,
}

impl Readings {
    fn turn(&self, name: BlobName) -> Turn<'_> {
        let mut running = self.running.lock();
        while !running.insert(name) {
            self.ended.wait(&mut running);
        }
        Turn { readings: self, name }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.readings.running.lock().remove(&self.name);
        self.readings.ended.notify_all();
    }
}

/// Whether the file `name` is here and whole. One that is not whole is removed.
///
/// Blocks, and reads all of the file unless somebody has since this machine started. The caller
/// keeps the blob from eviction, or can live with false for one that was evicted meanwhile.
pub(super) fn verify(store: &Store, name: &BlobName) -> Result<bool, StoreError> {
    let _turn = store.0.readings.turn(*name);
    match store.0.index.lock().file_of(&name.id, name.variant) {
        Some((here, verified)) if here == *name => {
            if verified {
                return Ok(true);
            }
        }
        _ => return Ok(false),
    }
    let file = match open_blob(store, &name.to_string()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            store.0.index.lock().remove(name);
            return Ok(false);
        }
        Err(error) => return Err(store.io("open a blob")(error)),
    };
    let metadata = file.metadata().map_err(store.io("inspect a blob"))?;
    if is_whole(&file, &metadata, name).map_err(store.io("read a blob"))? {
        store.0.index.lock().note_verified(name, metadata.ino());
        return Ok(true);
    }
    tracing::warn!(blob = %name, "a blob of an earlier run is damaged; it is removed");
    discard(store, name, &metadata);
    Ok(false)
}

/// Removes a blob that is not what it should be, as its opened file's `metadata` identifies it:
/// another may have taken the name since. Only the name goes: volumes that link the file keep what
/// they have.
pub(super) fn discard(store: &Store, name: &BlobName, metadata: &Metadata) {
    let mut index = store.0.index.lock();
    let path = store.0.path_of(name);
    if !std::fs::symlink_metadata(&path).is_ok_and(|now| now.ino() == metadata.ino()) {
        return;
    }
    index.remove(name);
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(blob = %name, %error, "failed to remove a corrupt blob");
    }
    store.0.show(&index);
}

/// The length first: it costs nothing more. A block that the disk cannot give is damage too.
fn is_whole(file: &File, metadata: &Metadata, name: &BlobName) -> io::Result<bool> {
    if metadata.len() != name.size {
        return Ok(false);
    }
    if is_marked(file) {
        return Ok(true);
    }
    match crc_of(file, name.size) {
        Ok(Some(crc)) if crc == name.crc => {
            mark(file);
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_marked(file: &File) -> bool {
    let Some(boot) = BOOT_ID.as_deref() else { return false };
    let mut value = [0; 64];
    // No attribute, no support, a longer value: it was not us in this boot.
    fgetxattr(file, MARK, &mut value).is_ok_and(|length| value[..length] == *boot.as_bytes())
}

fn mark(file: &File) {
    let Some(boot) = BOOT_ID.as_deref() else { return };
    // A read-only disk, or one without attributes: the next process reads again.
    if let Err(error) = fsetxattr(file, MARK, boot.as_bytes(), XattrFlags::empty()) {
        tracing::debug!(%error, "a verified blob cannot be marked");
    }
}

/// The CRC-64 of the file's content; none if it ends before `size`.
pub(super) fn crc_of(file: &File, size: u64) -> io::Result<Option<u64>> {
    let mut crc = Digest::new(CrcAlgorithm::Crc64Nvme);
    let length = read_through(file, size, |bytes| crc.update(bytes))?;
    Ok((length == size).then(|| crc.finalize()))
}

/// The digest of all of the file's content.
pub(super) fn digest_of(file: &File) -> io::Result<ContentDigest> {
    let mut hash = Sha256::new();
    read_through(file, u64::MAX, |bytes| hash.update(bytes))?;
    Ok(ContentDigest::of(&hash))
}

/// Shows the content to `look` until it has seen `most` bytes or the file ends; returns how many it
/// saw.
fn read_through(file: &File, most: u64, mut look: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    while at < most {
        match file.read_at(&mut buffer, at)? {
            0 => break,
            length => {
                look(&buffer[..length]);
                at += length as u64;
            }
        }
    }
    Ok(at)
}
