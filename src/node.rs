//! The volumes of this node: publish, republish, unpublish, and what survives a restart.
//!
//! A publish is a race that only one call runs: the work is done in the background by a
//! preparation, calls wait for it as long as they may, and the first that sees it done mounts it.
//! Nothing is mounted while nobody waits, so a call that answered with an error left no mount.

mod error;
mod fused;
mod identity;
mod pace;
mod preparation;
mod publish;
mod published;
mod quota;
mod records;
mod recover;
mod refresh;
mod registry;
mod reload;
mod republish;
mod revision;
mod settle;
mod start;
mod unpublish;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use prometheus::IntGaugeVec;
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

pub use self::{
    error::NodeError,
    quota::OverLimit,
    registry::Summary,
    start::{StartError, check},
};
use self::{
    records::Records,
    refresh::Refresher,
    registry::{Registry, VolumeKey},
    start::StateLock,
    volumes::{State, Tally, Volumes},
};
use crate::{
    config::Config,
    fetch::Fetcher,
    keeper::Custodian,
    mount::{KubeletDir, TargetPath},
    problems::Problems,
    source::{NodeKey, s3::S3Clients},
    store::{Medium, Stores},
    task::{Tasks, blocking},
    telemetry::metrics::Metrics,
    view::linkfarm::{self, LinkFarm},
    volume::{TOKENS_KEY, ViewKind, VolumeSecrets},
};

/// A request to publish, as the kubelet sent it.
pub struct PublishRequest {
    /// The volume's id.
    pub volume_id: String,
    /// Where to publish.
    pub target: String,
    /// The volume context, reserved keys included.
    pub attributes: BTreeMap<String, String>,
    /// The pod's fsGroup, if the capability carried one.
    pub mount_group: Option<String>,
    /// The `PersistentVolume`'s mount options. They may be secrets.
    pub mount_options: Vec<String>,
    /// The Secret's keys and values.
    pub secrets: VolumeSecretsInput,
    /// When the call must have been answered.
    pub deadline: Instant,
}

impl fmt::Debug for PublishRequest {
    /// Names of attributes only: the context may hold a service account token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishRequest")
            .field("volume_id", &self.volume_id)
            .field("target", &self.target)
            .field("attributes", &self.attributes.keys())
            .field("secrets", &self.secrets)
            .finish_non_exhaustive()
    }
}

/// The secrets of a request on their way to the parser; zeroised if they never get there.
pub struct VolumeSecretsInput {
    secrets: HashMap<String, String>,
    /// Service account tokens that came in the volume context.
    context_tokens: Option<Zeroizing<String>>,
}

impl VolumeSecretsInput {
    /// Takes over a request's map.
    pub fn new(secrets: HashMap<String, String>) -> Self {
        Self { secrets, context_tokens: None }
    }

    /// Takes the tokens out of a volume context: they are secrets as well.
    fn with_tokens_of(mut self, attributes: &mut BTreeMap<String, String>) -> Self {
        self.context_tokens = attributes.remove(TOKENS_KEY).map(Zeroizing::new);
        self
    }

    /// Parses the secrets; see [`VolumeSecrets::parse`], which zeroises what it does not keep.
    fn parse(mut self) -> (Result<VolumeSecrets, Problems>, Option<Zeroizing<String>>) {
        let secrets = VolumeSecrets::parse(std::mem::take(&mut self.secrets));
        (secrets, self.context_tokens.take())
    }
}

impl Drop for VolumeSecretsInput {
    fn drop(&mut self) {
        self.secrets.values_mut().for_each(Zeroize::zeroize);
    }
}

impl fmt::Debug for VolumeSecretsInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeSecretsInput({} keys)", self.secrets.len())
    }
}

/// What a published volume shows and how it fares.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// What it shows.
    pub summary: Summary,
    /// Whether the pod cannot read it as it should.
    pub abnormal: bool,
    /// For people: what it shows, since when, skipped keys, and what is wrong.
    pub message: String,
}

