//! Throughput of many small objects, against a bare loop and against the tools that copy prefixes.

use std::time::Duration;

use crate::{
    measure::{Pairs, timed},
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
    tools::{self, Missing, Tool},
};

const OBJECTS: u32 = 10_000;
const AT_ONCE: usize = 64;
const TURNS: u32 = 3;

pub(crate) async fn run() {
    report::section("10,000 objects of 4 KiB, 64 requests at once, speed of the other = 1");
    let (server, bare) = server(Options::default());
    for object in 0..OBJECTS {
        let content = object.to_le_bytes().repeat(1024);
        server.put(BUCKET, &format!("many/{:02}/{object:05}", object % 100), content);
    }
    let (mut tmpfs, mut disk) = (Pairs::default(), Pairs::default());
    // Nothing is removed before the end: ext4 is slow to make files just after it removed others.
    let mut kept = Vec::new();
    for _ in 0..TURNS {
        let theirs = timed(bare.read_all("many/", AT_ONCE)).await;
        for (view, pairs) in [("tmpfs", &mut tmpfs), ("disk", &mut disk)] {
            let (ours, node) = publish(&server, view).await;
            pairs.add(ours, theirs);
            kept.push(node);
        }
    }
    let target = Target::AtLeast(0.8);
    report::figure("tmpfs view, a bare loop", tmpfs.speedup(), target, tmpfs);
    report::figure("disk view, a bare loop", disk.speedup(), target, disk);
    for (name, tool) in [("s5cmd", tools::s5cmd()), ("rclone", tools::rclone())] {
        let figure = format!("disk view, {name} to a directory");
        let pairs = match tool {
            Ok(tool) => side_by_side(&server, &tool).await,
            Err(missing) => Err(missing),
        };
        match pairs {
            Ok(pairs) => report::figure(&figure, pairs.speedup(), Target::AtLeast(1.0), pairs),
            Err(missing) => report::skipped(&figure, missing),
        }
    }
}

async fn publish(server: &EmbeddedS3, view: &str) -> (Duration, Node) {
    let node = Node::start(server).await;
    nix::unistd::sync();
    (node.publish(&pod("many").with("view", view)).await, node)
}

async fn side_by_side(server: &EmbeddedS3, tool: &Tool) -> Result<Pairs, Missing> {
    let (mut pairs, mut kept) = (Pairs::default(), Vec::new());
    for _ in 0..TURNS {
        let (ours, node) = publish(server, "disk").await;
        let directory = tempfile::tempdir().expect("a directory");
        nix::unistd::sync();
        let from = format!("{BUCKET}/many");
        pairs.add(ours, tool.copy(&server.url(), &from, directory.path(), AT_ONCE)?);
        kept.push((node, directory));
    }
    Ok(pairs)
}
