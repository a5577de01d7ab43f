//! What to do with what an earlier process left: one pure decision for each volume.
//!
//! A mount is made only when its revision is complete, so a mounted target is a published volume
//! whatever its entry says, and a target that is not mounted is not worth keeping: its pod is gone
//! or waits for the kubelet's next publish anyway. An unpublish that had begun is finished. Files
//! that some mount still shows, or of which nothing certain is known, are never touched.

use std::collections::{HashMap, HashSet};

use super::registry::{Phase, VolumeKey};
use crate::store::Medium;

/// What is on the node.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The registry's entries, and whether their target is a mount point (`None`: it cannot be
    /// asked, as when the kubelet's directory is configured elsewhere now).
    pub(super) entries: HashMap<VolumeKey, (Phase, Option<bool>)>,
    /// Volume directories in the stores.
    pub(super) directories: HashSet<(Medium, VolumeKey)>,
    /// Volumes whose directory is the root of some mount on this node.
    pub(super) shown: HashSet<VolumeKey>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// The volume is published: go on with it.
    Keep(VolumeKey),
    /// Leave everything as it is.
    Leave(VolumeKey),
    /// Unmount the target, remove it, the volume's directories and the entry.
    Discard(VolumeKey),
    /// Remove a directory that no entry knows and no mount shows.
    RemoveDirectory(Medium, VolumeKey),
}

/// Decides, in a fixed order.
pub(super) fn plan(found: &Found) -> Vec<Action> {
    let of_entry = found.entries.iter().map(|(key, state)| match state {
        (Phase::Publishing | Phase::Published, Some(true)) => Action::Keep(key.clone()),
        (_, None) => Action::Leave(key.clone()),
        (Phase::Publishing | Phase::Published, Some(false)) if found.shown.contains(key) => {
            Action::Leave(key.clone())
        }
        (Phase::Unpublishing, Some(_)) | (_, Some(false)) => Action::Discard(key.clone()),
    });
    let unknown = found
        .directories
        .iter()
        .filter(|(_, key)| !found.entries.contains_key(key) && !found.shown.contains(key))
        .map(|(medium, key)| Action::RemoveDirectory(*medium, key.clone()));
    let mut actions: Vec<_> = of_entry.chain(unknown).collect();
    actions.sort();
    actions
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn key() -> VolumeKey {
        VolumeKey::from_name(&"a".repeat(32)).unwrap()
    }

    #[test_case(Phase::Publishing, Some(false) => Action::Discard(key()); "crash while fetching")]
    #[test_case(Phase::Publishing, Some(true) => Action::Keep(key()); "crash after the mount")]
    #[test_case(Phase::Published, Some(true) => Action::Keep(key()); "plain restart")]
    #[test_case(Phase::Published, Some(false) => Action::Discard(key()); "reboot")]
    #[test_case(Phase::Published, None => Action::Leave(key()); "another kubelet directory")]
    #[test_case(Phase::Unpublishing, Some(true) => Action::Discard(key()); "before unmount")]
    #[test_case(Phase::Unpublishing, Some(false) => Action::Discard(key()); "after unmount")]
    #[test_case(Phase::Unpublishing, None => Action::Leave(key()); "unpublished elsewhere")]
    fn entries(phase: Phase, mounted: Option<bool>) -> Action {
        let entries = HashMap::from([(key(), (phase, mounted))]);
        let directories = HashSet::from([(Medium::Memory, key())]);
        let actions = plan(&Found { entries, directories, shown: HashSet::new() });
        assert_eq!(actions.len(), 1);
        actions[0].clone()
    }

    #[test]
    fn what_a_mount_shows_is_left_alone() {
        let entries = HashMap::from([(key(), (Phase::Published, Some(false)))]);
        let shown = HashSet::from([key()]);
        let found = Found { entries, shown, ..Found::default() };
        assert_eq!(plan(&found), [Action::Leave(key())]);
    }

    #[test]
    fn a_directory_without_entry_goes_unless_a_pod_sees_it() {
        let directories = HashSet::from([(Medium::Disk, key())]);
        let mut found = Found { directories, ..Found::default() };
        assert_eq!(plan(&found), [Action::RemoveDirectory(Medium::Disk, key())]);
        found.shown.insert(key());
        assert_eq!(plan(&found), []);
    }
}
