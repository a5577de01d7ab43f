//! The plugin's memory: the pages of the process. Those of the memory store belong to its tmpfs.

use crate::{
    large,
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
};

const VOLUMES: u32 = 200;
const FILES: u32 = 10;

/// So many volumes come first: pools and caches have then grown to their size.
const BEFORE: u32 = 20;

pub(crate) async fn run() {
    report::section("memory of the plugin (resident set)");
    let (server, _) = server(Options::default());
    let node = Node::start(&server).await;
    let idle = node.memory_kib("VmRSS");
    report::figure("idle, MiB", idle / 1024.0, Target::AtMost(20.0), "");

    publish(&node, &server, 0..BEFORE).await;
    let before = node.memory_kib("VmRSS");
    publish(&node, &server, BEFORE..BEFORE + VOLUMES).await;
    let growth = (node.memory_kib("VmRSS") - before) / f64::from(VOLUMES);
    let how = format!("{VOLUMES} volumes of {FILES} files that no other volume has");
    report::figure("growth for each volume, KiB", growth, Target::AtMost(64.0), how);
    drop(node);

    for (in_parts, name) in [(true, "multipart"), (false, "single part")] {
        large::put(&server, in_parts);
        let node = Node::start(&server).await;
        let idle = node.memory_kib("VmRSS");
        node.reset_peak();
        let prefix = if in_parts { "parts" } else { "whole" };
        node.publish(&pod(prefix).with("view", "disk")).await;
        let growth = (node.memory_kib("VmHWM") - idle) / 1024.0;
        let figure = format!("peak above idle, 1 GiB {name}, MiB");
        report::figure(&figure, growth, Target::AtMost(96.0), "");
    }
}

async fn publish(node: &Node, server: &EmbeddedS3, volumes: std::ops::Range<u32>) {
    for volume in volumes {
        let prefix = format!("volume-{volume}");
        for file in 0..FILES {
            server.put(BUCKET, &format!("{prefix}/{file}"), prefix.repeat(200));
        }
        node.publish(&pod(&prefix)).await;
    }
}
