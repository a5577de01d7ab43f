//! What every case starts from: a server with a bucket, a plugin, and a kubelet.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use s3view::task::spawn_owned;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::support::{
    kubelet::{Kubelet, Pod},
    namespace::Ids,
    plugin::{Home, Plugin, Shown},
    s3::EmbeddedS3,
    server::Server,
};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_s3view-node");

/// How long it may take until the keeper has let go of what was unpublished.
const RELEASE: Duration = Duration::from_secs(10);

/// A server with an empty bucket and a running plugin that is configured for it.
pub(crate) struct Fixture {
    pub(crate) plugin: Option<Plugin>,
    pub(crate) home: Home,
    pub(crate) kubelet: Kubelet,
    pub(crate) server: Server,
    pub(crate) bucket: String,
    pub(crate) ids: Ids,
}

impl Fixture {
    /// Starts with the configuration that most cases share.
    pub(crate) async fn start(server: Server, ids: Ids) -> Self {
        Self::showing(server, ids, Shown::ByDefault).await
    }

    /// Likewise, with another view where a case names none.
    pub(crate) async fn showing(server: Server, ids: Ids, shown: Shown) -> Self {
        let config = Self::config(&server, "");
        Self::start_as(server, ids, &config, shown).await
    }

    /// The shared configuration with more lines at its end.
    pub(crate) fn config(server: &Server, more: &str) -> String {
        let url = server.url();
        // Every plugin serves metrics, so that they can be searched for secrets.
        let metrics = "metrics: { address: '127.0.0.1:0' }\n";
        let metrics = if more.contains("metrics:") { "" } else { metrics };
        format!(
            "{metrics}endpoints:\n  minio:\n    url: {url}\n    retries: 3\n\
             store:\n  memory: {{ size: 64Mi, allowSwap: true }}\n  disk: {{ path: DISK, size: 256Mi }}\n{more}"
        )
    }

    /// Starts with a configuration of the caller's.
    pub(crate) async fn start_as(server: Server, ids: Ids, config: &str, shown: Shown) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let bucket = format!("bucket-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server.create_bucket(&bucket).await;
        if let Server::Embedded(embedded) = &server {
            embedded.reset_requests();
        }
        let mut home = Home::new(PROGRAM, config);
        home.show_as(shown);
        let plugin = home.start().await;
        let kubelet = Kubelet::connect(&home).await;
        Self { plugin: Some(plugin), home, kubelet, server, bucket, ids }
    }

    /// Starts the plugin again with another configuration.
    pub(crate) async fn reconfigure(&mut self, more: &str) {
        self.home.configure(&Self::config(&self.server, more));
        self.restart().await;
    }

    /// Ends the plugin as a crash would and starts it again.
    pub(crate) async fn restart(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            plugin.kill();
        }
        self.plugin = Some(self.home.start().await);
        self.kubelet = Kubelet::connect(&self.home).await;
    }

    pub(crate) async fn put(&self, key: &str, content: impl Into<Vec<u8>>) {
        self.server.put(&self.bucket, key, content).await;
    }

    /// The keystore, truststore and password file of the seed.
    pub(crate) async fn put_certificates(&self) {
        self.put("certs/keystore.jks", "keystore").await;
        self.put("certs/truststore.jks", "truststore").await;
        self.put("certs/sub/password", "secret").await;
        if let Server::Embedded(embedded) = &self.server {
            embedded.reset_requests();
        }
    }

    /// A pod that mounts `prefix` of this case's bucket.
    pub(crate) fn pod(&self, prefix: &str) -> Pod {
        Pod::new("driver-1", &[("bucket", &self.bucket), ("prefix", prefix)])
    }

    pub(crate) async fn publish(&self, pod: &Pod) -> PathBuf {
        let published = self.kubelet.publish(pod).await;
        let target = published
            .unwrap_or_else(|status| panic!("publish failed: {status:?}\n{}", self.home.log()));
        // The condition is looked through for secrets when the case ends.
        drop(self.kubelet.stats(pod).await);
        target
    }

    /// Begins a publish whose answer the case asks for later.
    pub(crate) fn publish_meanwhile(
        &self,
        pod: &Pod,
    ) -> AbortOnDropHandle<Result<PathBuf, Status>> {
        let (kubelet, pod) = (self.kubelet.clone(), pod.clone());
        spawn_owned(async move { kubelet.publish(&pod).await })
    }

    /// Publishes, expecting a refusal; checks that nothing is left of it.
    pub(crate) async fn refused(&self, pod: &Pod, code: Code) -> Status {
        let status = self.kubelet.publish(pod).await.expect_err("this publish must fail");
        assert_eq!(status.code(), code, "{status:?}");
        let target = self.kubelet.target(pod);
        assert!(!is_mount_point(&target), "a refused publish left a mount");
        status
    }

    pub(crate) async fn unpublish(&self, pod: &Pod) {
        self.kubelet.unpublish(pod).await.expect("unpublish works");
    }

    pub(crate) fn embedded(&self) -> &EmbeddedS3 {
        self.server.embedded()
    }

    /// So many volumes are mounted, and have files; no more.
    pub(crate) fn assert_only_published(&self, count: usize) {
        assert_eq!(self.home.mounts().len(), count);
        let volumes = std::fs::read_dir(self.home.state_dir().join("memory/v1/volumes"));
        assert_eq!(volumes.unwrap().count(), count);
    }

    /// Everything that must be gone when no volume is published.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.home.mounts(), Vec::<PathBuf>::new(), "mounts are left");
        let files = |directory: PathBuf| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(&directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        for store in [self.home.state_dir().join("memory"), self.home.path().join("disk")] {
            assert_eq!(files(store.join("v1/volumes")), Vec::<PathBuf>::new());
            assert_eq!(files(store.join("v1/tmp")), Vec::<PathBuf>::new());
        }
        assert_eq!(files(self.home.state_dir().join("memory/registry")), Vec::<PathBuf>::new());
        let began = Instant::now();
        while self.home.kept_by_keeper() > 0 {
            assert!(began.elapsed() < RELEASE, "the keeper holds a mount of no volume");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Spark's uid, where this machine can map it.
    pub(crate) fn spark(&self) -> &'static str {
        if self.ids == Ids::All { "185" } else { "0" }
    }
}

/// The files below a directory as a reader sees them: through symlinks, without reserved names.
pub(crate) fn tree(directory: &Path) -> BTreeMap<String, String> {
    fn walk(directory: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).expect("a readable directory") {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().into_string().expect("a UTF-8 name");
            if prefix.is_empty() && name.starts_with("..") {
                continue;
            }
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            if std::fs::metadata(&path).expect("no dangling link").is_dir() {
                found.insert(format!("{name}/"), String::new());
                walk(&path, &format!("{name}/"), found);
            } else {
                let content = std::fs::read(&path).expect("a readable file");
                found.insert(name, String::from_utf8_lossy(&content).into_owned());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, "", &mut found);
    found
}

/// What [`tree`] should give.
pub(crate) fn files(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Whether another file system begins at the path.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

/// `uid:gid mode` of what the path leads to.
pub(crate) fn owner(path: &Path) -> String {
    let metadata = std::fs::metadata(path).expect("the path exists");
    format!("{}:{} {:04o}", metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}
