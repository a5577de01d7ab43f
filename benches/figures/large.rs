//! Throughput of one large object into a disk view.

use crate::{
    bare::Bare,
    measure::{Pairs, timed},
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options, PutOptions},
};

/// The size of the object.
pub(crate) const SIZE: u64 = 1 << 30;
const TURNS: u32 = 3;

pub(crate) async fn run() {
    report::section("1 GiB object into a disk view, throughput of a bare parallel ranged GET = 1");
    let (limited, bare) = server(Options { bandwidth: Some(250 << 20), ..Options::default() });
    put(&limited, true);
    let (pairs, _) = measure(&limited, &bare, "parts").await;
    let target = Target::AtLeast(0.95);
    report::figure("at 250 MiB/s, multipart (CRC64NVME)", pairs.speedup(), target, pairs);
    drop(limited);

    let (server, bare) = server(Options::default());
    for (prefix, name) in [("parts", "multipart (CRC64NVME)"), ("whole", "single part (MD5)")] {
        put(&server, prefix == "parts");
        let (pairs, cpu) = measure(&server, &bare, prefix).await;
        report::figure(&format!("unlimited, {name}"), pairs.speedup(), Target::None, pairs);
        report::figure("  CPU seconds of the plugin", cpu, Target::None, "mean");
    }
}

/// Puts the object `parts/large` in parts, or `whole/large` in one piece.
pub(crate) fn put(server: &EmbeddedS3, in_parts: bool) {
    let part_size = in_parts.then_some(8 << 20);
    let key = if in_parts { "parts/large" } else { "whole/large" };
    let options = PutOptions { part_size, ..PutOptions::default() };
    server.put_generated(BUCKET, key, SIZE, &options);
}

/// The times, and the plugin's mean CPU seconds for a publish.
async fn measure(server: &EmbeddedS3, bare: &Bare, prefix: &str) -> (Pairs, f64) {
    let (mut pairs, mut cpu) = (Pairs::default(), 0.0);
    let key = format!("{prefix}/large");
    for _ in 0..TURNS {
        let node = Node::start(server).await;
        // What earlier turns wrote must not be written back while this one is measured.
        nix::unistd::sync();
        let before = node.cpu_seconds();
        let ours = node.publish(&pod(prefix).with("view", "disk")).await;
        cpu += (node.cpu_seconds() - before) / f64::from(TURNS);
        drop(node);
        pairs.add(ours, timed(bare.read_ranges(&key, SIZE)).await);
    }
    (pairs, cpu)
}
