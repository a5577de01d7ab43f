//! Unpublish: needs neither S3 nor memory of the publish.

use super::{
    Node, NodeError,
    registry::{Entry, Phase, VolumeKey},
    volumes::State,
};
use crate::{mount::TargetPath, task::blocking};

impl Node {
    /// Takes a volume away from its target path. Needs neither S3 nor the publish's arguments.
    ///
    /// # Errors
    /// What the kernel or a file system answers; everything else is as if it had been done.
    ///
    /// # Cancellation
    /// Runs to its end in the background.
    pub async fn unpublish(&self, volume_id: &str, target: &str) -> Result<(), NodeError> {
        let path = TargetPath::parse(target, &self.0.kubelet)?;
        let (node, volume_id) = (self.clone(), volume_id.to_owned());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.0.tasks.spawn(async move {
            drop(sender.send(node.unpublish_at(&volume_id, path).await));
        });
        receiver.await.unwrap_or(Err(NodeError::ShuttingDown))
    }

    async fn unpublish_at(&self, volume_id: &str, path: TargetPath) -> Result<(), NodeError> {
        let key = VolumeKey::of(path.as_path());
        let (before, lock) = self.0.volumes.unpublish(&key);
        let _under_way = lock.lock().await;
        let published = match before {
            Some(State::Preparing(preparation)) => {
                preparation.cancel.cancel();
                preparation.ended().await;
                // A mount that has begun ends first.
                drop(preparation.mounting.lock().await);
                None
            }
            Some(State::Published(published)) => {
                let known = published.entry.arguments.volume_id();
                if known != volume_id {
                    tracing::warn!(known, asked = volume_id, "unpublished by another volume id");
                }
                drop(published.mounting.lock().await);
                Some(published)
            }
            Some(State::Unpublishing(_)) | None => None,
        };
        let entry = published.as_ref().map(|published| published.entry.clone());
        let (node, removed_key) = (self.clone(), key.clone());
        let outcome = blocking(move || node.take_away(&removed_key, &path, entry)).await;
        self.0.volumes.restore(&key, published.filter(|_| outcome.is_err()));
        self.0.count_volumes();
        outcome
    }

    /// Unmounts and removes, in an order that a crash can interrupt anywhere. Blocks.
    pub(super) fn take_away(
        &self,
        key: &VolumeKey,
        path: &TargetPath,
        entry: Option<Entry>,
    ) -> Result<(), NodeError> {
        if let Some(entry) = entry {
            self.0.registry.write(&entry.in_phase(Phase::Unpublishing))?;
        }
        if let Some(target) = self.0.kubelet.existing_target(path)? {
            target.unmount_all()?;
            target.remove()?;
        }
        self.0.remove_files(key)
    }
}
