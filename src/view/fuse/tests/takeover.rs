//! A process that serves a volume is killed, and another one goes on.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{
        fs::{FileExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    mount::{MsFlags, mount},
    sys::{signal::Signal, statvfs::statvfs},
};
use test_case::test_case;

use self::server::{Opens, Server};
use super::super::InFlight;
use crate::mount::scratch::in_private_namespace;

mod figures;
mod random;
mod refused;
pub(super) mod server;
mod world;

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The longest time that a test may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Runs a test on a volume that another process serves, once where the kernel sends again what was not
/// answered, and once as on a kernel that cannot; skips loudly where the machine does not permit it.
fn with_server(opens: Opens, test: impl Fn(Server) + Sync) {
    for in_flight in [InFlight::Resend, InFlight::Replay] {
        // Shown when the test fails.
        eprintln!("{in_flight:?}");
        with_server_that(in_flight, opens, &test);
    }
}

/// As [`with_server`], in one of the two ways.
fn with_server_that(in_flight: InFlight, opens: Opens, test: impl Fn(Server) + Sync) {
    with_directory(|directory| {
        let server = Server::start(directory, opens, in_flight);
        // The kernel asks only once whether it may ask for the time of birth.
        fs::metadata(server.at("")).unwrap();
        guarded(server.connection, || test(server));
    });
}

/// Runs a test where a process can mount, and connections be aborted.
fn with_directory(test: impl Fn(&Path) + Sync) {
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("SKIPPED: FUSE tests need root or an accessible /dev/fuse");
        return;
    }
    in_private_namespace(|directory| {
        mount(Some("test"), CONNECTIONS, Some("fusectl"), MsFlags::empty(), None::<&str>).unwrap();
        test(directory);
    });
}

/// Whoever waits for a process that will not come gets an error in the end: the test process has a
/// descriptor of the device, and could not even be killed.
fn guarded(connection: u32, test: impl FnOnce()) {
    struct Guard(Option<mpsc::Sender<()>>);
    impl Drop for Guard {
        fn drop(&mut self) {
            let done = self.0.take().unwrap();
            if !thread::panicking() {
                done.send(()).unwrap();
            }
        }
    }
    let (done, finished) = mpsc::channel();
    let guard = Guard(Some(done));
    let watch = thread::spawn(move || {
        if finished.recv_timeout(PATIENCE).is_err() {
            let path = Path::new(CONNECTIONS).join(connection.to_string()).join("abort");
            drop(fs::write(path, "1"));
        }
    });
    test();
    drop(guard);
    watch.join().unwrap();
}

pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// How many requests wait for an answer.
fn in_flight(server: &Server) -> usize {
    let number = server.connection.to_string();
    let path = Path::new(CONNECTIONS).join(number).join("waiting");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(path)?;
    entries.map(|entry| Ok(entry?.file_name().into_string().unwrap())).collect()
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().size()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Bytes of the file system that holds the backing files.
fn used(server: &Server) -> u64 {
    let found = statvfs(&server.ledger()).unwrap();
    (found.blocks() - found.blocks_free()) * found.fragment_size()
}

#[test]
fn who_waits_for_bytes_gets_them_from_the_next_process() {
    with_server(Opens::Cached, |mut server| {
        let paths: Vec<_> = (0..4).map(|n| format!("slow/{n}")).collect();
        let places: Vec<PathBuf> = paths.iter().map(|path| server.at(path)).collect();
        thread::scope(|scope| {
            let read = |path| scope.spawn(move || fs::read(path).unwrap());
            let readers: Vec<_> = places.iter().map(read).collect();
            eventually("all read", || server.ask("waiting").parse::<usize>().unwrap() >= 4);
            server.kill();
            server.resume();
            for (reader, path) in readers.into_iter().zip(&paths) {
                assert!(reader.join().unwrap() == world::file(path, 0), "{path}");
            }
        });
        server.close();
    });
}

/// It has closed a file of its own mount, and cannot answer any more.
#[test]
fn a_process_that_dies_before_the_keeper_has_its_mount_ends() {
    for in_flight in [InFlight::Resend, InFlight::Replay] {
        with_directory(|directory| {
            let status = server::die_mounting(directory, in_flight, "flushed");
            assert_eq!(status.and_then(|it| it.signal()), Some(Signal::SIGKILL as i32));
            let error = fs::read_dir(directory.join("target")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
        });
    }
}

/// Else they would be more with every version.
#[test]
fn an_old_version_that_the_kernel_opened_is_known_until_it_is_closed() {
    with_server(Opens::Unasked, |mut server| {
        let old = File::open(server.at("dir/changed")).unwrap();
        assert_eq!(server.ask("show 1"), "ok");
        server.kill();
        server.resume();
        // The other files of the first version are not open.
        eventually("only it is kept", || server.ask("replaced") == "1");
        posix_fadvise(&old, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert!(whole(&old) == world::file("dir/changed", 0));
        drop(old);
        assert_eq!(server.ask("show 2"), "ok");
        // The kernel keeps what nobody has open until it looks the name up, or needs room.
        fs::metadata(server.at("dir/changed")).unwrap();
        eventually("none is kept", || server.ask("replaced") == "0");
        server.close();
    });
}

/// Two of them are taken by the process before it dies, and the rest by the next one only.
#[test]
fn who_waits_for_a_name_a_directory_or_an_open_gets_it_from_the_next_process() {
    with_server(Opens::Cached, |mut server| {
        let open = File::open(server.at("dir/changed")).unwrap();
        for round in 0..4 {
            assert_eq!(server.ask("freeze"), "ok");
            // Of a name that the kernel knows it does not ask.
            let (looked, missing) = (server.at(&format!("same/{round:02}")), server.at("none"));
            let (listed, opened) = (server.at("v0"), server.at("dir/changed"));
            thread::scope(|scope| {
                let looking = scope.spawn(|| fs::metadata(looked).map(|found| found.len()));
                let missing = scope.spawn(|| fs::metadata(missing).map_err(|error| error.kind()));
                let listing = scope.spawn(|| names(&listed));
                let opening = scope.spawn(|| fs::read(opened));
                eventually("all wait", || in_flight(&server) >= 4);
                server.kill();
                server.resume();
                assert_eq!(looking.join().unwrap().unwrap(), 50 + round);
                assert_eq!(missing.join().unwrap().unwrap_err(), io::ErrorKind::NotFound);
                assert_eq!(listing.join().unwrap().unwrap(), ["only"]);
                assert!(opening.join().unwrap().unwrap() == world::file("dir/changed", 0));
            });
            assert!(whole(&open) == world::file("dir/changed", 0));
        }
        drop(open);
        server.close();
    });
}

#[test]
fn an_open_directory_goes_on_where_it_was() {
    with_server(Opens::Cached, |mut server| {
        let mut entries = fs::read_dir(server.at("same")).unwrap();
        let first = entries.next().unwrap().unwrap().file_name();
        server.kill();
        server.resume();
        let mut found = vec![first];
        found.extend(entries.map(|entry| entry.unwrap().file_name()));
        let wanted: Vec<_> = (0..40).map(|n| OsString::from(format!("{n:02}"))).collect();
        assert_eq!(found, wanted);
        server.close();
    });
}

#[test_case(Opens::Cached; "cached")]
#[test_case(Opens::Passthrough; "passthrough")]
#[test_case(Opens::Unasked; "unasked")]
fn an_old_version_that_is_open_outlives_swaps_and_processes(opens: Opens) {
    with_server(opens, |mut server| {
        let path = if opens == Opens::Cached { "dir/changed" } else { "whole/changed" };
        let mut open = Vec::new();
        for version in 0..4 {
            open.push(File::open(server.at(path)).unwrap());
            assert_eq!(server.ask(&format!("show {}", version + 1)), "ok");
            if version % 2 == 1 {
                server.kill();
                server.resume();
                assert_eq!(server.shown, version + 1);
            }
            for (version, file) in open.iter().enumerate() {
                posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                assert!(whole(file) == world::file(path, version), "{version}");
            }
            assert!(fs::read(server.at(path)).unwrap() == world::file(path, version + 1));
        }
        let handles = if opens == Opens::Unasked { "0" } else { "4" };
        eventually("only these are open", || server.ask("handles") == handles);
        drop(open);
        eventually("all are closed", || server.ask("handles") == "0");
        server.close();
    });
}

#[test_case("saved")]
#[test_case("swapped")]
fn a_swap_that_a_process_dies_in_has_happened(point: &str) {
    with_server(Opens::Cached, |mut server| {
        // The kernel knows the names of the first version, and believes in them for ever.
        let open = File::open(server.at("dir/changed")).unwrap();
        assert_eq!(names(&server.at("v0")).unwrap(), ["only"]);
        assert_eq!(server.ask(&format!("die {point}")), "ok");
        server.tell("show 1");
        server.wait();
        server.resume();
        assert_eq!(server.shown, 1);
        assert!(fs::read(server.at("dir/changed")).unwrap() == world::file("dir/changed", 1));
        assert!(!server.at("v0").exists());
        assert_eq!(names(&server.at("v1")).unwrap(), ["only"]);
        assert!(whole(&open) == world::file("dir/changed", 0));
        drop(open);
        server.close();
    });
}

#[test_case("opened", Opens::Cached; "cached and noted")]
#[test_case("opened", Opens::Passthrough; "passthrough and noted")]
#[test_case("registered", Opens::Passthrough; "passthrough and not noted")]
fn an_open_that_a_process_dies_in_is_one_open(point: &str, opens: Opens) {
    with_server(opens, |mut server| {
        let empty = used(&server);
        for round in 0..3 {
            let path = format!("whole/{round}");
            assert_eq!(server.ask(&format!("die {point}")), "ok");
            let place = server.at(&path);
            let file = thread::scope(|scope| {
                let opening = scope.spawn(|| File::open(place).unwrap());
                server.wait();
                server.resume();
                opening.join().unwrap()
            });
            assert_eq!(server.ask("handles"), "1");
            let second = File::open(server.at(&path)).unwrap();
            for file in [&file, &second] {
                assert!(whole(file) == world::file(&path, 0));
            }
            drop((file, second));
            eventually("all is closed", || server.ask("handles") == "0");
        }
        // Else a backing file is still known to the kernel.
        eventually("backing files are given up", || used(&server) < empty + world::LONG);
        server.close();
    });
}

/// Only where the kernel does not send again: else nothing is done at these moments.
#[test_case("taken")]
#[test_case("kept")]
#[test_case("answering")]
#[test_case("answered")]
fn a_request_that_a_process_dies_with_is_answered_by_the_next(point: &str) {
    with_server_that(InFlight::Replay, Opens::Passthrough, |mut server| {
        let empty = used(&server);
        // Each of them is asked every time.
        let steps: [fn(&Path); 4] = [
            |top| assert!(fs::read(top.join("whole/0")).unwrap() == world::file("whole/0", 0)),
            |top| assert!(fs::read(top.join("same/07")).unwrap() == world::file("same/07", 0)),
            |top| assert_eq!(names(&top.join("same")).unwrap().len(), 40),
            // Longer than all that are expected.
            |top| assert!(!top.join("n".repeat(900)).exists()),
        ];
        for step in steps.into_iter().cycle().take(20) {
            let answer = server.ask(&format!("die {point}"));
            // A close of before may be what it dies with.
            assert!(answer == "ok" || answer.is_empty(), "{answer}");
            let top = server.at("");
            thread::scope(|scope| {
                let asked = scope.spawn(|| step(&top));
                server.wait();
                server.resume();
                asked.join().unwrap();
            });
        }
        eventually("all is closed", || server.ask("handles") == "0");
        eventually("backing files are given up", || used(&server) < empty + world::LONG);
        server.close();
    });
}

#[test]
fn a_release_that_a_process_dies_in_happens_once() {
    with_server(Opens::Passthrough, |mut server| {
        let empty = used(&server);
        for round in 0..3 {
            let files = [0, 0].map(|_| File::open(server.at(&format!("whole/{round}"))).unwrap());
            assert_eq!(server.ask("die released"), "ok");
            drop(files);
            server.wait();
            server.resume();
            eventually("all is closed", || server.ask("handles") == "0");
        }
        eventually("backing files are given up", || used(&server) < empty + world::LONG);
        server.close();
    });
}

#[test]
fn a_file_that_the_kernel_reads_is_opened_as_it_is_open() {
    with_server(Opens::Passthrough, |mut server| {
        let first = File::open(server.at("whole/1")).unwrap();
        server.kill();
        // It needs nobody meanwhile.
        assert!(whole(&first) == world::file("whole/1", 0));
        server.resume();
        let second = File::open(server.at("whole/1")).unwrap();
        drop(first);
        server.kill();
        server.resume();
        let third = File::open(server.at("whole/1")).unwrap();
        for file in [&second, &third] {
            assert!(whole(file) == world::file("whole/1", 0));
        }
        drop((second, third));
        eventually("all is closed", || server.ask("handles") == "0");
        assert!(fs::read(server.at("whole/1")).unwrap() == world::file("whole/1", 0));
        server.close();
    });
}
