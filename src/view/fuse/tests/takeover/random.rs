//! Kills at random moments, while readers do all that readers do.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use test_case::test_case;

use super::{
    eventually, names,
    server::{Opens, Server},
    used, whole, with_server, world,
};

/// How often the process is killed.
const ROUNDS: usize = 30;

/// The longest time between two deaths.
const LONGEST: u64 = 20_000;

/// What readers know of each other.
struct Shared {
    top: PathBuf,
    done: AtomicBool,
    /// The newest version that is surely shown.
    shown: AtomicUsize,
}

impl Shared {
    fn at(&self, path: &str) -> PathBuf {
        self.top.join(path)
    }

    fn until_done(&self, mut step: impl FnMut(&Self)) -> usize {
        let mut steps = 0;
        while !self.done.load(Ordering::SeqCst) {
            step(self);
            steps += 1;
        }
        steps
    }

    /// Reads a file from the beginning to the end.
    fn stream(&self) {
        let path =
            format!("{}/{}", fastrand::choice(["slow", "whole"]).unwrap(), fastrand::u8(..4));
        assert!(fs::read(self.at(&path)).unwrap() == world::file(&path, 0), "{path}");
    }

    /// Reads here and there in a file that stays open.
    fn seek(&self) {
        let path = format!("slow/{}", fastrand::u8(..4));
        let (file, wanted) = (File::open(self.at(&path)).unwrap(), world::file(&path, 0));
        for _ in 0..50 {
            let start = fastrand::usize(..wanted.len() - 5000);
            let mut bytes = vec![0; fastrand::usize(1..5000)];
            file.read_exact_at(&mut bytes, start as u64).unwrap();
            assert!(bytes == wanted[start..start + bytes.len()], "{path} at {start}");
        }
    }

    fn list(&self) {
        assert_eq!(names(&self.at("same")).unwrap().len(), 40);
        let top = names(&self.top).unwrap();
        assert_eq!(top.len(), 5, "{top:?}");
        assert!(!self.at("same/none").exists());
        for n in 0..40 {
            assert_eq!(fs::metadata(self.at(&format!("same/{n:02}"))).unwrap().len(), 50 + n);
        }
    }

    /// Reads what changes: some version as a whole, and none from before what was surely shown.
    fn follow(&self) {
        let path = fastrand::choice(["dir/changed", "whole/changed"]).unwrap();
        let least = self.shown.load(Ordering::SeqCst);
        let file = File::open(self.at(path)).unwrap();
        for _ in 0..3 {
            let version = world::version_of(path, &whole(&file));
            assert!(version >= least, "{version} after {least}");
        }
    }
}

#[test_case(Opens::Cached; "cached")]
#[test_case(Opens::Passthrough; "passthrough")]
#[test_case(Opens::Unasked; "unasked")]
fn no_kill_is_noticed_by_readers(opens: Opens) {
    with_server(opens, |mut server| {
        assert_eq!(server.ask("open"), "ok");
        let empty = used(&server);
        let top = server.at("");
        let (done, shown) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Shared { top, done, shown };
        thread::scope(|scope| {
            let shared = &shared;
            let jobs: [fn(&Shared); 5] =
                [Shared::stream, Shared::stream, Shared::seek, Shared::list, Shared::follow];
            let readers: Vec<_> =
                jobs.map(|job| scope.spawn(move || shared.until_done(job))).into();
            let descriptors: Vec<_> = (0..ROUNDS).map(|_| round(&mut server, shared)).collect();
            shared.done.store(true, Ordering::SeqCst);
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
            let most = |part: &[usize]| *part.iter().max().unwrap();
            assert!(most(&descriptors[ROUNDS / 2..]) <= most(&descriptors) + 8, "{descriptors:?}");
        });
        eventually("all is closed", || server.ask("handles") == "0");
        eventually("backing files are given up", || used(&server) < empty + world::LONG);
        assert!(journal(&server.ledger()) < 4 << 20);
        server.close();
    });
}

fn round(server: &mut Server, shared: &Shared) -> usize {
    thread::sleep(Duration::from_micros(fastrand::u64(..LONGEST)));
    let next = server.shown + 1;
    match fastrand::u8(..3) {
        0 => {
            assert_eq!(server.ask(&format!("show {next}")), "ok");
            shared.shown.store(next, Ordering::SeqCst);
            server.kill();
        }
        1 => {
            server.tell(&format!("show {next}"));
            thread::sleep(Duration::from_micros(fastrand::u64(..3000)));
            server.kill();
        }
        _ => server.kill(),
    }
    thread::sleep(Duration::from_micros(fastrand::u64(..LONGEST)));
    server.resume();
    shared.shown.store(server.shown, Ordering::SeqCst);
    server.ask("descriptors").parse().unwrap()
}

fn journal(ledger: &Path) -> u64 {
    fs::metadata(ledger.join("opens")).unwrap().len()
}
