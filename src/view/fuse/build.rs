//! From a listing to an inode table, in time proportional to the listing.
//!
//! Listings are sorted so that the content of a directory follows it at once. One pass over files
//! and directories, merged, therefore finds everybody's parent on a stack; a second one puts the
//! children of each directory side by side.

use std::{cmp::Ordering, collections::HashMap, iter::Peekable, slice, time::SystemTime};

use super::table::{Body, Id, ROOT, Row, TOP, Table};
use crate::{
    listing::{self, Listing, Moment},
    relpath::{self, RelPath},
    volume::Ownership,
};

impl Table {
    /// The table of a volume's first listing. A directory is as old as the volume: `now`.
    pub(super) fn new(listing: &Listing, ownership: Ownership, now: SystemTime) -> Self {
        Builder::new(listing, ownership, None).build(listing, now)
    }

    /// The table that comes after this one.
    ///
    /// A file keeps its number, and its time, while its path shows the same object version; a
    /// directory while its path is one. All others get numbers that were never used. A directory
    /// whose children are not the same changes `now`.
    pub(super) fn succeed(&self, listing: &Listing, now: SystemTime) -> Self {
        Builder::new(listing, self.ownership, Some(self)).build(listing, now)
    }
}

/// One file or directory of the listing.
struct Node<'a> {
    path: &'a str,
    file: Option<listing::Row<'a>>,
    /// Which directory it stands in: 0 is the top, then as the listing counts.
    parent: usize,
}

/// Files and directories in one order, each with its parent.
struct Nodes<'a, F: Iterator> {
    files: Peekable<F>,
    directories: Peekable<slice::Iter<'a, RelPath>>,
    /// The directories above the next node: which, and their paths.
    above: Vec<(usize, &'a str)>,
    seen: usize,
}

/// All that a listing shows, parents first.
fn nodes(listing: &Listing) -> impl Iterator<Item = Node<'_>> {
    Nodes {
        files: listing.rows().peekable(),
        directories: listing.directories().iter().peekable(),
        above: Vec::new(),
        seen: 0,
    }
}

impl<'a, F: Iterator<Item = listing::Row<'a>>> Nodes<'a, F> {
    /// The innermost directory that holds `path`.
    fn parent(&mut self, path: &str) -> usize {
        let holds = |directory: &str| {
            path.strip_prefix(directory).is_some_and(|below| below.starts_with('/'))
        };
        while self.above.pop_if(|(_, directory)| !holds(directory)).is_some() {}
        self.above.last().map_or(0, |(directory, _)| *directory)
    }
}

impl<'a, F: Iterator<Item = listing::Row<'a>>> Iterator for Nodes<'a, F> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let directory_first = match (self.files.peek(), self.directories.peek()) {
            (Some(file), Some(directory)) => {
                relpath::compare(directory.as_str(), file.path()) == Ordering::Less
            }
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if !directory_first {
            let file = self.files.next()?;
            let parent = self.parent(file.path());
            return Some(Node { path: file.path(), file: Some(file), parent });
        }
        let path = self.directories.next()?.as_str();
        let parent = self.parent(path);
        self.seen += 1;
        self.above.push((self.seen, path));
        Some(Node { path, file: None, parent })
    }
}

struct Builder<'a> {
    previous: Option<&'a Table>,
    table: Table,
    /// The top, then the directories as the listing counts them.
    places: Vec<Place>,
    /// How many directories have rows.
    seen: usize,
}

/// Where a directory stands.
#[derive(Clone, Copy)]
struct Place {
    row: Id,
    /// Its row in the previous table.
    before: Option<Id>,
    /// The first child's row.
    first: usize,
    /// Where the next child goes.
    next: usize,
}

impl<'a> Builder<'a> {
    fn new(listing: &Listing, ownership: Ownership, previous: Option<&'a Table>) -> Self {
        let mut places = layout(listing);
        places[0].before = previous.map(|_| TOP);
        let rows = listing.len() + places.len();
        let table = Table {
            next: previous.map_or(ROOT + 1, |previous| previous.next),
            ownership,
            rows: vec![UNFILLED; rows],
            text: Vec::with_capacity(text_length(listing)),
            origins: listing.origins().to_vec(),
            by_number: HashMap::with_capacity(rows),
            bytes: 0,
        };
        Self { previous, table, places, seen: 0 }
    }

