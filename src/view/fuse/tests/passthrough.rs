//! Files that the kernel reads by itself.

use std::{fs::File, io::Read, os::unix::fs::FileExt, sync::Arc};

use test_case::test_case;

use super::{
    super::{
        opens::{Answer, Open, Opens, Shown, Standing, Whole, answer},
        table::{TOP, Table},
    },
    OWNERSHIP, at, listing,
    memory::Memory,
    mounted::{Mounted, OPTIONS, file, mounted},
};
use crate::view::fuse::{Content, FuseOptions};

#[test_case(Standing::Closed, Whole::Usable => Answer::Register)]
#[test_case(Standing::Closed, Whole::No => Answer::Cached)]
#[test_case(Standing::Cached, Whole::Usable => Answer::Cached; "complete meanwhile")]
#[test_case(Standing::Cached, Whole::No => Answer::Cached)]
#[test_case(Standing::Passthrough, Whole::Usable => Answer::Same)]
#[test_case(Standing::Passthrough, Whole::No => Answer::Same; "evicted meanwhile")]
fn an_inode_is_open_in_one_mode_at_a_time(standing: Standing, whole: Whole) -> Answer {
    answer(standing, whole)
}

#[test]
fn a_handle_that_is_opened_again_twice_counts_once() {
    let table = Table::new(&listing(&[("file", "1", 7)]), OWNERSHIP, at(1));
    let id = table.lookup(TOP, b"file").unwrap();
    let object = Arc::new(table.object(id).unwrap());
    let memory = Memory::new(false);
    memory.put("1", "content");
    let mut opens = Opens::<()>::new();
    for _ in 0..2 {
        let file = memory.open(&object).unwrap();
        let shown = Shown { object: Arc::clone(&object), attributes: table.attributes(id) };
        opens.add(7, 1, Open { request: 2, shown, file, backing: None });
    }
    assert_eq!(opens.standing(7), Standing::Cached);
    drop(opens.remove(1));
    assert_eq!(opens.standing(7), Standing::Closed);
    assert_eq!(memory.open_files(), 0);
}

const PASSTHROUGH: FuseOptions = FuseOptions { passthrough: true, ..OPTIONS };

/// Whether this machine's kernel takes part.
fn takes_part(mounted: &Mounted) -> bool {
    let agreed = mounted.mount.negotiated().passthrough;
    if !agreed {
        eprintln!("SKIPPED: passthrough needs Linux 6.9");
    }
    agreed
}

#[test]
fn a_complete_file_is_read_by_the_kernel_alone() {
    let content = "content".repeat(100_000);
    mounted(&[file("file", content.clone())], PASSTHROUGH, |mounted| {
        if !takes_part(mounted) {
            return;
        }
        assert!(mounted.read("file") == content);
        assert_eq!(mounted.content.reads(), 0);
        let mut handles: Vec<_> = (0..3).map(|_| File::open(mounted.at("file")).unwrap()).collect();
        handles.remove(0);
        for handle in &mut handles {
            let mut text = String::new();
            handle.read_to_string(&mut text).unwrap();
            assert!(text == content);
            assert_eq!(handle.read_at(&mut [0; 100], content.len() as u64 - 7).unwrap(), 7);
        }
        assert_eq!(mounted.content.reads(), 0);
        drop(handles);
        assert!(mounted.read("file") == content);
    });
}

#[test]
fn the_same_bytes_are_read_without_passthrough() {
    let content = "content".repeat(100_000);
    mounted(&[file("file", content.clone())], OPTIONS, |mounted| {
        assert!(!mounted.mount.negotiated().passthrough);
        assert!(mounted.read("file") == content);
        assert!(mounted.content.reads() > 0);
    });
}

#[test]
fn a_file_that_is_open_keeps_its_content_over_a_swap() {
    mounted(&[file("file", "old")], PASSTHROUGH, |mounted| {
        let mut old = File::open(mounted.at("file")).unwrap();
        mounted.show(&[file("file", "newer")]);
        assert_eq!(mounted.read("file"), "newer");
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
    });
}
