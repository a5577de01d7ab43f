//! Readers of a `fuse` view live through SIGKILLs of the plugin that serves it.
//!
//! Eight of them stream, seek, map and list all the while. No read fails, and every byte is right. The
//! plugin starts again from one of two programs in turn, as in an upgrade; the kubelet's next publish
//! comes at once or late; and the view is swapped meanwhile. Neither plugin nor keeper grows.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use libtest_mimic::Trial;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::time::sleep;

use crate::{
    can_serve,
    fixture::{Fixture, PROGRAM},
    number, run,
    support::{
        kubelet::Pod,
        namespace::Ids,
        plugin::Shown,
        s3::{EmbeddedS3, Options},
        server::Server,
    },
    trial,
};

/// Sizes around those of blocks and parts (1 MiB here), and several parts.
const SIZES: [usize; 9] =
    [1, 4096, 131_071, 131_073, 1 << 20, (1 << 20) + 1, 3 << 20, 7_000_001, 12 << 20];

/// So many of them are small: the kernel opens files by itself where all are.
const SMALL_SIZES: usize = 3;

/// How long after a start the kubelet may come with the credentials: it goes round every 60 to 90
/// seconds.
const LATE: Duration = Duration::from_secs(75);

/// Small files, in directories of ten.
const SMALL: usize = 60;

/// What a plugin may take: what may be in flight here, and 64 MiB.
const MEMORY_KIB: u64 = (16 + 64) << 10;

/// From when on nothing grows any more.
const WARM: u64 = 25;

pub(crate) fn trials(ids: Ids) -> Vec<Trial> {
    if !can_serve() {
        return Vec::new();
    }
    let kills = number("S3VIEW_READ_KILLS", 200);
    let claim = |name: &str, kills, store, sizes, fuse| {
        trial(&format!("served::{name}"), move || {
            run(readers_live_through_kills(ids, kills, store, sizes, fuse));
            Ok(())
        })
    };
    let (all, small, replay) = (&SIZES[..], &SIZES[..SMALL_SIZES], "resend: false");
    // Where there is room the kernel soon reads all by itself; where there is none, nothing stays.
    vec![
        claim("readers_live_through_kills", kills, "256Mi", all, ""),
        claim("readers_live_through_kills_without_room", kills / 4, "14Mi", all, ""),
        claim("readers_live_through_kills_without_resend", kills * 3 / 10, "14Mi", all, replay),
        claim("readers_of_small_files_live_through_kills", kills / 4, "256Mi", small, ""),
        trial("served::readers_wait_for_a_kubelet_that_comes_late", move || {
            run(readers_wait_for_a_kubelet_that_comes_late(ids));
            Ok(())
        }),
    ]
}

