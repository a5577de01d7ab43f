//! The layout `files`: plain files, each replaced by itself.
//!
//! Whatever can fail for want of room or blobs happens in a staging directory beside the root,
//! before anything visible changes. Then each file and each new, empty directory is moved to its
//! place, and what vanished is removed last. So every path is whole or absent at every moment,
//! while the volume as a whole may be a mix of two listings until all is done: that is why a
//! replacement starts from what stands in the root and not from what somebody remembers.
//!
//! A file that is kept is not touched: rename(2) onto another link of the same inode would do
//! nothing and leave both names.

use std::collections::HashSet;

use super::{
    Leases, Shown, ViewError,
    build::{Item, items},
    directory::{Descent, Directory},
};
use crate::{
    listing::{Entry, Listing, Row},
    relpath::{self, RelPath},
    volume::Ownership,
};

/// The staging directory, beside the root.
pub(super) const STAGING: &str = "next";

/// What makes a root show a listing.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// In path order.
    puts: Vec<Put<'a>>,
    /// What vanished; nothing of it lies below another.
    removals: Vec<&'a RelPath>,
}

#[derive(Debug)]
struct Put<'a> {
    item: Item<'a>,
    /// Whether a file has to make way for this directory, or a directory for this file.
    makes_way: bool,
}

impl<'a> Plan<'a> {
    /// Compares what stands in the root with what it is to show.
    pub(super) fn new(
        standing: &'a Shown,
        listing: &'a Listing,
        keep: impl Fn(&Entry) -> bool,
    ) -> Self {
        let is_file = |path: &RelPath| standing.files.contains_key(path);
        let is_directory = |path: &RelPath| standing.directories.contains(path);
        let puts = items(listing).filter_map(|item| {
            let makes_way = match &item {
                Item::Directory(path) if is_directory(path) => return None,
                Item::File(entry) if is_file(&entry.path) && keep(entry) => return None,
                Item::Directory(path) => is_file(path),
                Item::File(entry) => is_directory(&entry.path),
            };
            Some(Put { item, makes_way })
        });
        Self { puts: puts.collect(), removals: vanished(standing, listing) }
    }

    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removals.is_empty()
    }

    /// Links and makes everything that is to be put.
    fn stage(
        &self,
        staging: &Directory,
        leases: &Leases,
        ownership: &Ownership,
    ) -> Result<(), ViewError> {
        for (number, put) in self.puts.iter().enumerate() {
            let name = number.to_string();
            match &put.item {
                Item::Directory(_) => drop(staging.make(&name, ownership)?),
                Item::File(entry) => leases.link(entry, staging, &name)?,
            }
        }
        Ok(())
    }

    fn apply(&self, staging: &Directory, root: &Directory) -> Result<(), ViewError> {
        let mut descent = Descent::new(root);
        for (number, put) in self.puts.iter().enumerate() {
            let path = put.item.path();
            let (inside, name) = (descent.enter(path)?, path.file_name());
            if put.makes_way {
                inside.remove(name)?;
            }
            inside.take(staging, &number.to_string(), name)?;
        }
        let mut descent = Descent::new(root);
        self.removals.iter().try_for_each(|path| descent.enter(path)?.remove(path.file_name()))
    }
}

/// What stands and is not listed, but for what goes with its directory anyway.
fn vanished<'a>(standing: &'a Shown, listing: &Listing) -> Vec<&'a RelPath> {
    let directories: HashSet<_> = listing.directories().iter().map(RelPath::as_str).collect();
    let files: HashSet<_> = listing.rows().map(Row::path).collect();
    let stays =
        |path: &RelPath| directories.contains(path.as_str()) || files.contains(path.as_str());
    let standing = standing.files.keys().chain(&standing.directories);
    let mut vanished: Vec<_> = standing
        .filter(|path| !stays(path))
        .filter(|path| {
            relpath::parent(path.as_str()).is_none_or(|parent| directories.contains(parent))
        })
        .collect();
    // In path order, so that each directory is opened once.
    vanished.sort_unstable();
    vanished
}

/// Makes `root`, in the volume's directory, show what `plan` says.
pub(super) fn replace(
    volume: &Directory,
    root: &Directory,
    plan: &Plan<'_>,
    leases: &Leases,
    ownership: &Ownership,
) -> Result<(), ViewError> {
    tidy(volume)?;
    if plan.is_empty() {
        return Ok(());
    }
    let staging = volume.make_private(STAGING)?;
    let done = plan.stage(&staging, leases, ownership).and_then(|()| plan.apply(&staging, root));
    match (done, tidy(volume)) {
        (Ok(()), tidied) => tidied,
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(untidy)) => {
            tracing::warn!(error = %untidy, "failed to remove a staging directory");
            Err(error)
        }
    }
}

/// Removes the staging directory of a replacement, finished or not.
pub(super) fn tidy(volume: &Directory) -> Result<(), ViewError> {
    volume.remove(STAGING)
}
