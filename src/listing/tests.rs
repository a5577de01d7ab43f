use std::{collections::BTreeSet, time::SystemTime};

use proptest::prelude::*;

use super::*;
use crate::object::{ETag, EndpointId};

fn object(bucket: &str, key: &str, size: u64) -> Object {
    Object {
        version: ObjectVersion {
            endpoint: EndpointId::new("http://s3", None),
            bucket: Bucket::parse(bucket).unwrap(),
            key: Key::parse(key).unwrap(),
            etag: ETag::new("e"),
            size,
            sse_key: None,
        },
        version_id: None,
        last_modified: SystemTime::UNIX_EPOCH,
    }
}

fn list(keys: &[&str]) -> Listing {
    let mut builder = ListingBuilder::new(100);
    for key in keys {
        let size = u64::from(!key.ends_with('/'));
        builder.add_below(None, key, &Filter::default(), &object("bucket", key, size)).unwrap();
    }
    builder.finish().unwrap()
}

fn paths(listing: &Listing) -> Vec<&str> {
    listing.rows().map(Row::path).collect()
}

fn directories(listing: &Listing) -> Vec<&str> {
    listing.directories().iter().map(RelPath::as_str).collect()
}

#[test]
fn keys_become_files_and_their_directories() {
    let listing = list(&["b/c/d", "a"]);
    assert_eq!(paths(&listing), ["a", "b/c/d"]);
    assert_eq!(directories(&listing), ["b", "b/c"]);
    assert_eq!(listing.skipped().count(), 0);
}

#[test]
fn a_key_that_is_also_a_directory_is_skipped_and_named() {
    let listing = list(&["a", "a/b", "c", "c/"]);
    assert_eq!(paths(&listing), ["a/b"]);
    assert_eq!(directories(&listing), ["a", "c"]);
    assert_eq!(
        listing.skipped().to_string(),
        "2 keys skipped (bucket/a: the key is also a directory of other keys; bucket/c: the key \
         is also a directory of other keys)"
    );
}

#[test]
fn a_sibling_between_a_key_and_its_directory_does_not_hide_the_clash() {
    // In the order of S3 keys '-' sorts before '/'.
    assert_eq!(paths(&list(&["a", "a-b", "a/b"])), ["a/b", "a-b"]);
}

#[test]
fn markers_make_empty_directories() {
    let listing = list(&["logs/", "x/y/"]);
    assert!(listing.is_empty());
    assert_eq!(directories(&listing), ["logs", "x", "x/y"]);
}

#[test]
fn a_marker_with_content_is_a_directory_and_reported() {
    let mut builder = ListingBuilder::new(10);
    builder.add_below(None, "d/", &Filter::default(), &object("bucket", "d/", 7)).unwrap();
    let listing = builder.finish().unwrap();
    assert_eq!(directories(&listing), ["d"]);
    assert_eq!(listing.skipped().count(), 1);
}

#[test]
fn what_no_path_can_hold_is_counted_and_the_first_three_are_named() {
    let listing = list(&["a//b", "../etc/passwd", "/abs", "..data", "ok"]);
    assert_eq!(paths(&listing), ["ok"]);
    assert_eq!(listing.skipped().count(), 4);
    let text = listing.skipped().to_string();
    // By their order, not by that in which they came.
    let first =
        ["../etc/passwd: a segment is '.'", "..data: top-level", "/abs: a segment is empty"];
    assert!(first.iter().all(|named| text.contains(&format!("bucket/{named}"))), "{text}");
    assert!(text.ends_with("; ...)"), "{text}");
}

#[test]
fn the_filter_drops_silently() {
    let filter = Filter::parse("*.jks", "").unwrap();
    let mut builder = ListingBuilder::new(10);
    for key in ["a.jks", "b.txt", "dir/"] {
        builder.add_below(None, key, &filter, &object("bucket", key, 1)).unwrap();
    }
    assert_eq!(builder.next_source(), 1);
    let listing = builder.finish().unwrap();
    assert_eq!(paths(&listing), ["a.jks"]);
    assert_eq!(listing.skipped().count(), 0);
}

