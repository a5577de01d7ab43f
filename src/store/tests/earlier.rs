//! Files of an earlier run: who gets them, and whether they are still what their names say.

use super::*;

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