    fn build(mut self, listing: &Listing, now: SystemTime) -> Table {
        for node in nodes(listing) {
            self.put(&node);
        }
        for place in std::mem::take(&mut self.places) {
            self.finish(place, now.into());
        }
        for (index, row) in self.table.rows.iter().enumerate() {
            self.table.by_number.insert(row.number, Id::from_index(index));
        }
        self.table
    }

    fn put(&mut self, node: &Node<'_>) {
        let place = &mut self.places[node.parent];
        let (id, parent, directory) = (Id::from_index(place.next), place.row, place.before);
        place.next += 1;
        let name = relpath::file_name(node.path);
        let before = self
            .previous
            .zip(directory)
            .and_then(|(previous, directory)| previous.lookup(directory, name.as_bytes()));
        let text = self.table.text.len() as u64;
        self.append(name);
        let (number, modified, body) = match node.file {
            Some(file) => self.file(file, before),
            None => self.directory(id, before),
        };
        let name = u8::try_from(name.len()).expect("a name of a RelPath has at most 255 bytes");
        self.table.rows[id.index()] = Row { number, modified, parent, text, name, body };
    }

    fn file(&mut self, file: listing::Row<'_>, before: Option<Id>) -> (u64, Moment, Body) {
        let same = self.previous.zip(before).filter(|(old, id)| old.shows(*id, file));
        let (number, modified) = match same {
            Some((previous, id)) => (previous.number(id), previous.row(id).modified),
            None => (self.fresh(), file.modified()),
        };
        let (size, origin, etag) = (file.size(), file.origin_number(), self.append(file.etag()));
        let version_id = file.version_id().map_or(0, |id| self.append(id));
        self.table.bytes = self.table.bytes.saturating_add(size);
        (number, modified, Body::File { size, origin, etag, version_id })
    }

    /// Children and time are filled in by [`Builder::finish`].
    fn directory(&mut self, id: Id, before: Option<Id>) -> (u64, Moment, Body) {
        let same = self.previous.zip(before).filter(|(old, id)| old.is_directory(*id));
        let number = same.map_or_else(|| self.fresh(), |(previous, id)| previous.number(id));
        self.seen += 1;
        let place = &mut self.places[self.seen];
        (place.row, place.before) = (id, same.map(|(_, id)| id));
        (number, UNFILLED.modified, UNFILLED.body)
    }

    fn finish(&mut self, place: Place, now: Moment) {
        let Place { row, before, first, next } = place;
        let children = &self.table.rows[first..next];
        let directories =
            children.iter().filter(|row| matches!(row.body, Body::Directory { .. })).count();
        let count = |number| Id::from_index(number).0;
        let body = Body::Directory {
            first: Id::from_index(first),
            count: count(next - first),
            directories: count(directories),
        };
        let same = self.previous.zip(before);
        let same = same.filter(|(previous, id)| previous.has_children(*id, children));
        let modified = same.map_or(now, |(previous, id)| previous.row(id).modified);
        let row = &mut self.table.rows[row.index()];
        (row.modified, row.body) = (modified, body);
    }

    fn fresh(&mut self) -> u64 {
        self.table.next += 1;
        self.table.next - 1
    }

    fn append(&mut self, text: &str) -> u32 {
        self.table.text.extend_from_slice(text.as_bytes());
        Id::from_index(text.len()).0
    }
}

/// Rows for the children of each directory, side by side; the top is row 0.
fn layout(listing: &Listing) -> Vec<Place> {
    let mut counts = vec![0; listing.directories().len() + 1];
    for node in nodes(listing) {
        counts[node.parent] += 1;
    }
    let mut next = 1;
    let place = |count: usize| {
        let first = next;
        next += count;
        Place { row: TOP, before: None, first, next: first }
    };
    counts.into_iter().map(place).collect()
}

fn text_length(listing: &Listing) -> usize {
    let file = |row: listing::Row<'_>| {
        let name = relpath::file_name(row.path()).len();
        name + row.etag().len() + row.version_id().map_or(0, str::len)
    };
    let directory = |path: &RelPath| path.file_name().len();
    let files: usize = listing.rows().map(file).sum();
    files + listing.directories().iter().map(directory).sum::<usize>()
}

/// The top as it stands here before its children are known; all other rows are written over.
const UNFILLED: Row = Row {
    number: ROOT,
    modified: Moment { seconds: 0, nanos: 0 },
    parent: TOP,
    text: 0,
    name: 0,
    body: Body::Directory { first: TOP, count: 0, directories: 0 },
};