#[test]
fn two_sources_at_one_path_name_both_keys() {
    let mut builder = ListingBuilder::new(10);
    builder.add_below(None, "x", &Filter::default(), &object("bucket-a", "one/x", 1)).unwrap();
    builder.next_source();
    builder.add_below(None, "x", &Filter::default(), &object("bucket-b", "two/x", 1)).unwrap();
    let error = builder.finish().unwrap_err().to_string();
    assert!(error.contains("bucket-a/one/x") && error.contains("bucket-b/two/x"), "{error}");
}

#[test]
fn a_key_listed_twice_is_one_file_or_has_changed() {
    let mut builder = ListingBuilder::new(10);
    let filter = Filter::default();
    for _ in 0..2 {
        builder.add_below(None, "x", &filter, &object("bucket", "x", 1)).unwrap();
    }
    builder.add_below(None, "y", &filter, &object("bucket", "y", 1)).unwrap();
    builder.add_below(None, "y", &filter, &object("bucket", "y", 2)).unwrap();
    assert_eq!(builder.finish().unwrap_err().kind(), FailureKind::Stale);
}

#[test]
fn a_file_where_another_source_needs_a_directory_is_a_conflict() {
    let mut builder = ListingBuilder::new(10);
    builder.add_file(&RelPath::parse("app").unwrap(), &object("bucket-a", "app", 1)).unwrap();
    builder.next_source();
    let directory = RelPath::parse("app").unwrap();
    let filter = Filter::default();
    builder.add_below(Some(&directory), "m.py", &filter, &object("bucket-b", "m.py", 1)).unwrap();
    assert_eq!(builder.finish().unwrap_err().kind(), FailureKind::Invalid);
}

#[test]
fn one_object_more_than_allowed_fails() {
    let mut builder = ListingBuilder::new(1);
    let filter = Filter::default();
    builder.add_below(None, "a", &filter, &object("bucket", "a", 1)).unwrap();
    let error = builder.add_below(None, "b", &filter, &object("bucket", "b", 1)).unwrap_err();
    assert_eq!(error, ListingError::TooMany { limit: 1 });
}

#[test]
fn directories_count_as_files_do() {
    let mut builder = ListingBuilder::new(3);
    let filter = Filter::default();
    builder.add_below(None, "a/b/c/x", &filter, &object("bucket", "a/b/c/x", 1)).unwrap();
    builder.add_below(None, "a/b/y", &filter, &object("bucket", "a/b/y", 1)).unwrap();
    for key in ["d/z", "e/"] {
        let added = builder.add_below(None, key, &filter, &object("bucket", key, 0));
        assert_eq!(added, Err(ListingError::TooMany { limit: 3 }), "{key}");
    }
}

#[test]
fn sizes_add_up_in_whole_pages() {
    let mut builder = ListingBuilder::new(10);
    for (key, size) in [("a", 1), ("b", 4096), ("c", 0)] {
        builder.add_below(None, key, &Filter::default(), &object("bucket", key, size)).unwrap();
    }
    let listing = builder.finish().unwrap();
    assert_eq!((listing.bytes(1), listing.bytes(4096)), (4097, 8192));
}

proptest! {
    /// Whatever a bucket holds: every key is a file, a directory marker, or reported; paths are
    /// unique; no file is a directory; every parent exists.
    #[test]
    fn every_key_is_shown_or_reported(keys in prop::collection::btree_set("[a./]{1,6}", 0..20)) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let listing = list(&keys);
        let directories: BTreeSet<_> = listing.directories().iter().cloned().collect();
        for entry in listing.entries() {
            prop_assert!(!directories.contains(&entry.path));
            prop_assert!(keys.contains(&entry.path.as_str()));
            for above in entry.path.ancestors() {
                prop_assert!(directories.contains(&above));
            }
        }
        let shown_as_directory = |key: &&&str| {
            key.strip_suffix('/').is_some_and(|name| RelPath::parse(name).is_ok())
        };
        let markers = keys.iter().filter(shown_as_directory).count();
        let shown = listing.len() + markers;
        prop_assert_eq!(shown as u64 + listing.skipped().count(), keys.len() as u64);
    }
}

