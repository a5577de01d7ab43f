//! A volume of a million objects: what its entries take, and how long until it is published.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::fuse_pod;
use crate::{
    measure::{Pairs, float, timed},
    node::{BUCKET, Node, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const OBJECTS: u32 = 1_000_000;
const DIRECTORIES: u32 = 1000;

/// How many are published from a server that is far away, and how long each of its answers takes.
const FAR: u32 = 100;
const LATENCY: Duration = Duration::from_millis(20);

/// How often one directory is listed.
const TURNS: u32 = 20;

pub(crate) async fn run() {
    report::section("fuse: a volume of 1,000,000 objects in 1,000 directories");
    let (server, bare) = server(Options::default());
    let names = put(&server, "many", DIRECTORIES);
    put(&server, "few", 1);
    put(&server, "far", FAR);
    let node = Node::with_keeper(&server.url()).await;
    let few = fuse_pod("few");
    node.publish(&few).await;
    let mut pairs = Pairs::default();
    let theirs = timed(bare.list("many/")).await;
    let idle = node.memory_kib("VmRSS");
    node.reset_peak();
    let many = fuse_pod("many");
    pairs.add(node.publish(&many).await, theirs);
    let growth = |figure| (node.memory_kib(figure) - idle) * 1024.0;
    let each = |bytes: f64| (bytes - float(names)) / f64::from(OBJECTS);
    let (after, peak) = (each(growth("VmRSS")), each(growth("VmHWM")));
    let how = format!("resident, after the publish; {peak:.0} at its peak");
    report::figure("bytes for each entry beyond its name", after, Target::AtMost(200.0), how);
    let name = "publish: times the listing alone";
    report::figure(name, pairs.slowdown(), Target::AtMost(1.0), pairs);

    server.latency(Some(LATENCY));
    let mut pairs = Pairs::default();
    let theirs = timed(bare.list("far/")).await;
    pairs.add(node.publish(&fuse_pod("far")).await, theirs);
    server.latency(None);
    let name = "publish of 100,000 at 20 ms for each answer";
    report::figure(name, pairs.slowdown(), Target::AtMost(0.5), pairs);

    let mut pairs = Pairs::default();
    for turn in 0..TURNS {
        let ours = node.target(&many).join(directory(turn));
        pairs.add(list(&ours), list(&node.target(&few).join(directory(0))));
    }
    let name = "first ls of a directory, of the same alone = 1";
    report::figure(name, pairs.slowdown(), Target::None, pairs);
}

fn directory(number: u32) -> String {
    format!("part={number:04}")
}

/// Puts so many directories full of objects; how many bytes all names have.
fn put(server: &EmbeddedS3, prefix: &str, directories: u32) -> u64 {
    let mut names = 0;
    for object in 0..directories * (OBJECTS / DIRECTORIES) {
        let name = format!("object-{object:07}.parquet");
        names += name.len() as u64;
        let directory = directory(object % directories);
        server.put(BUCKET, &format!("{prefix}/{directory}/{name}"), "x");
    }
    names
}

/// How long a listing of one directory takes, attributes included.
fn list(directory: &Path) -> Duration {
    let began = Instant::now();
    for entry in std::fs::read_dir(directory).expect("a readable directory") {
        let entry = entry.expect("a readable entry");
        entry.metadata().expect("an entry has attributes");
    }
    began.elapsed()
}
