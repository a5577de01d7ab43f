use std::{
    collections::BTreeSet,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::SystemTime,
};

use bytes::Bytes;
use nix::unistd::geteuid;
use test_case::test_case;

use super::*;
use crate::{
    failure::FailureKind,
    object::{Bucket, ETag, EndpointId, Key},
};

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

fn shared_by(namespace: &str) -> Variant {
    Variant { sharers: Some(Sharers::of_namespace(namespace)), ..for_all() }
}

/// Puts content into a new store for one namespace, which links it.
fn put_for(fixture: &Fixture, store: &Store, content: &'static [u8], variant: Variant) -> PathBuf {
    let version = version("k", content.len() as u64);
    let wanted = vec![Wanted { id: BlobId::of(&version), variant, size: version.size }];
    let reservation = Arc::new(store.reserve(wanted, 1).unwrap());
    let fill = store.fill(&version, reservation).unwrap();
    fill.write_at(0, &[Bytes::from_static(content)]).unwrap();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
    let content = Content { crc, modified: SystemTime::UNIX_EPOCH };
    let lease = fill.commit(principal("a"), variant, content).unwrap();
    fixture.link(&lease, variant, "first")
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

#[test]
fn those_who_do_not_share_have_files_of_their_own() {
    let (fixture, content) = (Fixture::new(), b"content");
    let [a, b] = ["a", "b"].map(shared_by);
    let (first, second, all);
    {
        let store = fixture.open(3);
        first = put_for(&fixture, &store, content, a);
        let lease = store.lookup(principal("a"), &version("k", 7)).unwrap();
        second = fixture.link(&lease, b, "second");
        assert_eq!(inode(&fixture.link(&lease, a, "again")), inode(&first));
        assert_eq!(inode(&fixture.link(&lease, b, "and again")), inode(&second));
        all = fixture.link(&lease, for_all(), "all");
        assert_eq!(store.0.index.lock().used(), 3 * PAGE, "each counts");
        let copied = std::fs::metadata(&second).unwrap();
        assert_eq!(copied.modified().unwrap(), SystemTime::UNIX_EPOCH);
    }
    let files = [&first, &second, &all];
    assert_eq!(files.map(|path| inode(path)).iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(files.iter().all(|path| std::fs::read(path).unwrap() == content));
    // Another process finds them by their names.
    let store = fixture.open(3);
    let id = BlobId::of(&version("k", 7));
    let found = [a, b, for_all()].map(|variant| store.inode(&id, variant).unwrap());
    assert_eq!(found, files.map(|path| inode(path)));
    assert!(!store.holds(&version("k", 7), shared_by("c")));
    // What nobody links any more makes room; what somebody links does not.
    for name in ["second", "and again", "all"] {
        std::fs::remove_file(fixture.directory.path().join("v1/volumes").join(name)).unwrap();
    }
    drop(store.reserve(need(2 * PAGE), 1).unwrap());
    assert_eq!([a, b, for_all()].map(|it| store.inode(&id, it).is_some()), [true, false, false]);
}

/// Other bytes with the same CRC-64/NVME: the generator itself, added anywhere, changes nothing.
fn forge(content: &[u8]) -> Vec<u8> {
    let generator: u128 = 1 | 0x9a6c_9329_ac4b_c9b5 << 1;
    let delta = generator.to_le_bytes();
    let forged = content.iter().zip(delta.iter().chain(&[0; 16])).map(|(a, b)| a ^ b);
    forged.collect()
}

#[test_case(true; "who share with nobody else")]
#[test_case(false; "all")]
fn what_a_holder_changed_is_not_copied_for_others(has_digest: bool) {
    let (fixture, content) = (Fixture::new(), b"a content of some length");
    let store = fixture.open(10);
    let variant = if has_digest { shared_by("a") } else { for_all() };
    let first = put_for(&fixture, &store, content, variant);
    let mut forged = forge(content);
    let crc = |bytes: &[u8]| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes);
    assert_eq!(crc(&forged), crc(content));
    if !has_digest {
        forged[0] ^= 1;
    }
    overwrite(&first, &forged);
    let version = version("k", content.len() as u64);
    let lease = store.lookup(principal("a"), &version).unwrap();
    let directory = std::fs::File::open(fixture.directory.path()).unwrap();
    let refused = lease.link(shared_by("b"), &directory, "second").unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Stale, "it is fetched anew");
    drop(lease);
    assert!(store.lookup(principal("a"), &version).is_none());
    assert!(!store.has(&version));
    assert_eq!(std::fs::read(&first).unwrap(), forged, "who links it keeps it");
    std::fs::remove_file(&first).unwrap();
    assert_eq!(std::fs::read(put_for(&fixture, &store, content, variant)).unwrap(), content);
}

