use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    store::{
        Medium,
        tests::{principal, version},
    },
    telemetry::metrics::Metrics,
    units::ByteSize,
};

const BLOCK: u64 = PAGE;

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

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("v1").join(kind)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    fn stored(&self) -> i64 {
        self.metrics.store_bytes.with_label_values(&["disk"]).get()
    }
}

/// Whether nothing is here, not even in doubt.
fn is_empty(sparse: &Sparse) -> bool {
    sparse.missing(0..sparse.name.blocks()).first() == Some(&(0..sparse.name.blocks()))
}

fn content(range: Range<u64>) -> Bytes {
    range.map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn open(store: &Store, key: &str, size: u64) -> Arc<Sparse> {
    Arc::new(store.sparse(&version(key, size), BLOCK).unwrap())
}

fn put(sparse: &Arc<Sparse>, blocks: Range<u64>) {
    try_put(sparse, blocks).unwrap();
}

fn try_put(sparse: &Arc<Sparse>, blocks: Range<u64>) -> Result<(), StoreError> {
    let mut writer = sparse.writer(blocks.clone())?;
    let all = content(blocks.start * BLOCK..sparse.name.size.min(blocks.end * BLOCK));
    let cut = all.len() / 3;
    writer.write(&[all.slice(..cut), all.slice(cut..)])
}

fn read(sparse: &Sparse, index: u64) -> Vec<u8> {
    let mut buffer = vec![0; usize::try_from(sparse.name.length(index)).unwrap()];
    sparse.file().read_exact_at(&mut buffer, index * BLOCK).unwrap();
    buffer
}

fn is_right(sparse: &Sparse, index: u64) -> bool {
    let start = index * BLOCK;
    read(sparse, index) == content(start..start + sparse.name.length(index))
}

fn missing(sparse: &Sparse, blocks: Range<u64>) -> Vec<u64> {
    sparse.missing(blocks).into_iter().flatten().collect()
}

#[test]
fn what_was_written_is_here_after_a_restart() {
    let fixture = Fixture::new();
    let size = 5 * BLOCK + 7;
    {
        let store = fixture.open(100);
        let sparse = open(&store, "k", size);
        put(&sparse, 1..3);
        put(&sparse, 5..6);
        assert_eq!(sparse.missing(0..6), [0..1, 3..5]);
    }
    let store = fixture.open(100);
    assert!(store.has_part_of(&version("k", size)));
    assert!(fixture.stored() > 0, "counted from the names");
    let sparse = open(&store, "k", size);
    assert_eq!(sparse.missing(0..6), [0..1, 3..5]);
    assert!(!sparse.has_doubts(0..6), "the machine has not restarted");
    assert!([1, 2, 5].into_iter().all(|index| is_right(&sparse, index)));
}

#[test]
fn a_block_that_is_not_whole_is_not_here() {
    let fixture = Fixture::new();
    let sparse = open(&fixture.open(100), "k", 3 * BLOCK);
    let mut writer = sparse.writer(0..3).unwrap();
    writer.write(&[content(0..BLOCK + 1)]).unwrap();
    writer.write(&[content(BLOCK + 1..2 * BLOCK - 1)]).unwrap();
    assert_eq!(missing(&sparse, 0..3), (1..3).collect::<Vec<_>>());
    writer.write(&[content(2 * BLOCK - 1..2 * BLOCK)]).unwrap();
    assert_eq!(missing(&sparse, 0..3), (2..3).collect::<Vec<_>>());
}

#[test]
fn after_a_reboot_each_block_is_proven_before_use() {
    let fixture = Fixture::new();
    let size = 3 * BLOCK;
    let sparse = open(&fixture.open(100), "k", size);
    put(&sparse, 0..3);
    for index in 0..3 {
        let mut slot = [0; SLOT];
        sparse.map.read_exact_at(&mut slot, index * SLOT as u64).unwrap();
        let slot = Slot { boot: 1, ..Slot::decode(index, &slot).unwrap() };
        sparse.map.write_all_at(&slot.encode(index), index * SLOT as u64).unwrap();
    }
    sparse.data.write_all_at(b"damage", BLOCK).unwrap();
    drop(sparse);
    let store = fixture.open(100);
    let sparse = open(&store, "k", size);
    assert!(sparse.has_doubts(0..1) && !sparse.has_all(0..1) && sparse.missing(0..3).is_empty());
    sparse.settle_doubts(0..3).unwrap();
    assert_eq!(missing(&sparse, 0..3), (1..2).collect::<Vec<_>>());
    drop(sparse);
    let sparse = open(&store, "k", size);
    assert!(sparse.has_all(0..1) && !sparse.has_doubts(0..3), "once in a boot");
}

#[test]
fn a_whole_file_becomes_a_blob_for_its_readers() {
    let fixture = Fixture::new();
    let store = fixture.open(100);
    let size = 2 * BLOCK + 1;
    let sparse = open(&store, "k", size);
    put(&sparse, 1..3);
    put(&sparse, 0..1);
    store.permit_parts(&version("k", size), principal("a"));
    assert!(sparse.is_complete());
    let crc = sparse.crc().unwrap();
    let whole = content(0..BLOCK).into_iter().chain(content(BLOCK..size)).collect::<Vec<_>>();
    assert_eq!(crc, crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &whole));
    let content = Content { crc, modified: SystemTime::UNIX_EPOCH };
    let lease = sparse.complete(principal("b"), Variant::shown_by_none(None), content).unwrap();
    assert!(fixture.files("parts").is_empty());
    assert_eq!(fixture.files("blobs").len(), 1);
    assert_eq!(std::fs::read(&fixture.files("blobs")[0]).unwrap(), whole);
    for (who, may) in [("a", true), ("b", true), ("c", false)] {
        assert_eq!(store.lease(principal(who), &version("k", size)).is_some(), may, "{who}");
    }
    assert!(is_right(&sparse, 0), "its readers read on");
    assert!(lease.open(None).is_ok());
    assert_eq!(fixture.stored(), i64::try_from(3 * PAGE).unwrap());
}

