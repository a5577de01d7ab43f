//! From a bucket to the files of a pod, in one command, without a cluster or an S3 account:
//!
//! ```text
//! cargo run --release --example demo
//! ```
//!
//! The bucket lives in an S3 server within this process. `s3view-node` is the real one, asked over
//! its socket as a kubelet asks. The mounts are real too, in a directory that is removed at the
//! end; who is not root gets a user and mount namespace for them.
//!
//! What is printed is checked: the exit code is 0 only if all of it is so.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a demo does")]

#[path = "demo/node.rs"]
mod node;
#[path = "demo/program.rs"]
mod program;
#[path = "demo/reader.rs"]
mod reader;
#[path = "demo/remains.rs"]
mod remains;
#[path = "../tests/support/lib.rs"]
mod support;
#[path = "demo/view.rs"]
mod view;

use std::{
    collections::BTreeSet,
    fmt::Debug,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Error, Result, ensure};

use self::{
    node::Node,
    reader::Reader,
    remains::Remains,
    support::{
        kubelet::Pod,
        namespace::{self, Ids},
        plugin::{Home, Plugin},
        s3::{EmbeddedS3, Options},
        server::Server,
    },
};

/// The bucket and the files of the situation that s3view was made for.
const BUCKET: &str = "kafka-certs-bucket";
const KEYSTORE: &[u8] = include_bytes!("data/keystore.jks");
const ROTATED: &[u8] = include_bytes!("data/keystore.rotated.jks");
const TRUSTSTORE: &[u8] = include_bytes!("data/truststore.jks");
const OBJECTS: [(&str, &[u8]); 3] = [
    ("certs/keystore.jks", KEYSTORE),
    ("certs/truststore.jks", TRUSTSTORE),
    ("apps/sparkapp.py", include_bytes!("spark/sparkapp.py")),
];
/// Of the keystore, for `keytool`.
const PASSWORD: &str = "changeit";
const EXECUTORS: u64 = 10;

fn main() -> ExitCode {
    // Before the namespace, in which cargo would be another user.
    let program = match program::ready() {
        Ok(program) => program,
        Err(error) => return failed(&error),
    };
    match namespace::enter() {
        Ok(ids) => play(program, ids).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS),
        Err(code) => code,
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("\nThe demo failed: {error:#}");
    ExitCode::FAILURE
}

#[tokio::main]
async fn play(program: PathBuf, ids: Ids) -> Result<()> {
    println!("s3view demo: objects of an S3 bucket become read-only files of a pod\n");
    let server = fill_a_bucket().await;
    let home = Home::new(program, &configuration(&server));
    let directory = home.path().to_owned();
    let plugin = home.try_start().await.map_err(Error::msg)?;
    println!("[2] s3view-node, the CSI node plugin, is ready; the demo plays the kubelet");
    let node = Node::new(home, server, ids).await;
    let played = scenes(&node, plugin).await;
    if played.is_err() {
        eprintln!("\nThe end of the log of s3view-node:\n{}", node.log_end());
    }
    drop(node);
    played?;
    ensure!(!directory.exists(), "expected that {} is removed", directory.display());
    println!("\nEvery line of this was checked. README.md tells how to go on.");
    Ok(())
}

async fn fill_a_bucket() -> Server {
    let server = Server::Embedded(EmbeddedS3::start(Options::default()));
    server.create_bucket(BUCKET).await;
    println!("[1] An S3 server runs in this process; its bucket {BUCKET} (versioned) has");
    for (key, content) in OBJECTS {
        server.put(BUCKET, key, content).await;
        println!("      {key:<20} {:>5} bytes", content.len());
    }
    server
}

fn configuration(server: &Server) -> String {
    // allowSwap has a meaning only where the kernel cannot keep a tmpfs out of swap.
    format!(
        "endpoints:\n  minio:\n    url: {}\n\
         store:\n  memory: {{ size: 16Mi, allowSwap: true }}\n  disk: {{ path: DISK, size: 16Mi }}\n",
        server.url()
    )
}

async fn scenes(node: &Node, plugin: Plugin) -> Result<()> {
    let driver = node.pod("spark-driver");
    let target = start_driver(node, &driver).await?;
    let executors = start_executors(node, &target).await?;
    refuse_writing(&target)?;
    let mut pods = executors;
    pods.push(driver);
    pods.push(rotate(node, &pods).await?);
    end_all(node, &pods).await?;
    let status = plugin.terminate();
    ensure!(status.success(), "expected exit code 0 of s3view-node after SIGTERM, got: {status}");
    println!("[8] s3view-node gets SIGTERM and ends with exit code 0");
    Ok(())
}

