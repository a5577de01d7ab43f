//! Builds a revision: the directories and links of a listing, below an empty directory.

use super::{
    Leases, ViewError,
    directory::{Descent, Directory},
    effect,
};
use crate::{
    listing::{Entry, Listing},
    relpath::RelPath,
    store::{BlobId, StoreError},
    volume::Ownership,
};

/// One thing that a listing shows.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Directory(&'a RelPath),
    File(Entry),
}

impl Item<'_> {
    pub(super) fn path(&self) -> &RelPath {
        match self {
            Self::Directory(path) => path,
            Self::File(entry) => &entry.path,
        }
    }
}

/// Everything in path order, parents before children.
pub(super) fn items(listing: &Listing) -> impl Iterator<Item = Item<'_>> {
    let mut directories = listing.directories().iter().peekable();
    let mut entries = listing.entries().peekable();
    std::iter::from_fn(move || {
        let directory_first = match (directories.peek(), entries.peek()) {
            (Some(directory), Some(entry)) => **directory < entry.path,
            (directory, _) => directory.is_some(),
        };
        if directory_first {
            directories.next().map(Item::Directory)
        } else {
            entries.next().map(Item::File)
        }
    })
}

/// Makes all directories below `top`, and has `link` make each file in the one that holds it.
pub(super) fn build(
    top: &Directory,
    listing: &Listing,
    ownership: &Ownership,
    mut link: impl FnMut(&Entry, &Directory) -> Result<(), ViewError>,
) -> Result<(), ViewError> {
    let mut descent = Descent::new(top);
    for item in items(listing) {
        let inside = descent.enter(item.path())?;
        match item {
            Item::Directory(path) => {
                let made = inside.make(path.file_name(), ownership)?;
                descent.push(path, made);
            }
            Item::File(entry) => link(&entry, inside)?,
        }
    }
    Ok(())
}

impl Leases {
    /// Links an entry's blob to `name` in `directory`.
    ///
    /// # Errors
    /// `Link`; it is stale if the blob is gone, or was not leased because it was to be kept.
    pub(super) fn link(
        &self,
        entry: &Entry,
        directory: &Directory,
        name: &str,
    ) -> Result<(), ViewError> {
        effect::permit().map_err(|errno| directory.failed("link", name, errno))?;
        let lease = self.blobs.get(&BlobId::of(&entry.object.version)).ok_or(StoreError::Gone);
        lease
            .and_then(|lease| lease.link(self.variant, directory, name))
            .map_err(|error| ViewError::Link { path: entry.path.clone(), error })
    }
}
