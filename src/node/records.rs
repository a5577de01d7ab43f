//! What principals were allowed to read, for `whenUnavailable: cached`: the newest listing of each
//! source and principal, beside the blobs that it names and on the same medium.
//!
//! ```text
//! <store>/v1/records/<sealed principal and sources>.json     mtime: when all of it was proven
//! ```
//!
//! The name is a keyed digest, so a record is found only by who knows the whole credential, and
//! tells nothing about it. A record holds keys and ETags, no content and nothing secret. It counts
//! for `authorization.cachedFor`, then it is removed. Anything unreadable is as good as no record.
//!
//! All functions block.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::revision::Recipe;
use crate::{
    fetch::ListingKey,
    listing::{Entry, Listing, Skipped},
    object::{Bucket, ETag, EndpointId, Key, Object, ObjectVersion, SseKeyDigest},
    relpath::RelPath,
    source::NodeKey,
    store::pages,
};

/// The version of the files; others are not read.
const FORMAT: u32 = 1;

/// Which part of a store's size its records may take: one of so many.
const SHARE: u64 = 16;

/// How far in the future a record may lie and still be believed: clocks are set.
const SKEW: Duration = Duration::from_hours(1);

/// How records are found, and how long they count. Where they are is up to the caller: the store's
/// [`records`](crate::store::Store::records).
#[derive(Debug, Clone)]
pub(super) struct Records {
    key: NodeKey,
    cached_for: Arc<Mutex<Duration>>,
    /// What this process wrote, by file: another one may have shown, and kept, something else since.
    written: Arc<Mutex<HashMap<PathBuf, Weak<Listing>>>>,
}

/// A listing that S3 confirmed to a principal once, and when.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) listing: Listing,
    pub(super) confirmed: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    entries: Vec<Line>,
    directories: Vec<String>,
    skipped: Skipped,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    path: String,
    bucket: String,
    key: String,
    etag: String,
    size: u64,
    version_id: Option<String>,
    modified: SystemTime,
}

impl Records {
    pub(super) fn new(key: NodeKey, cached_for: Duration) -> Self {
        Self { key, cached_for: Arc::new(Mutex::new(cached_for)), written: Arc::default() }
    }

    /// Sets how long records count from now on, those that are there included.
    pub(super) fn set_cached_for(&self, cached_for: Duration) {
        *self.cached_for.lock() = cached_for;
    }

    /// Keeps what a recipe resolved to, beside its blobs, as proven now: S3 let this principal read
    /// each object of it. A failure is logged.
    pub(super) fn keep(&self, recipe: &Recipe, listing: &Arc<Listing>) {
        self.write(recipe, listing, SystemTime::now());
    }

    /// Lets a record follow what a recipe resolves to, if there is one. It stays as old as it is: a
    /// listing proves no right to read, so it neither prolongs a record nor brings one back that was
    /// forgotten.
    pub(super) fn amend(&self, recipe: &Recipe, listing: &Arc<Listing>) {
        let path = self.path(&recipe.store.records(), &recipe.listing_key());
        let known = self.written.lock().get(&path).and_then(Weak::upgrade);
        if known.is_some_and(|known| Arc::ptr_eq(&known, listing)) {
            return;
        }
        if let Ok(proven) = path.metadata().and_then(|found| found.modified()) {
            self.write(recipe, listing, proven);
        }
    }

    fn write(&self, recipe: &Recipe, listing: &Arc<Listing>, proven: SystemTime) {
        let (directory, asked) = (recipe.store.records(), recipe.listing_key());
        let saved = self.save(&directory, &asked, listing, proven);
        self.sweep(&directory, recipe.store.capacity() / SHARE);
        if let Err(error) = saved {
            tracing::warn!(%error, "failed to keep a listing for the time when S3 is gone");
            return;
        }
        let mut written = self.written.lock();
        if written.len() == written.capacity() {
            written.retain(|_, listing| listing.strong_count() > 0);
        }
        written.insert(self.path(&directory, &asked), Arc::downgrade(listing));
    }