fn versioned(pairs: &[(&str, &str)]) -> Listing {
    let mut builder = ListingBuilder::new(100);
    for (key, etag) in pairs {
        let mut object = object("bucket", key, u64::from(!key.ends_with('/')));
        object.version.etag = ETag::new(etag);
        builder.add_below(None, key, &Filter::default(), &object).unwrap();
    }
    builder.finish().unwrap()
}

fn changed(new: &[(&str, &str)]) -> (Vec<String>, bool) {
    let old = versioned(&[("a", "1"), ("d/b", "1"), ("d/c", "1"), ("e/", "0")]);
    let changes = versioned(new).changes_from(&old);
    let mut files: Vec<_> = changes.files.iter().map(ToString::to_string).collect();
    files.sort();
    (files, changes.names_differ)
}

#[test]
fn changes_are_new_files_other_content_and_names_that_go() {
    let same = [("a", "1"), ("d/b", "1"), ("d/c", "1"), ("e/", "0")];
    assert_eq!(changed(&same), (vec![], false));
    let overwritten = [("a", "1"), ("d/b", "2"), ("d/c", "1"), ("e/", "0")];
    assert_eq!(changed(&overwritten), (vec!["d/b".into()], false));
    let removed = [("d/b", "1"), ("d/c", "1"), ("e/", "0")];
    assert_eq!(changed(&removed), (vec![], true));
    let last_removed = [("a", "1"), ("d/b", "1"), ("e/", "0")];
    assert_eq!(changed(&last_removed), (vec![], true));
    let added = [("a", "1"), ("aa", "1"), ("d/b", "1"), ("d/c", "1"), ("e/", "0")];
    assert_eq!(changed(&added), (vec!["aa".into()], false));
    let fewer_directories = [("a", "1"), ("d/b", "1"), ("d/c", "1")];
    assert_eq!(changed(&fewer_directories), (vec![], true));
    assert_eq!(changed(&[]), (vec![], true));
}

#[test]
fn an_upload_of_equal_content_changes_nothing() {
    let old = list(&["a"]);
    let mut object = object("bucket", "a", 1);
    object.last_modified += std::time::Duration::from_hours(1);
    let mut builder = ListingBuilder::new(1);
    builder.add_below(None, "a", &Filter::default(), &object).unwrap();
    let new = builder.finish().unwrap();
    assert_ne!(new, old);
    assert!(new.changes_from(&old).is_empty());
    assert!(new.newest() > old.newest());
}

proptest! {
    #[test]
    fn parts_of_a_listing_make_it_again(keys in proptest::collection::vec("[ab]{1,2}(/[ab]{1,2}){0,2}/?", 0..8)) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let listing = list(&keys);
        let (entries, directories) = (listing.entries(), listing.directories().to_vec());
        let again = Listing::from_parts(entries, directories, listing.skipped().clone());
        prop_assert_eq!(again.as_ref(), Some(&listing));
        prop_assert!(listing.changes_from(&listing).is_empty());
        let empty = list(&[]);
        prop_assert_eq!(listing.changes_from(&empty).files.len(), listing.len());
    }
}

#[test]
fn what_is_no_listing_is_refused() {
    let whole = list(&["a", "d/b"]);
    let (entries, directories) =
        (whole.entries().collect::<Vec<_>>(), whole.directories().to_vec());
    let make = |entries: &[Entry], directories: &[RelPath]| {
        Listing::from_parts(entries.to_vec(), directories.to_vec(), Skipped::default())
    };
    assert!(make(&entries, &directories).is_some());
    assert!(make(&entries, &[]).is_none(), "a directory is missing");
    assert!(make(&[entries.clone(), entries.clone()].concat(), &directories).is_none());
    let file_and_directory = [directories.clone(), vec![RelPath::parse("a").unwrap()]].concat();
    assert!(make(&entries, &file_and_directory).is_none());
}
