//! How soon a change is seen, and what a revision costs beside the requests that it needs.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    bare::Bare,
    measure::{Pairs, median, timed},
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const INTERVAL: Duration = Duration::from_secs(1);
const TURNS: u32 = 20;
const OBJECTS: u32 = 1000;
const VOLUMES: u32 = 50;

pub(crate) async fn run() {
    report::section("refresh: from an overwrite to the moment that a pod sees it");
    lag().await;
    report::section("refresh: 3 of 1,000 objects changed, all volumes of one source");
    cost(1).await;
    cost(VOLUMES).await;
}

/// How much later than the interval a change is seen.
async fn lag() {
    let (server, _) = server(Options::default());
    server.put(BUCKET, "lag/file", "0");
    let node = Node::start(&server).await;
    let follower = pod("lag").with("refresh", "1s");
    node.publish(&follower).await;
    let target = node.target(&follower);
    let mut waits = Vec::new();
    for turn in 1..=TURNS {
        // Anywhere in the interval.
        tokio::time::sleep(Duration::from_millis(u64::from(turn * 137 % 1000))).await;
        let content = turn.to_string();
        server.put(BUCKET, "lag/file", content.clone());
        waits.push(until(&[target.join("file")], &content).await);
    }
    let worst = waits.iter().max().copied().unwrap_or_default();
    let late = (worst.as_secs_f64() - INTERVAL.as_secs_f64()) * 1000.0;
    let how = format!("worst of {TURNS}: {worst:.0?}, p50 {:.0?}, interval 1 s", median(&waits));
    report::figure("milliseconds beyond the interval", late, Target::AtMost(200.0), how);
}

/// Requests and time of a refresh, by republishing with new credentials: a refresh that begins now.
async fn cost(volumes: u32) {
    let (server, bare) = server(Options::default());
    for object in 0..OBJECTS {
        server.put(BUCKET, &format!("many/{object:04}"), "before");
    }
    let node = Node::start(&server).await;
    let pods: Vec<_> = (0..volumes).map(|_| pod("many").with("refresh", "2s")).collect();
    for pod in &pods {
        node.publish(pod).await;
    }
    let targets: Vec<PathBuf> = pods.iter().map(|pod| node.target(pod).join("0999")).collect();
    let (mut pairs, mut requests) = (Pairs::default(), Vec::new());
    for turn in 0..5 {
        let content = format!("after {turn}");
        refreshed(&server).await;
        for object in [0, 500, 999] {
            server.put(BUCKET, &format!("many/{object:04}"), content.clone());
        }
        while server.requests().lists() == 0 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let ours = until(&targets, &content).await;
        requests.push((server.requests().lists(), server.requests().gets()));
        pairs.add(ours, timed(list_and_get(&bare)).await);
    }
    let exact = requests.iter().all(|counted| *counted == (1, 3));
    let name = format!("{volumes} volumes: requests");
    let how = "1 LIST and 3 GETs in every turn are 4";
    let total = if exact { 4.0 } else { f64::NAN };
    report::figure(&name, total, Target::AtMost(4.0), how);
    let name = format!("{volumes} volumes: from LIST to shown, times those requests");
    report::figure(&name, pairs.slowdown(), Target::None, pairs);
}

/// Waits for a refresh to pass.
async fn refreshed(server: &EmbeddedS3) {
    server.reset_requests();
    while server.requests().lists() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.reset_requests();
}

async fn list_and_get(bare: &Bare) {
    bare.list("many/").await;
    bare.read(&["many/0000", "many/0500", "many/0999"]).await;
}

async fn until(files: &[impl AsRef<Path>], content: &str) -> Duration {
    let began = Instant::now();
    for file in files {
        while std::fs::read_to_string(file).expect("the file is always there") != content {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
    began.elapsed()
}
