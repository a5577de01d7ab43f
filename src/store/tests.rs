use std::{os::unix::fs::MetadataExt, time::SystemTime};

use bytes::Bytes;

use super::*;
use crate::object::{Bucket, ETag, EndpointId, Key};

const PLAIN: Variant = Variant { uid: 0, gid: 0, mode: 0o444 };
const PRIVATE: Variant = Variant { uid: 0, gid: 0, mode: 0o400 };

struct Fixture {
    directory: tempfile::TempDir,
    metrics: Metrics,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), metrics: Metrics::new() }
    }

    fn open(&self, pages: u64) -> Store {
        let capacity = ByteSize::from_bytes(pages * PAGE);
        Store::open(Medium::Disk, self.directory.path(), capacity, &self.metrics).unwrap()
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("v1/blobs")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn temporary_files(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("v1/tmp")).unwrap().count()
    }

    /// Hard-links a blob as a volume would.
    fn link(&self, lease: &Lease, variant: Variant, name: &str) -> PathBuf {
        let volumes = self.directory.path().join("v1/volumes");
        let directory = std::fs::File::open(&volumes).unwrap();
        lease.link(variant, &directory, name).unwrap();
        volumes.join(name)
    }
}

fn principal(name: &str) -> Principal {
    Principal::credential(&EndpointId::new("http://s3", None), name, "secret", None)
}

fn version(key: &str, size: u64) -> ObjectVersion {
    ObjectVersion {
        endpoint: EndpointId::new("http://s3", None),
        bucket: Bucket::parse("bucket").unwrap(),
        key: Key::parse(key).unwrap(),
        etag: ETag::new("etag"),
        size,
        sse_key: None,
    }
}

fn need(bytes: u64) -> Need {
    Need { bytes, inodes: 1 }
}

fn put(store: &Store, key: &str, content: &'static [u8], who: &str) -> Lease {
    try_put(store, key, content, who).unwrap()
}

fn try_put(
    store: &Store,
    key: &str,
    content: &'static [u8],
    who: &str,
) -> Result<Lease, StoreError> {
    let size = content.len() as u64;
    let reservation = store.reserve(need(pages(size)))?;
    let fill = store.fill(&version(key, size))?;
    fill.write_at(0, &[Bytes::from_static(content)])?;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
    let content = Content { crc, modified: SystemTime::UNIX_EPOCH };
    fill.commit(principal(who), PLAIN, content, &reservation)
}

#[test]
fn a_blob_is_for_those_whom_s3_let_read_it() {
    let fixture = Fixture::new();
    let store = fixture.open(10);
    drop(put(&store, "k", b"content", "a"));
    let version = version("k", 7);
    assert!(store.lookup(principal("a"), &version).is_some());
    assert!(store.lookup(principal("b"), &version).is_none());
    drop(put(&store, "k", b"content", "b"));
    assert!(store.lookup(principal("b"), &version).is_some());
    assert_eq!(fixture.blobs().len(), 1, "one copy for both");
}

#[test]
fn a_fill_that_is_dropped_leaves_nothing() {
    let fixture = Fixture::new();
    let store = fixture.open(10);
    let reservation = store.reserve(need(PAGE)).unwrap();
    let fill = store.fill(&version("k", 7)).unwrap();
    fill.write_at(0, &[Bytes::from_static(b"cont")]).unwrap();
    assert_eq!(fixture.temporary_files(), 1);
    drop(fill);
    drop(reservation);
    assert_eq!(fixture.temporary_files(), 0);
    assert!(fixture.blobs().is_empty());
    assert!(store.reserve(need(10 * PAGE)).is_ok(), "the room is free again");
}

#[test]
fn each_owner_and_mode_is_a_variant_of_its_own() {
    let fixture = Fixture::new();
    let store = fixture.open(10);
    let lease = put(&store, "k", b"content", "a");
    let plain = fixture.link(&lease, PLAIN, "plain");
    let private = fixture.link(&lease, PRIVATE, "private");
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&plain), mode(&private)), (0o444, 0o400));
    assert_eq!(std::fs::read(&private).unwrap(), b"content");
    assert_eq!(std::fs::metadata(&private).unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
    assert_eq!(fixture.blobs().len(), 2);
    fixture.link(&lease, PRIVATE, "again");
    assert_eq!(fixture.blobs().len(), 2);
}

