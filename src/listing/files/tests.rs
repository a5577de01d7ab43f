use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::object::{Bucket, EndpointId, SseKeyDigest};

fn object(key: &str, etag: &str, number: u64) -> Object {
    let version = ObjectVersion {
        endpoint: EndpointId::new("http://s3", None),
        bucket: Bucket::parse(if number.is_multiple_of(5) { "other" } else { "bucket" }).unwrap(),
        key: Key::parse(key).unwrap(),
        etag: ETag::new(etag),
        size: number << 33,
        sse_key: number.is_multiple_of(3).then_some(SseKeyDigest([7; 32])),
    };
    let version_id = number.is_multiple_of(2).then(|| format!("version {number}").into());
    let before = UNIX_EPOCH - Duration::from_secs(50);
    Object { version, version_id, last_modified: before + Duration::from_millis(number * 777) }
}

fn packed(entries: &[Entry]) -> Files {
    let mut packer = Packer::default();
    for Entry { path, object } in entries {
        packer.push(0, path, object);
    }
    packer.files
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    // Few letters of one to three bytes, so that much is in common, also by halves of letters.
    let text = "[a\u{e9}\u{1e9}\u{20ac}\u{10ac}/]{1,5}";
    let one = (text, text, "[0-9a-f]{0,4}", 0_u64..12);
    let entry = |(path, key, etag, number): (String, String, String, u64)| {
        let path = RelPath::parse(&path).ok()?;
        Some(Entry { path, object: object(&key, &etag, number) })
    };
    prop::collection::vec(one, 0..12)
        .prop_map(move |all| all.into_iter().filter_map(entry).collect())
}

proptest! {
    #[test]
    fn what_was_packed_comes_out_again(entries in entries()) {
        let files = packed(&entries);
        prop_assert_eq!(files.rows().map(Row::entry).collect::<Vec<_>>(), entries);
    }

    #[test]
    fn sorting_and_settling_change_no_file(mut entries in entries()) {
        let mut files = packed(&entries);
        files.sort();
        files.settle();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        prop_assert_eq!(files.rows().map(Row::entry).collect::<Vec<_>>(), entries);
        let mut next = 0;
        for row in files.rows() {
            prop_assert!(row.origin_number() <= next, "origins are numbered as they are needed");
            next = next.max(row.origin_number() + 1);
        }
        prop_assert_eq!(files.origins().len(), index(next));
    }

    #[test]
    fn the_quick_origin_is_the_one_that_is_looked_for(entries in entries()) {
        for pair in entries.windows(2) {
            let [a, b] = pair else { unreachable!("windows of two") };
            let last = Origin::of(a.path.as_str(), &a.object.version);
            if last.is_of(b.path.as_str(), &b.object.version) {
                prop_assert_eq!(last, Origin::of(b.path.as_str(), &b.object.version));
            }
        }
    }
}

#[test]
fn a_file_takes_few_bytes_beyond_its_path() {
    let entry = |n: u64| {
        let path = RelPath::parse(&format!("part-{:03}/file-{n:07}.parquet", n % 1000)).unwrap();
        let object =
            Object { version_id: None, ..object(&format!("data/{path}"), &format!("{n:032x}"), 1) };
        Entry { path, object }
    };
    let entries: Vec<_> = (0..10_000).map(entry).collect();
    let mut files = packed(&entries);
    assert_eq!(files.origins().len(), 1);
    files.settle();
    let paths: usize = entries.iter().map(|entry| entry.path.as_str().len()).sum();
    let bytes = files.packed.capacity() * size_of::<Packed>() + files.text.capacity() - paths;
    assert!(bytes <= 100 * entries.len(), "{bytes}");
}

#[test]
fn what_is_kept_is_asked_of_each() {
    let entry = |n: u64| {
        let path = RelPath::parse(&format!("{n}")).unwrap();
        Entry { object: object(path.as_str(), "e", n), path }
    };
    let entries: Vec<_> = (0..10).map(entry).collect();
    let mut files = packed(&entries);
    files.try_retain(|row| Ok::<_, ()>(row.path() != "3")).unwrap();
    let left: Vec<_> = files.rows().map(Row::path).collect();
    assert_eq!(left, ["0", "1", "2", "4", "5", "6", "7", "8", "9"]);
    let asked = std::cell::Cell::new(0);
    let refuse = |row: Row<'_>| {
        asked.set(asked.get() + 1);
        if row.path() == "2" { Err("no") } else { Ok(true) }
    };
    assert_eq!(files.try_retain(refuse), Err("no"));
    assert_eq!(asked.get(), 3);
}