#[test]
fn one_object_version_has_one_content_for_all_sharers() {
    let (fixture, content) = (Fixture::new(), b"a content of some length");
    let version = version("k", content.len() as u64);
    {
        let store = fixture.open(10);
        put_for(&fixture, &store, content, shared_by("a"));
        let lease = store.lookup(principal("a"), &version).unwrap();
        fixture.link(&lease, shared_by("b"), "second");
    }
    let name = fixture.blobs()[0].file_name().unwrap().to_str().unwrap().to_owned();
    let (rest, digest) = name.rsplit_once('-').unwrap();
    let other = format!("{rest}-{}", digest.chars().rev().collect::<String>());
    std::fs::rename(&fixture.blobs()[0], fixture.blobs()[0].with_file_name(other)).unwrap();
    assert!(!fixture.open(10).has(&version), "nothing tells which is right");
    assert!(fixture.blobs().is_empty());
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
fn after_a_restart_old_blobs_count_but_are_given_to_nobody_unvouched() {
    let fixture = Fixture::new();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    std::fs::write(fixture.directory.path().join("v1/tmp/half"), "half").unwrap();
    std::fs::write(fixture.directory.path().join("v1/blobs/stranger"), "").unwrap();
    for medium in [Medium::Disk, Medium::Memory] {
        let store = fixture.open_as(medium, 4);
        assert_eq!(fixture.temporary_files(), 0);
        assert!(store.lookup(principal("a"), &version("k", 7)).is_none());
        assert_eq!(store.0.index.lock().used(), PAGE);
    }
    // And old blobs make room like any other.
    let store = fixture.open(1);
    drop(put(&store, "other", b"x", "a"));
    assert_eq!(store.0.index.lock().used(), PAGE);
}

#[test]
fn who_is_vouched_for_gets_old_blobs() {
    let fixture = Fixture::new();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    for medium in [Medium::Disk, Medium::Memory] {
        let store = fixture.open_as(medium, 4);
        let version = version("k", 7);
        let lease = store.vouch(principal("a"), &version).unwrap().unwrap();
        let shown = fixture.link(&lease, for_all(), medium.as_str());
        assert_eq!(std::fs::read(shown).unwrap(), b"content");
        assert!(store.lookup(principal("a"), &version).is_some(), "noted");
        assert!(store.lookup(principal("b"), &version).is_none(), "for nobody else");
        assert!(store.vouch(principal("a"), &super::tests::version("x", 7)).unwrap().is_none());
    }
    assert_eq!(fixture.blobs().len(), 1, "nothing was copied");
}

#[test]
fn what_is_vouched_for_is_not_evicted() {
    let fixture = Fixture::new();
    drop(put(&fixture.open(1), "k", b"content", "a"));
    let store = fixture.open(1);
    let lease = store.vouch(principal("a"), &version("k", 7)).unwrap();
    assert!(store.reserve(need(PAGE), 1).is_err());
    drop(lease);
    assert!(store.reserve(need(PAGE), 1).is_ok());
}

#[test]
fn a_damaged_blob_is_never_vouched_for() {
    for damage in [&b"CONTENT"[..], b"cont", b"content and more", b""] {
        let fixture = Fixture::new();
        let lease = put(&fixture.open(4), "k", b"content", "a");
        let shown = fixture.link(&lease, for_all(), "shown");
        drop(lease);
        overwrite(&fixture.blobs()[0], damage);
        let store = fixture.open(4);
        let vouch = || store.vouch(principal("a"), &version("k", 7)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(vouch().is_none(), "{damage:?}"));
            }
        });
        assert!(fixture.blobs().is_empty(), "the name is gone");
        assert_eq!(std::fs::read(shown).unwrap(), damage, "a volume keeps what it has");
        assert_eq!(store.0.index.lock().used(), 0);
        drop(put(&store, "k", b"content", "a"));
        assert!(vouch().is_some(), "fetched again");
    }
}

