//! The inode table: what a listing looks like to the kernel.
//!
//! Pure data, immutable once built, and compact, since a million files are normal: one row of fixed
//! size for each file and directory, and one arena for all text. The children of a directory are
//! one run of rows, sorted by name: a lookup is a binary search, and a position in a directory is an
//! index that means the same to everybody who has the same listing. A key is not stored: within one
//! source it is the path with another beginning.

use std::{collections::HashMap, ops::Range, sync::Arc, time::SystemTime};

use crate::{
    listing::{self, Moment, Origin},
    object::{ETag, Key, Object, ObjectVersion},
    volume::Ownership,
};

/// The number of the top directory; the kernel's choice.
pub(super) const ROOT: u64 = 1;

/// Read with few requests, a file is small.
const SMALL_FILE: u64 = 128 << 10;

/// Small files that take no more together can stay in the store until the kernel forgets them: what
/// a tmpfs view may show.
const SMALL_VOLUME: u64 = 64 << 20;

/// What the kernel's cache takes for a file, at least.
const PAGE: u64 = 4096;

/// The row of the top directory.
pub(super) const TOP: Id = Id(0);

/// A row of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(pub(super) u32);

impl Id {
    pub(super) fn from_index(index: usize) -> Self {
        Self(u32::try_from(index).expect("a table that fits in memory has fewer than 2^32 rows"))
    }

    pub(super) fn index(self) -> usize {
        usize::try_from(self.0).expect("a pointer has 32 bits at least")
    }
}

/// What `stat(2)` tells about a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) number: u64,
    pub(super) is_directory: bool,
    /// In bytes; 0 for a directory.
    pub(super) size: u64,
    pub(super) modified: SystemTime,
    pub(super) links: u32,
    /// The permission bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Attributes {
    /// Those of a file.
    pub(super) fn of_file(number: u64, object: &Object, ownership: &Ownership) -> Self {
        let Ownership { uid, gid, file_mode, .. } = *ownership;
        let (size, modified, mode) = (object.version.size, object.last_modified, file_mode.bits());
        Self { number, is_directory: false, size, modified, links: 1, mode, uid, gid }
    }
}

/// All files and directories of one listing, with their inode numbers.
#[derive(Debug)]
pub(super) struct Table {
    /// Numbers from here on were never given out.
    pub(super) next: u64,
    pub(super) ownership: Ownership,
    pub(super) rows: Vec<Row>,
    pub(super) text: Vec<u8>,
    pub(super) origins: Vec<Origin>,
    pub(super) by_number: HashMap<u64, Id>,
    /// The sum of all sizes.
    pub(super) bytes: u64,
}

/// One file or directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) number: u64,
    pub(super) modified: Moment,
    /// The directory; the top is its own.
    pub(super) parent: Id,
    /// Where in the arena name, `ETag` and version id stand, in this order.
    pub(super) text: u64,
    /// The length of the name; a name has at most 255 bytes.
    pub(super) name: u8,
    pub(super) body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    File {
        size: u64,
        /// An index of `Table::origins`.
        origin: u32,
        /// The length of the `ETag`.
        etag: u32,
        /// The length of the version id; 0 is none.
        version_id: u32,
    },
    Directory {
        /// The first child's row.
        first: Id,
        count: u32,
        /// How many of them are directories.
        directories: u32,
    },
}

impl Table {
    /// The row of a number that this table gives.
    pub(super) fn find(&self, number: u64) -> Option<Id> {
        self.by_number.get(&number).copied()
    }

    /// The child of that name; `None` if there is none, and in a file.
    pub(super) fn lookup(&self, directory: Id, name: &[u8]) -> Option<Id> {
        let children = self.children(directory);
        let rows = &self.rows[children.clone()];
        let found = rows.binary_search_by(|row| self.name_of(row).cmp(name)).ok()?;
        Some(Id::from_index(children.start + found))
    }

    /// Whether a directory's children have the numbers of these, in the same order.
    pub(super) fn has_children(&self, directory: Id, rows: &[Row]) -> bool {
        let own = self.rows[self.children(directory)].iter();
        own.map(|row| row.number).eq(rows.iter().map(|row| row.number))
    }

    /// The rows of a directory's children, sorted by name as bytes; none for a file.
    pub(super) fn children(&self, directory: Id) -> Range<usize> {
        match self.row(directory).body {
            Body::Directory { first, count, .. } => {
                first.index()..first.index() + Id(count).index()
            }
            Body::File { .. } => 0..0,
        }
    }

    pub(super) fn is_directory(&self, id: Id) -> bool {
        matches!(self.row(id).body, Body::Directory { .. })
    }

    pub(super) fn number(&self, id: Id) -> u64 {
        self.row(id).number
    }

