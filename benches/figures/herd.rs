//! A hundred pods of one application that start at the same moment.

use std::time::Duration;

use futures::future::join_all;

use crate::{
    measure::{median, timed},
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::{
        kubelet::Pod,
        s3::{EmbeddedS3, Options, RequestCounts},
    },
};

const PODS: usize = 100;
const OBJECTS: u32 = 3;
const SINGLE: u32 = 15;
const ROUNDS: u32 = 7;

pub(crate) async fn run() {
    let round_trip = Duration::from_millis(20);
    for (title, latency) in [("no latency", None), ("20 ms latency", Some(round_trip))] {
        report::section(&format!("{PODS} publishes of one cold prefix at once, {title}"));
        measure(latency).await;
    }
}

async fn measure(latency: Option<Duration>) {
    let (server, _) = server(Options::default());
    server.latency(latency);
    let node = Node::start(&server).await;
    node.publish(&fresh(&server, "first")).await;
    let mut single = Vec::new();
    for turn in 0..SINGLE {
        single.push(node.publish(&fresh(&server, &format!("single-{turn}"))).await);
    }
    let (mut all, mut counts) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (time, requests) = stampede(&node, &server, &format!("herd-{round}")).await;
        all.push(time);
        counts.push(requests);
    }
    let worst = |count: fn(&RequestCounts) -> u64| {
        f64::from(counts.iter().map(count).max().and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
    };
    let gets = worst(RequestCounts::gets) / f64::from(OBJECTS);
    report::figure("GETs of each object", gets, Target::AtMost(1.0), "most in any round");
    let lists = worst(RequestCounts::lists);
    report::figure("LISTs", lists, Target::AtMost(3.0), "most in any round");
    let (all, one) = (median(&all), median(&single));
    let how = format!("{all:.2?}, p50 of {ROUNDS} rounds, against {one:.2?}, p50 of {SINGLE}");
    let times = all.as_secs_f64() / one.as_secs_f64();
    report::figure("until the last, times one cold publish", times, Target::AtMost(5.0), how);
}

/// A pod for a prefix that nobody has read.
fn fresh(server: &EmbeddedS3, prefix: &str) -> Pod {
    for object in 0..OBJECTS {
        server.put(BUCKET, &format!("{prefix}/{object}"), prefix.repeat(500));
    }
    pod(prefix)
}

async fn stampede(node: &Node, server: &EmbeddedS3, prefix: &str) -> (Duration, RequestCounts) {
    let first = fresh(server, prefix);
    let pods: Vec<Pod> = (1..PODS).map(|_| pod(prefix)).chain([first]).collect();
    server.reset_requests();
    let publishes: Vec<_> = pods.iter().map(|pod| node.ready_to_publish(pod)).collect();
    let time = timed(join_all(publishes)).await;
    (time, server.requests())
}