#[test]
fn what_is_linked_or_leased_is_never_evicted() {
    let fixture = Fixture::new();
    let store = fixture.open(3);
    let linked = fixture.link(&put(&store, "linked", b"1", "a"), PLAIN, "linked");
    let leased = put(&store, "leased", b"2", "a");
    drop(put(&store, "idle", b"3", "a"));
    drop(put(&store, "new", b"4", "a"));
    assert!(store.lookup(principal("a"), &version("idle", 1)).is_none(), "idle made room");
    assert!(store.lookup(principal("a"), &version("leased", 1)).is_some());
    assert_eq!(std::fs::read(&linked).unwrap(), b"1");
    let full = store.reserve(need(2 * PAGE)).unwrap_err();
    assert_eq!(full.kind(), FailureKind::Exhausted);
    let text = full.to_string();
    assert!(text.contains("8192 bytes are needed and 4096 of 12288"), "{text}");
    drop(leased);
    assert!(store.reserve(need(2 * PAGE)).is_ok());
}

#[test]
fn the_least_recently_used_goes_first() {
    let fixture = Fixture::new();
    let store = fixture.open(3);
    for key in ["a", "b", "c"] {
        drop(put(&store, key, b"x", "me"));
    }
    let used = store.lookup(principal("me"), &version("a", 1)).unwrap();
    std::fs::remove_file(fixture.link(&used, PLAIN, "once")).unwrap();
    drop(used);
    drop(put(&store, "d", b"x", "me"));
    let here = |key| store.lookup(principal("me"), &version(key, 1)).is_some();
    assert_eq!([here("a"), here("b"), here("c"), here("d")], [true, false, true, true]);
}

#[test]
fn reservations_count_until_they_are_dropped() {
    let fixture = Fixture::new();
    let store = fixture.open(4);
    let first = store.reserve(need(3 * PAGE)).unwrap();
    assert!(store.reserve(need(2 * PAGE)).is_err());
    drop(first);
    assert!(store.reserve(need(2 * PAGE)).is_ok());
}

#[test]
fn after_a_restart_old_blobs_count_but_are_given_to_nobody() {
    let fixture = Fixture::new();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    std::fs::write(fixture.directory.path().join("v1/tmp/half"), "half").unwrap();
    std::fs::write(fixture.directory.path().join("v1/blobs/stranger"), "").unwrap();
    let store = fixture.open(4);
    assert_eq!(fixture.temporary_files(), 0);
    assert!(store.lookup(principal("a"), &version("k", 7)).is_none());
    assert_eq!(store.0.index.lock().used(), PAGE);
    // Fetched again, it replaces what nobody vouches for.
    let inode = |path: &PathBuf| std::fs::metadata(path).unwrap().ino();
    let before: Vec<_> = fixture.blobs().iter().map(inode).collect();
    drop(put(&store, "k", b"content", "a"));
    assert_eq!(store.0.index.lock().used(), PAGE);
    let names = fixture.blobs();
    assert_eq!(names.len(), 2, "the blob and the stranger");
    let stayed = names.iter().filter(|path| before.contains(&inode(path))).count();
    assert_eq!(stayed, 1, "only the stranger");
    // And old blobs make room like any other.
    drop(store);
    let store = fixture.open(1);
    drop(put(&store, "other", b"x", "a"));
    assert_eq!(store.0.index.lock().used(), PAGE);
}

#[test]
fn other_bytes_under_the_same_version_are_corrupt() {
    let fixture = Fixture::new();
    let store = fixture.open(4);
    drop(put(&store, "k", b"content", "a"));
    let error = try_put(&store, "k", b"CONTENT", "b").unwrap_err();
    assert_eq!(error.kind(), FailureKind::Corrupt);
    assert!(store.lookup(principal("b"), &version("k", 7)).is_none());
}
