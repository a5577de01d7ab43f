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
    plugin: Plugin,
    kubelet: Kubelet,
    _home: Home,
}

impl Node {
    /// Starts a plugin with the default settings.
    pub(crate) async fn start(server: &EmbeddedS3) -> Self {
        let config = format!(
            "endpoints: {{ s3: {{ url: \"{}\" }} }}\n\
             store: {{ memory: {{ allowSwap: true }}, disk: {{ path: DISK }} }}\n",
            server.url()
        );
        let mut home = Home::new(env!("CARGO_BIN_EXE_s3view-node"), &config);
        home.set_log_level("info");
        let plugin = home.start().await;
        Self { plugin, kubelet: Kubelet::connect(&home).await, _home: home }
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

    /// A figure of `/proc/<pid>/status`, in KiB.
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 KiB")]
    pub(crate) fn memory_kib(&self, figure: &str) -> f64 {
        self.plugin.memory_kib(figure) as f64
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

    fn proc(&self, file: &str) -> std::path::PathBuf {
        Path::new("/proc").join(self.plugin.pid().to_string()).join(file)
    }
}
