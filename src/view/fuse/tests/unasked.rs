//! Files that the kernel opens by itself.

use std::{
    fs::{self, File},
    io::Read,
    thread,
};

use test_case::test_case;

use super::{
    super::table::Table,
    OWNERSHIP, at, listing,
    mounted::{UNASKED, file, mounted},
    takeover::eventually,
};

/// Nobody would answer.
#[test]
fn what_was_read_is_opened_and_read_again_without_a_request() {
    mounted(&[file("dir/file", "content")], UNASKED, |mounted| {
        assert_eq!(mounted.read("dir/file"), "content");
        let served = mounted.mount.served();
        let frozen = served.freeze();
        let handles = served.handles.lock();
        for _ in 0..3 {
            fs::metadata(mounted.at("dir/file")).unwrap();
            assert_eq!(mounted.read("dir/file"), "content");
        }
        drop((handles, frozen));
        assert_eq!(mounted.content.reads(), 1);
        assert!(mounted.mount.negotiated().opens_itself);
    });
}

#[test]
fn what_was_read_is_held_until_the_kernel_forgets_it() {
    mounted(&[file("file", "old"), file("other", "x")], UNASKED, |mounted| {
        let mut open = File::open(mounted.at("file")).unwrap();
        assert_eq!(mounted.content.held_files(), 0);
        assert_eq!(read(&mut open), "old");
        eventually("it is held", || mounted.content.held_files() == 1);
        mounted.show(&[file("file", "newer"), file("other", "x")]);
        assert_eq!(mounted.read("file"), "newer");
        eventually("both are held", || mounted.content.held_files() == 2);
        drop(open);
        eventually("the old one is given up", || mounted.content.held_files() == 1);
        assert_eq!(mounted.content.open_files(), 0);
    });
}

fn read(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn reads_at_one_time_share_a_file() {
    mounted(&[file("slow/1", "slow")], UNASKED, |mounted| {
        let path = mounted.at("slow/1");
        thread::scope(|scope| {
            let readers = [0; 4].map(|_| scope.spawn(|| uncached(&path)));
            eventually("all wait", || mounted.content.reads() == 4);
            // Whoever waits is let go before anything is asserted.
            let open = mounted.content.open_files();
            mounted.content.gate.add_permits(1);
            assert_eq!(open, 1);
            assert!(readers.into_iter().all(|reader| reader.join().unwrap() == b"slow"));
        });
    });
}

/// Past the kernel's cache, which would read once only.
fn uncached(path: &std::path::Path) -> Vec<u8> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut bytes = vec![0; 4096];
    let length = file.read(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

#[test_case(&[], true; "nothing")]
#[test_case(&[("a/b", "1", 0)], true; "an empty one")]
#[test_case(&[("a", "1", 131_072), ("b", "2", 0)], true; "small")]
#[test_case(&[("a", "1", 131_073)], false; "a large one")]
fn files_are_small(files: &[(&str, &str, u64)], small: bool) {
    assert_eq!(Table::new(&listing(files), OWNERSHIP, at(1)).is_small(), small);
}

/// In pages: none is smaller.
#[test_case(16_383, 0, true; "as many as may be")]
#[test_case(16_384, 0, false; "too many")]
#[test_case(511, 131_072, true; "as large as may be")]
#[test_case(512, 131_072, false; "too large")]
fn many_files_are_small(count: u32, size: u64, small: bool) {
    let names: Vec<_> = (0..count).map(|n| format!("{n:05}")).collect();
    let files: Vec<_> = names.iter().map(|name| (&**name, &**name, size)).collect();
    files_are_small(&files, small);
}
