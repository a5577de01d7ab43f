//! The FUSE view: against local files where nothing has to be fetched, and against the bare requests
//! where something has.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use s3view::task::blocking;

use crate::{
    node::{Node, pod},
    support::{kubelet::Pod, s3::EmbeddedS3},
};

pub(crate) mod cold;
pub(crate) mod first;
pub(crate) mod million;
pub(crate) mod restart;
pub(crate) mod small;
pub(crate) mod tree;
pub(crate) mod warm;

/// What most programs read at once.
const BUFFER: usize = 1 << 20;

/// How long a file that was read may take to become a blob.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod that mounts a prefix as a `fuse` view.
pub(crate) fn fuse_pod(prefix: &str) -> Pod {
    pod(prefix).with("view", "fuse")
}

/// A plugin with a keeper, and where it shows `prefix`.
async fn published(server: &EmbeddedS3, prefix: &str) -> (Node, PathBuf) {
    let node = Node::with_keeper(&server.url()).await;
    let pod = fuse_pod(prefix);
    node.publish(&pod).await;
    let target = node.target(&pod);
    (node, target)
}

/// Reads a file from its begin to its end, as `cp` does.
pub(crate) async fn read_through(path: &Path) -> Duration {
    let path = path.to_owned();
    blocking(move || {
        let began = Instant::now();
        let mut file = File::open(&path).expect("the file is there");
        let mut buffer = vec![0; BUFFER];
        while file.read(&mut buffer).expect("the file can be read") > 0 {}
        began.elapsed()
    })
    .await
}

/// The blob of the only file of this size that was read, once it is whole.
async fn blob(node: &Node, size: u64) -> PathBuf {
    let began = Instant::now();
    loop {
        let blobs = std::fs::read_dir(node.disk().join("v1/blobs")).expect("a store");
        let paths = blobs.map(|entry| entry.expect("a readable entry").path());
        let found = paths.filter(|path| path.metadata().is_ok_and(|it| it.len() == size)).last();
        if let Some(blob) = found {
            return blob;
        }
        assert!(began.elapsed() < PATIENCE, "what was read does not become a blob");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
