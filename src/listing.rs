//! The immutable, complete list of what a volume shows: paths and the object versions behind them.
//!
//! Pure data. Resolving sources feeds objects into a [`ListingBuilder`]; [`ListingBuilder::finish`]
//! decides, for all keys together, which become files, which directories exist, and what has to be
//! reported. That decision needs the whole set (a key `a` is a file until `a/b` turns up), which is
//! why no path is handed out earlier. Which objects those are at a moment of the past, [`StateAt`]
//! decides before.

mod codec;
mod files;
mod moment;
mod origin;
mod past;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::files::{Files, Packer, by_path};
pub use self::{
    codec::{read_object, write_object},
    files::Row,
    moment::Moment,
    origin::Origin,
    past::{Evidence, KeyVersion, NULL_VERSION, StateAt},
};
use crate::{
    failure::FailureKind,
    glob::Filter,
    object::{Bucket, Key, Object, ObjectVersion},
    relpath::{self, PathProblem, RelPath},
};

/// How many skipped keys are named; the rest are counted.
const NAMED_SKIPS: usize = 3;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands in the volume.
    pub path: RelPath,
    /// What it holds.
    pub object: Object,
}

/// Everything that a volume shows at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    files: Files,
    directories: Vec<RelPath>,
    skipped: Skipped,
}

/// The difference between what is shown and what a listing asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The files that are new or have other content.
    pub files: HashSet<RelPath>,
    /// Whether anything else differs: files that go, directories that come or go.
    pub names_differ: bool,
}

impl Changes {
    /// Whether a reader would see no difference.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.names_differ
    }
}

/// The keys that could not become paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    count: u64,
    first: Vec<String>,
}

/// Why the sources do not add up to a listing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ListingError {
    /// Two keys claim one path.
    #[error(
        "{first} and {second} would both stand at {path:?} in the volume; give one of their \
         sources another path, or exclude one"
    )]
    Conflict {
        /// The contested path.
        path: String,
        /// `bucket/key` that was there first.
        first: String,
        /// `bucket/key` that came later.
        second: String,
    },
    /// One key was listed twice, with different content: it changed between two pages.
    #[error("{bucket}/{key} changed while it was listed")]
    Changed {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// More objects than the volume may have.
    #[error(
        "the sources hold more than {limit} objects, or need more than {limit} directories; narrow \
         prefix or include, or raise maxObjects"
    )]
    TooMany {
        /// The volume's `maxObjects`.
        limit: u64,
    },
}

impl ListingError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Conflict { .. } => FailureKind::Invalid,
            Self::Changed { .. } => FailureKind::Stale,
            Self::TooMany { .. } => FailureKind::Exhausted,
        }
    }
}

impl Listing {
    /// A listing from its parts, as they were given out before.
    ///
    /// `None` if they are no listing: a path twice, or a file whose directory is missing or is a
    /// file itself.
    pub fn from_parts(
        entries: impl IntoIterator<Item = Entry>,
        directories: Vec<RelPath>,
        skipped: Skipped,
    ) -> Option<Self> {
        let mut packer = Packer::default();
        entries.into_iter().for_each(|Entry { path, object }| packer.push(0, &path, &object));
        Self::from_files(packer.files, directories, skipped)
    }

    fn from_files(
        mut files: Files,
        mut directories: Vec<RelPath>,
        skipped: Skipped,
    ) -> Option<Self> {
        files.sort();
        files.settle();
        directories.sort_unstable();
        let known: HashSet<&str> = directories.iter().map(RelPath::as_str).collect();
        let stands = |path: &str| relpath::parent(path).is_none_or(|parent| known.contains(parent));
        let follows = |(a, b): (Row<'_>, Row<'_>)| by_path(a, b) == Ordering::Less;
        let once =
            files.rows().zip(files.rows().skip(1)).all(follows) && known.len() == directories.len();
        let is_file = |row: Row<'_>| stands(row.path()) && !known.contains(row.path());
        let good = once && files.rows().all(is_file) && known.iter().copied().all(stands);
        good.then_some(Self { files, directories, skipped })
    }

    /// The files, sorted by path, each made when it is its turn. Who looks at all of many, and keeps
    /// none, takes [`Listing::rows`].
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> + Clone {
        self.rows().map(Row::entry)
    }

