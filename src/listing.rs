//! The immutable, complete list of what a volume shows: paths and the object versions behind them.
//!
//! Pure data. Resolving sources feeds objects into a [`ListingBuilder`]; [`ListingBuilder::finish`]
//! decides, for all keys together, which become files, which directories exist, and what has to be
//! reported. That decision needs the whole set (a key `a` is a file until `a/b` turns up), which is
//! why no path is handed out earlier.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use thiserror::Error;

use crate::{
    failure::FailureKind,
    glob::Filter,
    object::{Bucket, Key, Object},
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

/// The keys that could not become paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// More objects than the volume may have.
    #[error(
        "the sources hold more than {limit} objects; narrow prefix or include, or raise maxObjects"
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
            Self::TooMany { .. } => FailureKind::Exhausted,
        }
    }
}

impl Listing {
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
#[derive(Debug)]
pub struct ListingBuilder {
    max_objects: u64,
    source: usize,
    files: Vec<File>,
    markers: Vec<Marker>,
    skipped: Skipped,
}

#[derive(Debug)]
struct File {
    source: usize,
    entry: Entry,
}

#[derive(Debug)]
struct Marker {
    source: usize,
    path: RelPath,
    key: String,
}

/// Who made a path a directory.
struct Maker<'a> {
    source: usize,
    bucket_key: (&'a str, &'a str),
}

impl ListingBuilder {
    /// Starts a listing of at most `max_objects` files.
    pub fn new(max_objects: u64) -> Self {
        Self {
            max_objects,
            source: 0,
            files: Vec::new(),
            markers: Vec::new(),
            skipped: Skipped::default(),
        }
    }

    /// Ends one source and starts the next: how many files and directories did it give?
    pub fn next_source(&mut self) -> usize {
        let count = self.files.iter().rev().take_while(|file| file.source == self.source).count()
            + self.markers.iter().rev().take_while(|marker| marker.source == self.source).count();
        self.source += 1;
        count
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
                let key = object.version.key.as_str().to_owned();
                self.markers.push(Marker { source: self.source, path, key });
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
        self.files.push(File { source: self.source, entry: Entry { path, object } });
        Ok(())
    }

    /// Counts an object as one that no path can hold.
    pub fn skip(&mut self, object: &Object, problem: PathProblem) {
        self.skipped.add(&object.version.bucket, object.version.key.as_str(), problem);
    }

    /// Decides what the volume shows.
    ///
    /// # Errors
    /// [`ListingError::Conflict`] if two keys claim one path: two sources put different keys there,
    /// or one source's file is where another needs a directory. (Within one source, a key that is
    /// also a directory of other keys is skipped: S3 allows that, so it is nobody's mistake.)
    pub fn finish(mut self) -> Result<Listing, ListingError> {
        self.files.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
        self.files.dedup_by(|b, a| a.source == b.source && a.entry == b.entry);
        if let Some([a, b]) = self.files.array_windows().find(|[a, b]| a.entry.path == b.entry.path)
        {
            return Err(conflict(&a.entry, bucket_key(&b.entry)));
        }
        let makers = directory_makers(&self.files, &self.markers);
        let directories: BTreeSet<RelPath> = makers.keys().cloned().collect();
        let mut skipped = self.skipped;
        for File { source, entry } in &self.files {
            match makers.get(&entry.path) {
                None => {}
                Some(maker) if maker.source == *source => {
                    let Object { version, .. } = &entry.object;
                    skipped.add(&version.bucket, version.key.as_str(), PathProblem::AlsoDirectory);
                }
                Some(maker) => return Err(conflict(entry, maker.bucket_key)),
            }
        }
        drop(makers);
        let mut entries: Vec<_> = self.files.into_iter().map(|file| file.entry).collect();
        entries.retain(|entry| !directories.contains(&entry.path));
        Ok(Listing { entries, directories: directories.into_iter().collect(), skipped })
    }
}

/// Every path that must be a directory, with the first key that makes it one.
fn directory_makers<'a>(files: &'a [File], markers: &'a [Marker]) -> HashMap<RelPath, Maker<'a>> {
    let mut directories = HashMap::new();
    for marker in markers {
        let bucket_key = ("", marker.key.as_str());
        for path in std::iter::once(marker.path.clone()).chain(marker.path.ancestors()) {
            directories.entry(path).or_insert(Maker { source: marker.source, bucket_key });
        }
    }
    for file in files {
        let bucket_key = bucket_key(&file.entry);
        for path in file.entry.path.ancestors() {
            if directories.contains_key(&path) {
                break;
            }
            directories.insert(path, Maker { source: file.source, bucket_key });
        }
    }
    directories
}

fn bucket_key(entry: &Entry) -> (&str, &str) {
    (entry.object.version.bucket.as_str(), entry.object.version.key.as_str())
}

fn conflict(entry: &Entry, (bucket, key): (&str, &str)) -> ListingError {
    let Object { version, .. } = &entry.object;
    ListingError::Conflict {
        path: entry.path.to_string(),
        first: location(version.bucket.as_str(), version.key.as_str()),
        second: location(bucket, key),
    }
}

fn location(bucket: &str, key: &str) -> String {
    if bucket.is_empty() { key.to_owned() } else { format!("{bucket}/{key}") }
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
