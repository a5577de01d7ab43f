//! What holders have of a store: a pinned blob, or room set aside. Both give it back when dropped.

use std::{
    ffi::CString,
    fmt,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::linkat,
};
use parking_lot::Mutex;

use super::{
    Store, StoreError,
    blob::{BlobId, BlobName, Variant},
    fill,
    index::Index,
};

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

impl Lease {
    /// Hard-links the blob's variant to `name` in `directory`, making the variant if need be, and
    /// copying where the file system allows no more links.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// One system call when the variant exists, else a copy of the content within the medium.
    pub fn link(
        &self,
        variant: Variant,
        directory: impl AsFd,
        name: &str,
    ) -> Result<(), StoreError> {
        let blob = self.variant(variant)?.to_string();
        let blobs = &self.store.0.blobs;
        match linkat(blobs, blob.as_str(), &directory, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::EMLINK) => self.copy(&blob, variant, directory.as_fd(), name),
            Err(errno) => Err(self.store.io("link a blob")(errno.into())),
        }
    }

    /// Whether linking this variant needs no new space.
    pub fn has_variant(&self, variant: Variant) -> bool {
        self.store.0.index.lock().name_of(&self.id, variant).is_some()
    }

    fn variant(&self, variant: Variant) -> Result<BlobName, StoreError> {
        let (wanted, any) = {
            let mut index = self.store.0.index.lock();
            index.touch(&self.id, variant);
            (index.name_of(&self.id, variant), index.any_name(&self.id))
        };
        if let Some(name) = wanted {
            return Ok(name);
        }
        let base = any.expect("a leased blob has at least one variant");
        fill::copy_variant(&self.store, &base, variant)
    }

    fn copy(
        &self,
        blob: &str,
        variant: Variant,
        directory: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), StoreError> {
        let copied = fill::temporary_copy(&self.store, blob, variant)?;
        let old = CString::new(copied.path().as_os_str().as_encoded_bytes())
            .expect("our own paths hold no NUL");
        linkat(AT_FDCWD, old.as_c_str(), directory, name, AtFlags::empty())
            .map_err(|errno| self.store.io("copy a blob with too many links")(errno.into()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.0.index.lock().unpin(&self.id);
    }
}

/// Room set aside for fills; what is not used returns when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    pub(super) store: Store,
    pub(super) bytes: Mutex<u64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut index = self.store.0.index.lock();
        index.release(*self.bytes.lock());
        self.store.0.show(&index);
    }
}

impl Reservation {
    /// Turns reserved bytes into used ones; the caller adds the blob in the same breath.
    pub(super) fn spend(&self, index: &mut Index, bytes: u64) {
        let mut left = self.bytes.lock();
        let spent = bytes.min(*left);
        *left -= spent;
        index.release(spent);
    }
}
