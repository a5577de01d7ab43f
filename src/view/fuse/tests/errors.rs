//! Content that fails, or does not answer.

use std::{
    fs::{self, File},
    io::Read,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use test_case::test_case;

use super::{
    super::errno::errno,
    memory::{FAILS, LOCKED, SHORT, SLOW},
    mounted::{OPTIONS, UNASKED, file, mounted, with_mount},
};
use crate::failure::FailureKind;

#[test]
fn a_failed_read_tells_its_errno() {
    let path = |kind: FailureKind| format!("{FAILS}{}", kind.as_str());
    let files: Vec<_> = FailureKind::ALL.map(|kind| file(&path(kind), "content")).into();
    for options in [OPTIONS, UNASKED] {
        mounted(&files, options, |mounted| {
            for kind in FailureKind::ALL {
                let error = fs::read(mounted.at(&path(kind))).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(errno(kind).code()), "{kind}");
            }
        });
    }
}

#[test_case(FailureKind::Stale, libc::ESTALE)]
#[test_case(FailureKind::NotFound, libc::ESTALE)]
#[test_case(FailureKind::Denied, libc::EACCES)]
#[test_case(FailureKind::Exhausted, libc::ENOMEM)]
#[test_case(FailureKind::Unavailable, libc::EIO)]
#[test_case(FailureKind::Corrupt, libc::EIO)]
fn a_failure_has_an_errno(kind: FailureKind, wanted: i32) {
    assert_eq!(errno(kind).code(), wanted);
}

#[test]
fn an_object_that_cannot_be_opened_fails_the_open() {
    mounted(&[file(LOCKED, "x")], OPTIONS, |mounted| {
        let error = File::open(mounted.at(LOCKED)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    });
}

#[test]
fn a_short_answer_is_an_error_and_no_zeros() {
    mounted(&[file(SHORT, "content")], OPTIONS, |mounted| {
        let error = fs::read(mounted.at(SHORT)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    });
}

#[test]
fn a_read_that_waits_keeps_nobody_else_waiting() {
    let files = [file("slow/1", "1"), file("slow/2", "2"), file("slow/3", "3"), file("quick", "q")];
    mounted(&files, OPTIONS, |mounted| {
        thread::scope(|scope| {
            let slow: Vec<_> = (1..=3)
                .map(|n| scope.spawn(move || fs::read(mounted.at(&format!("slow/{n}"))).unwrap()))
                .collect();
            while mounted.content.reads() < 3 {
                thread::yield_now();
            }
            assert_eq!(mounted.read("quick"), "q");
            assert_eq!(fs::read_dir(mounted.at("slow")).unwrap().count(), 3);
            mounted.show(&[files[0].clone(), file("new", "n")]);
            assert_eq!(mounted.read("new"), "n");
            mounted.content.gate.add_permits(3);
            let all: Vec<_> = slow.into_iter().map(|read| read.join().unwrap()).collect();
            assert_eq!(all, [b"1", b"2", b"3"]);
        });
    });
}

#[test]
fn a_read_that_never_ends_does_not_keep_the_volume() {
    with_mount(&[file(SLOW, "x")], OPTIONS, |mounted| {
        let content = Arc::clone(&mounted.content);
        let (opened, open) = mpsc::channel();
        let path = mounted.at(SLOW);
        let reading = thread::spawn(move || {
            let mut file = File::open(path).unwrap();
            opened.send(()).unwrap();
            file.read(&mut [0]).map_err(|error| error.raw_os_error())
        });
        open.recv().unwrap();
        while content.reads() == 0 {
            thread::yield_now();
        }
        mounted.close(Duration::from_millis(50));
        let errno = reading.join().unwrap().unwrap_err();
        assert!(
            [Some(libc::EIO), Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&errno),
            "{errno:?}"
        );
        assert_eq!(content.open_files(), 0);
    });
}

#[test]
fn files_that_stay_open_are_served_for_the_grace_and_no_longer() {
    with_mount(&[file("file", "content")], OPTIONS, |mounted| {
        let mut file = File::open(mounted.at("file")).unwrap();
        mounted.target.unmount_all().unwrap();
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        mounted.close(Duration::from_millis(50));
    });
}

/// The descriptors of this process that belong to a connection.
fn descriptors(connection: u32) -> usize {
    let line = format!("fuse_connection:\t{connection}\n");
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap().map(|entry| entry.unwrap().path());
    // A descriptor may be closed, by another test, before it is looked at.
    infos.filter(|info| fs::read_to_string(info).is_ok_and(|info| info.contains(&line))).count()
}

#[test]
fn nothing_is_left_of_a_closed_volume() {
    with_mount(&[file("file", "content")], OPTIONS, |mounted| {
        let connection = mounted.mount.connection().number();
        let kept = mounted.mount.device().unwrap();
        let content = Arc::clone(&mounted.content);
        mounted.read("file");
        eprintln!("descriptors while mounted: {}", descriptors(connection));
        mounted.close(Duration::from_secs(10));
        drop(kept);
        assert_eq!(descriptors(connection), 0);
        assert_eq!((content.open_files(), Arc::strong_count(&content)), (0, 1));
    });
}
