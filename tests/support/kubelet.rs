//! The kubelet's side of the CSI socket: the requests that a real one sends, field by field.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use s3view::csi::proto::{
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest,
    VolumeCapability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode},
};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use super::{
    plugin::{Home, Shown},
    secrecy::Watch,
};

/// The kubelet gives publish and unpublish two minutes.
const TIMEOUT: Duration = Duration::from_mins(2);

/// A pod with one inline volume.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) volume: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) fs_group: Option<String>,
    pub(crate) timeout: Duration,
}

impl Pod {
    /// A new pod of the namespace `spark` with the seed's Secret and these volume attributes.
    pub(crate) fn new(name: &str, attributes: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        Self {
            uid: format!("2f9e6a1c-0000-4000-8000-{number:012}"),
            name: name.to_owned(),
            namespace: "spark".to_owned(),
            volume: "kafka-certs".to_owned(),
            attributes: pairs(attributes),
            secrets: pairs(&[("accesskey", "minio"), ("secretkey", "minio123")]),
            fs_group: None,
            timeout: TIMEOUT,
        }
    }

    /// The same pod with one attribute more, or another value.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.attributes.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same pod with other secrets.
    pub(crate) fn with_secrets(mut self, secrets: &[(&str, &str)]) -> Self {
        self.secrets = secrets.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self
    }

    fn says_how_it_is_shown(&self) -> bool {
        ["view", "layout"].iter().any(|name| self.attributes.contains_key(*name))
    }

    /// The id that the kubelet makes up for an inline volume: `csi-` and 64 hexadecimal digits.
    pub(crate) fn volume_id(&self) -> String {
        let uid: String = self.uid.chars().filter(char::is_ascii_hexdigit).collect();
        format!("csi-{uid:0>64}")
    }

    /// The request as the kubelet sends it.
    pub(crate) fn publish_request(&self, target: &Path) -> NodePublishVolumeRequest {
        let mut context: HashMap<String, String> = self.attributes.clone().into_iter().collect();
        for (key, value) in [
            ("pod.name", self.name.as_str()),
            ("pod.namespace", &self.namespace),
            ("pod.uid", &self.uid),
            ("serviceAccount.name", "spark"),
            ("ephemeral", "true"),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
        NodePublishVolumeRequest {
            volume_id: self.volume_id(),
            target_path: path_text(target),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode { mode: access_mode::Mode::SingleNodeWriter.into() }),
                access_type: Some(AccessType::Mount(MountVolume {
                    volume_mount_group: self.fs_group.clone().unwrap_or_default(),
                    ..MountVolume::default()
                })),
            }),
            readonly: true,
            secrets: self.secrets.clone().into_iter().collect(),
            volume_context: context,
            ..NodePublishVolumeRequest::default()
        }
    }
}

/// A connection to the plugin.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    root: PathBuf,
    channel: Channel,
    watch: Arc<Watch>,
    shown: Shown,
}

impl Kubelet {
    /// Connects; panics if nobody listens.
    pub(crate) async fn connect(home: &Home) -> Self {
        Self::try_connect(home).await.expect("the plugin listens")
    }

    /// Connects as the kubelet does: by the socket, with authority `localhost`.
    pub(crate) async fn try_connect(home: &Home) -> Option<Self> {
        let channel = dial(home.socket()).await?;
        let (root, watch) = (home.kubelet_dir(), Arc::clone(home.watch()));
        Some(Self { root, channel, watch, shown: home.shown() })
    }

    /// Where a pod's volume is published.
    pub(crate) fn target(&self, pod: &Pod) -> PathBuf {
        let Pod { uid, volume, .. } = pod;
        self.root.join(format!("pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"))
    }

    /// Publishes as the kubelet does: it asks for the capabilities and makes the target's parent,
    /// not the target.
    pub(crate) async fn publish(&self, pod: &Pod) -> Result<PathBuf, Status> {
        if self.shown == Shown::ByDefault || pod.says_how_it_is_shown() {
            return self.publish_as_it_is(pod).await;
        }
        let pod = pod.clone().with("view", "fuse");
        if self.shown == Shown::FuseWarm && !self.target(&pod).exists() {
            self.warm_up(&pod).await;
        }
        self.publish_as_it_is(&pod).await
    }

    /// Another pod reads all that this one will see.
    async fn warm_up(&self, pod: &Pod) {
        let other = Pod { uid: Pod::new("", &[]).uid, ..pod.clone() };
        if let Ok(target) = self.publish_as_it_is(&other).await {
            read_all(&target);
            self.unpublish(&other).await.expect("unpublish works");
        }
    }

    async fn publish_as_it_is(&self, pod: &Pod) -> Result<PathBuf, Status> {
        let target = self.target(pod);
        let parent = target.parent().expect("targets are deep");
        std::fs::create_dir_all(parent).expect("the kubelet owns its directory");
        self.node().node_get_capabilities(NodeGetCapabilitiesRequest {}).await?;
        self.publish_raw(pod.publish_request(&target), pod.timeout).await?;
        Ok(target)
    }

    /// Sends a publish request as it is.
    pub(crate) async fn publish_raw(
        &self,
        request: NodePublishVolumeRequest,
        timeout: Duration,
    ) -> Result<(), Status> {
        self.watch.request(&request.secrets, &request.volume_context);
        let mut request = Request::new(request);
        request.set_timeout(timeout);
        let answer = self.node().node_publish_volume(request).await;
        answer.map(drop).inspect_err(|status| self.watch.said("an answer", format!("{status:?}")))
    }

    /// Unpublishes a pod's volume.
    pub(crate) async fn unpublish(&self, pod: &Pod) -> Result<(), Status> {
        self.unpublish_raw(&pod.volume_id(), &path_text(&self.target(pod))).await
    }

    /// Sends an unpublish request as it is.
    pub(crate) async fn unpublish_raw(&self, volume_id: &str, target: &str) -> Result<(), Status> {
        let mut request = Request::new(NodeUnpublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            target_path: target.to_owned(),
        });
        request.set_timeout(TIMEOUT);
        self.node().node_unpublish_volume(request).await.map(drop)
    }

    /// Asks for a volume's figures and condition.
    pub(crate) async fn stats(&self, pod: &Pod) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: pod.volume_id(),
            volume_path: path_text(&self.target(pod)),
            ..NodeGetVolumeStatsRequest::default()
        };
        let answer = self.node().node_get_volume_stats(request).await;
        self.watch.said("a volume's condition", format!("{answer:?}"));
        answer.map(tonic::Response::into_inner)
    }

    /// Asks who the node is.
    pub(crate) async fn info(&self) -> Result<NodeGetInfoResponse, Status> {
        self.node().node_get_info(NodeGetInfoRequest {}).await.map(tonic::Response::into_inner)
    }

    /// Whether `Probe` says ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let probe = self.identity().probe(ProbeRequest {}).await;
        probe.is_ok_and(|answer| answer.into_inner().ready == Some(true))
    }

    /// The Node service.
    pub(crate) fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// The Identity service.
    pub(crate) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    /// The connection itself, for services that the plugin may not have.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// Reads every file below a directory.
fn read_all(directory: &Path) {
    for entry in std::fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            read_all(&path);
        } else {
            let mut file = std::fs::File::open(&path).expect("a file that can be opened");
            std::io::copy(&mut file, &mut std::io::sink()).expect("a readable file");
        }
    }
}

/// Connects to a socket as Kubernetes does, if somebody listens.
pub(crate) async fn dial(socket: PathBuf) -> Option<Channel> {
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await.ok()
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("the tests' paths are UTF-8").to_owned()
}
