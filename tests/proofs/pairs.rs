//! Readers against replacements: two objects that carry one sequence number change together at the
//! source, again and again, while several threads read both.
//!
//! With `layout: symlinks`, what is read through one resolution of `..data` is always one pair, each
//! file whole. With `layout: files`, each file is whole by itself, and never missing.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use libtest_mimic::Trial;

use crate::{
    fixture::Fixture,
    number, run,
    support::{
        namespace::Ids,
        plugin::Shown,
        s3::{EmbeddedS3, Options},
        server::Server,
    },
    tree::Layout,
    trial,
};

/// The two objects of a pair.
const NAMES: [&str; 2] = ["certificate", "key"];

/// How many threads read each volume.
const READERS: usize = 2;

/// How long one replacement may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Every so many replacements, the pair changes twice: the first may be passed over.
const HASTE: u64 = 40;

pub(crate) fn trials(ids: Ids) -> Vec<Trial> {
    vec![
        trial("pairs::no_reader_sees_a_torn_pair", move || no_reader_sees_a_torn_pair(ids)),
        trial("pairs::no_reader_sees_a_torn_file", move || no_reader_sees_a_torn_file(ids)),
    ]
}

fn no_reader_sees_a_torn_pair(ids: Ids) -> Result<(), String> {
    run(replace(ids, Layout::Symlinks, number("S3VIEW_SWAPS", 2000)))
}

fn no_reader_sees_a_torn_file(ids: Ids) -> Result<(), String> {
    run(replace(ids, Layout::Files, number("S3VIEW_SWAPS", 2000)))
}

