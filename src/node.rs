//! The volumes of this node: publish, republish, unpublish, and what survives a restart.
//!
//! A publish is a race that only one call runs: the work is done in the background by a
//! preparation, calls wait for it as long as they may, and the first that sees it done mounts it.
//! Nothing is mounted while nobody waits, so a call that answered with an error left no mount.

mod error;
mod preparation;
mod publish;
mod recover;
mod registry;
mod start;
mod unpublish;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::Instant;

pub use self::{error::NodeError, registry::Summary, start::StartError};
use self::{
    registry::{Registry, VolumeKey},
    start::StateLock,
    volumes::{State, Volumes},
};
use crate::{
    config::Config,
    fetch::Fetcher,
    mount::{KubeletDir, TargetPath},
    source::s3::S3Clients,
    store::{Medium, Stores},
    task::{Tasks, blocking},
    telemetry::metrics::Metrics,
    view::linkfarm::{self, LinkFarm},
    volume::ViewKind,
};

/// A request to publish, as the kubelet sent it.
#[derive(Debug)]
pub struct PublishRequest {
    /// The volume's id.
    pub volume_id: String,
    /// Where to publish.
    pub target: String,
    /// The volume context, reserved keys included.
    pub attributes: BTreeMap<String, String>,
    /// The pod's fsGroup, if the capability carried one.
    pub mount_group: Option<String>,
    /// The Secret's keys and values.
    pub secrets: VolumeSecretsInput,
    /// When the call must have been answered.
    pub deadline: Instant,
}

/// The secrets of a request on their way to the parser; zeroised by it.
pub struct VolumeSecretsInput(pub HashMap<String, String>);

impl std::fmt::Debug for VolumeSecretsInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VolumeSecretsInput({} keys)", self.0.len())
    }
}

/// What a published volume shows and how it fares.
#[derive(Debug, Clone)]
pub struct VolumeStatus {
    /// What it shows.
    pub summary: Summary,
    /// For people: revision, age, skipped keys.
    pub message: String,
}

/// Everything that operations need; shared by all of them.
#[derive(Debug)]
struct Context {
    config: Config,
    kubelet: KubeletDir,
    stores: Stores,
    /// Whether the kernel keeps the memory store out of swap.
    no_swap: bool,
    clients: S3Clients,
    /// Held for the life of the process: one plugin to a state directory.
    _lock: StateLock,
    fetcher: Fetcher,
    registry: Registry,
    volumes: Volumes,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

/// The volumes of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Context>);

impl Context {
    /// Why a preparation that was told to stop stopped.
    fn cancelled(&self) -> NodeError {
        if self.tasks.token().is_cancelled() {
            NodeError::ShuttingDown
        } else {
            NodeError::Cancelled
        }
    }

    fn directory(&self, medium: Medium, key: &VolumeKey) -> Option<PathBuf> {
        self.stores.get(medium).map(|store| store.volumes().join(key.as_str()))
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
        [Medium::Memory, Medium::Disk].into_iter().find(|medium| {
            let directory = self.directory(*medium, key);
            directory.is_some_and(|directory| id(&LinkFarm::root(&directory)) == Some(mounted))
        })
    }

    fn count_volumes(&self) {
        for view in [ViewKind::Tmpfs, ViewKind::Disk] {
            let count = self.volumes.count(|entry| entry.view == view);
            let gauge = self.metrics.volumes.with_label_values(&[view.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl Node {
    /// What the volume published at `path` shows.
    ///
    /// # Errors
    /// [`NodeError::NotPublished`].
    pub fn status(&self, volume_id: &str, path: &str) -> Result<VolumeStatus, NodeError> {
        let missing =
            || NodeError::NotPublished { volume_id: volume_id.to_owned(), target: path.to_owned() };
        let target = TargetPath::parse(path, &self.0.kubelet).map_err(|_| missing())?;
        match self.0.volumes.get(&VolumeKey::of(target.as_path())) {
            Some(State::Published(published))
                if published.entry.arguments.volume_id() == volume_id =>
            {
                let summary = published.entry.summary.clone();
                Ok(VolumeStatus { message: describe(&summary), summary })
            }
            _ => Err(missing()),
        }
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

fn describe(summary: &Summary) -> String {
    let Summary { objects, bytes, skipped, .. } = summary;
    let separator = if skipped.is_empty() { "" } else { "; " };
    format!("{objects} objects, {bytes} bytes{separator}{skipped}")
}
