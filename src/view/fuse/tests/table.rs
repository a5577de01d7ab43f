use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;
use test_case::test_case;

use super::{
    super::table::{Id, ROOT, TOP, Table},
    OWNERSHIP, at, listing, object,
};
use crate::{
    listing::{Listing, ListingBuilder},
    object::{Key, Object},
    relpath::RelPath,
    view::fuse::BadNumbers,
};

fn table(files: &[(&str, &str, u64)]) -> Table {
    Table::new(&listing(files), OWNERSHIP, at(5_000))
}

fn find(table: &Table, path: &str) -> Option<Id> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(TOP, |directory, name| table.lookup(directory, name.as_bytes()))
}

fn number(table: &Table, path: &str) -> u64 {
    table.number(find(table, path).unwrap())
}

fn names(table: &Table, path: &str) -> Vec<String> {
    let rows = table.children(find(table, path).unwrap());
    rows.map(|row| String::from_utf8(table.name(Id::from_index(row)).to_vec()).unwrap()).collect()
}

const FILES: &[(&str, &str, u64)] =
    &[("a/b/c", "1", 7), ("a/x", "2", 0), ("a-b", "3", 4_000_000_000_000), ("z/y", "4", 1)];

#[test]
fn a_directory_lists_its_children_in_the_order_of_bytes() {
    let table = table(FILES);
    assert_eq!(names(&table, ""), ["a", "a-b", "z"]);
    assert_eq!(names(&table, "a"), ["b", "x"]);
    assert_eq!(names(&table, "a/b"), ["c"]);
    assert!(names(&table, "a-b").is_empty());
    assert_eq!(table.lookup(TOP, b"missing"), None);
    assert_eq!(table.path(find(&table, "a/b/c").unwrap()), "a/b/c");
}

#[test]
fn attributes_are_those_of_the_object_and_the_volume() {
    let table = table(FILES);
    let file = table.attributes(find(&table, "a-b").unwrap());
    assert!(!file.is_directory);
    assert_eq!((file.size, file.links, file.mode), (4_000_000_000_000, 1, 0o440));
    assert_eq!((file.uid, file.gid, file.modified), (185, 1000, at(1_000)));
    let top = table.attributes(TOP);
    assert!(top.is_directory);
    assert_eq!((top.number, top.links, top.mode, top.modified), (ROOT, 4, 0o550, at(5_000)));
    assert_eq!(table.attributes(find(&table, "a/b").unwrap()).links, 2);
    assert_eq!(table.bytes, 4_000_000_000_008);
}

#[test]
fn an_empty_listing_is_an_empty_directory() {
    let table = Table::new(&Listing::default(), OWNERSHIP, at(1));
    assert!(names(&table, "").is_empty());
    assert_eq!(table.attributes(TOP).links, 2);
}

#[test_case("data/a/b", "a/b"; "prefix at the top")]
#[test_case("py/lib.py", "code/lib.py"; "prefix in a directory")]
#[test_case("lib/a", "lib/lib/a"; "a directory named like the beginning of the key")]
#[test_case("some/key", "other"; "a single key with a name of its own")]
#[test_case("k\u{e9}", "p\u{f9}\u{129}"; "equal bytes inside of a character")]
#[test_case("a", "a"; "all in common")]
fn the_object_is_given_back_as_it_was(key: &str, path: &str) {
    let mut wanted = object("x", "etag-7", 9);
    wanted.version.key = Key::parse(key).unwrap();
    wanted.version_id = Some("v1".into());
    let mut builder = ListingBuilder::new(10);
    builder.add_file(&RelPath::parse(path).unwrap(), &wanted).unwrap();
    let listing = builder.finish().unwrap();
    let table = Table::new(&listing, OWNERSHIP, at(1));
    let id = find(&table, path).unwrap();
    assert_eq!(table.object(id), Some(wanted.clone()));
    assert!(table.shows(id, listing.rows().next().unwrap()));
    assert_eq!(table.object(TOP), None);
}

#[test]
fn files_of_one_source_share_where_they_come_from() {
    let files: Vec<String> = (0..100).map(|n| format!("dir/{}/file{n}", n % 7)).collect();
    let files: Vec<_> = files.iter().map(|path| (path.as_str(), "e", 1)).collect();
    assert_eq!(table(&files).origins.len(), 1);
}

