//! What holders have of a store: a pinned blob, or room set aside. Both give it back when dropped.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{errno::Errno, fcntl::AtFlags, unistd::linkat};

use super::{
    Store, StoreError, Wanted,
    blob::{BlobId, BlobName, Sharers, Variant},
    fill, verify,
};
use crate::{object::ObjectVersion, source::Principal};

/// Keeps a blob from eviction while it is being linked.
pub struct Lease {
    pub(super) store: Store,
    pub(super) id: BlobId,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.id).finish()
    }
}

impl Store {
    /// A lease on a blob whose file [`Lease::open`] opens by one system call, for a principal that
    /// is known to be allowed to read it: to the store, or to the caller, as for [`Store::hold`].
    /// Counted as a lookup if there is one; who gets none looks again in another way.
    pub fn lease_ready(
        &self,
        principal: Principal,
        version: &ObjectVersion,
        allowed: bool,
        sharers: Option<Sharers>,
    ) -> Option<Lease> {
        let id = BlobId::of(version);
        let pinned = self.0.index.lock().pin_ready(&id, principal, allowed, sharers);
        pinned.then(|| {
            self.0.gauges.hits.inc();
            Lease { store: self.clone(), id }
        })
    }
}

impl Lease {
    /// Hard-links the blob's variant to `name` in `directory`, making the variant if need be (room
    /// for it was reserved), and copying where the file system allows no more links (ext4: 65,000;
    /// such copies are the volume's own and are not counted).
    ///
    /// # Errors
    /// What the file system answers; `Stale` if somebody removed the file behind our back.
    ///
    /// # Blocking
    /// One system call when the variant exists, else a copy of the content within the medium, which
    /// is read through if others than the sharers may have changed what it is a copy of. Reads all of
    /// a variant of an earlier run once.
    pub fn link(
        &self,
        variant: Variant,
        directory: impl AsFd,
        name: &str,
    ) -> Result<(), StoreError> {
        let blob = self.variant(variant)?;
        let (blobs, file) = (&self.store.0.blobs, blob.to_string());
        match linkat(blobs, file.as_str(), &directory, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::EMLINK) => self.copy(&blob, variant, directory.as_fd(), name),
            Err(Errno::ENOENT) => {
                self.store.0.index.lock().remove(&blob);
                Err(StoreError::Gone)
            }
            Err(errno) => Err(self.store.io("link a blob")(errno.into())),
        }
    }

    /// Opens the blob's file for reading, for who shares files with `sharers`: whoever else holds a
    /// link to a file may have changed it. Made by copying if there is none (room for that variant
    /// was reserved).
    ///
    /// # Errors
    /// As [`Lease::link`].
    ///
    /// # Blocking
    /// As [`Lease::link`].
    pub fn open(&self, sharers: Option<Sharers>) -> Result<File, StoreError> {
        let found = self.store.0.index.lock().readable(&self.id, sharers);
        let variant = found.map_or(Variant::shown_by_none(sharers), |(name, _)| name.variant);
        let name = self.variant(variant)?;
        match fill::open_blob(&self.store, &name.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.store.0.index.lock().remove(&name);
                Err(StoreError::Gone)
            }
            opened => opened.map_err(self.store.io("open a blob")),
        }
    }

    /// Whether [`Lease::open`] needs no room.
    pub fn opens(&self, sharers: Option<Sharers>) -> bool {
        self.store.0.index.lock().readable(&self.id, sharers).is_some()
    }

    /// The variant's file, verified or else made from another.
    fn variant(&self, variant: Variant) -> Result<BlobName, StoreError> {
        let wanted = {
            let mut index = self.store.0.index.lock();
            index.touch(&self.id, variant);
            index.file_of(&self.id, variant)
        };
        if let Some((name, verified)) = wanted
            && (verified || verify::verify(&self.store, &name)?)
        {
            return Ok(name);
        }
        let base = self.store.0.index.lock().base(&self.id, variant);
        fill::copy_variant(&self.store, &base.ok_or(StoreError::Gone)?, variant)
    }

    fn copy(
        &self,
        blob: &BlobName,
        variant: Variant,
        directory: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), StoreError> {
        let (copy, _) = fill::unnamed_copy(&self.store, blob, variant)?;
        let copied = copy.link(directory, name);
        copied.map_err(|errno| self.store.io("copy a blob with too many links")(errno.into()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.0.index.lock().unpin(&self.id);
    }
}

/// Room set aside for blobs to come, shared with all who wait for the same; what is not used
/// returns when the last of them is dropped.
#[derive(Debug)]
pub struct Reservation {
    pub(super) store: Store,
    pub(super) wanted: Vec<Wanted>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut index = self.store.0.index.lock();
        index.release(&self.wanted);
        self.store.0.show(&index);
    }
}
