//! From a listing to an inode table, in time proportional to the listing.
//!
//! Listings are sorted so that the content of a directory follows it at once. One pass over files
//! and directories, merged, therefore finds everybody's parent on a stack; a second one puts the
//! children of each directory side by side.

use std::{collections::HashMap, iter::Peekable, slice, time::SystemTime};

use super::table::{Body, Id, Moment, ROOT, Row, TOP, Table};
use crate::{
    listing::{Entry, Listing, Origin},
    object::{Object, ObjectVersion},
    relpath::RelPath,
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
    path: &'a RelPath,
    entry: Option<&'a Entry>,
    /// Which directory it stands in: 0 is the top, then as the listing counts.
    parent: usize,
}

/// Files and directories in one order, each with its parent.
struct Nodes<'a> {
    entries: Peekable<slice::Iter<'a, Entry>>,
    directories: Peekable<slice::Iter<'a, RelPath>>,
    /// The directories above the next node: which, and their paths.
    above: Vec<(usize, &'a str)>,
    seen: usize,
}

impl<'a> Nodes<'a> {
    fn new(listing: &'a Listing) -> Self {
        Self {
            entries: listing.entries().iter().peekable(),
            directories: listing.directories().iter().peekable(),
            above: Vec::new(),
            seen: 0,
        }
    }

    /// The innermost directory that holds `path`.
    fn parent(&mut self, path: &str) -> usize {
        let holds = |directory: &str| {
            path.strip_prefix(directory).is_some_and(|below| below.starts_with('/'))
        };
        while self.above.pop_if(|(_, directory)| !holds(directory)).is_some() {}
        self.above.last().map_or(0, |(directory, _)| *directory)
    }
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let directory_first = match (self.entries.peek(), self.directories.peek()) {
            (Some(entry), Some(directory)) => **directory < entry.path,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if !directory_first {
            let entry = self.entries.next()?;
            let parent = self.parent(entry.path.as_str());
            return Some(Node { path: &entry.path, entry: Some(entry), parent });
        }
        let path = self.directories.next()?;
        let parent = self.parent(path.as_str());
        self.seen += 1;
        self.above.push((self.seen, path.as_str()));
        Some(Node { path, entry: None, parent })
    }
}

struct Builder<'a> {
    previous: Option<&'a Table>,
    table: Table,
    origins: HashMap<Origin, u32>,
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
        let rows = listing.entries().len() + places.len();
        let table = Table {
            next: previous.map_or(ROOT + 1, |previous| previous.next),
            ownership,
            rows: vec![UNFILLED; rows],
            text: Vec::with_capacity(text_length(listing)),
            origins: Vec::new(),
            by_number: HashMap::with_capacity(rows),
            bytes: 0,
        };
        Self { previous, table, origins: HashMap::new(), places, seen: 0 }
    }

    fn build(mut self, listing: &Listing, now: SystemTime) -> Table {
        for node in Nodes::new(listing) {
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
        let name = node.path.file_name();
        let before = self
            .previous
            .zip(directory)
            .and_then(|(previous, directory)| previous.lookup(directory, name.as_bytes()));
        let text = self.table.text.len() as u64;
        self.append(name);
        let (number, modified, body) = match node.entry {
            Some(entry) => self.file(entry, before),
            None => self.directory(id, before),
        };
        let name = u8::try_from(name.len()).expect("a name of a RelPath has at most 255 bytes");
        self.table.rows[id.index()] = Row { number, modified, parent, text, name, body };
    }

    fn file(&mut self, entry: &Entry, before: Option<Id>) -> (u64, Moment, Body) {
        let Object { version, version_id, last_modified } = &entry.object;
        let path = entry.path.as_str();
        let same = self.previous.zip(before).filter(|(old, id)| old.shows(*id, path, version));
        let (number, modified) = match same {
            Some((previous, id)) => (previous.number(id), previous.row(id).modified),
            None => (self.fresh(), (*last_modified).into()),
        };
        let (origin, etag) = (self.origin(path, version), self.append(version.etag.as_str()));
        let version_id = version_id.as_deref().map_or(0, |id| self.append(id));
        self.table.bytes = self.table.bytes.saturating_add(version.size);
        (number, modified, Body::File { size: version.size, origin, etag, version_id })
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

    fn origin(&mut self, path: &str, version: &ObjectVersion) -> u32 {
        let origin = Origin::of(path, version);
        if let Some(known) = self.origins.get(&origin) {
            return *known;
        }
        let index = Id::from_index(self.table.origins.len()).0;
        self.table.origins.push(origin.clone());
        self.origins.insert(origin, index);
        index
    }
}

/// Rows for the children of each directory, side by side; the top is row 0.
fn layout(listing: &Listing) -> Vec<Place> {
    let mut counts = vec![0; listing.directories().len() + 1];
    for node in Nodes::new(listing) {
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
    let name = |path: &RelPath| path.file_name().len();
    let file = |Entry { path, object }: &Entry| {
        let version_id = object.version_id.as_ref().map_or(0, |id| id.len());
        name(path) + object.version.etag.as_str().len() + version_id
    };
    let files: usize = listing.entries().iter().map(file).sum();
    files + listing.directories().iter().map(name).sum::<usize>()
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
