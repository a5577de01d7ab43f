//! Another listing, while processes use the one before.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    thread,
};

use test_case::test_case;

use super::{
    super::{FuseOptions, notice::Notices},
    mounted::{File as Described, Mounted, OPTIONS, REPLAYED, UNASKED, file, mounted},
};

fn before() -> Vec<Described> {
    vec![file("same", "s"), file("dir/changed", "old"), file("dir/gone", "g"), file("dir/x/y", "y")]
}

fn after() -> Vec<Described> {
    vec![
        file("same", "s"),
        file("dir/changed", "newer"),
        file("dir/new", "n"),
        file("other/z", "z"),
    ]
}

fn number(mounted: &Mounted, path: &str) -> u64 {
    fs::metadata(mounted.at(path)).unwrap().ino()
}

fn names(mounted: &Mounted, path: &str) -> Vec<String> {
    let entries = fs::read_dir(mounted.at(path)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test_case(Notices::AtOnce, OPTIONS; "at once")]
#[test_case(Notices::OneByOne, OPTIONS; "one by one")]
#[test_case(Notices::AtOnce, UNASKED; "unasked, at once")]
#[test_case(Notices::OneByOne, UNASKED; "unasked, one by one")]
#[test_case(Notices::AtOnce, REPLAYED; "replayed, at once")]
#[test_case(Notices::OneByOne, REPLAYED; "replayed, one by one")]
fn a_swap_is_seen_by_all_that_comes_after_it(notices: Notices, options: FuseOptions) {
    mounted(&before(), options, |mounted| {
        mounted.mount.notify_by(notices);
        let numbers = ["", "same", "dir", "dir/changed"].map(|path| number(mounted, path));
        assert_eq!(names(mounted, "dir"), ["changed", "gone", "x"]);
        mounted.read("dir/x/y");
        mounted.show(&after());
        assert_eq!(mounted.read("dir/changed"), "newer");
        assert_eq!(fs::metadata(mounted.at("dir/changed")).unwrap().len(), 5);
        assert_eq!(mounted.read("dir/new"), "n");
        assert_eq!(names(mounted, ""), ["dir", "other", "same"]);
        assert_eq!(names(mounted, "dir"), ["changed", "new"]);
        for path in ["dir/gone", "dir/x", "dir/x/y"] {
            assert!(!mounted.at(path).exists(), "{path}");
        }
        let now = ["", "same", "dir", "dir/changed"].map(|path| number(mounted, path));
        assert_eq!(now[..3], numbers[..3]);
        assert_ne!(now[3], numbers[3]);
    });
}

#[test_case(Notices::AtOnce, OPTIONS; "at once")]
#[test_case(Notices::OneByOne, OPTIONS; "one by one")]
#[test_case(Notices::AtOnce, UNASKED; "unasked, at once")]
#[test_case(Notices::OneByOne, UNASKED; "unasked, one by one")]
#[test_case(Notices::AtOnce, REPLAYED; "replayed, at once")]
#[test_case(Notices::OneByOne, REPLAYED; "replayed, one by one")]
fn an_open_file_keeps_its_content(notices: Notices, options: FuseOptions) {
    mounted(&before(), options, |mounted| {
        mounted.mount.notify_by(notices);
        let mut changed = File::open(mounted.at("dir/changed")).unwrap();
        let mut gone = File::open(mounted.at("dir/gone")).unwrap();
        mounted.show(&after());
        let mut newer = File::open(mounted.at("dir/changed")).unwrap();
        assert_eq!((text(&mut changed), text(&mut newer)), ("old".into(), "newer".into()));
        assert_eq!(text(&mut gone), "g");
        assert_eq!(changed.metadata().unwrap().len(), 3);
        mounted.show(&before());
        assert_eq!((text(&mut changed), text(&mut newer)), ("old".into(), "newer".into()));
        assert_eq!(mounted.read("dir/changed"), "old");
    });
}

#[test]
fn what_is_cached_of_an_unchanged_file_stays_cached_over_a_small_change() {
    mounted(&before(), OPTIONS, |mounted| {
        mounted.read("same");
        let reads = mounted.content.reads();
        let mut files = before();
        files[1] = file("dir/changed", "newer");
        files.push(file("dir/new", "n"));
        mounted.show(&files);
        mounted.read("same");
        assert_eq!(mounted.content.reads(), reads);
        assert_eq!(mounted.read("dir/changed"), "newer");
    });
}

#[test]
fn an_open_file_stays_cached_over_every_change() {
    mounted(&before(), OPTIONS, |mounted| {
        let mut same = File::open(mounted.at("same")).unwrap();
        assert_eq!(text(&mut same), "s");
        let reads = mounted.content.reads();
        mounted.show(&after());
        assert_eq!(text(&mut same), "s");
        assert_eq!(mounted.read("same"), "s");
        assert_eq!(mounted.content.reads(), reads);
    });
}

#[test]
fn an_open_directory_keeps_its_listing_until_it_is_rewound() {
    let many = |letter: char| -> Vec<_> {
        (0..3000).map(|n| file(&format!("dir/{letter}-{n:04}"), "x")).collect()
    };
    mounted(&many('a'), OPTIONS, |mounted| {
        let mut entries = fs::read_dir(mounted.at("dir")).unwrap();
        entries.next().unwrap().unwrap();
        mounted.show(&many('b'));
        let rest: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(rest.len(), 2999);
        assert!(rest.iter().all(|name| name.starts_with("a-")), "{rest:?}");
        assert!(!mounted.at("dir/a-2999").exists(), "an old listing makes no names");
        let fresh = names(mounted, "dir");
        assert!(fresh.len() == 3000 && fresh.iter().all(|name| name.starts_with("b-")));
        assert!(mounted.at("dir/b-2999").exists());
    });
}

#[test_case(Notices::AtOnce, OPTIONS; "at once")]
#[test_case(Notices::OneByOne, OPTIONS; "one by one")]
#[test_case(Notices::AtOnce, UNASKED; "unasked, at once")]
#[test_case(Notices::OneByOne, UNASKED; "unasked, one by one")]
#[test_case(Notices::AtOnce, REPLAYED; "replayed, at once")]
#[test_case(Notices::OneByOne, REPLAYED; "replayed, one by one")]
fn readers_see_one_listing_or_the_other_while_it_changes(notices: Notices, options: FuseOptions) {
    let listing =
        |n: usize| vec![file("dir/file", format!("content {n}")), file(&format!("n{n}/f"), "x")];
    mounted(&listing(0), options, |mounted| {
        mounted.mount.notify_by(notices);
        let reader = || {
            let mut seen = 0;
            for _ in 0..500 {
                let content = String::from_utf8(mounted.read("dir/file").into()).unwrap();
                let n: usize = content.strip_prefix("content ").unwrap().parse().unwrap();
                // A listing under way can bring the name back for the moment until the swap is done.
                assert!(n + 1 >= seen, "{n} after {seen}");
                seen = seen.max(n);
                assert_eq!(names(mounted, "dir"), ["file"]);
                assert_eq!(names(mounted, "").len(), 2);
            }
        };
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(reader)).collect();
            for n in 1..60 {
                mounted.show(&listing(n));
                assert_eq!(mounted.read("dir/file"), format!("content {n}"));
            }
            for reader in readers {
                reader.join().unwrap();
            }
        });
    });
}
