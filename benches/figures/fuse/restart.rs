//! What it costs that a mount outlives the plugin: the journal of open files at every open, and the
//! time until a new process answers.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use s3view::task::blocking;

use super::{blob, published, read_through, tree};
use crate::{
    measure::{Pairs, float, median, timed},
    node::{BUCKET, Node, server},
    report::{self, Target},
    support::s3::Options,
};

const OPENS: u32 = 5000;
const SIZE: u64 = 4096;

/// What stands at the top of the tree: its directories and one file.
const NAMES: usize = 101;

const TURNS: u32 = 10;

pub(crate) async fn run() {
    report::section("fuse: open files, and a plugin that is killed");
    let (server, _) = server(Options::default());
    let twin = tempfile::tempdir().expect("a directory");
    tree::plant(&server, "tree", &twin);
    server.put(BUCKET, "tree/file", vec![1; 4096]);
    let (mut node, target) = published(&server, "tree").await;
    let file = target.join("file");
    read_through(&file).await;
    let blob = blob(&node, SIZE).await;
    opens(&node, &file, &blob).await;

    let mut times = Vec::new();
    for _ in 0..TURNS {
        times.push(restart(&mut node, &target).await);
    }
    let (ready, answered): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let how = format!("10,000 entries; ready after {:.1?}, p50 of {TURNS}", median(&ready));
    let milliseconds = median(&answered).as_secs_f64() * 1000.0;
    let name = "from SIGKILL to the next answer, milliseconds";
    report::figure(name, milliseconds, Target::None, how);
}

async fn opens(node: &Node, file: &Path, blob: &Path) {
    let (mut pairs, before) = (Pairs::default(), node.cpu_seconds());
    for _ in 0..TURNS {
        pairs.add(open(file.into()).await, open(blob.into()).await);
    }
    let opens = float((OPENS * TURNS).into());
    let cpu = (node.cpu_seconds() - before) * 1e6 / opens;
    let how = format!("{pairs}; {cpu:.1} microseconds of the plugin's CPU for each");
    let name = format!("{OPENS} opens and closes, of the blob itself = 1");
    report::figure(&name, pairs.slowdown(), Target::None, how);
}

async fn open(file: PathBuf) -> Duration {
    blocking(move || {
        let began = Instant::now();
        for _ in 0..OPENS {
            drop(File::open(&file).expect("the file can be opened"));
        }
        began.elapsed()
    })
    .await
}

/// How long until a new plugin is ready, and until somebody who asks meanwhile is answered.
async fn restart(node: &mut Node, target: &Path) -> (Duration, Duration) {
    let (directory, began) = (target.to_owned(), Instant::now());
    node.kill();
    let asks = blocking(move || {
        let listed = std::fs::read_dir(directory).map(Iterator::count);
        assert_eq!(listed.expect("the mount outlives the plugin"), NAMES, "all is there");
        began.elapsed()
    });
    futures::join!(timed(node.start_again()), asks)
}