/// Everything that operations need; shared by all of them.
#[derive(Debug)]
struct Context {
    /// What is in force; see [`Context::config`].
    config: RwLock<Arc<Config>>,
    kubelet: KubeletDir,
    stores: Stores,
    /// Whether the kernel keeps the memory store out of swap.
    no_swap: bool,
    clients: S3Clients,
    /// Held for the life of the process: one plugin to a state directory.
    _lock: StateLock,
    fetcher: Fetcher,
    registry: Registry,
    records: Records,
    /// Sees to it that the keeper holds the mounts of `fuse` views.
    custodian: Custodian,
    /// Seals principals for the registry and the records.
    node_key: NodeKey,
    volumes: Volumes,
    refresher: Refresher,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

/// The volumes of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Context>);

impl Context {
    /// The configuration in force. Whoever decides something takes it once, so that one decision
    /// follows one file.
    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read())
    }

    /// Why a preparation that was told to stop stopped.
    fn cancelled(&self) -> NodeError {
        if self.tasks.token().is_cancelled() {
            NodeError::ShuttingDown
        } else {
            NodeError::Cancelled
        }
    }

    fn directory(&self, medium: Medium, key: &VolumeKey) -> PathBuf {
        self.stores.get(medium).volumes().join(key.as_str())
    }

    /// Removes a volume's directories, on all media, and then its entry. Blocks.
    fn remove_files(&self, key: &VolumeKey) -> Result<(), NodeError> {
        remove_files(&self.stores, &self.registry, key)
    }

    /// Removes what a failed or forgotten publish made.
    async fn discard_files(&self, key: VolumeKey) {
        let (stores, registry) = (self.stores.clone(), self.registry.clone());
        if let Err(error) = blocking(move || remove_files(&stores, &registry, &key)).await {
            tracing::warn!(%error, "failed to clean up after a failed publish");
        }
    }

    /// The medium of the volume directory that is mounted at `target`, if it is one of ours.
    fn own_mount(&self, key: &VolumeKey, target: &Path) -> Option<Medium> {
        let id = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let mounted = id(target)?;
        [Medium::Memory, Medium::Disk]
            .into_iter()
            .find(|medium| id(&LinkFarm::root(&self.directory(*medium, key))) == Some(mounted))
    }

    /// Whether something is mounted at the target.
    fn is_mounted(&self, path: &TargetPath) -> Result<bool, NodeError> {
        match self.kubelet.existing_target(path)? {
            Some(target) => Ok(target.is_mounted()?),
            None => Ok(false),
        }
    }

    fn count_volumes(&self) {
        for view in ViewKind::ALL {
            let Tally { volumes, failing } = self.volumes.tally(view);
            let show = |gauges: &IntGaugeVec, count: usize| {
                let gauge = gauges.with_label_values(&[view.as_str()]);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            };
            show(&self.metrics.volumes, volumes);
            show(&self.metrics.stale_volumes, failing);
        }
    }
}

impl Node {
    /// What the volume published at `path` shows, and how it fares.
    ///
    /// # Errors
    /// [`NodeError::NotPublished`].
    pub async fn status(&self, volume_id: &str, path: &str) -> Result<VolumeStatus, NodeError> {
        let missing =
            || NodeError::NotPublished { volume_id: volume_id.to_owned(), target: path.to_owned() };
        let target = TargetPath::parse(path, &self.0.kubelet).map_err(|_| missing())?;
        let published = match self.0.volumes.get(&VolumeKey::of(target.as_path())) {
            Some(State::Published(published)) if published.arguments.volume_id() == volume_id => {
                published
            }
            _ => return Err(missing()),
        };
        let node = self.clone();
        let mounted = blocking(move || node.0.is_mounted(&target)).await?;
        let mut status = published.status(mounted);
        if published.fused.is_some() && !self.0.keeps(&published) {
            status.message.push_str(
                "; the keeper does not hold its mount, so that a restart of the node plugin ends it",
            );
        }
        Ok(status)
    }

    /// Runs `work` as a task of the node, so that it ends even if the caller goes away.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
    ) -> Result<T, NodeError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.0.tasks.spawn(async move {
            // The caller may be gone; the outcome stands in the node's state.
            drop(sender.send(work.await));
        });
        receiver.await.unwrap_or(Err(NodeError::Panicked))
    }

    /// Ends all background work; mounts stay.
    pub async fn drain(&self) {
        self.0.tasks.drain().await;
    }
}

fn remove_files(stores: &Stores, registry: &Registry, key: &VolumeKey) -> Result<(), NodeError> {
    for store in stores.iter() {
        linkfarm::remove_all(&store.volumes().join(key.as_str()))?;
    }
    registry.remove(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_prints_no_token_and_no_secret() {
        let token = ("csi.storage.k8s.io/serviceAccount.tokens", "MARKED");
        let map = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let request = PublishRequest {
            volume_id: "v".into(),
            target: "/t".into(),
            attributes: BTreeMap::from([map(token)]),
            mount_group: None,
            mount_options: vec!["MARKED".into()],
            secrets: VolumeSecretsInput::new(HashMap::from([map(("secretkey", "MARKED"))])),
            deadline: Instant::now(),
        };
        assert!(!format!("{request:?}").contains("MARKED"));
    }
}