    /// The files, sorted by path, as they stand in memory.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> + Clone {
        self.files.rows()
    }

    /// Where files come from, in the order in which they, sorted, need it.
    pub fn origins(&self) -> &[Origin] {
        self.files.origins()
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every directory below the top, sorted, parents before children.
    pub fn directories(&self) -> &[RelPath] {
        &self.directories
    }

    /// What could not be shown.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// What changes for a reader when this listing takes the place of `old`.
    ///
    /// An object is the same if its version is: an upload of equal content has another time, and
    /// changes nothing.
    pub fn changes_from(&self, old: &Self) -> Changes {
        let mut before = old.rows().peekable();
        let mut changes = Changes::default();
        for row in self.rows() {
            while before.next_if(|old| by_path(*old, row) == Ordering::Less).is_some() {
                changes.names_differ = true;
            }
            let same_path = before.next_if(|old| old.path() == row.path());
            if !same_path.is_some_and(|old| old.shows_as(row)) {
                changes.files.insert(row.entry().path);
            }
        }
        changes.names_differ |= before.next().is_some() || self.directories != old.directories;
        changes
    }

    /// When the youngest object was written; `None` without objects.
    pub fn newest(&self) -> Option<SystemTime> {
        self.rows().map(Row::modified).max().map(SystemTime::from)
    }

    /// The sum of the sizes in bytes, each rounded up to a multiple of `unit` (1: exact).
    pub fn bytes(&self, unit: u64) -> u64 {
        let rounded = |row: Row<'_>| row.size().div_ceil(unit).saturating_mul(unit);
        self.rows().map(rounded).fold(0, u64::saturating_add)
    }
}

impl Skipped {
    /// How many keys were skipped.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Skipped keys while they are collected. Keys come in any order, and the same ones are named.
#[derive(Debug, Default)]
struct Skips {
    count: u64,
    /// Source, key, and what is said about it.
    first: BTreeMap<(u32, String), String>,
}

impl Skips {
    fn add(&mut self, source: u32, bucket: &Bucket, key: &str, problem: PathProblem) {
        self.count += 1;
        let text = || format!("{bucket}/{}: {problem}", key.escape_debug());
        self.first.entry((source, key.to_owned())).or_insert_with(text);
        if self.first.len() > NAMED_SKIPS {
            self.first.pop_last();
        }
    }

    fn finish(self) -> Skipped {
        Skipped { count: self.count, first: self.first.into_values().collect() }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys skipped", self.count)?;
        if !self.first.is_empty() {
            write!(f, " ({}", self.first.join("; "))?;
            f.write_str(if self.count > self.first.len() as u64 { "; ...)" } else { ")" })?;
        }
        Ok(())
    }
}

/// Collects the objects of all sources of one volume.
///
/// Directories count against `maxObjects` as files do: one key can ask for five hundred of them.
#[derive(Debug)]
pub struct ListingBuilder {
    max_objects: u64,
    source: u32,
    /// What the current source has given.
    given: usize,
    packer: Packer,
    directories: HashMap<RelPath, Maker>,
    /// The directory of the last file, which is that of the next, as a rule.
    last: Option<RelPath>,
    skips: Skips,
}

/// The first object that made a path a directory.
#[derive(Debug)]
struct Maker {
    source: u32,
    bucket: Bucket,
    key: Key,
}

impl ListingBuilder {
    /// Starts a listing of at most `max_objects` files, and as many directories.
    pub fn new(max_objects: u64) -> Self {
        Self {
            max_objects,
            source: 0,
            given: 0,
            packer: Packer::default(),
            directories: HashMap::new(),
            last: None,
            skips: Skips::default(),
        }
    }