    /// Removes what was kept for a recipe, if anything: S3 has refused it. (Whatever the volume
    /// wants that heard of it: others may ask the same.)
    pub(super) fn forget(&self, recipe: &Recipe) {
        let path = self.path(&recipe.store.records(), &recipe.listing_key());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "failed to remove a record");
            }
            _ => {}
        }
    }

    /// What was kept for a recipe.
    pub(super) fn find(&self, recipe: &Recipe) -> Option<Recorded> {
        let (asked, endpoint) = (recipe.listing_key(), recipe.source.endpoint());
        self.load(&recipe.store.records(), &asked, endpoint)
    }

    /// Writes a record in the place of an earlier one.
    ///
    /// # Errors
    /// What the file system answers; the earlier record then stays.
    fn save(
        &self,
        directory: &Path,
        asked: &ListingKey,
        listing: &Listing,
        proven: SystemTime,
    ) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut file = NamedTempFile::with_prefix_in("new-", directory)?;
        let mut writer = io::BufWriter::new(file.as_file_mut());
        serde_json::to_writer(&mut writer, &Document::of(listing))?;
        writer.flush()?;
        drop(writer);
        file.as_file().set_modified(proven)?;
        file.persist(self.path(directory, asked))?;
        Ok(())
    }

    /// The newest listing that S3 confirmed to this principal, if that is not too long ago.
    fn load(
        &self,
        directory: &Path,
        asked: &ListingKey,
        endpoint: &EndpointId,
    ) -> Option<Recorded> {
        let path = self.path(directory, asked);
        let confirmed = std::fs::metadata(&path).ok()?.modified().ok()?;
        if !self.counts(confirmed) {
            return None;
        }
        let document: Document = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let listing = document.listing(endpoint, asked.sse_key())?;
        Some(Recorded { listing, confirmed })
    }

    /// Removes what counts no more, files that a crash left, and then the oldest, until the rest takes
    /// at most `room` bytes: records are no content, and must not take its place.
    pub(super) fn sweep(&self, directory: &Path, room: u64) {
        let Ok(files) = std::fs::read_dir(directory) else { return };
        let mut kept = Vec::new();
        let mut goes = Vec::new();
        for path in files.flatten().map(|file| file.path()) {
            let found = path.metadata().and_then(|found| Ok((found.modified()?, found.len())));
            let whole = path.extension().is_some_and(|extension| extension == "json");
            match found {
                Ok((at, size)) if whole && self.counts(at) => kept.push((at, size, path)),
                _ => goes.push(path),
            }
        }
        kept.sort_unstable_by(|a, b| b.cmp(a));
        let mut taken = 0;
        let too_much = kept.into_iter().filter_map(|(_, size, path)| {
            taken += pages(size);
            (taken > room).then_some(path)
        });
        for path in goes.into_iter().chain(too_much) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "failed to remove a record");
            }
        }
    }

    fn counts(&self, confirmed: SystemTime) -> bool {
        match SystemTime::now().duration_since(confirmed) {
            Ok(age) => age <= *self.cached_for.lock(),
            Err(ahead) => ahead.duration() <= SKEW,
        }
    }

    fn path(&self, directory: &Path, asked: &ListingKey) -> PathBuf {
        let name = self.key.seal(asked.principal(), &asked.subject());
        directory.join(name.as_str()).with_extension("json")
    }
}

impl Document {
    fn of(listing: &Listing) -> Self {
        let line = |entry: Entry| {
            let Entry { path, object } = &entry;
            let ObjectVersion { bucket, key, etag, size, .. } = &object.version;
            Line {
                path: path.to_string(),
                bucket: bucket.to_string(),
                key: key.to_string(),
                etag: etag.to_string(),
                size: *size,
                version_id: object.version_id.as_deref().map(str::to_owned),
                modified: object.last_modified,
            }
        };
        Self {
            format: FORMAT,
            entries: listing.entries().map(line).collect(),
            directories: listing.directories().iter().map(ToString::to_string).collect(),
            skipped: listing.skipped().clone(),
        }
    }

    /// Everything is parsed again: a file is no better than a key that comes from S3.
    fn listing(self, endpoint: &EndpointId, sse_key: Option<SseKeyDigest>) -> Option<Listing> {
        let entry = |line: Line| {
            let version = ObjectVersion {
                endpoint: endpoint.clone(),
                bucket: Bucket::parse(&line.bucket).ok()?,
                key: Key::parse(&line.key).ok()?,
                etag: ETag::new(&line.etag),
                size: line.size,
                sse_key,
            };
            let version_id = line.version_id.map(Arc::from);
            let object = Object { version, version_id, last_modified: line.modified };
            Some(Entry { path: RelPath::parse(&line.path).ok()?, object })
        };
        let entries = self.entries.into_iter().map(entry).collect::<Option<Vec<_>>>()?;
        let directory = |path: &String| RelPath::parse(path).ok();
        let directories = self.directories.iter().map(directory).collect::<Option<_>>()?;
        let listing = Listing::from_parts(entries, directories, self.skipped);
        listing.filter(|_| self.format == FORMAT)
    }
}

