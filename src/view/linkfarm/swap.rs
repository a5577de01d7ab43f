//! The layout `symlinks`: whole revisions, swapped by one rename(2).
//!
//! The order is the kubelet's: the new revision is complete before `..data` leads to it, names
//! that are new at the top appear after that, and names that vanished go last. So a name at the
//! top may lead nowhere for a moment, but never to half a file.
//!
//! Source: Kubernetes `pkg/volume/util/atomic_writer.go`, `AtomicWriter.Write`.

use std::collections::BTreeSet;

use super::{
    Leases, Replaced, Retired, ViewError,
    build::build,
    directory::{Descent, Directory},
    top_names,
};
use crate::{
    listing::{Entry, Listing},
    volume::Ownership,
};

/// The name through which everything is reached.
pub(super) const DATA: &str = "..data";
const NEW_DATA: &str = "..data.new";

/// What stands in a volume's root.
#[derive(Debug, Default)]
pub(super) struct Root {
    /// The number of the revision that is shown; 0 is none.
    pub(super) current: u64,
    /// The numbers of all revisions that have a directory, whole or not.
    revisions: BTreeSet<u64>,
    /// Whether a replacement was about to make `..data` lead to its revision.
    unfinished: bool,
    /// The names at the top.
    names: BTreeSet<String>,
}

/// The name of a revision's directory.
pub(super) fn revision_name(number: u64) -> String {
    format!("..{number}")
}

fn revision_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("..")?.parse().ok()?;
    // One name for one number: `..01` is not ours.
    (revision_name(number) == name).then_some(number)
}

/// The number of the revision that is shown; 0 is none, as with plain files.
pub(super) fn current(root: &Directory) -> Result<u64, ViewError> {
    let target = root.target(DATA)?;
    Ok(target.and_then(|target| revision_number(&target)).unwrap_or_default())
}

impl Root {
    /// Reads the root.
    pub(super) fn read(root: &Directory) -> Result<Self, ViewError> {
        let mut found = Self { current: current(root)?, ..Self::default() };
        for child in root.children()? {
            match child.text() {
                Some(NEW_DATA) => found.unfinished = true,
                Some(name) if name.starts_with("..") => {
                    found.revisions.extend(revision_number(name));
                }
                Some(name) => drop(found.names.insert(name.to_owned())),
                None => {}
            }
        }
        Ok(found)
    }

    /// Removes what a replacement built and did not come to show.
    fn remove_unfinished(&self, root: &Directory) -> Result<(), ViewError> {
        if self.unfinished {
            root.remove(NEW_DATA)?;
        }
        let mut unfinished = self.revisions.range(self.current + 1..);
        unfinished.try_for_each(|number| root.remove(&revision_name(*number)))
    }

    /// Makes the names at the top those of the revision that is shown.
    fn complete(&self, root: &Directory, wanted: &BTreeSet<&str>) -> Result<(), ViewError> {
        for name in wanted.iter().filter(|name| !self.names.contains(**name)) {
            root.symlink(&format!("{DATA}/{name}"), name)?;
        }
        let mut vanished = self.names.iter().filter(|name| !wanted.contains(name.as_str()));
        vanished.try_for_each(|name| root.remove(name))
    }
}

/// Shows `listing` as the revision after the one that `found` shows.
pub(super) fn replace(
    root: &Directory,
    found: &Root,
    listing: &Listing,
    ownership: &Ownership,
    link: impl FnMut(&Entry, &Directory) -> Result<(), ViewError>,
) -> Result<Replaced, ViewError> {
    found.remove_unfinished(root)?;
    let revision = found.current + 1;
    if let Err(error) = show(root, revision, listing, ownership, link) {
        let removed = root.remove(NEW_DATA).and_then(|()| root.remove(&revision_name(revision)));
        if let Err(error) = removed {
            tracing::warn!(%error, "failed to remove an unfinished revision; the next one will");
        }
        return Err(error);
    }
    found.complete(root, &top_names(listing))?;
    let retired = (found.current > 0).then_some(Retired { revision: found.current });
    Ok(Replaced { revision, retired })
}

/// Builds a revision and makes `..data` lead to it. Nothing visible has changed if that fails.
fn show(
    root: &Directory,
    revision: u64,
    listing: &Listing,
    ownership: &Ownership,
    link: impl FnMut(&Entry, &Directory) -> Result<(), ViewError>,
) -> Result<(), ViewError> {
    let name = revision_name(revision);
    build(&root.make(&name, ownership)?, listing, ownership, link)?;
    root.symlink(&name, NEW_DATA)?;
    root.take(root, NEW_DATA, DATA)
}

/// A way to link entries that takes what is kept from the revision at `previous`.
pub(super) fn keeping<'a>(
    previous: Option<&'a Directory>,
    keep: impl Fn(&Entry) -> bool + 'a,
    leases: &'a Leases,
) -> impl FnMut(&Entry, &Directory) -> Result<(), ViewError> + 'a {
    let mut previous = previous.map(Descent::new);
    move |entry, directory| {
        let name = entry.path.file_name();
        if let Some(previous) = &mut previous
            && keep(entry)
            && let Some(from) = previous.find(&entry.path)?
            && directory.link_from(from, name)?
        {
            return Ok(());
        }
        leases.link(entry, directory, name)
    }
}

/// Finishes or undoes what a replacement left half done; the older revisions that are still there.
pub(super) fn tidy(root: &Directory) -> Result<Vec<Retired>, ViewError> {
    let found = Root::read(root)?;
    found.remove_unfinished(root)?;
    let shown = root.enter(&revision_name(found.current))?.children()?;
    found.complete(root, &shown.iter().filter_map(|child| child.text()).collect())?;
    let older = found.revisions.range(..found.current);
    Ok(older.map(|number| Retired { revision: *number }).collect())
}