#[test]
fn a_damaged_variant_is_made_anew_from_a_good_one() {
    // Vouched for is the one or the other, as the directory lists them.
    for damaged in ["-0400", "-0444"] {
        let fixture = Fixture::new();
        let lease = put(&fixture.open(4), "k", b"content", "a");
        fixture.link(&lease, for_owner(), "private");
        drop(lease);
        let is_damaged = |path: &&PathBuf| path.to_str().unwrap().ends_with(damaged);
        overwrite(fixture.blobs().iter().find(is_damaged).unwrap(), "CONTENT");
        let store = fixture.open(4);
        let lease = store.vouch(principal("a"), &version("k", 7)).unwrap().unwrap();
        for (variant, name) in [(for_all(), "plain"), (for_owner(), "again")] {
            let shown = fixture.link(&lease, variant, name);
            assert_eq!(std::fs::read(shown).unwrap(), b"content", "{variant:?}");
        }
    }
}

#[test]
fn a_disk_blob_is_read_through_once_in_a_boot() {
    if !geteuid().is_root() {
        // A file that nobody may write is marked by root alone.
        return;
    }
    let fixture = Fixture::new();
    let boot = verify::BOOT_ID.as_deref().unwrap();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    let blob = fixture.blobs().remove(0);
    let mark = || {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(&blob, verify::MARK, &mut value);
        length.ok().map(|length| String::from_utf8(value[..length].to_vec()).unwrap())
    };
    let is_given = || {
        let lease = fixture.open(4).vouch(principal("a"), &version("k", 7)).unwrap();
        lease.is_some()
    };
    assert_eq!(mark(), None, "a new blob costs no call more");
    drop(fixture.open(4));
    assert_eq!(mark(), None, "nor does a start");
    assert!(is_given());
    assert_eq!(mark().as_deref(), Some(boot));
    // Only damage that nobody looks for shows that nobody looks.
    overwrite(&blob, "CONTENT");
    assert!(is_given(), "read again in the same boot");
    overwrite(&blob, "cont");
    let length_tells = !is_given();
    assert!(length_tells, "the length is compared at any time");
}

#[test]
fn a_mark_of_another_boot_counts_for_nothing() {
    if !geteuid().is_root() {
        // A file that nobody may write is marked by root alone.
        return;
    }
    let fixture = Fixture::new();
    drop(put(&fixture.open(4), "k", b"content", "a"));
    let blob = fixture.blobs().remove(0);
    overwrite(&blob, "CONTENT");
    for mark in ["11111111-2222-3333-4444-555555555555", ""] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&blob, verify::MARK, mark.as_bytes(), flags).unwrap();
    }
    assert!(fixture.open(4).vouch(principal("a"), &version("k", 7)).unwrap().is_none());
    assert!(!blob.exists());
}

#[test]
fn a_tmpfs_is_not_read_again() {
    let fixture = Fixture::new();
    drop(put(&fixture.open_as(Medium::Memory, 4), "k", b"content", "a"));
    // Only damage that nobody looks for shows that nobody looks.
    overwrite(&fixture.blobs()[0], "CONTENT");
    let store = fixture.open_as(Medium::Memory, 4);
    assert!(store.vouch(principal("a"), &version("k", 7)).unwrap().is_some());
}

