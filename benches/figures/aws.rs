//! The init container that a volume replaces: two calls of `aws s3 cp`.

use std::time::Duration;

use crate::{
    measure::Pairs,
    node::{BUCKET, Node, pod, server},
    report::{self, Target},
    support::s3::{EmbeddedS3, Options},
    tools::{self, Missing},
};

const TURNS: u32 = 7;
const FILES: [&str; 2] = ["keystore.jks", "truststore.jks"];

pub(crate) async fn run() {
    report::section("publish of 2 files, against the init container that it replaces");
    let version = match tools::version("aws", "--version") {
        Ok(version) => version,
        Err(missing) => return report::skipped("two calls of aws s3 cp", missing),
    };
    let (server, _) = server(Options::default());
    let node = Node::start(&server).await;
    put(&server, "first");
    node.publish(&pod("first")).await;
    let (mut cold, mut warm) = (Pairs::default(), Pairs::default());
    for turn in 0..TURNS {
        let prefix = format!("certs-{turn}");
        put(&server, &prefix);
        let theirs = match init_container(&server.url(), &prefix) {
            Ok(time) => time,
            Err(failed) => return report::skipped("two calls of aws s3 cp", failed),
        };
        cold.add(node.publish(&pod(&prefix)).await, theirs);
        warm.add(node.publish(&pod(&prefix)).await, theirs);
    }
    let how = |pairs: &Pairs| format!("{pairs}, {version}");
    report::figure("times faster, cold", cold.speedup(), Target::AtLeast(40.0), how(&cold));
    report::figure("times faster, warm", warm.speedup(), Target::AtLeast(100.0), how(&warm));
}

fn put(server: &EmbeddedS3, prefix: &str) {
    for name in FILES {
        server.put(BUCKET, &format!("{prefix}/{name}"), prefix.repeat(400));
    }
}

/// Copies the files one after the other.
fn init_container(url: &str, prefix: &str) -> Result<Duration, Missing> {
    let directory = tempfile::tempdir().expect("a directory");
    let copy = |name| {
        let mut command = tools::command("aws");
        command
            .args(["--endpoint-url", url, "s3", "cp", &format!("s3://{BUCKET}/{prefix}/{name}")])
            .arg(directory.path());
        tools::run(command)
    };
    FILES.into_iter().map(copy).sum()
}
