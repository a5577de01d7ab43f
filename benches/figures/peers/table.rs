//! The table of all who mount S3, on one server.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use s3view::task::blocking;

use super::{Mounted, Peer, Source};
use crate::{
    fio::{self, Job},
    fuse::{fuse_pod, read_through, small, tree},
    node::Node,
    report,
    support::{
        minio::Minio,
        s3::{EmbeddedS3, Options},
        server::Server,
    },
};

const BUCKET: &str = "peers";
const SIZE: usize = 256 << 20;
const ENTRIES: u32 = 10_000;

/// How many objects are uploaded at once.
const AT_ONCE: usize = 16;

/// One who shows the bucket's prefixes; mounts stay until it is dropped.
enum Who {
    Ours(Box<Node>),
    Peer(Peer, String),
}

/// Where something is mounted, for as long as this lives.
struct Place {
    path: PathBuf,
    _mounted: Option<Mounted>,
}

/// A line of the table: in the order of the columns.
type Line = Vec<String>;

pub(crate) async fn run() {
    let (server, name) = match blocking(Minio::start).await {
        Ok(minio) => (Server::Minio(Arc::new(minio)), "MinIO".to_owned()),
        Err(missing) => {
            let embedded = EmbeddedS3::start(Options::default());
            (Server::Embedded(embedded), format!("the embedded server ({missing})"))
        }
    };
    report::section(&format!("who mounts S3, side by side, on {name}; empty caches at first"));
    fill(&server).await;
    let mut columns = Vec::new();
    for who in [None, Some(Peer::S3fs), Some(Peer::Rclone)] {
        columns.push(column(&server, who).await);
    }
    let heads: Vec<String> = columns.iter().map(|(head, _)| head.clone()).collect();
    report::row("", &heads);
    for (index, name) in LINES.iter().enumerate() {
        let cells: Line = columns.iter().map(|(_, cells)| cells[index].clone()).collect();
        report::row(name, &cells);
    }
}

const LINES: [&str; 8] = [
    "256 MiB cold, MiB/s",
    "256 MiB warm, MiB/s",
    "random 4 KiB warm, IOPS",
    "ls -lR of 10,000, cold, s",
    "ls -lR of 10,000, warm, s",
    "1,000 files of 4 KiB, cold, s",
    "1,000 files of 4 KiB, warm, s",
    "mount to first byte, ms",
];

async fn column(server: &Server, peer: Option<Peer>) -> (String, Line) {
    let nothing = || vec!["-".to_owned(); LINES.len()];
    let (head, who) = match peer {
        None => ("s3view".to_owned(), Who::Ours(Box::new(Node::with_keeper(&server.url()).await))),
        Some(peer) => match peer.version() {
            Ok(version) => (version, Who::Peer(peer, server.url())),
            Err(missing) => return (missing, nothing()),
        },
    };
    let head = head.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
    match measure(&who).await {
        Ok(line) => (head, line),
        Err(missing) => (format!("{head}: {missing}"), nothing()),
    }
}

async fn measure(who: &Who) -> Result<Line, String> {
    let began = std::time::Instant::now();
    let large = who.mount("large").await?;
    let file = large.path.join("file");
    first_byte(&file).await;
    let first = began.elapsed();
    let (cold, warm) = (read_through(&file).await, read_through(&file).await);
    // Ours is verified, and then read by the kernel.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let random = per_second(fio::RANDOM, &file).await;
    let tree = who.mount("tree").await?;
    let (cold_list, warm_list) = (tree::list(&tree.path).await, tree::list(&tree.path).await);
    let small = who.mount("small").await?;
    let cold_small = small::read_each(&small.path).await;
    let warm_small = small::read_each(&small.path).await;
    let rate = |time: Duration| {
        let mebibytes = f64::from(u32::try_from(SIZE >> 20).unwrap_or(u32::MAX));
        format!("{:.0}", mebibytes / time.as_secs_f64())
    };
    let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
    Ok(vec![
        rate(cold),
        rate(warm),
        random,
        seconds(cold_list),
        seconds(warm_list),
        seconds(cold_small),
        seconds(warm_small),
        format!("{:.1}", first.as_secs_f64() * 1000.0),
    ])
}

async fn first_byte(file: &Path) {
    let file = file.to_owned();
    blocking(move || {
        let mut byte = [0];
        let mut file = std::fs::File::open(file).expect("the file is there");
        std::io::Read::read_exact(&mut file, &mut byte).expect("the file can be read");
    })
    .await;
}

async fn per_second(job: Job, file: &Path) -> String {
    let file = file.to_owned();
    match blocking(move || job.per_read(&file)).await {
        Ok(time) => format!("{:.0}", 1.0 / time.as_secs_f64()),
        Err(missing) => missing,
    }
}

impl Who {
    async fn mount(&self, prefix: &str) -> Result<Place, String> {
        match self {
            Self::Ours(node) => {
                let pod = fuse_pod(prefix).with("bucket", BUCKET);
                node.publish(&pod).await;
                Ok(Place { path: node.target(&pod), _mounted: None })
            }
            Self::Peer(peer, url) => {
                let mounted = peer.mount(url, Source { bucket: BUCKET, prefix })?;
                Ok(Place { path: mounted.path(), _mounted: Some(mounted) })
            }
        }
    }
}

async fn fill(server: &Server) {
    server.create_bucket(BUCKET).await;
    let large: Vec<u8> = (0..SIZE / 8).flat_map(usize::to_le_bytes).collect();
    server.put(BUCKET, "large/file", large).await;
    let tree = (0..ENTRIES).map(|entry| {
        let key = format!("tree/{:03}/file-{entry:05}", entry % 100);
        (key.clone(), key.into_bytes())
    });
    let small = (0..small::FILES)
        .map(|file| (format!("small/{}", small::name(file)), small::content(file)));
    let client = server.client();
    let put = |(key, content): (String, Vec<u8>)| {
        client.put_object().bucket(BUCKET).key(key).body(content.into()).send()
    };
    let puts = stream::iter(tree.chain(small).map(put)).buffer_unordered(AT_ONCE);
    puts.try_for_each(async |_| Ok(())).await.expect("objects can be put");
}