/// Reads the node's key, or makes one at the first start.
///
/// # Errors
/// What the file system answers.
pub(super) fn node_key(state: &Path) -> io::Result<NodeKey> {
    let path = state.join("node.key");
    match std::fs::read(&path) {
        Ok(known) => {
            if let Ok(key) = known.try_into() {
                return Ok(NodeKey::new(key));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; 32];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut key)?;
    let anew = state.join("node.key.new");
    let mut options = File::options();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&anew)?;
    file.write_all(&key)?;
    // A key that a power loss cut short would make every record useless; nothing else is lost.
    file.sync_all()?;
    std::fs::rename(&anew, &path)?;
    Ok(NodeKey::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;
    use crate::{glob::Filter, listing::ListingBuilder, source::Principal};

    fn endpoint() -> EndpointId {
        EndpointId::new("http://s3", None)
    }

    fn asked(id: &str) -> ListingKey {
        let principal = Principal::credential(&endpoint(), id, "secret", None);
        ListingKey::for_tests(principal, "sources")
    }

    fn listing(keys: &[&str]) -> Listing {
        let mut builder = ListingBuilder::new(100);
        for key in keys {
            let version = ObjectVersion {
                endpoint: endpoint(),
                bucket: Bucket::parse("bucket").unwrap(),
                key: Key::parse(key).unwrap(),
                etag: ETag::new("etag"),
                size: u64::from(!key.ends_with('/')),
                sse_key: None,
            };
            let last_modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
            let object = Object { version, version_id: Some("v".into()), last_modified };
            builder.add_below(None, key, &Filter::default(), &object).unwrap();
        }
        builder.finish().unwrap()
    }

    fn records() -> Records {
        Records::new(NodeKey::new([7; 32]), Duration::from_hours(24))
    }

    #[test]
    fn a_record_is_found_by_its_principal_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (records, directory) = (records(), directory.path());
        let listing = listing(&["a", "d/b", "e/", "x//y"]);
        records.save(directory, &asked("me"), &listing, SystemTime::now()).unwrap();
        assert_eq!(records.load(directory, &asked("me"), &endpoint()).unwrap().listing, listing);
        assert!(records.load(directory, &asked("you"), &endpoint()).is_none());
        let other_node = Records { key: NodeKey::new([8; 32]), ..records.clone() };
        assert!(other_node.load(directory, &asked("me"), &endpoint()).is_none());
    }

    #[test]
    fn a_record_counts_as_long_as_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let (records, directory) = (records(), directory.path());
        records.save(directory, &asked("me"), &listing(&["a"]), SystemTime::now()).unwrap();
        let file =
            File::options().append(true).open(records.path(directory, &asked("me"))).unwrap();
        let set = |time| file.set_modified(time).unwrap();
        set(SystemTime::now() + Duration::from_hours(2));
        assert!(
            records.load(directory, &asked("me"), &endpoint()).is_none(),
            "the future is not believed"
        );
        set(SystemTime::now() - Duration::from_hours(23));
        records.sweep(directory, u64::MAX);
        assert!(records.load(directory, &asked("me"), &endpoint()).is_some());
        set(SystemTime::now() - Duration::from_hours(25));
        assert!(records.load(directory, &asked("me"), &endpoint()).is_none());
        std::fs::write(directory.join("new-x"), "torn").unwrap();
        records.sweep(directory, u64::MAX);
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }

    #[test]
    fn the_oldest_records_go_when_they_take_too_much() {
        let (records, directory) = (records(), tempfile::tempdir().unwrap());
        let directory = directory.path();
        let now = SystemTime::now();
        for (age, id) in [(3, "oldest"), (1, "newest"), (2, "middle")] {
            let proven = now - Duration::from_mins(age);
            records.save(directory, &asked(id), &listing(&["a"]), proven).unwrap();
        }
        records.sweep(directory, 2 * 4096);
        let is_here = |id| records.load(directory, &asked(id), &endpoint()).is_some();
        assert_eq!(["oldest", "middle", "newest"].map(is_here), [false, true, true]);
        records.sweep(directory, 0);
        assert!(!is_here("newest"));
    }

    #[test]
    fn the_key_of_the_node_is_private_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let principal = asked("me").principal();
        let first = node_key(directory.path()).unwrap().seal(principal, "");
        assert_eq!(node_key(directory.path()).unwrap().seal(principal, ""), first);
        let path = directory.path().join("node.key");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert_ne!(node_key(directory.path()).unwrap().seal(principal, ""), first);
    }

    proptest! {
        /// A file that somebody wrote cannot name a path outside the volume, whatever is in it.
        #[test]
        fn no_record_leads_out_of_the_volume(path in "[a./\0]{0,8}", text in "\\PC{0,40}") {
            let directory = tempfile::tempdir().unwrap();
            let (records, directory) = (records(), directory.path());
            records.save(directory, &asked("me"), &listing(&["a"]), SystemTime::now()).unwrap();
            let file = records.path(directory, &asked("me"));
            let good = std::fs::read_to_string(&file).unwrap();
            let escaped = serde_json::to_string(&path).unwrap();
            std::fs::write(&file, good.replace("\"a\"", &escaped)).unwrap();
            if let Some(found) = records.load(directory, &asked("me"), &endpoint()) {
                let shown = found.listing.entries().next().unwrap().path.to_string();
                prop_assert!(RelPath::parse(&shown).is_ok());
            }
            std::fs::write(&file, text).unwrap();
            prop_assert!(records.load(directory, &asked("me"), &endpoint()).is_none());
        }
    }
}