#[test]
fn a_table_is_of_its_listing_and_of_no_other() {
    let files = [("a", "1", 1), ("d/b", "2", 2), ("d/e/c", "3", 3)];
    let shown = table(&files);
    assert!(shown.is_of(&listing(&files)));
    let others = [
        vec![("a", "1", 1), ("d/b", "2", 2)],
        vec![("a", "1", 1), ("d/b", "2", 2), ("d/e/c", "4", 3)],
        vec![("a", "1", 1), ("d/b", "2", 2), ("d/e/c", "3", 4)],
        vec![("a", "1", 1), ("d/b", "2", 2), ("d/e/f", "3", 3)],
        vec![("a", "1", 1), ("d/b", "2", 2), ("d/e/c", "3", 3), ("d/e/f", "4", 4)],
        vec![("a", "1", 1), ("b", "2", 2), ("d/e/c", "3", 3)],
    ];
    for other in others {
        assert!(!shown.is_of(&listing(&other)), "{other:?}");
    }
}

#[test]
fn what_is_unchanged_keeps_its_number_and_time() {
    let old = table(FILES);
    let mut later = listing(&[("a/b/c", "1", 7), ("a/x", "changed", 0), ("n/y", "4", 1)]);
    let mut entries: Vec<_> = later.entries().collect();
    entries[0].object.last_modified = at(9_999);
    later = Listing::from_parts(entries, later.directories().to_vec(), later.skipped().clone())
        .unwrap();
    let new = old.succeed(&later, at(6_000));
    for path in ["", "a", "a/b", "a/b/c"] {
        assert_eq!(number(&new, path), number(&old, path), "{path}");
    }
    let time = |path| new.attributes(find(&new, path).unwrap()).modified;
    assert_eq!(time("a/b/c"), at(1_000), "an upload of equal content changes nothing");
    assert_eq!((time("a/b"), time("a"), time("")), (at(5_000), at(6_000), at(6_000)));
    for path in ["a/x", "n", "n/y"] {
        assert!(number(&new, path) >= old.next, "{path}");
    }
}

#[test]
fn a_file_that_comes_back_has_another_number() {
    let old = table(FILES);
    let gone = old.succeed(&listing(&[]), at(2));
    let back = gone.succeed(&listing(FILES), at(3));
    let all = |table: &Table| table.rows.iter().map(|row| row.number).collect::<BTreeSet<_>>();
    assert_eq!(all(&old).intersection(&all(&back)).collect::<Vec<_>>(), [&ROOT]);
}

#[test]
fn outdated_are_names_that_lead_elsewhere_and_directories_with_other_children() {
    let old = table(FILES);
    let new = old.succeed(
        &listing(&[("a/b/c", "1", 7), ("a/x", "changed", 0), ("new", "5", 1), ("z/y", "4", 1)]),
        at(2),
    );
    let outdated = old.outdated(&new);
    let names: BTreeSet<_> = outdated.names.iter().map(|id| old.path(*id)).collect();
    assert_eq!(names, BTreeSet::from(["a-b".to_owned(), "a/x".to_owned()]));
    assert_eq!(outdated.directories, [ROOT, number(&old, "a")]);
    assert_eq!(new.outdated(&new.succeed(&listing(&[]), at(3))).names.len(), 3);
}

#[test]
fn a_file_that_becomes_a_directory_is_something_else() {
    let old = table(&[("a", "1", 1)]);
    let new = old.succeed(&listing(&[("a/a", "1", 1)]), at(2));
    assert_ne!(number(&old, "a"), number(&new, "a"));
    let again = new.succeed(&listing(&[("a", "1", 1)]), at(3));
    assert_ne!(number(&again, "a"), number(&old, "a"));
    assert_eq!(old.outdated(&new).names, [find(&old, "a").unwrap()]);
}

#[test]
fn numbers_outlive_the_process() {
    let table = table(FILES).succeed(&listing(&FILES[1..]), at(7)).succeed(&listing(FILES), at(8));
    let numbers = table.numbers();
    let read = Table::with_numbers(&listing(FILES), OWNERSHIP, &numbers).unwrap();
    assert_eq!(read.next, table.next);
    for index in 0..table.rows.len() {
        let id = Id::from_index(index);
        assert_eq!(read.attributes(id), table.attributes(id));
        assert_eq!(read.find(table.number(id)), Some(id));
    }
    assert_eq!(read.numbers(), numbers);
}

#[test]
fn numbers_of_another_listing_are_refused() {
    let numbers = table(FILES).numbers();
    for files in [&FILES[1..], &[("a/b/c", "other", 7), FILES[1], FILES[2], FILES[3]]] {
        let read = Table::with_numbers(&listing(files), OWNERSHIP, &numbers);
        assert_eq!(read.err(), Some(BadNumbers::Other));
    }
}

