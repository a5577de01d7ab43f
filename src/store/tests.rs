use std::{
    collections::BTreeSet,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::SystemTime,
};

use bytes::Bytes;
use nix::unistd::geteuid;

use super::*;
use crate::{
    failure::FailureKind,
    object::{Bucket, ETag, EndpointId, Key},
};

mod earlier;
mod sharing;

/// Owned by who runs the tests: only root can give files away.
fn for_all() -> Variant {
    Variant::shown_by_none(None)
}

fn for_owner() -> Variant {
    Variant { mode: 0o400, ..for_all() }
}

/// Changes a file that nobody may write, as a disk may, or who has all rights over the node.
fn overwrite(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let mode = std::fs::metadata(&path).unwrap().permissions();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, mode).unwrap();
}

struct Fixture {
    directory: tempfile::TempDir,
    metrics: Metrics,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), metrics: Metrics::new() }
    }

    fn open(&self, pages: u64) -> Store {
        self.open_as(Medium::Disk, pages)
    }

    fn open_as(&self, medium: Medium, pages: u64) -> Store {
        let capacity = ByteSize::from_bytes(pages * PAGE);
        Store::open(medium, self.directory.path(), capacity, &self.metrics).unwrap()
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

pub(super) fn principal(name: &str) -> Principal {
    Principal::credential(&EndpointId::new("http://s3", None), name, "secret", None)
}

pub(super) fn version(key: &str, size: u64) -> ObjectVersion {
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
    vec![Wanted { id: BlobId::of(&version(key, size)), variant: for_all(), size }]
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
    let is_here = store.holds(&version(key, size), for_all());
    let wanted = if is_here { Vec::new() } else { wanted(key, size) };
    let reservation = Arc::new(store.reserve(wanted, 1)?);
    let fill = store.fill(&version(key, size), reservation)?;
    fill.write_at(0, &[Bytes::from_static(content)])?;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
    let content = Content { crc, modified: SystemTime::UNIX_EPOCH };
    fill.commit(principal(who), for_all(), content)
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
    let plain = fixture.link(&lease, for_all(), "plain");
    let private = fixture.link(&lease, for_owner(), "private");
    let mode = |path: &PathBuf| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&plain), mode(&private)), (0o444, 0o400));
    assert_eq!(std::fs::read(&private).unwrap(), b"content");
    assert_eq!(std::fs::metadata(&private).unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
    assert_eq!(fixture.blobs().len(), 2);
    fixture.link(&lease, for_owner(), "again");
    assert_eq!(fixture.blobs().len(), 2);
}

#[test]
fn what_is_linked_or_leased_is_never_evicted() {
    let fixture = Fixture::new();
    let store = fixture.open(3);
    let linked = fixture.link(&put(&store, "linked", b"1", "a"), for_all(), "linked");
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
fn a_store_that_was_made_smaller_makes_room_at_once() {
    let fixture = Fixture::new();
    let store = fixture.open(6);
    for key in ["a", "b", "c", "d", "e"] {
        drop(put(&store, key, b"x", "me"));
    }
    drop(store);
    let store = fixture.open(2);
    assert!(store.reserve(Vec::new(), 1).is_ok(), "no room is needed");
    assert_eq!(fixture.blobs().len(), 5);
    assert!(store.reserve(need(PAGE), 1).is_ok());
    assert_eq!(fixture.blobs().len(), 1);
}

#[test]
fn the_least_recently_used_goes_first() {
    let fixture = Fixture::new();
    let store = fixture.open(3);
    for key in ["a", "b", "c"] {
        drop(put(&store, key, b"x", "me"));
    }
    let used = store.lookup(principal("me"), &version("a", 1)).unwrap();
    std::fs::remove_file(fixture.link(&used, for_all(), "once")).unwrap();
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
fn the_inode_of_a_blob_is_that_of_its_paths() {
    let fixture = Fixture::new();
    let id = BlobId::of(&version("k", 7));
    let inode = |path: &PathBuf| Some(std::fs::metadata(path).unwrap().ino());
    let store = fixture.open(9);
    assert_eq!(store.inode(&id, for_all()), None);
    let lease = put(&store, "k", b"content", "a");
    let (plain, private) =
        (fixture.link(&lease, for_all(), "plain"), fixture.link(&lease, for_owner(), "private"));
    let known = |store: &Store| (store.inode(&id, for_all()), store.inode(&id, for_owner()));
    assert_eq!(known(&store), (inode(&plain), inode(&private)));
    drop((lease, store));
    let store = fixture.open(9);
    assert_eq!(known(&store), (inode(&plain), inode(&private)), "as the scan found them");
    // A damaged one is replaced, and volumes that show it can be told from those that do not.
    fixture.blobs().iter().for_each(|blob| overwrite(blob, "CONTENT"));
    assert!(store.vouch(principal("a"), &version("k", 7)).unwrap().is_none());
    assert_eq!(known(&store), (None, None));
    let again = fixture.link(&put(&store, "k", b"content", "a"), for_all(), "again");
    assert_eq!(store.inode(&id, for_all()), inode(&again));
    assert_ne!(inode(&again), inode(&plain));
}

#[test]
fn a_lease_on_what_is_gone_keeps_nobody_from_fetching() {
    let fixture = Fixture::new();
    let store = fixture.open(4);
    let lease = put(&store, "k", b"content", "a");
    std::fs::remove_file(&fixture.blobs()[0]).unwrap();
    let directory = std::fs::File::open(fixture.directory.path()).unwrap();
    lease.link(for_all(), &directory, "x").unwrap_err();
    let other = put(&store, "k", b"CONTENT", "a");
    assert_eq!(std::fs::read(fixture.link(&other, for_all(), "y")).unwrap(), b"CONTENT");
    drop((lease, other));
    assert!(store.reserve(need(3 * PAGE), 1).is_ok(), "nothing stays pinned");
    assert!(store.reserve(need(4 * PAGE), 1).is_err(), "but for what is shown");
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
    let error = lease.link(for_all(), &directory, "x").unwrap_err();
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

#[test]
fn a_planted_symlink_is_no_blob() {
    let fixture = Fixture::new();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    let blob = fixture.blobs().remove(0);
    let outside = tempfile::tempdir().unwrap();
    let elsewhere = outside.path().join("file");
    // What it leads to is even what the name promises.
    std::fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    let store = fixture.open(4);
    assert!(store.vouch(principal("a"), &version("k", 7)).unwrap().is_none());
    drop(put(&store, "k", b"content", "a"));
    assert!(blob.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"content");
}