    pub(super) fn parent(&self, id: Id) -> Id {
        self.row(id).parent
    }

    /// The last component of the path; empty for the top.
    pub(super) fn name(&self, id: Id) -> &[u8] {
        self.name_of(self.row(id))
    }

    pub(super) fn attributes(&self, id: Id) -> Attributes {
        let row = self.row(id);
        let Ownership { uid, gid, file_mode, dir_mode } = self.ownership;
        let (is_directory, size, links, mode) = match row.body {
            Body::File { size, .. } => (false, size, 1, file_mode),
            Body::Directory { directories, .. } => (true, 0, directories + 2, dir_mode),
        };
        let (number, modified, mode) = (row.number, row.modified.into(), mode.bits());
        Attributes { number, is_directory, size, modified, links, mode, uid, gid }
    }

    /// What a file shows; `None` for a directory.
    pub(super) fn object(&self, id: Id) -> Option<Object> {
        let row = self.row(id);
        let Body::File { size, .. } = row.body else { return None };
        let origin = self.origin(row)?;
        let key = origin.key(&self.path(id)).unwrap_or_default();
        let version = ObjectVersion {
            endpoint: origin.endpoint.clone(),
            bucket: origin.bucket.clone(),
            key: Key::parse(&key).expect("the key that the table was built from"),
            etag: ETag::new(self.etag(row)),
            size,
            sse_key: origin.sse_key,
        };
        let version_id = self.version_id(row).map(Arc::from);
        Some(Object { version, version_id, last_modified: row.modified.into() })
    }

    /// The path in the volume; empty for the top.
    pub(super) fn path(&self, id: Id) -> String {
        let mut names = Vec::new();
        let mut id = id;
        while id != TOP {
            names.push(text(self.name(id)));
            id = self.parent(id);
        }
        names.reverse();
        names.join("/")
    }

    /// Whether a file's row shows exactly the object version of a listed file at the same path.
    pub(super) fn shows(&self, id: Id, listed: listing::Row<'_>) -> bool {
        let row = self.row(id);
        let Body::File { size, .. } = row.body else { return false };
        size == listed.size()
            && self.etag(row) == listed.etag()
            && self.origin(row) == Some(listed.origin())
    }

    /// The path of a file; `None` if there is none.
    pub(super) fn any_file(&self) -> Option<String> {
        let is_file = |row: &Row| matches!(row.body, Body::File { .. });
        self.rows.iter().position(is_file).map(|index| self.path(Id::from_index(index)))
    }

    /// Whether all files are small, and take little together.
    pub(super) fn is_small(&self) -> bool {
        let room = |row: &Row| match row.body {
            Body::File { size, .. } => (size <= SMALL_FILE).then(|| size.next_multiple_of(PAGE)),
            Body::Directory { .. } => Some(0),
        };
        let all = self.rows.iter().try_fold(0, |all, row| Some(all + room(row)?.max(PAGE)));
        all.is_some_and(|all| all <= SMALL_VOLUME)
    }

    /// What it takes in memory, but for the few origins.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        // A hash table has a control byte for each place, and room for one seventh more, and then up
        // to a power of two.
        let places = (self.by_number.capacity() * 8 / 7).next_power_of_two();
        self.rows.capacity() * size_of::<Row>()
            + self.text.capacity()
            + places * (size_of::<(u64, Id)>() + 1)
    }

    pub(super) fn row(&self, id: Id) -> &Row {
        &self.rows[id.index()]
    }

    /// The text that tells a row from others: the name, then an `ETag` of that length.
    pub(super) fn names_and_etag(&self, row: &Row, etag: u32) -> &[u8] {
        self.text_at(row, 0, u32::from(row.name) + etag)
    }

    fn origin(&self, row: &Row) -> Option<&Origin> {
        match row.body {
            Body::File { origin, .. } => self.origins.get(Id(origin).index()),
            Body::Directory { .. } => None,
        }
    }

    fn name_of(&self, row: &Row) -> &[u8] {
        self.text_at(row, 0, row.name.into())
    }

    fn etag(&self, row: &Row) -> &str {
        match row.body {
            Body::File { etag, .. } => text(self.text_at(row, row.name.into(), etag)),
            Body::Directory { .. } => "",
        }
    }

    fn version_id(&self, row: &Row) -> Option<&str> {
        match row.body {
            Body::File { etag, version_id, .. } if version_id > 0 => {
                Some(text(self.text_at(row, u32::from(row.name) + etag, version_id)))
            }
            _ => None,
        }
    }

    fn text_at(&self, row: &Row, skip: u32, length: u32) -> &[u8] {
        let start = row.text + u64::from(skip);
        let start = usize::try_from(start).expect("the arena is in memory");
        &self.text[start..start + Id(length).index()]
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("all text of the arena was text")
}