#[test]
fn damaged_numbers_are_refused_whatever_the_damage() {
    let numbers = table(FILES).numbers();
    let read = |bytes: &[u8]| Table::with_numbers(&listing(FILES), OWNERSHIP, bytes);
    for length in 0..numbers.len() {
        read(&numbers[..length]).unwrap_err();
    }
    for bit in 0..numbers.len() * 8 {
        let mut damaged = numbers.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        read(&damaged).unwrap_err();
    }
    let mut newer = numbers;
    newer[4] = 2;
    assert_eq!(read(&newer).err(), Some(BadNumbers::Unknown));
}

/// Names that sort around `/`, and few of them, so that listings collide.
fn some_files() -> impl Strategy<Value = BTreeMap<String, u8>> {
    let path =
        "[ab][-./]?[ab]?(/[ab])?".prop_filter("no path", |path| RelPath::parse(path).is_ok());
    prop::collection::btree_map(path, 0..3_u8, 0..12)
}

/// The listing of these, without files that others need as directories.
fn listed(files: &BTreeMap<String, u8>) -> Listing {
    let mut builder = ListingBuilder::new(100);
    for (path, etag) in files {
        let object: Object = object(path, &etag.to_string(), u64::from(*etag));
        builder.add_file(&RelPath::parse(path).unwrap(), &object).unwrap();
    }
    builder.finish().unwrap()
}

proptest! {
    #[test]
    fn tables_follow_their_listings_and_never_reuse_a_number(
        steps in prop::collection::vec(some_files(), 1..6)
    ) {
        let mut given: HashSet<(u64, String, String)> = HashSet::new();
        let mut previous: Option<Table> = None;
        for files in &steps {
            let listing = listed(files);
            let table = match &previous {
                None => Table::new(&listing, OWNERSHIP, at(1)),
                Some(previous) => previous.succeed(&listing, at(1)),
            };
            prop_assert_eq!(table.rows.len(), listing.len() + listing.directories().len() + 1);
            prop_assert_eq!(table.by_number.len(), table.rows.len());
            for entry in listing.entries() {
                let id = find(&table, entry.path.as_str()).unwrap();
                prop_assert_eq!(table.object(id), Some(entry.object.clone()));
                let etag = entry.object.version.etag.to_string();
                given.insert((table.number(id), entry.path.to_string(), etag));
            }
            for path in listing.directories() {
                let id = find(&table, path.as_str()).unwrap();
                prop_assert!(table.is_directory(id));
                prop_assert_eq!(table.path(id), path.as_str());
                given.insert((table.number(id), path.to_string(), "directory".to_owned()));
            }
            let read = Table::with_numbers(&listing, OWNERSHIP, &table.numbers()).unwrap();
            prop_assert_eq!(read.numbers(), table.numbers());
            if let Some(previous) = &previous {
                prop_assert_eq!(table.next >= previous.next, true);
                let outdated = previous.outdated(&table);
                for (index, row) in previous.rows.iter().enumerate().skip(1) {
                    let path = previous.path(Id::from_index(index));
                    let same = find(&table, &path).is_some_and(|id| table.number(id) == row.number);
                    let told = outdated.names.iter().map(|id| previous.path(*id)).any(|name| {
                        path == name || path.starts_with(&format!("{name}/"))
                    });
                    prop_assert_eq!(same, !told, "{}", path);
                }
            }
            previous = Some(table);
        }
        let numbers: HashSet<u64> = given.iter().map(|(number, ..)| *number).collect();
        prop_assert_eq!(numbers.len(), given.len(), "a number stands for one thing only");
    }
}

#[test]
fn a_million_files_take_less_than_200_bytes_each_beyond_their_names() {
    // An eighth of them: the hash table is an eighth as large then, too.
    const FILES: u64 = 1_000_000 / 8;
    let mut builder = ListingBuilder::new(FILES);
    for n in 0..FILES {
        let path = format!("part-{:03}/file-{n:07}.parquet", n % 1000);
        let object = object(&path, &format!("{n:032x}-12"), n);
        builder.add_file(&RelPath::parse(&path).unwrap(), &object).unwrap();
    }
    let listing = builder.finish().unwrap();
    let started = std::time::SystemTime::now();
    let table = Table::new(&listing, OWNERSHIP, at(1));
    let built = started.elapsed().unwrap();
    let names: usize = (0..table.rows.len()).map(|n| table.name(Id::from_index(n)).len()).sum();
    let each = (table.heap_bytes() - names) as u64 / FILES;
    let numbers = table.numbers().len() as u64;
    eprintln!("{each} bytes for each, built in {built:?}, numbers {} MiB", numbers >> 20);
    assert!(each <= 200, "{each}");
    assert!(numbers <= 5 * FILES);
}
