//! The files of a listing, in little memory, since a million are normal: one row of fixed size for
//! each, one arena for all text, and what the files of one source have in common once.
//!
//! A million [`Entry`]s would take more than 300 bytes each beyond their names, in four million small
//! pieces; this takes about 110, in three large ones, which the kernel gets back when a listing is
//! dropped.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use super::{Entry, Moment, Origin};
use crate::{
    object::{ETag, Key, Object, ObjectVersion},
    relpath::{self, RelPath},
};

/// Files in an order.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    packed: Vec<Packed>,
    text: String,
    origins: Vec<Origin>,
}

#[derive(Debug, Clone, Copy)]
struct Packed {
    /// Where in the arena path, `ETag` and version id stand, in this order.
    text: usize,
    size: u64,
    seconds: i64,
    nanos: u32,
    /// An index of `Files::origins`.
    origin: u32,
    /// Which source gave it.
    source: u32,
    /// The length of the `ETag`.
    etag: u32,
    /// The length of the version id; 0 is none.
    version_id: u32,
    /// The length of the path; it has at most 2048 bytes.
    path: u16,
}

/// One file of a listing, where it stands in memory.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    files: &'a Files,
    packed: &'a Packed,
}

impl Files {
    pub(super) fn len(&self) -> usize {
        self.packed.len()
    }

    pub(super) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> + Clone {
        self.packed.iter().map(|packed| self.row(packed))
    }

    fn row<'a>(&'a self, packed: &'a Packed) -> Row<'a> {
        Row { files: self, packed }
    }

    /// Sorts by path; files at one path stay in the order in which they came.
    pub(super) fn sort(&mut self) {
        let text = &*self.text;
        let path = |packed: &Packed| &text[packed.text..][..packed.path.into()];
        self.packed.sort_by(|a, b| relpath::compare(path(a), path(b)));
    }

    /// Leaves out every file that equals the one before, and came from the same source.
    pub(super) fn dedup(&mut self) {
        let mut packed = std::mem::take(&mut self.packed);
        packed.dedup_by(|b, a| a.source == b.source && self.row(a) == self.row(b));
        self.packed = packed;
    }

    /// Leaves out the files for which `keep` is false.
    ///
    /// # Errors
    /// The first of `keep`; the files are gone then.
    pub(super) fn try_retain<E>(
        &mut self,
        mut keep: impl FnMut(Row<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut packed = std::mem::take(&mut self.packed);
        let mut outcome = Ok(());
        packed.retain(|packed| {
            let kept = outcome.is_ok().then(|| keep(self.row(packed)));
            kept.is_some_and(|kept| {
                kept.unwrap_or_else(|error| {
                    outcome = Err(error);
                    false
                })
            })
        });
        self.packed = packed;
        outcome
    }

    /// Numbers the origins as the files need them, whatever the order in which those came, and gives
    /// back what memory is not needed.
    pub(super) fn settle(&mut self) {
        const UNKNOWN: u32 = u32::MAX;
        let mut numbers = vec![UNKNOWN; self.origins.len()];
        let mut origins = Vec::new();
        for packed in &mut self.packed {
            let old = index(packed.origin);
            if numbers[old] == UNKNOWN {
                numbers[old] = length(origins.len());
                origins.push(self.origins[old].clone());
            }
            packed.origin = numbers[old];
        }
        self.origins = origins;
        self.packed.shrink_to_fit();
        self.text.shrink_to_fit();
    }
}

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        self.rows().eq(other.rows())
    }
}

impl Eq for Files {}

/// Adds files to others.
#[derive(Debug, Default)]
pub(super) struct Packer {
    pub(super) files: Files,
    numbers: HashMap<Origin, u32>,
    /// The origin of the last file, which is that of the next, as a rule.
    last: u32,
}

