//! Many small files, each asked for its attributes, opened and read: warm against the local file
//! system, cold against s3fs.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use s3view::task::blocking;

use super::published;
use crate::{
    bare::Bare,
    measure::{Pairs, timed},
    node::{BUCKET, Node, server},
    peers::{self, Peer},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
    tools::Missing,
};

/// How many files.
pub(crate) const FILES: u32 = 1000;

const SIZE: usize = 4096;
const WARM: u32 = 15;
const COLD: u32 = 3;

pub(crate) async fn run() {
    report::section("fuse: 1,000 files of 4 KiB, stat + open + read of each, one after the other");
    let (server, bare) = server(Options::default());
    let twin = tempfile::tempdir().expect("a directory");
    for file in 0..FILES {
        server.put(BUCKET, &format!("small/{}", name(file)), content(file));
        fs::write(twin.path().join(name(file)), content(file)).expect("a writable directory");
    }
    let (node, mut kept) = cold(&server, &bare).await;
    let target = node.1;
    let mut pairs = Pairs::default();
    for _ in 0..WARM {
        pairs.add(read_each(&target).await, read_each(twin.path()).await);
    }
    let target = Target::AtMost(2.0);
    report::figure("warm: times the local file system", pairs.slowdown(), target, pairs);
    kept.push(node.0);
}

/// The name of a file.
pub(crate) fn name(file: u32) -> String {
    format!("file-{file:04}")
}

/// The content of a file.
pub(crate) fn content(file: u32) -> Vec<u8> {
    file.to_le_bytes().repeat(SIZE / 4)
}

/// Reads all files for the first time.
async fn cold(server: &EmbeddedS3, bare: &Bare) -> ((Node, std::path::PathBuf), Vec<Node>) {
    let (mut requests, mut against_bare) = (0, Pairs::default());
    let (mut kept, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..COLD {
        let (node, target) = published(server, "small").await;
        server.reset_requests();
        let time = read_each(&target).await;
        requests = server.requests().total();
        ours.push(time);
        against_bare.add(time, timed(bare.read_all("small/", 1)).await);
        kept.push((node, target));
    }
    let how = format!("{against_bare}; {requests} requests");
    let name = "cold: times faster than bare GETs in turn";
    report::figure(name, against_bare.speedup(), Target::None, how);
    match theirs(server, &ours).await {
        Ok(pairs) => {
            let target = Target::AtLeast(4.0);
            report::figure("cold: times faster than s3fs", pairs.speedup(), target, pairs);
        }
        Err(missing) => report::skipped("cold: times faster than s3fs", missing),
    }
    let last = kept.pop().expect("more than one turn");
    (last, kept.into_iter().map(|(node, _)| node).collect())
}

async fn theirs(server: &EmbeddedS3, ours: &[Duration]) -> Result<Pairs, Missing> {
    let mut pairs = Pairs::default();
    for ours in ours {
        let mounted =
            Peer::S3fs.mount(&server.url(), peers::Source { bucket: BUCKET, prefix: "small" })?;
        pairs.add(*ours, read_each(&mounted.path()).await);
    }
    Ok(pairs)
}

/// How long it takes to read all files, by their names.
pub(crate) async fn read_each(directory: &Path) -> Duration {
    let paths: Vec<_> = (0..FILES).map(|file| directory.join(name(file))).collect();
    blocking(move || {
        let (mut buffer, began) = (Vec::with_capacity(SIZE), Instant::now());
        for path in &paths {
            fs::metadata(path).expect("the file is there");
            buffer.clear();
            let mut file = File::open(path).expect("the file can be opened");
            file.read_to_end(&mut buffer).expect("the file can be read");
            assert_eq!(buffer.len(), SIZE, "a whole file");
        }
        began.elapsed()
    })
    .await
}
