//! Reads of a file that is in the store, against the same reads of the file in the store.

use std::path::{Path, PathBuf};

use s3view::task::blocking;

use super::{blob, published, read_through};
use crate::{
    fio::{self, Job},
    measure::Pairs,
    node::{BUCKET, server},
    report::{self, Target},
    support::s3::{Options, PutOptions},
    tools::Missing,
};

const SIZE: u64 = 256 << 20;
const TURNS: u32 = 5;
const TARGET: Target = Target::AtLeast(0.95);

pub(crate) async fn run() {
    report::section("fuse: reads of a cached file of 256 MiB by fio, of the blob file itself = 1");
    if let Err(missing) = fio::version() {
        return report::skipped("sequential and random reads", missing);
    }
    let (server, _) = server(Options::default());
    let options = PutOptions { part_size: Some(8 << 20), ..PutOptions::default() };
    server.put_generated(BUCKET, "warm/file", SIZE, &options);
    let (node, target) = published(&server, "warm").await;
    let file = target.join("file");
    read_through(&file).await;
    let blob = blob(&node, SIZE).await;
    for job in [fio::SEQUENTIAL, fio::SMALL, fio::RANDOM] {
        let asked = node.reads();
        match side_by_side(job, &file, &blob).await {
            Ok(pairs) => report::figure(job.name, pairs.speedup(), TARGET, pairs),
            Err(missing) => report::skipped(job.name, missing),
        }
        // An open and a close in each turn, and what the runtime reads for itself.
        let per_turn = f64::from(node.reads() - asked) / f64::from(TURNS);
        report::figure("  reads of the plugin in a turn", per_turn, Target::None, "open, close");
    }
}

async fn side_by_side(job: Job, ours: &Path, theirs: &Path) -> Result<Pairs, Missing> {
    let mut pairs = Pairs::default();
    for _ in 0..TURNS {
        pairs.add(per_read(job, ours.into()).await?, per_read(job, theirs.into()).await?);
    }
    Ok(pairs)
}

async fn per_read(job: Job, file: PathBuf) -> Result<std::time::Duration, Missing> {
    blocking(move || job.per_read(&file)).await
}