/// The byte at a place of an object: every file is another, and no two places near are alike.
fn byte(file: usize, at: usize) -> u8 {
    let mixed = (at as u64 ^ ((file as u64) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[1]
}

fn content(file: usize, size: usize) -> Bytes {
    (0..size).map(|at| byte(file, at)).collect()
}

/// What the readers read.
#[derive(Debug)]
struct Expected {
    root: PathBuf,
    files: Vec<(String, Bytes)>,
}

/// A run of readers.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

type Way = fn(&Expected, &mut fastrand::Rng);

impl Readers {
    fn start(expected: &Arc<Expected>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let ways: [Way; 4] = [stream, seek, map, list];
        let (mut reads, mut threads) = (Vec::new(), Vec::new());
        for (number, way) in ways.into_iter().cycle().take(8).enumerate() {
            let (expected, stop) = (Arc::clone(expected), Arc::clone(&stop));
            let done = Arc::<AtomicU64>::default();
            reads.push(Arc::clone(&done));
            threads.push(std::thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(number as u64);
                while !stop.load(Ordering::Relaxed) {
                    way(&expected, &mut random);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, reads, threads }
    }

    /// Whether one has seen something wrong.
    fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; returns how often each did what it does.
    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no read fails, and every byte is right");
        }
        self.reads.iter().map(|reads| reads.load(Ordering::Relaxed)).collect()
    }
}

fn any<'a>(expected: &'a Expected, random: &mut fastrand::Rng) -> (PathBuf, &'a Bytes) {
    let (name, content) = &expected.files[random.usize(..expected.files.len())];
    (expected.root.join(name), content)
}

/// Opens a file, and has the kernel forget now and then what it has of it.
fn open(path: &Path, random: &mut fastrand::Rng) -> File {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if random.u8(..4) == 0 {
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        posix_fadvise(&file, 0, 0, advice).expect("advice is taken");
    }
    file
}

fn stream(expected: &Expected, random: &mut fastrand::Rng) {
    let (path, content) = any(expected, random);
    let (mut file, mut at) = (open(&path, random), 0);
    let mut buffer = vec![0; random.usize(1..200_000)];
    loop {
        let read = file.read(&mut buffer);
        let count = read.unwrap_or_else(|error| panic!("{} at {at}: {error}", path.display()));
        assert_eq!(buffer[..count], content[at..at + count], "{} at {at}", path.display());
        at += count;
        if count == 0 {
            break;
        }
    }
    assert_eq!(at, content.len(), "{} ends where it ends", path.display());
}

fn seek(expected: &Expected, random: &mut fastrand::Rng) {
    let (path, content) = any(expected, random);
    let file = open(&path, random);
    for _ in 0..20 {
        let at = random.usize(..content.len());
        let end = content.len().min(at + random.usize(1..70_000));
        let mut buffer = vec![0; end - at];
        let read = file.read_exact_at(&mut buffer, at as u64);
        read.unwrap_or_else(|error| panic!("{} at {at}: {error}", path.display()));
        assert_eq!(buffer, content[at..end], "{} at {at}", path.display());
    }
}

#[expect(unsafe_code, reason = "a read-only file cannot change under the mapping")]
fn map(expected: &Expected, random: &mut fastrand::Rng) {
    let (path, content) = any(expected, random);
    // SAFETY: nobody can write to a read-only view, and a swap shows other inodes.
    let mapped = unsafe { memmap2::Mmap::map(&open(&path, random)) };
    let mapped = mapped.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(mapped[..] == content[..], "{} as it is mapped", path.display());
}

fn list(expected: &Expected, _: &mut fastrand::Rng) {
    for (name, content) in &expected.files {
        let path = expected.root.join(name);
        let found = std::fs::metadata(&path);
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(found.size(), content.len() as u64);
    }
    for directory in 0..SMALL / 10 {
        let path = expected.root.join(format!("d{directory}"));
        let entries = std::fs::read_dir(&path);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names: Result<Vec<_>, _> = names.collect();
        assert_eq!(names.expect("a directory that can be listed").len(), 10);
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

/// A volume of small files and of these.
async fn published(
    ids: Ids,
    store: &str,
    sizes: &[usize],
    fuse: &str,
) -> (Fixture, Pod, Arc<Expected>) {
    let server = Server::Embedded(EmbeddedS3::start(Options::default()));
    let more = "limits: { minRefresh: 10ms }\nfetch: { partSize: 1Mi, bytesInFlight: 16Mi }\n";
    let more = format!("{more}fuse: {{ {fuse} }}\n");
    let config = Fixture::config(&server, &more).replace("256Mi", store);
    let fixture = Fixture::start_as(server, ids, &config, Shown::Fuse).await;
    let mut files: Vec<_> = (0..SMALL)
        .map(|number| (format!("d{}/{number}", number / 10), content(number, 1000 + number)))
        .collect();
    let large = sizes.iter().enumerate();
    files.extend(large.map(|(at, size)| (format!("large/{at}"), content(SMALL + at, *size))));
    for (name, content) in &files {
        fixture.embedded().put(&fixture.bucket, &format!("k/{name}"), content.clone());
    }
    fixture.put("k/changes", "0").await;
    let pod = fixture.pod("k").with("refresh", "100ms");
    let root = fixture.publish(&pod).await;
    assert!(fuse.is_empty() || keeps_requests(&fixture), "it goes the way that is asked for");
    let expected = Arc::new(Expected { root, files });
    (fixture, pod, expected)
}

async fn readers_live_through_kills(
    ids: Ids,
    kills: u64,
    store: &str,
    sizes: &[usize],
    fuse: &str,
) {
    let (mut fixture, pod, expected) = published(ids, store, sizes, fuse).await;
    let readers = Readers::start(&expected);
    let other = fixture.home.path().join("another-build");
    std::fs::copy(PROGRAM, &other).expect("a program can be copied");
    let programs = [PathBuf::from(PROGRAM), other];
    let mut grown = Vec::new();
    for kill in 0..kills {
        fixture.home.set_program(&programs[usize::try_from(kill % 2).expect("0 or 1")]);
        one_kill(&mut fixture, &pod, kill).await;
        if readers.has_failed() {
            break;
        }
        if kill == WARM.min(kills / 2) || kill + 1 == kills {
            grown.push(figures(&fixture).await);
        }
    }
    // Without credentials, what has to be asked of S3 would wait for minutes, and then fail.
    fixture.publish(&pod).await;
    let done = all_go_on(readers).await;
    eprintln!("{kills} kills; rounds of each reader: {done:?}; grown: {grown:?}");
    let [first, last] = grown[..] else { panic!("looked at twice: {grown:?}") };
    assert!(last.keeper <= first.keeper, "the keeper's descriptors: {grown:?}");
    assert!(last.plugin <= first.plugin + 24, "the plugin's descriptors: {grown:?}");
    // Each process begins anew, with what its readers happen to ask for at once.
    assert!(last.memory_kib <= MEMORY_KIB, "the plugin's memory: {grown:?}");
    assert!(last.ledger <= first.ledger.max(1 << 20), "the ledger: {grown:?}");
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

/// Waits until each reader has done what it does once more, and ends them.
async fn all_go_on(readers: Readers) -> Vec<u64> {
    let reads = || readers.reads.iter().map(|it| it.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let before = reads();
    for _ in 0..1000 {
        let go_on = reads().iter().zip(&before).all(|(now, before)| now > before);
        if go_on || readers.has_failed() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    let after = reads();
    let done = readers.end();
    assert!(after.iter().zip(&before).all(|(now, before)| now > before), "{before:?} {after:?}");
    done
}

/// Nothing stays here, so they need S3 all the time, and soon all wait for credentials.
async fn readers_wait_for_a_kubelet_that_comes_late(ids: Ids) {
    let (mut fixture, pod, expected) = published(ids, "14Mi", &SIZES, "").await;
    let readers = Readers::start(&expected);
    sleep(Duration::from_millis(200)).await;
    fixture.plugin.take().expect("it runs").kill();
    fixture.restart().await;
    sleep(LATE).await;
    assert!(!readers.has_failed(), "a read has failed");
    fixture.publish(&pod).await;
    all_go_on(readers).await;
    fixture.unpublish(&pod).await;
    fixture.assert_nothing_left();
}

async fn one_kill(fixture: &mut Fixture, pod: &Pod, kill: u64) {
    sleep(Duration::from_millis(fastrand::u64(..150))).await;
    if kill.is_multiple_of(3) {
        fixture.put("k/changes", kill.to_string()).await;
    }
    fixture.restart().await;
    if kill.is_multiple_of(5) {
        sleep(Duration::from_millis(fastrand::u64(..300))).await;
    }
    // Some go before the kubelet has been there again.
    if !kill.is_multiple_of(7) {
        fixture.publish(pod).await;
    }
}

fn ledgers(fixture: &Fixture) -> impl Iterator<Item = PathBuf> {
    let volumes = std::fs::read_dir(fixture.home.state_dir().join("memory/v1/volumes"));
    let volumes = volumes.expect("the store").map(|it| it.expect("a volume").path());
    volumes.flat_map(|volume| {
        let mounts = std::fs::read_dir(volume.join("ledger")).expect("a ledger");
        mounts.map(|mount| mount.expect("a mount").path())
    })
}

/// Whether what was asked and not answered is kept.
fn keeps_requests(fixture: &Fixture) -> bool {
    ledgers(fixture).all(|ledger| ledger.join("taken").exists())
}

/// What must not grow.
#[derive(Debug, Clone, Copy)]
struct Figures {
    plugin: usize,
    memory_kib: u64,
    keeper: usize,
    ledger: u64,
}

async fn figures(fixture: &Fixture) -> Figures {
    sleep(Duration::from_millis(500)).await;
    let plugin = fixture.plugin.as_ref().expect("it runs");
    let files = ledgers(fixture).flat_map(|it| std::fs::read_dir(it).expect("a ledger"));
    let ledger = files.map(|it| it.expect("a file").metadata().map_or(0, |it| it.len())).sum();
    Figures {
        plugin: descriptors(plugin.pid()),
        memory_kib: plugin.memory_kib("VmRSS"),
        keeper: descriptors(fixture.home.keeper_pid()),
        ledger,
    }
}