impl Packer {
    /// Adds a file.
    pub(super) fn push(&mut self, source: u32, path: &RelPath, object: &Object) {
        let path = path.as_str();
        let origin = self.origin(path, &object.version);
        let (etag, version_id) = (object.version.etag.as_str(), object.version_id.as_deref());
        let version_id = version_id.unwrap_or_default();
        let Moment { seconds, nanos } = object.last_modified.into();
        let text = self.files.text.len();
        self.files.text.extend([path, etag, version_id]);
        self.files.packed.push(Packed {
            text,
            size: object.version.size,
            seconds,
            nanos,
            origin,
            source,
            etag: length(etag.len()),
            version_id: length(version_id.len()),
            path: u16::try_from(path.len()).expect("a RelPath has at most 2048 bytes"),
        });
    }

    fn origin(&mut self, path: &str, version: &ObjectVersion) -> u32 {
        let last = self.files.origins.get(index(self.last));
        if !last.is_some_and(|last| last.is_of(path, version)) {
            let origin = Origin::of(path, version);
            let next = length(self.files.origins.len());
            self.last = *self.numbers.entry(origin.clone()).or_insert(next);
            if self.last == next {
                self.files.origins.push(origin);
            }
        }
        self.last
    }
}

impl<'a> Row<'a> {
    /// Where it stands in the volume, as [`RelPath::as_str`].
    pub fn path(self) -> &'a str {
        self.text(0, self.packed.path.into())
    }

    /// The entity tag of its content, without quotes.
    pub fn etag(self) -> &'a str {
        self.text(self.packed.path.into(), index(self.packed.etag))
    }

    /// The version that was asked for, if one was.
    pub fn version_id(self) -> Option<&'a str> {
        let before = usize::from(self.packed.path) + index(self.packed.etag);
        Some(self.text(before, index(self.packed.version_id))).filter(|id| !id.is_empty())
    }

    /// The length of its content in bytes.
    pub fn size(self) -> u64 {
        self.packed.size
    }

    /// When it was written.
    pub fn modified(self) -> Moment {
        Moment { seconds: self.packed.seconds, nanos: self.packed.nanos }
    }

    /// Where it comes from: an index of [`Listing::origins`](super::Listing::origins).
    pub fn origin_number(self) -> u32 {
        self.packed.origin
    }

    /// Where it comes from.
    pub fn origin(self) -> &'a Origin {
        &self.files.origins[index(self.packed.origin)]
    }

    /// Whether both stand at one path with the same object version.
    pub fn shows_as(self, other: Row<'_>) -> bool {
        self.size() == other.size()
            && self.path() == other.path()
            && self.etag() == other.etag()
            && self.origin() == other.origin()
    }

    /// What it holds.
    #[expect(clippy::missing_panics_doc, reason = "the key was one")]
    pub fn object(self) -> Object {
        let origin = self.origin();
        let key = origin.key(self.path()).unwrap_or_default();
        let version = ObjectVersion {
            endpoint: origin.endpoint.clone(),
            bucket: origin.bucket.clone(),
            key: Key::parse(&key).expect("it was a key"),
            etag: ETag::new(self.etag()),
            size: self.size(),
            sse_key: origin.sse_key,
        };
        let version_id = self.version_id().map(Arc::from);
        Object { version, version_id, last_modified: self.modified().into() }
    }

    /// A copy that stands by itself.
    #[expect(clippy::missing_panics_doc, reason = "the path was one")]
    pub fn entry(self) -> Entry {
        let path = RelPath::parse(self.path()).expect("it was a path");
        Entry { path, object: self.object() }
    }

    /// Which source gave it.
    pub(super) fn source(self) -> u32 {
        self.packed.source
    }

    fn text(self, skip: usize, length: usize) -> &'a str {
        &self.files.text[self.packed.text + skip..][..length]
    }
}

impl PartialEq for Row<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.shows_as(*other)
            && self.modified() == other.modified()
            && self.version_id() == other.version_id()
    }
}

impl Eq for Row<'_> {}

/// By path.
pub(super) fn by_path(a: Row<'_>, b: Row<'_>) -> Ordering {
    relpath::compare(a.path(), b.path())
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a pointer has 32 bits at least")
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("what is in memory more than once is shorter than 4 GiB")
}

#[cfg(test)]
mod tests;
