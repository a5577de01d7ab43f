//! What to do with what an earlier process left: one pure decision for each volume.
//!
//! A mount is made only when its revision is complete, so a mounted target is a published volume
//! whatever its entry says, and a target that is not mounted is not worth keeping: its pod is gone
//! or waits for the kubelet's next publish anyway. Only an unpublish that had begun is finished.

use std::collections::{HashMap, HashSet};

use super::registry::{Phase, VolumeKey};
use crate::store::Medium;

/// What is on the node.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The registry's entries, and whether their target is a mount point.
    pub(super) entries: HashMap<VolumeKey, (Phase, bool)>,
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
    /// Unmount the target, remove it, the volume's directories and the entry.
    Discard(VolumeKey),
    /// Remove a directory that no entry knows and no mount shows.
    RemoveDirectory(Medium, VolumeKey),
}

/// Decides, in a fixed order.
pub(super) fn plan(found: &Found) -> Vec<Action> {
    let of_entry = found.entries.iter().map(|(key, state)| match state {
        (Phase::Publishing | Phase::Published, true) => Action::Keep(key.clone()),
        (Phase::Unpublishing, _) | (_, false) => Action::Discard(key.clone()),
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

    #[test_case(Phase::Publishing, false => vec![Action::Discard(key())]; "crash while fetching")]
    #[test_case(Phase::Publishing, true => vec![Action::Keep(key())]; "crash after the mount")]
    #[test_case(Phase::Published, true => vec![Action::Keep(key())]; "plain restart")]
    #[test_case(Phase::Published, false => vec![Action::Discard(key())]; "reboot")]
    #[test_case(Phase::Unpublishing, true => vec![Action::Discard(key())]; "crash before unmount")]
    #[test_case(Phase::Unpublishing, false => vec![Action::Discard(key())]; "crash after unmount")]
    fn entries(phase: Phase, mounted: bool) -> Vec<Action> {
        let entries = HashMap::from([(key(), (phase, mounted))]);
        let directories = HashSet::from([(Medium::Memory, key())]);
        plan(&Found { entries, directories, shown: HashSet::new() })
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
