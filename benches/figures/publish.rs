//! What one publish costs, against the requests that it has to make.
//!
//! Volumes stay published until the end: a file system may be slow to make files just after others
//! were removed (ext4 looks for inodes that were not freed in the last seconds), and pods that come
//! and go within milliseconds are none of our users'.

use crate::{
    measure::{Pairs, per_turn, timed},
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const WARM: u32 = 200;
const COLD: u32 = 100;

/// Puts a keystore, a truststore and a password file below `prefix`, other ones for each prefix.
fn put_three(server: &EmbeddedS3, prefix: &str) {
    for (name, size) in [("keystore.jks", 4096), ("truststore.jks", 2048), ("password", 16)] {
        let content = prefix.bytes().cycle().take(size).collect::<Vec<u8>>();
        server.put(BUCKET, &format!("{prefix}/{name}"), content);
    }
}

pub(crate) async fn run() {
    report::section("publish of a prefix with 3 objects into a tmpfs view");
    warm().await;
    cold().await;
}

async fn warm() {
    let (server, bare) = server(Options::default());
    let node = Node::start(&server).await;
    put_three(&server, "certs");
    node.publish(&pod("certs")).await;
    bare.list("certs/").await;
    server.reset_requests();
    let mut pairs = Pairs::default();
    for _ in 0..WARM {
        let ours = node.publish(&pod("certs")).await;
        pairs.add(ours, timed(bare.list("certs/")).await);
    }
    let requests = per_turn(server.requests().total(), WARM) - 1.0;
    report::figure("warm: requests", requests, Target::AtMost(1.0), "1 LIST");
    report::figure("warm: times one bare LIST", pairs.slowdown(), Target::AtMost(3.0), pairs);
}

async fn cold() {
    let (server, bare) = server(Options::default());
    let node = Node::start(&server).await;
    // A volume that stays keeps the connections, which the bare client keeps as well.
    put_three(&server, "first");
    node.publish(&pod("first")).await;
    bare.read_all("first/", 3).await;
    server.reset_requests();
    let mut pairs = Pairs::default();
    for turn in 0..COLD {
        let prefix = format!("certs-{turn}");
        put_three(&server, &prefix);
        let ours = node.publish(&pod(&prefix)).await;
        pairs.add(ours, timed(bare.read_all(&format!("{prefix}/"), 3)).await);
    }
    let requests = per_turn(server.requests().total(), COLD) - 4.0;
    report::figure("cold: requests", requests, Target::AtMost(4.0), "1 LIST, 3 GETs");
    report::figure(
        "cold: times a bare LIST and 3 GETs",
        pairs.slowdown(),
        Target::AtMost(2.0),
        pairs,
    );
}