async fn start_driver(node: &Node, pod: &Pod) -> Result<PathBuf> {
    let attribute = |(name, value): (&String, &String)| format!("{name}: {value}");
    let attributes: Vec<String> = pod.attributes.iter().map(attribute).collect();
    let keys: Vec<String> = pod.secrets.keys().cloned().collect();
    println!("[3] Pod {} starts; the kubelet asks for its volume with", pod.name);
    println!("      volumeAttributes  {}", attributes.join(", "));
    if node.ids == Ids::RootOnly {
        println!("                        (Spark's 185 cannot be mapped here: 0 stands in for it)");
    }
    println!("      about the pod     {}", node.pod_information(pod).join(", "));
    println!("      Secret            {}", keys.join(", "));
    node.reset_requests();
    let (target, took) = node.publish(pod).await?;
    println!("    After {took:.1?} and {} it sees", node.requests(1, 2)?);
    for file in node.files(&target)? {
        println!("      {file}");
    }
    println!("    Their bytes are those uploaded. {}", view::medium(&target)?);
    if let Some(entry) = keytool(&target.join("keystore.jks")) {
        println!("    Java's keytool finds in keystore.jks: {entry}");
    }
    Ok(target)
}

/// What Java makes of the keystore, where there is Java.
fn keytool(keystore: &Path) -> Option<String> {
    let mut command = Command::new("keytool");
    command.args(["-J-Duser.language=en", "-list", "-storepass", PASSWORD, "-keystore"]);
    let output = command.arg(keystore).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let entry = text.lines().find(|line| line.contains("PrivateKeyEntry"))?;
    Some(entry.trim_end_matches([',', ' ']).to_owned())
}

async fn start_executors(node: &Node, of_driver: &Path) -> Result<Vec<Pod>> {
    println!("[4] {EXECUTORS} executors start on the same node, with the same volume");
    let mut targets = vec![of_driver.to_owned()];
    let (mut pods, mut times) = (Vec::new(), Vec::new());
    node.reset_requests();
    for number in 1..=EXECUTORS {
        let pod = node.pod(&format!("spark-exec-{number}"));
        let (target, took) = node.publish(&pod).await?;
        targets.push(target);
        pods.push(pod);
        times.push(took);
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!(
        "    {} for all of them, {median:.1?} for each (median)",
        node.requests(EXECUTORS, 0)?
    );
    let mut inodes = BTreeSet::new();
    for target in &targets {
        inodes.extend(node.files(target)?.iter().map(|file| file.inode));
    }
    let pods_in_all = targets.len();
    check(&format!("inodes of two files in {pods_in_all} pods"), &2, &inodes.len())?;
    println!("    All {pods_in_all} pods share one inode per file: there is one copy in memory");
    Ok(pods)
}

fn refuse_writing(target: &Path) -> Result<()> {
    println!("[5] The volume is read-only for everyone. Root tries to");
    for (attempt, error) in view::refusals(target, "keystore.jks")? {
        println!("      {attempt:<24} {error}");
    }
    Ok(())
}

/// The keystore changes in the bucket, and in every pod, while one of them reads.
async fn rotate(node: &Node, pods: &[Pod]) -> Result<Pod> {
    println!("[6] The keystore is rotated in the bucket while the driver reads it all the time");
    // One volume with a short interval: all that show the same follow it.
    let pod = node.pod("spark-exec-late").with("refresh", "1s");
    let (target, _) = node.publish(&pod).await?;
    let mut targets: Vec<PathBuf> = pods.iter().map(|pod| node.target(pod)).collect();
    let reader = Reader::start(&targets[targets.len() - 1]);
    targets.push(target.clone());
    node.reset_requests();
    node.put("certs/keystore.jks", ROTATED).await;
    let took = node.until(|| targets.iter().all(|target| view::shows(target, ROTATED))).await?;
    let gets = node.gets();
    check("GETs for the new keystore, for all pods", &1, &gets)?;
    let reads = reader.end()?;
    let count = targets.len();
    println!(
        "      refresh           {took:.1?} after the upload all {count} pods have it, for {gets} GetObject"
    );
    println!(
        "      the driver        {reads} reads meanwhile, each of the old file or the new one, whole"
    );
    if let Some(entry) = keytool(&target.join("keystore.jks")) {
        println!("      Java's keytool    {entry}");
    }
    Ok(pod)
}

async fn end_all(node: &Node, pods: &[Pod]) -> Result<()> {
    let before = Remains::of(&node.home)?;
    check("what the volumes take", &Remains::of_volumes(pods.len()), &before)?;
    for pod in pods {
        node.unpublish(pod).await?;
    }
    let after = Remains::of(&node.home)?;
    check("what is left of the volumes", &Remains::of_volumes(0), &after)?;
    println!("[7] The pods end; their volumes are unpublished, and nothing is left");
    println!("      mounts              {:>2} -> {}", before.mounts, after.mounts);
    println!("      volume directories  {:>2} -> {}", before.directories, after.directories);
    println!("      registry entries    {:>2} -> {}", before.entries, after.entries);
    Ok(())
}

/// An error unless the two are the same.
fn check<T: PartialEq + Debug + ?Sized>(what: &str, expected: &T, found: &T) -> Result<()> {
    ensure!(expected == found, "{what}: expected {expected:?}, found {found:?}");
    Ok(())
}