#[test]
fn a_start_looks_at_names_only() {
    let fixture = Fixture::new();
    drop(fixture.open(4));
    let count = 20_000;
    let blobs = fixture.directory.path().join("v1/blobs");
    for number in 0..count {
        let (id, size) = (BlobId::of(&version(&number.to_string(), 1)), 1);
        let name = BlobName { id, size, crc: 0, variant: for_all(), digest: None };
        // A link to nowhere has a name and an inode, and can be neither opened nor inspected.
        std::os::unix::fs::symlink("/no/such/file", blobs.join(name.to_string())).unwrap();
    }
    let store = fixture.open(4);
    assert_eq!(store.0.index.lock().used(), count * PAGE);
}

#[test]
fn files_that_contradict_each_other_go() {
    for medium in [Medium::Disk, Medium::Memory] {
        let fixture = Fixture::new();
        let lease = put(&fixture.open(9), "k", b"content", "a");
        fixture.link(&lease, for_owner(), "private");
        drop(lease);
        drop(put(&fixture.open(9), "other", b"x", "a"));
        let id = BlobId::of(&version("k", 7));
        let other = BlobName { id, size: 7, crc: 1, variant: for_all(), digest: None };
        let blobs = fixture.directory.path().join("v1/blobs");
        std::fs::write(blobs.join(other.to_string()), "CONTENT").unwrap();
        let store = fixture.open_as(medium, 9);
        assert_eq!(fixture.blobs().len(), 1);
        assert_eq!(store.0.index.lock().used(), PAGE);
        assert!(store.vouch(principal("a"), &version("k", 7)).unwrap().is_none());
        drop(put(&store, "k", b"content", "a"));
    }
}

/// Restarts, evictions, damage and everything else at once: a lease shows the right bytes or fails.
#[test]
fn whoever_races_shows_the_right_bytes_or_none() {
    const KEYS: [(&str, &[u8]); 5] =
        [("a", b"content a"), ("b", b"content b"), ("c", b"content c"), ("d", b"d"), ("e", b"e")];
    let fixture = Fixture::new();
    for round in 0..20 {
        let store = fixture.open(4);
        if let Some(blob) = fixture.blobs().first() {
            overwrite(blob, "CONTENT X");
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (fixture, store) = (&fixture, &store);
                scope.spawn(move || {
                    for turn in 0..20 {
                        let (key, content) = KEYS[(round + thread * 3 + turn * turn) % KEYS.len()];
                        let version = version(key, content.len() as u64);
                        let vouched = store.vouch(principal("a"), &version).unwrap();
                        let lease = vouched.map_or_else(|| try_put(store, key, content, "a"), Ok);
                        let Ok(lease) = lease else { continue };
                        let variant = [for_all(), for_owner()][turn % 2];
                        let name = format!("{thread}");
                        let volumes = fixture.directory.path().join("v1/volumes");
                        let directory = std::fs::File::open(&volumes).unwrap();
                        if lease.link(variant, &directory, &name).is_ok() {
                            assert_eq!(std::fs::read(volumes.join(&name)).unwrap(), content);
                            std::fs::remove_file(volumes.join(&name)).unwrap();
                        }
                    }
                });
            }
        });
        let used = store.0.index.lock().used();
        assert_eq!(used, fixture.blobs().len() as u64 * PAGE, "the count is the truth");
        assert!(store.reserve(need(4 * PAGE), 1).is_ok(), "nothing stays pinned or promised");
        drop(put(&store, "a", KEYS[0].1, "a"));
    }
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
fn a_full_store_serves_its_own_blobs_after_a_restart() {
    let fixture = Fixture::new();
    let lease = put(&fixture.open(1), "k", b"content", "a");
    fixture.link(&lease, for_all(), "shown");
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
        overwrite(&fixture.blobs()[0], rot);
        let store = fixture.open(4);
        let error = try_put(&store, "k", b"content", "a").unwrap_err();
        assert_eq!(error.kind(), FailureKind::Corrupt);
        assert!(fixture.blobs().is_empty(), "the bad file is gone");
        let lease = put(&store, "k", b"content", "a");
        let shown = fixture.link(&lease, for_all(), "shown");
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
