//! What the kernel must forget when one table follows another.

use super::{
    notice::Untold,
    table::{Body, Id, TOP, Table},
};
use crate::{
    listing::{Listing, Row},
    object::Object,
    relpath::RelPath,
};

/// What the kernel may know from a table and must not go on believing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outdated {
    /// Rows of the old table whose names lead nowhere or elsewhere now. What lies below such a
    /// directory goes with it.
    pub(super) names: Vec<Id>,
    /// The numbers of directories that are still there and have other children.
    pub(super) directories: Vec<u64>,
}

impl Outdated {
    /// What the kernel must be told; `old` is the table that this is about.
    pub(super) fn untold<'a>(
        &'a self,
        old: &'a Table,
    ) -> Untold<'a, impl ExactSizeIterator<Item = (u64, &'a [u8])>> {
        let name = |id: &Id| (old.number(old.parent(*id)), old.name(*id));
        Untold { names: self.names.iter().map(name), directories: &self.directories }
    }
}

impl Table {
    /// What is wrong about this table when `new` has followed it.
    ///
    /// New names are not among it, since nothing remembers that a name was missing.
    pub(super) fn outdated(&self, new: &Self) -> Outdated {
        let mut outdated = Outdated::default();
        for (index, row) in self.rows.iter().enumerate() {
            let Body::Directory { .. } = row.body else { continue };
            let Some(now) = new.find(row.number) else { continue };
            let old_rows = self.children(Id::from_index(index));
            if new.has_children(now, &self.rows[old_rows.clone()]) {
                continue;
            }
            outdated.directories.push(row.number);
            outdated.names.extend(old_rows.map(Id::from_index).filter(|child| {
                let found = new.lookup(now, self.name(*child));
                found.is_none_or(|found| new.number(found) != self.number(*child))
            }));
        }
        outdated
    }

    /// Whether this is what a listing looks like: every path leads to the version that is listed
    /// there, and there are no others.
    pub(super) fn is_of(&self, listing: &Listing) -> bool {
        let directories = listing.directories();
        let is_file = |row: Row<'_>| self.at(row.path()).is_some_and(|id| self.shows(id, row));
        let is_directory =
            |path: &RelPath| self.at(path.as_str()).is_some_and(|id| self.is_directory(id));
        self.rows.len() == 1 + listing.len() + directories.len()
            && listing.rows().all(is_file)
            && directories.iter().all(is_directory)
    }

    /// The row at a path.
    fn at(&self, path: &str) -> Option<Id> {
        path.split('/').try_fold(TOP, |directory, name| self.lookup(directory, name.as_bytes()))
    }

    /// The files of this table that `new` does not have, by number: somebody may have looked them up
    /// just now.
    pub(super) fn gone<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = (u64, Object)> + 'a {
        self.rows
            .iter()
            .enumerate()
            .filter(|(_, row)| new.find(row.number).is_none())
            .filter_map(|(index, row)| Some((row.number, self.object(Id::from_index(index))?)))
    }
}