/// The pair number `sequence`: some KiB that tell their number, name and length at the begin, and
/// the number in every word.
fn pair(sequence: u64) -> [(&'static str, Bytes); 2] {
    NAMES.map(|name| (name, content(name, sequence)))
}

fn content(name: &str, sequence: u64) -> Bytes {
    let words = 200 + (sequence * 7 + name.len() as u64 * 13) % 400;
    let mut text = format!("{sequence} {words} {name}\n").into_bytes();
    text.extend(sequence.to_le_bytes().repeat(usize::try_from(words).expect("a few hundred")));
    text.into()
}

/// The number of the pair that this is a whole file of.
fn whole(name: &str, text: &[u8]) -> Result<u64, String> {
    let digits = text.split(|byte| *byte == b' ').next().and_then(|t| std::str::from_utf8(t).ok());
    let sequence = digits.and_then(|digits| digits.parse().ok());
    let sequence = sequence.ok_or_else(|| format!("{name} has {} strange bytes", text.len()))?;
    if *content(name, sequence) == *text {
        Ok(sequence)
    } else {
        Err(format!("{name} of {sequence} is torn: {} bytes", text.len()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        File::open(path)?.read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_err(|error| format!("{}: {error}", path.display()))
}

/// What readers share.
#[derive(Default)]
struct Watch {
    /// The newest pair that was read.
    newest: AtomicU64,
    stop: AtomicBool,
}

/// One thread that reads one volume.
struct Reader {
    target: PathBuf,
    layout: Layout,
    watch: Arc<Watch>,
    /// What was read last, of each file.
    last: [u64; 2],
    seen: BTreeSet<u64>,
}

impl Reader {
    /// Reads until told to stop; what it saw.
    fn run(mut self) -> Result<BTreeSet<u64>, String> {
        while !self.watch.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.look() {
                self.watch.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            // Some ten looks at each pair: more would only keep the plugin from replacing it.
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(self.seen)
    }

    fn look(&mut self) -> Result<(), String> {
        let sequences = match self.layout {
            Layout::Symlinks => {
                // By path, each file is whole, whatever the other one is.
                for name in NAMES {
                    whole(name, &read(&self.target.join(name))?)?;
                }
                let data = self.target.join("..data");
                let data = File::open(data).map_err(|error| format!("..data: {error}"))?;
                let place = PathBuf::from(format!("/proc/self/fd/{}", data.as_raw_fd()));
                let sequences = both(&place)?;
                if sequences[0] != sequences[1] {
                    return Err(format!("a pair is torn: {sequences:?}"));
                }
                sequences
            }
            Layout::Files | Layout::Served => both(&self.target)?,
        };
        if sequences < self.last {
            return Err(format!("{sequences:?} after {:?}", self.last));
        }
        self.last = sequences;
        self.seen.extend(sequences);
        let newest = sequences.into_iter().min().unwrap_or_default();
        self.watch.newest.fetch_max(newest, Ordering::Relaxed);
        Ok(())
    }
}

/// The numbers of both files in a directory, one after the other.
fn both(place: &Path) -> Result<[u64; 2], String> {
    let [first, second] = NAMES.map(|name| place.join(name));
    let first = whole(NAMES[0], &read(&first)?)?;
    Ok([first, whole(NAMES[1], &read(&second)?)?])
}

/// Replaces the pair `swaps` times, each time as soon as all volumes show the last one.
async fn replace(ids: Ids, layout: Layout, swaps: u64) -> Result<(), String> {
    let server = Server::Embedded(EmbeddedS3::start(Options::default()));
    let config = Fixture::config(&server, "limits: { minRefresh: 2ms }\n");
    let mut fixture = Fixture::start_as(server, ids, &config, Shown::ByDefault).await;
    fixture.home.set_log_level("warn");
    fixture.restart().await;
    let put = |sequence| {
        let pair = pair(sequence).map(|(name, content)| (format!("pair/{name}"), content));
        let pair = pair.each_ref().map(|(key, content)| (key.as_str(), content.clone()));
        fixture.embedded().put_together(&fixture.bucket, &pair);
    };
    put(0);
    let mut volumes = Vec::new();
    for view in ["tmpfs", "disk"] {
        let layout_name = layout.attribute().expect("files that are linked");
        let pod = fixture.pod("pair").with("view", view).with("layout", layout_name);
        let pod = pod.with("refresh", "4ms");
        let target = fixture.publish(&pod).await;
        let watch = Arc::new(Watch::default());
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (target, watch) = (target.clone(), Arc::clone(&watch));
                let reader = Reader { target, layout, watch, last: [0; 2], seen: BTreeSet::new() };
                std::thread::spawn(move || reader.run())
            })
            .collect();
        volumes.push((view, pod, watch, readers));
    }
    let began = Instant::now();
    let mut late = None;
    let mut sequence = 0;
    for swap in 1..=swaps {
        sequence += 1;
        put(sequence);
        if swap % HASTE == 0 {
            sequence += 1;
            put(sequence);
        }
        let moment = Instant::now();
        let is_shown = |watch: &Watch| {
            watch.newest.load(Ordering::Relaxed) >= sequence || watch.stop.load(Ordering::Relaxed)
        };
        while !volumes.iter().all(|(_, _, watch, _)| is_shown(watch)) {
            if moment.elapsed() > LIMIT {
                late = Some(format!("pair {sequence} never came\n{}", fixture.home.log()));
                break;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        if late.is_some() || volumes.iter().any(|(_, _, it, _)| it.stop.load(Ordering::Relaxed)) {
            break;
        }
    }
    eprintln!("{swaps} replacements in {:?}", began.elapsed());
    for (view, pod, watch, readers) in volumes {
        watch.stop.store(true, Ordering::Relaxed);
        let mut seen = BTreeSet::new();
        for reader in readers {
            let read = reader.join().map_err(|_| "a reader panicked".to_owned())?;
            seen.append(&mut read.map_err(|error| format!("{view}: {error}"))?);
        }
        if let Some(late) = late {
            return Err(late);
        }
        if (seen.len() as u64) < swaps {
            return Err(format!("{view}: only {} pairs were seen, of {swaps}", seen.len()));
        }
        fixture.unpublish(&pod).await;
    }
    fixture.assert_nothing_left();
    Ok(())
}