    /// How many files and directories there are so far.
    pub fn len(&self) -> usize {
        self.packer.files.len() + self.directories.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends one source and starts the next: how many files and markers did it give?
    pub fn next_source(&mut self) -> usize {
        self.source += 1;
        std::mem::take(&mut self.given)
    }

    /// Adds an object whose key continues with `below` after the source's prefix. Those of one source
    /// come in any order.
    ///
    /// Keys that the filter does not want are dropped silently; keys that cannot be paths are
    /// counted as skipped. The prefix's own marker (`below` is empty) is the volume's top.
    ///
    /// # Errors
    /// [`ListingError::TooMany`].
    pub fn add_below(
        &mut self,
        directory: Option<&RelPath>,
        below: &str,
        filter: &Filter,
        object: &Object,
    ) -> Result<(), ListingError> {
        let is_marker = below.ends_with('/');
        let name = below.strip_suffix('/').unwrap_or(below);
        if below.is_empty() || !filter.accepts(name) {
            return Ok(());
        }
        match RelPath::join(directory, name) {
            Err(problem) => self.skip(object, problem),
            Ok(path) if is_marker => {
                if object.version.size > 0 {
                    self.skip(object, PathProblem::MarkerContent);
                }
                self.given += 1;
                let ancestors = path.ancestors();
                return self
                    .add_directories(std::iter::once(path.clone()).chain(ancestors), object);
            }
            Ok(path) => return self.add_file(&path, object),
        }
        Ok(())
    }

    /// Adds a single object at exactly `path`.
    ///
    /// # Errors
    /// [`ListingError::TooMany`].
    pub fn add_file(&mut self, path: &RelPath, object: &Object) -> Result<(), ListingError> {
        if self.packer.files.len() as u64 >= self.max_objects {
            return Err(ListingError::TooMany { limit: self.max_objects });
        }
        self.given += 1;
        if relpath::parent(path.as_str()) != self.last.as_ref().map(RelPath::as_str) {
            self.add_directories(path.ancestors(), object)?;
            self.last = path.parent();
        }
        self.packer.push(self.source, path, object);
        Ok(())
    }

    /// Notes directories, the nearest first; above one that is known, all are known.
    fn add_directories(
        &mut self,
        paths: impl Iterator<Item = RelPath>,
        object: &Object,
    ) -> Result<(), ListingError> {
        let ObjectVersion { bucket, key, .. } = &object.version;
        for path in paths {
            if self.directories.contains_key(&path) {
                break;
            }
            if self.directories.len() as u64 >= self.max_objects {
                return Err(ListingError::TooMany { limit: self.max_objects });
            }
            let (bucket, key) = (bucket.clone(), key.clone());
            self.directories.insert(path, Maker { source: self.source, bucket, key });
        }
        Ok(())
    }

    /// Counts an object as one that no path can hold.
    pub fn skip(&mut self, object: &Object, problem: PathProblem) {
        let ObjectVersion { bucket, key, .. } = &object.version;
        self.skips.add(self.source, bucket, key.as_str(), problem);
    }

    /// Decides what the volume shows. Sorts everything, which takes a while for a million keys.
    ///
    /// # Errors
    /// [`ListingError::Changed`] if a key was listed twice with different content.
    /// [`ListingError::Conflict`] if two keys claim one path: two sources put different keys there,
    /// or one source's file is where another needs a directory. (Within one source, a key that is
    /// also a directory of other keys is skipped: S3 allows that, so it is nobody's mistake.)
    pub fn finish(self) -> Result<Listing, ListingError> {
        let Self { packer: Packer { mut files, .. }, mut skips, .. } = self;
        files.sort();
        files.dedup();
        if let Some((a, b)) =
            files.rows().zip(files.rows().skip(1)).find(|(a, b)| same_path(*a, *b))
        {
            let ObjectVersion { bucket, key, .. } = b.object().version;
            if a.source() == b.source() && a.object().version.key == key {
                let (bucket, key) = (bucket.to_string(), key.to_string());
                return Err(ListingError::Changed { bucket, key });
            }
            return Err(conflict(a, &bucket, &key));
        }
        let mut directories: Vec<_> = self.directories.into_iter().collect();
        directories.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut above = directories.iter().peekable();
        files.try_retain(|row| {
            let order = |path: &RelPath| relpath::compare(path.as_str(), row.path());
            while above.next_if(|(path, _)| order(path) == Ordering::Less).is_some() {}
            match above.next_if(|(path, _)| order(path) == Ordering::Equal) {
                None => Ok(true),
                Some((_, maker)) if maker.source == row.source() => {
                    let ObjectVersion { bucket, key, .. } = row.object().version;
                    let problem = PathProblem::AlsoDirectory;
                    skips.add(row.source(), &bucket, key.as_str(), problem);
                    Ok(false)
                }
                Some((_, maker)) => Err(conflict(row, &maker.bucket, &maker.key)),
            }
        })?;
        files.settle();
        let directories = directories.into_iter().map(|(path, _)| path).collect();
        Ok(Listing { files, directories, skipped: skips.finish() })
    }
}

fn same_path(a: Row<'_>, b: Row<'_>) -> bool {
    a.path() == b.path()
}

fn conflict(row: Row<'_>, bucket: &Bucket, key: &Key) -> ListingError {
    let ObjectVersion { bucket: first_bucket, key: first_key, .. } = row.object().version;
    ListingError::Conflict {
        path: row.path().to_owned(),
        first: format!("{first_bucket}/{first_key}"),
        second: format!("{bucket}/{key}"),
    }
}

/// The name of a single-key source's file when it has no `path`: the key's last segment.
///
/// # Errors
/// Why that name is none.
pub fn natural_path(key: &Key) -> Result<RelPath, PathProblem> {
    RelPath::parse(key.file_name())
}

#[cfg(test)]
mod tests;
