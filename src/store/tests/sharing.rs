//! Files that not everybody may have a link to.

use test_case::test_case;

use super::*;

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
