//! The immutable, complete list of what a volume shows: paths and the object versions behind them.
//!
//! Pure data. Resolving sources feeds objects into a [`ListingBuilder`]; [`ListingBuilder::finish`]
//! decides, for all keys together, which become files, which directories exist, and what has to be
//! reported. That decision needs the whole set (a key `a` is a file until `a/b` turns up), which is
//! why no path is handed out earlier. Which objects those are at a moment of the past, [`StateAt`]
//! decides before.

mod codec;
mod origin;
mod past;

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    fmt,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    codec::{read_object, write_object},
    origin::Origin,
    past::{Evidence, KeyVersion, NULL_VERSION, StateAt},
};
use crate::{
    failure::FailureKind,
    glob::Filter,
    object::{Bucket, Key, Object, ObjectVersion},
    relpath::{PathProblem, RelPath},
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
    entries: Vec<Entry>,
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
        mut entries: Vec<Entry>,
        mut directories: Vec<RelPath>,
        skipped: Skipped,
    ) -> Option<Self> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        directories.sort_unstable();
        let known: HashSet<&RelPath> = directories.iter().collect();
        let stands = |path: &RelPath| path.parent().is_none_or(|parent| known.contains(&parent));
        let once = entries.array_windows().all(|[a, b]| a.path != b.path)
            && known.len() == directories.len();
        let files = entries.iter().all(|e| stands(&e.path) && !known.contains(&e.path));
        let good = once && files && directories.iter().all(stands);
        good.then_some(Self { entries, directories, skipped })
    }

    /// The files, sorted by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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
        let mut before = old.entries.iter().peekable();
        let mut changes = Changes::default();
        for entry in &self.entries {
            while before.peek().is_some_and(|old| old.path < entry.path) {
                before.next();
                changes.names_differ = true;
            }
            match before.peek().map(|old| (old.path.cmp(&entry.path), *old)) {
                Some((Ordering::Equal, old)) => {
                    before.next();
                    if old.object.version != entry.object.version {
                        changes.files.insert(entry.path.clone());
                    }
                }
                _ => drop(changes.files.insert(entry.path.clone())),
            }
        }
        changes.names_differ |= before.next().is_some() || self.directories != old.directories;
        changes
    }

    /// When the youngest object was written; `None` without objects.
    pub fn newest(&self) -> Option<SystemTime> {
        self.entries.iter().map(|entry| entry.object.last_modified).max()
    }

    /// The sum of the sizes in bytes, each rounded up to a multiple of `unit` (1: exact).
    pub fn bytes(&self, unit: u64) -> u64 {
        let rounded = |entry: &Entry| entry.object.version.size.div_ceil(unit).saturating_mul(unit);
        self.entries.iter().map(rounded).fold(0, u64::saturating_add)
    }
}

impl Skipped {
    /// How many keys were skipped.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn add(&mut self, bucket: &Bucket, key: &str, problem: PathProblem) {
        self.count += 1;
        if self.first.len() < NAMED_SKIPS {
            self.first.push(format!("{bucket}/{}: {problem}", key.escape_debug()));
        }
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
    source: usize,
    /// What the current source has given.
    given: usize,
    files: Vec<File>,
    directories: HashMap<RelPath, Maker>,
    skipped: Skipped,
}

#[derive(Debug)]
struct File {
    source: usize,
    entry: Entry,
}

/// The first object that made a path a directory.
#[derive(Debug)]
struct Maker {
    source: usize,
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
            files: Vec::new(),
            directories: HashMap::new(),
            skipped: Skipped::default(),
        }
    }

    /// How many files and directories there are so far.
    pub fn len(&self) -> usize {
        self.files.len() + self.directories.len()
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

    /// Adds an object whose key continues with `below` after the source's prefix.
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
        object: Object,
    ) -> Result<(), ListingError> {
        let is_marker = below.ends_with('/');
        let name = below.strip_suffix('/').unwrap_or(below);
        if below.is_empty() || !filter.accepts(name) {
            return Ok(());
        }
        match RelPath::join(directory, name) {
            Err(problem) => self.skip(&object, problem),
            Ok(path) if is_marker => {
                if object.version.size > 0 {
                    self.skip(&object, PathProblem::MarkerContent);
                }
                self.given += 1;
                let ancestors = path.ancestors();
                return self
                    .add_directories(std::iter::once(path.clone()).chain(ancestors), &object);
            }
            Ok(path) => return self.add_file(path, object),
        }
        Ok(())
    }

    /// Adds a single object at exactly `path`.
    ///
    /// # Errors
    /// [`ListingError::TooMany`].
    pub fn add_file(&mut self, path: RelPath, object: Object) -> Result<(), ListingError> {
        if self.files.len() as u64 >= self.max_objects {
            return Err(ListingError::TooMany { limit: self.max_objects });
        }
        self.given += 1;
        self.add_directories(path.ancestors(), &object)?;
        self.files.push(File { source: self.source, entry: Entry { path, object } });
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
        self.skipped.add(&object.version.bucket, object.version.key.as_str(), problem);
    }

    /// Decides what the volume shows. Sorts everything, which takes a while for a million keys.
    ///
    /// # Errors
    /// [`ListingError::Changed`] if a key was listed twice with different content.
    /// [`ListingError::Conflict`] if two keys claim one path: two sources put different keys there,
    /// or one source's file is where another needs a directory. (Within one source, a key that is
    /// also a directory of other keys is skipped: S3 allows that, so it is nobody's mistake.)
    pub fn finish(mut self) -> Result<Listing, ListingError> {
        self.files.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        self.files.dedup_by(|b, a| a.source == b.source && a.entry == b.entry);
        if let Some([a, b]) = self.files.array_windows().find(|[a, b]| a.entry.path == b.entry.path)
        {
            let ObjectVersion { bucket, key, .. } = &b.entry.object.version;
            if a.source == b.source && a.entry.object.version.key == *key {
                return Err(ListingError::Changed {
                    bucket: bucket.to_string(),
                    key: key.to_string(),
                });
            }
            return Err(conflict(&a.entry, bucket, key));
        }
        let mut skipped = self.skipped;
        let mut entries = Vec::with_capacity(self.files.len());
        for File { source, entry } in self.files {
            match self.directories.get(&entry.path) {
                None => entries.push(entry),
                Some(maker) if maker.source == source => {
                    let ObjectVersion { bucket, key, .. } = &entry.object.version;
                    skipped.add(bucket, key.as_str(), PathProblem::AlsoDirectory);
                }
                Some(maker) => return Err(conflict(&entry, &maker.bucket, &maker.key)),
            }
        }
        let mut directories: Vec<_> = self.directories.into_keys().collect();
        directories.sort_unstable();
        Ok(Listing { entries, directories, skipped })
    }
}

fn conflict(entry: &Entry, bucket: &Bucket, key: &Key) -> ListingError {
    let ObjectVersion { bucket: first_bucket, key: first_key, .. } = &entry.object.version;
    ListingError::Conflict {
        path: entry.path.to_string(),
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
