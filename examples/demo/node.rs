//! A node of a cluster as far as s3view knows one: a running plugin, its kubelet, and the S3 server
//! that it reads.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    BUCKET, KEYSTORE, TRUSTSTORE, check,
    support::{
        kubelet::{Kubelet, Pod},
        namespace::Ids,
        plugin::Home,
        server::Server,
    },
    view::{self, Seen},
};

/// How long what was uploaded may take to be seen: far more than the interval.
const LIMIT: Duration = Duration::from_secs(20);

/// How many lines of the plugin's log say what went wrong.
const LOG_LINES: usize = 20;

/// The node. Its plugin must run.
pub(crate) struct Node {
    pub(crate) home: Home,
    pub(crate) ids: Ids,
    kubelet: Kubelet,
    server: Server,
}

impl Node {
    /// Connects to the plugin that runs in `home`.
    pub(crate) async fn new(home: Home, server: Server, ids: Ids) -> Self {
        let kubelet = Kubelet::connect(&home).await;
        Self { home, ids, kubelet, server }
    }

    /// Spark's user, or who stands in for it.
    fn uid(&self) -> u32 {
        if self.ids == Ids::All { 185 } else { 0 }
    }

    /// A pod with the inline volume that replaces an init container.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        let uid = self.uid().to_string();
        let attributes =
            [("bucket", BUCKET), ("prefix", "certs/"), ("fileMode", "0400"), ("uid", &uid)];
        Pod::new(name, &attributes)
    }

    /// What the kubelet adds to a pod's volume attributes, without the common prefix of the names.
    pub(crate) fn pod_information(&self, pod: &Pod) -> Vec<String> {
        let context = pod.publish_request(&self.kubelet.target(pod)).volume_context;
        let added = context.keys().filter_map(|name| name.strip_prefix("csi.storage.k8s.io/"));
        let mut names: Vec<String> = added.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    /// Publishes a pod's volume; tells where it is and how long the kubelet waited.
    pub(crate) async fn publish(&self, pod: &Pod) -> Result<(PathBuf, Duration)> {
        let began = Instant::now();
        let published = self.kubelet.publish(pod).await;
        let target = published.map_err(|status| {
            anyhow!("failed to publish the volume of {}: {}", pod.name, status.message())
        })?;
        Ok((target, began.elapsed()))
    }

    /// Unpublishes a pod's volume.
    pub(crate) async fn unpublish(&self, pod: &Pod) -> Result<()> {
        self.kubelet.unpublish(pod).await.map_err(|status| {
            anyhow!("failed to unpublish the volume of {}: {}", pod.name, status.message())
        })?;
        let target = self.kubelet.target(pod);
        ensure!(!target.exists(), "expected that unpublish removes {}", target.display());
        Ok(())
    }

    /// The files at a target path, which must be those below `certs/`, as the attributes ask.
    pub(crate) fn files(&self, target: &Path) -> Result<Vec<Seen>> {
        let files = view::files(target)?;
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        check("the files of the pod", &["keystore.jks", "truststore.jks"][..], &names)?;
        for (file, uploaded) in files.iter().zip([KEYSTORE, TRUSTSTORE]) {
            check(&format!("uid and gid of {}", file.name), &(self.uid(), 0), &file.owner)?;
            check(&format!("mode of {}", file.name), "0400", &format!("{:04o}", file.mode))?;
            ensure!(file.content == uploaded, "expected that {} is as uploaded", file.name);
        }
        Ok(files)
    }

    /// Where a pod's volume is.
    pub(crate) fn target(&self, pod: &Pod) -> PathBuf {
        self.kubelet.target(pod)
    }

    /// Uploads an object.
    pub(crate) async fn put(&self, key: &str, content: &[u8]) {
        self.server.put(BUCKET, key, content).await;
    }

    /// Waits until `arrived`, and tells how long that took.
    pub(crate) async fn until(&self, arrived: impl Fn() -> bool) -> Result<Duration> {
        let began = Instant::now();
        while !arrived() {
            ensure!(began.elapsed() < LIMIT, "expected the new content within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(began.elapsed())
    }

    /// The GETs since the count began.
    pub(crate) fn gets(&self) -> u64 {
        self.server.embedded().requests().gets()
    }

    /// Starts to count S3 requests anew.
    pub(crate) fn reset_requests(&self) {
        self.server.embedded().reset_requests();
    }

    /// The S3 requests since then, which must be so many listings and GETs and nothing else.
    pub(crate) fn requests(&self, lists: u64, gets: u64) -> Result<String> {
        let counts = self.server.embedded().requests();
        let found = (counts.of("ListObjectsV2"), counts.of("GetObject"), counts.total());
        check(
            "ListObjectsV2, GetObject and all S3 requests",
            &(lists, gets, lists + gets),
            &found,
        )?;
        Ok(format!("{} S3 requests ({lists} ListObjectsV2, {gets} GetObject)", counts.total()))
    }

    /// The last lines of what the plugin logged.
    pub(crate) fn log_end(&self) -> String {
        let log = self.home.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}
