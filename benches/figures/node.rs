//! A fresh plugin, a kubelet, and the server that both the plugin and the bare client use.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    bare::Bare,
    measure::timed,
    support::{
        kubelet::{Kubelet, Pod},
        plugin::{Home, Plugin},
        s3::{EmbeddedS3, Options},
    },
};

/// The bucket of all figures.
pub(crate) const BUCKET: &str = "bench";

/// Clock ticks in a second, as `/proc` counts them on every architecture that we support.
const TICKS: f64 = 100.0;

/// Starts an S3 server with an empty bucket.
pub(crate) fn server(options: Options) -> (EmbeddedS3, Bare) {
    let server = EmbeddedS3::start(options);
    server.create_bucket(BUCKET);
    let bare = Bare::new(&server.url(), BUCKET);
    (server, bare)
}

/// A pod that mounts a prefix.
pub(crate) fn pod(prefix: &str) -> Pod {
    Pod::new("driver-1", &[("bucket", BUCKET), ("prefix", prefix)])
}

/// A running plugin with empty stores; its files and mounts go with it.
#[derive(Debug)]
pub(crate) struct Node {
    plugin: Option<Plugin>,
    kubelet: Kubelet,
    home: Home,
}

impl Node {
    /// Starts a plugin with the default settings.
    pub(crate) async fn start(server: &EmbeddedS3) -> Self {
        Self::run(home(&server.url())).await
    }

    /// Likewise, for the server at `url`, with a keeper beside the plugin.
    pub(crate) async fn with_keeper(url: &str) -> Self {
        let mut home = home(url);
        home.start_keeper();
        Self::run(home).await
    }

    async fn run(home: Home) -> Self {
        let plugin = Some(home.start().await);
        Self { plugin, kubelet: Kubelet::connect(&home).await, home }
    }

    /// Ends the plugin as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.plugin.take());
    }

    /// Starts another one in its place.
    pub(crate) async fn start_again(&mut self) {
        self.plugin = Some(self.home.start().await);
        self.kubelet = Kubelet::connect(&self.home).await;
    }

    /// Publishes; how long the one call `NodePublishVolume` takes.
    pub(crate) async fn publish(&self, pod: &Pod) -> Duration {
        timed(self.ready_to_publish(pod)).await
    }

    /// The call `NodePublishVolume`, after the directories that the kubelet makes for it.
    pub(crate) fn ready_to_publish(&self, pod: &Pod) -> impl Future<Output = ()> {
        let target = self.kubelet.target(pod);
        let parent = target.parent().expect("targets are deep");
        std::fs::create_dir_all(parent).expect("the kubelet owns its directory");
        let (request, timeout) = (pod.publish_request(&target), pod.timeout);
        async move { self.kubelet.publish_raw(request, timeout).await.expect("a publish") }
    }

    /// Where a pod's volume is.
    pub(crate) fn target(&self, pod: &Pod) -> PathBuf {
        self.kubelet.target(pod)
    }

    /// The directory of the disk store.
    pub(crate) fn disk(&self) -> PathBuf {
        self.home.path().join("disk")
    }

    /// A figure of `/proc/<pid>/status`, in KiB.
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
    pub(crate) fn memory_kib(&self, figure: &str) -> f64 {
        self.plugin().memory_kib(figure) as f64
    }

    /// Makes `VmHWM` begin again at the present size.
    pub(crate) fn reset_peak(&self) {
        std::fs::write(self.proc("clear_refs"), "5").expect("our own child");
    }

    /// The seconds of CPU that the plugin has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("the process runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        // utime and stime are the fields 14 and 15; the state, after the name, is the third.
        let ticks = fields.split(' ').skip(11).take(2);
        ticks.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() / TICKS
    }

    /// How often the plugin has called `read(2)`: once for each request of the kernel, at least.
    pub(crate) fn reads(&self) -> u32 {
        let io = std::fs::read_to_string(self.proc("io")).expect("the process runs");
        let reads = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        reads.expect("a known figure").parse().expect("a number")
    }

    fn plugin(&self) -> &Plugin {
        self.plugin.as_ref().expect("it was started again")
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.plugin().pid().to_string()).join(file)
    }
}

/// Directories and the default settings, but for the server.
fn home(url: &str) -> Home {
    let config = format!(
        "endpoints: {{ s3: {{ url: \"{url}\" }} }}\n\
         store: {{ memory: {{ allowSwap: true }}, disk: {{ path: DISK }} }}\n"
    );
    let mut home = Home::new(env!("CARGO_BIN_EXE_s3view-node"), &config);
    home.set_log_level("info");
    home
}
