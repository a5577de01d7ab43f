//! From the publish to the first byte that a pod reads.

use super::{fuse_pod, read_through};
use crate::{
    measure::{Pairs, median, per_turn, timed},
    node::{BUCKET, Node, server},
    report::{self, Target},
    support::s3::Options,
};

const TURNS: u32 = 50;

pub(crate) async fn run() {
    report::section("fuse: from a publish to the content of a file of 4 KiB");
    let (server, bare) = server(Options::default());
    let node = Node::with_keeper(&server.url()).await;
    let put = |prefix: &str| {
        let content = prefix.bytes().cycle().take(4096).collect::<Vec<u8>>();
        server.put(BUCKET, &format!("{prefix}/file"), content);
    };
    // A volume that stays keeps the connections, which the bare client keeps as well.
    put("first");
    let stays = fuse_pod("first");
    node.publish(&stays).await;
    read_through(&node.target(&stays).join("file")).await;
    bare.read_all("first/", 1).await;
    server.reset_requests();
    let before = node.memory_kib("VmRSS");
    let (mut pairs, mut publishes) = (Pairs::default(), Vec::new());
    for turn in 0..TURNS {
        let prefix = format!("first-{turn}");
        put(&prefix);
        let pod = fuse_pod(&prefix);
        let file = node.target(&pod).join("file");
        let took = node.publish(&pod).await;
        let ours = took + read_through(&file).await;
        publishes.push(took);
        pairs.add(ours, timed(bare.read_all(&format!("{prefix}/"), 1)).await);
    }
    let requests = per_turn(server.requests().total(), TURNS) - 2.0;
    report::figure("requests", requests, Target::AtMost(2.0), "1 LIST, 1 GET");
    let target = Target::AtMost(3.0);
    let how = format!("{pairs}; {:.2?} of it the publish", median(&publishes));
    report::figure("times a bare LIST and GET", pairs.slowdown(), target, how);
    let each = (node.memory_kib("VmRSS") - before) / f64::from(TURNS);
    report::figure("memory of each volume, KiB", each, Target::None, "resident");
}
