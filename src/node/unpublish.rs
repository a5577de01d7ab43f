//! Unpublish: needs neither S3 nor memory of the publish.

use super::{
    Node, NodeError,
    registry::{Entry, Phase, VolumeKey},
};
use crate::{
    failure::FailureKind,
    mount::{Target, TargetPath},
    task::blocking,
    volume::ViewKind,
};

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
        self.to_its_end(async move { node.unpublish_at(&volume_id, path).await }).await
    }

    async fn unpublish_at(&self, volume_id: &str, path: TargetPath) -> Result<(), NodeError> {
        let key = VolumeKey::of(path.as_path());
        let mut unpublishing = self.0.volumes.unpublish(&key);
        if let Some(preparation) = &unpublishing.preparation {
            preparation.cancel.cancel();
            preparation.ended().await;
        }
        // Even if this fails, it does not refresh any more: the kubelet asks again until it is gone.
        if let Some(published) = &unpublishing.before {
            published.ended.cancel();
            self.0.refresher.withdraw(published, None);
        }
        // A mount or a swap that has begun ends first.
        let lock = self.0.volumes.lock(&key).await;
        let entry = unpublishing.before.as_ref().map(|published| published.entry());
        if let Some(entry) = &entry
            && entry.arguments.volume_id() != volume_id
        {
            let known = entry.arguments.volume_id();
            tracing::warn!(known, asked = volume_id, "unpublished by another volume id");
        }
        let node = self.clone();
        let unmounted = blocking(move || {
            let unmounted = node.unmount(&path, entry);
            let outcome = unmounted.map(|target| node.remove_rest(&key, &path, target));
            drop(lock);
            outcome
        })
        .await;
        if unmounted.is_ok()
            && let Some(published) = unpublishing.before.clone()
        {
            let closing = async move {
                if let Some(fused) = &published.fused {
                    fused.close().await;
                }
            };
            self.0.tasks.spawn(closing);
        }
        // What is not mounted is not published, even if its files are there still, or a part of
        // them: a publish must not find them and show what is left.
        unpublishing.done = unmounted.is_ok();
        drop(unpublishing);
        self.0.count_volumes();
        unmounted?
    }

    /// Unmounts and removes, in an order that a crash can interrupt anywhere. Blocks.
    ///
    /// The pod's mount is what counts: a record that cannot be written (no space) does not keep it,
    /// and files that cannot be removed (a read-only disk) are left to the next start. Want of
    /// descriptors or memory passes sooner, so the caller hears of it and comes again.
    pub(super) fn take_away(
        &self,
        key: &VolumeKey,
        path: &TargetPath,
        entry: Option<Entry>,
    ) -> Result<(), NodeError> {
        let target = self.unmount(path, entry)?;
        self.remove_rest(key, path, target)
    }

    fn unmount(
        &self,
        path: &TargetPath,
        entry: Option<Entry>,
    ) -> Result<Option<Target>, NodeError> {
        // Of what is not known, the keeper may have the mount.
        let is_served = entry.as_ref().is_none_or(|entry| entry.view == ViewKind::Fuse);
        if let Some(entry) = entry
            && let Err(error) = self.0.registry.write(&entry.in_phase(Phase::Unpublishing))
        {
            tracing::warn!(%error, "unpublishing without a record of it");
        }
        let target = self.0.kubelet.existing_target(path)?;
        if let Some(target) = &target {
            target.unmount_all()?;
        }
        if is_served {
            self.0.release(&VolumeKey::of(path.as_path()));
        }
        Ok(target)
    }

    fn remove_rest(
        &self,
        key: &VolumeKey,
        path: &TargetPath,
        target: Option<Target>,
    ) -> Result<(), NodeError> {
        // Before the record goes: after a crash, nothing else tells of the directory.
        let removed = target.map_or(Ok(()), |target| target.remove());
        if let Err(error) = self.0.remove_files(key) {
            if error.kind() == FailureKind::Exhausted {
                return Err(error);
            }
            tracing::warn!(%error, volume.target_path = %path, "an unpublished volume's files stay");
        }
        Ok(removed?)
    }
}
