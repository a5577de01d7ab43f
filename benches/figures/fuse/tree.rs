//! Names and attributes of a tree that the kernel knows, against the same tree on the local file
//! system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use s3view::task::blocking;
use tempfile::TempDir;

use super::published;
use crate::{
    measure::Pairs,
    node::{BUCKET, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const OBJECTS: u32 = 10_000;
const DIRECTORIES: u32 = 100;
const TURNS: u32 = 20;

/// How often all files are asked for their attributes in one turn.
const ROUNDS: u32 = 10;

pub(crate) async fn run() {
    report::section("fuse: a tree of 10,000 files, the same on the local file system = 1");
    let (server, _) = server(Options::default());
    let twin = tempfile::tempdir().expect("a directory");
    let names = plant(&server, "tree", &twin);
    let (node, target) = published(&server, "tree").await;
    list(&target).await;
    list(twin.path()).await;
    let (mut pairs, asked) = (Pairs::default(), node.reads());
    for _ in 0..TURNS {
        pairs.add(list(&target).await, list(twin.path()).await);
    }
    let per_turn = f64::from(node.reads() - asked) / f64::from(TURNS);
    report::figure("ls -lR, warm", pairs.slowdown(), Target::AtMost(2.0), pairs);
    report::figure("  reads of the plugin in a turn", per_turn, Target::None, "");

    let (mut pairs, mut least) = (Pairs::default(), u32::MAX);
    for _ in 0..TURNS / 4 {
        let asked = node.reads();
        let ours = stat(&target, &names).await;
        least = least.min(node.reads() - asked);
        pairs.add(ours, stat(twin.path(), &names).await);
    }
    let how = format!("of {} calls, least in any turn", OBJECTS * ROUNDS);
    report::figure("stat: requests to the plugin", least.into(), Target::AtMost(0.0), how);
    report::figure("stat, time", pairs.slowdown(), Target::None, pairs);
}

/// Puts the objects, and makes files of the same names and sizes.
pub(super) fn plant(server: &EmbeddedS3, prefix: &str, twin: &TempDir) -> Vec<PathBuf> {
    let name = |object: u32| format!("{:03}/file-{object:05}", object % DIRECTORIES);
    for directory in 0..DIRECTORIES {
        fs::create_dir(twin.path().join(format!("{directory:03}"))).expect("a new directory");
    }
    let plant = |object| {
        let name = name(object);
        server.put(BUCKET, &format!("{prefix}/{name}"), name.clone());
        fs::write(twin.path().join(&name), &name).expect("a writable directory");
        name.into()
    };
    (0..OBJECTS).map(plant).collect()
}

/// How long `ls -lR` takes.
pub(crate) async fn list(directory: &Path) -> Duration {
    let mut ls = Command::new("ls");
    ls.arg("-lR").arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
    blocking(move || {
        let began = Instant::now();
        let status = ls.status().expect("there is an ls");
        assert!(status.success(), "ls -lR ended with {status}");
        began.elapsed()
    })
    .await
}

async fn stat(directory: &Path, names: &[PathBuf]) -> Duration {
    let paths: Vec<_> = names.iter().map(|name| directory.join(name)).collect();
    blocking(move || {
        let began = Instant::now();
        for _ in 0..ROUNDS {
            for path in &paths {
                fs::symlink_metadata(path).expect("the file is there");
            }
        }
        began.elapsed()
    })
    .await
}
