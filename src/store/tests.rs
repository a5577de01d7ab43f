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

/// So many bytes that nobody else waits for.
fn need(bytes: u64) -> Vec<Wanted> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let key = format!("need-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    wanted(&key, bytes)
}

fn wanted(key: &str, size: u64) -> Vec<Wanted> {
    vec![Wanted { id: BlobId::of(&version(key, size)), variant: PLAIN, size }]
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
    let is_here = store.holds(&version(key, size), PLAIN);
    let wanted = if is_here { Vec::new() } else { wanted(key, size) };
    let reservation = Arc::new(store.reserve(wanted, 1)?);
    let fill = store.fill(&version(key, size), reservation)?;
    fill.write_at(0, &[Bytes::from_static(content)])?;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
    let content = Content { crc, modified: SystemTime::UNIX_EPOCH };
    fill.commit(principal(who), PLAIN, content)
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
    let reservation = Arc::new(store.reserve(need(PAGE), 1).unwrap());
    let fill = store.fill(&version("k", 7), Arc::clone(&reservation)).unwrap();
    fill.write_at(0, &[Bytes::from_static(b"cont")]).unwrap();
    assert!(fixture.blobs().is_empty(), "what is being written is no blob yet");
    drop(fill);
    drop(reservation);
    assert_eq!(fixture.temporary_files(), 0);
    assert!(fixture.blobs().is_empty());
    assert!(store.reserve(need(10 * PAGE), 1).is_ok(), "the room is free again");
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
    let full = store.reserve(need(2 * PAGE), 1).unwrap_err();
    assert_eq!(full.kind(), FailureKind::Exhausted);
    let text = full.to_string();
    assert!(text.contains("8192 bytes are needed and 4096 of 12288"), "{text}");
    drop(leased);
    assert!(store.reserve(need(2 * PAGE), 1).is_ok());
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
    let first = store.reserve(need(3 * PAGE), 1).unwrap();
    assert!(store.reserve(need(2 * PAGE), 1).is_err());
    drop(first);
    assert!(store.reserve(need(2 * PAGE), 1).is_ok());
}

#[test]
fn those_who_wait_for_one_blob_share_its_room() {
    let fixture = Fixture::new();
    let store = fixture.open(4);
    let first = store.reserve(wanted("k", 3 * PAGE), 1).unwrap();
    let second = store.reserve(wanted("k", 3 * PAGE), 1).unwrap();
    assert!(store.reserve(wanted("other", 3 * PAGE), 1).is_err());
    drop(first);
    assert!(store.reserve(wanted("other", 3 * PAGE), 1).is_err(), "the second still waits");
    drop(second);
    assert!(store.reserve(wanted("other", 3 * PAGE), 1).is_ok());
}

#[test]
fn a_store_has_one_owner() {
    let fixture = Fixture::new();
    let _store = fixture.open(4);
    let capacity = ByteSize::from_bytes(PAGE);
    let second = Store::open(Medium::Disk, fixture.directory.path(), capacity, &fixture.metrics);
    assert!(matches!(second, Err(StoreError::Locked { .. })));
}

#[test]
fn system_errors_have_a_kind() {
    let kind = |errno| io_kind(&io::Error::from_raw_os_error(errno));
    for errno in [nix::libc::ENOSPC, nix::libc::EDQUOT, nix::libc::EMFILE, nix::libc::ENFILE] {
        assert_eq!(kind(errno), FailureKind::Exhausted, "{errno}");
    }
    assert_eq!(kind(nix::libc::EROFS), FailureKind::Precondition);
    assert_eq!(kind(nix::libc::EIO), FailureKind::Internal);
    // As tempfile wraps them.
    let inner = io::Error::from_raw_os_error(nix::libc::EMFILE);
    let wrapped = io::Error::new(inner.kind(), format!("{inner} at path \"x\""));
    assert_eq!(io_kind(&wrapped), FailureKind::Exhausted);
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
    // And old blobs make room like any other.
    drop(store);
    let store = fixture.open(1);
    drop(put(&store, "other", b"x", "a"));
    assert_eq!(store.0.index.lock().used(), PAGE);
}

#[test]
fn a_full_store_serves_its_own_blobs_after_a_restart() {
    let fixture = Fixture::new();
    let lease = put(&fixture.open(1), "k", b"content", "a");
    fixture.link(&lease, PLAIN, "shown");
    drop(lease);
    let store = fixture.open(1);
    let inode = |path: &PathBuf| std::fs::metadata(path).unwrap().ino();
    let before = inode(&fixture.blobs()[0]);
    drop(put(&store, "k", b"content", "a"));
    assert_eq!(inode(&fixture.blobs()[0]), before, "compared, not written again");
    assert!(store.lookup(principal("a"), &version("k", 7)).is_some());
    assert_eq!(store.0.index.lock().used(), PAGE);
}

#[test]
fn a_blob_that_rotted_is_replaced() {
    for rot in [&b"CONTENT"[..], b"cont"] {
        let fixture = Fixture::new();
        drop(put(&fixture.open(4), "k", b"content", "a"));
        std::fs::write(&fixture.blobs()[0], rot).unwrap();
        let store = fixture.open(4);
        let error = try_put(&store, "k", b"content", "a").unwrap_err();
        assert_eq!(error.kind(), FailureKind::Corrupt);
        assert!(fixture.blobs().is_empty(), "the bad file is gone");
        let lease = put(&store, "k", b"content", "a");
        let shown = fixture.link(&lease, PLAIN, "shown");
        assert_eq!(std::fs::read(shown).unwrap(), b"content");
    }
}

#[test]
fn bytes_being_written_are_not_counted_twice() {
    let metrics = Metrics::new();
    let directory = tempfile::tempdir().unwrap();
    let capacity = ByteSize::from_bytes(10 * PAGE);
    let store = Store::open(Medium::Disk, directory.path(), capacity, &metrics).unwrap();
    let reservation = Arc::new(store.reserve(need(6 * PAGE), 1).unwrap());
    let fill = store.fill(&version("k", 6 * PAGE), reservation).unwrap();
    let outstanding = || store.0.index.lock().outstanding();
    assert_eq!(outstanding(), 6 * PAGE);
    fill.write_at(0, &[Bytes::from(vec![1; 4 * 4096])]).unwrap();
    assert_eq!(outstanding(), 2 * PAGE, "the file system counts what is written");
    drop(fill);
    assert_eq!(outstanding(), 0, "with the fill goes its reservation");
}

#[test]
fn a_file_that_disappeared_is_told_as_stale() {
    let fixture = Fixture::new();
    let store = fixture.open(4);
    let lease = put(&store, "k", b"content", "a");
    std::fs::remove_file(&fixture.blobs()[0]).unwrap();
    let directory = std::fs::File::open(fixture.directory.path()).unwrap();
    let error = lease.link(PLAIN, &directory, "x").unwrap_err();
    assert_eq!(error.kind(), FailureKind::Stale);
    drop(lease);
    assert!(store.lookup(principal("a"), &version("k", 7)).is_none());
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