#[test]
fn only_what_is_fetched_takes_room_and_only_idle_files_go() {
    let fixture = Fixture::new();
    let store = fixture.open(20);
    let large = open(&store, "large", 1000 * BLOCK);
    put(&large, 500..508);
    let other = open(&store, "other", 1000 * BLOCK);
    assert!(matches!(try_put(&other, 0..16), Err(StoreError::Full { .. })), "large is open");
    drop(large);
    put(&other, 0..16);
    assert_eq!(fixture.files("parts").len(), 2, "large is gone");
    let large = open(&store, "large", 1000 * BLOCK);
    assert!(is_empty(&large));
    drop(other.writer(100..102).unwrap());
    assert!(fixture.stored() <= i64::try_from(20 * PAGE).unwrap());
}

#[test]
fn a_discarded_file_is_not_found_again_while_it_is_open() {
    let fixture = Fixture::new();
    let store = fixture.open(100);
    let old = open(&store, "k", 2 * BLOCK);
    put(&old, 0..2);
    old.discard();
    let new = open(&store, "k", 2 * BLOCK);
    assert!(is_empty(&new) && is_right(&old, 0));
    drop(old);
    drop(store.reserve(Vec::new(), 1).unwrap());
    put(&new, 0..1);
    assert!(!store.0.index.lock().candidates().iter().any(|_| true), "the new one is pinned");
}

#[test]
fn a_file_cut_otherwise_is_replaced() {
    let fixture = Fixture::new();
    let store = fixture.open(100);
    put(&open(&store, "k", 4 * BLOCK), 0..4);
    let sparse = store.sparse(&version("k", 4 * BLOCK), 2 * BLOCK).unwrap();
    assert!(is_empty(&sparse));
    assert_eq!(fixture.files("parts").len(), 2);
}

#[test]
fn half_a_pair_is_removed_at_start() {
    let fixture = Fixture::new();
    for (key, suffix) in [("a", ""), ("b", ".map")] {
        let store = fixture.open(100);
        put(&open(&store, key, 4 * BLOCK), 0..4);
        let lost = fixture.files("parts").into_iter();
        let lost = lost.filter(|path| path.extension().is_some() == suffix.is_empty());
        lost.for_each(|path| std::fs::remove_file(path).unwrap());
        drop(store);
        drop(fixture.open(100));
        assert!(fixture.files("parts").is_empty(), "{key}");
    }
}

#[test]
fn proof_is_for_one_principal_and_one_lifetime() {
    let fixture = Fixture::new();
    let store = fixture.open(100);
    let of = version("k", 2 * BLOCK);
    let _sparse = open(&store, "k", 2 * BLOCK);
    assert!(!store.permits_parts(&of, principal("a")));
    store.permit_parts(&of, principal("a"));
    assert!(store.permits_parts(&of, principal("a")) && !store.permits_parts(&of, principal("b")));
    store.set_proof_lifetime(std::time::Duration::ZERO);
    assert!(!store.permits_parts(&of, principal("a")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a crash cuts off, what the map says is here is right, or in doubt and found out.
    #[test]
    fn truncated_files_never_give_wrong_bytes(
        puts in proptest::collection::vec((0..20u64, 1..6u64), 1..6),
        (cut_data, cut_map) in (0..=20 * BLOCK, 0..=20 * SLOT as u64),
    ) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = format!("k{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let fixture = Fixture::new();
        let size = 20 * BLOCK - 5;
        let sparse = open(&fixture.open(1000), &key, size);
        for (start, length) in puts {
            put(&sparse, start..(start + length).min(20));
        }
        sparse.data.set_len(cut_data.min(size)).unwrap();
        sparse.map.set_len(cut_map).unwrap();
        drop(sparse);
        let sparse = open(&fixture.open(1000), &key, size);
        sparse.settle_doubts(0..20).unwrap();
        let missing = missing(&sparse, 0..20);
        for index in (0..20).filter(|index| !missing.contains(index)) {
            prop_assert!(is_right(&sparse, index), "{}", index);
        }
        put(&sparse, 0..20);
        prop_assert!(sparse.is_complete() && (0..20).all(|index| is_right(&sparse, index)));
    }
}
