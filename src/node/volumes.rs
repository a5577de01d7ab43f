//! The state of every target path, and the only ways from one state to the next.
//!
//! ```text
//!            begin                 mounted
//!  (none) ----------> Preparing ------------> Published
//!    ^                   | failed, forgotten      |
//!    |<------------------+                        |
//!    |                   | unpublish              | unpublish
//!    |                   v                        v
//!    +-------------- Unpublishing <---------------+
//! ```
//!
//! One mutex guards all states and is never held across an await or a system call. What mounts,
//! unmounts or removes at a target holds that target's [`Volumes::lock`] and looks at the state
//! again once it has it: a call may have waited behind another that changed everything. What a
//! namespace uses is counted under it too (`quota`); claims have locks of their own, taken after it.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::{
    preparation::Preparation,
    published::Published,
    quota::{Claim, Claims, Coming, OverLimit, Share},
    registry::VolumeKey,
};
use crate::{config::NamespaceLimits, volume::ViewKind};

/// Where a target path stands.
#[derive(Debug, Clone)]
pub(super) enum State {
    Preparing(Arc<Preparation>),
    Published(Arc<Published>),
    Unpublishing {
        /// How many unpublishes are under way.
        calls: usize,
        /// What was published before the first of them.
        before: Option<Arc<Published>>,
    },
}

/// The outcome of [`Volumes::begin`].
#[derive(Debug)]
pub(super) enum Begun {
    /// The path had no state; the caller now runs this preparation.
    New(Arc<Preparation>),
    /// Another call was faster.
    Existing(State),
    /// The path lies below or above the target of another volume, this one.
    Nested(PathBuf),
}

/// How many volumes there are.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) volumes: usize,
    /// Those of them whose last refresh failed.
    pub(super) failing: usize,
}

/// All target paths of the node.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    states: Mutex<HashMap<VolumeKey, State>>,
    locks: Mutex<HashMap<VolumeKey, Weak<tokio::sync::Mutex<()>>>>,
}

/// The right to change what is mounted at one target.
pub(super) type TargetLock = OwnedMutexGuard<()>;

impl State {
    /// The target path; unknown while what was never published is unpublished.
    fn target(&self) -> Option<&Path> {
        match self {
            Self::Preparing(preparation) => Some(&preparation.target),
            Self::Published(published) => Some(&published.target),
            Self::Unpublishing { before, .. } => before.as_ref().map(|it| it.target.as_path()),
        }
    }
}

impl Volumes {
    /// Waits for the right to change what is mounted at a target.
    pub(super) async fn lock(&self, key: &VolumeKey) -> TargetLock {
        let lock = {
            let mut locks = self.locks.lock();
            if locks.len() == locks.capacity() {
                locks.retain(|_, lock| lock.strong_count() > 0);
            }
            let known = locks.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(key.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    pub(super) fn get(&self, key: &VolumeKey) -> Option<State> {
        self.states.lock().get(key).cloned()
    }

    /// Enters `preparation`, if the path has no state, no other volume would be mounted over or be a
    /// part of it, and the limits leave room for one more volume of its namespace.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn begin(
        &self,
        key: &VolumeKey,
        limits: &NamespaceLimits,
        preparation: Preparation,
    ) -> Result<Begun, OverLimit> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(key) {
            return Ok(Begun::Existing(state.clone()));
        }
        let target = &preparation.target;
        let mut others = states.values().filter_map(State::target);
        if let Some(other) = others.find(|it| is_within(it, target) || is_within(target, it)) {
            return Ok(Begun::Nested(other.to_owned()));
        }
        let preparation = Arc::new(preparation);
        claims(&states, limits).admit(&preparation.claim)?;
        states.insert(key.clone(), State::Preparing(Arc::clone(&preparation)));
        Ok(Begun::New(preparation))
    }

    /// Lets a volume that is being published hold `share`.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn take(
        &self,
        claim: &Arc<Claim>,
        share: Share,
        limits: &NamespaceLimits,
    ) -> Result<(), OverLimit> {
        claims(&self.states.lock(), limits).take(claim, share)
    }

    /// Lets a volume hold `share` beside what it shows.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn grow(
        &self,
        claim: &Arc<Claim>,
        share: Share,
        limits: &NamespaceLimits,
    ) -> Result<Coming, OverLimit> {
        claims(&self.states.lock(), limits).grow(claim, share)
    }

    /// Takes a failed or forgotten preparation out, if it still is the path's state.
    pub(super) fn end(&self, key: &VolumeKey, preparation: &Arc<Preparation>) -> bool {
        let mut states = self.states.lock();
        let same = is_preparing(states.get(key), preparation);
        if same {
            states.remove(key);
        }
        same
    }

    pub(super) fn is_preparing(&self, key: &VolumeKey, preparation: &Arc<Preparation>) -> bool {
        is_preparing(self.states.lock().get(key), preparation)
    }

    /// From Preparing to Published; false if an unpublish came first.
    pub(super) fn mounted(
        &self,
        key: &VolumeKey,
        preparation: &Arc<Preparation>,
        published: &Arc<Published>,
    ) -> bool {
        let mut states = self.states.lock();
        let same = is_preparing(states.get(key), preparation);
        if same {
            states.insert(key.clone(), State::Published(Arc::clone(published)));
        }
        same
    }

    /// Enters a volume that is mounted already (found at start, or at its republish), if the path
    /// has no state.
    pub(super) fn adopt(&self, key: VolumeKey, published: Published) {
        if let Entry::Vacant(vacant) = self.states.lock().entry(key) {
            vacant.insert(State::Published(Arc::new(published)));
        }
    }

    pub(super) fn is_published(&self, key: &VolumeKey, published: &Arc<Published>) -> bool {
        let current = self.states.lock();
        matches!(current.get(key), Some(State::Published(now)) if Arc::ptr_eq(now, published))
    }

    /// Forgets a published volume whose files are gone.
    pub(super) fn forget(&self, key: &VolumeKey, published: &Arc<Published>) {
        if self.is_published(key, published) {
            self.states.lock().remove(key);
        }
    }

    /// To Unpublishing, from anywhere, until the guard is dropped; publishes are refused meanwhile.
    pub(super) fn unpublish(&self, key: &VolumeKey) -> Unpublishing<'_> {
        let mut states = self.states.lock();
        let previous = states.remove(key);
        let (calls, before, preparation) = match previous {
            None => (0, None, None),
            Some(State::Preparing(preparation)) => (0, None, Some(preparation)),
            Some(State::Published(published)) => (0, Some(published), None),
            Some(State::Unpublishing { calls, before }) => (calls, before, None),
        };
        let state = State::Unpublishing { calls: calls + 1, before: before.clone() };
        states.insert(key.clone(), state);
        Unpublishing { volumes: self, key: key.clone(), before, preparation, done: false }
    }

    /// Counts the published volumes of one view.
    pub(super) fn tally(&self, view: ViewKind) -> Tally {
        let mut tally = Tally::default();
        for state in self.states.lock().values() {
            if let State::Published(published) = state
                && published.view == view
            {
                tally.volumes += 1;
                tally.failing += usize::from(published.is_failing());
            }
        }
        tally
    }

    /// All published volumes.
    pub(super) fn published(&self) -> Vec<(VolumeKey, Arc<Published>)> {
        let states = self.states.lock();
        let published = |(key, state): (&VolumeKey, &State)| match state {
            State::Published(published) => Some((key.clone(), Arc::clone(published))),
            State::Preparing(_) | State::Unpublishing { .. } => None,
        };
        states.iter().filter_map(published).collect()
    }
}

/// One unpublish under way. Dropped, the path has no state again, or, if it failed, the one that it
/// had, so that the kubelet's next try finds it.
#[derive(Debug)]
pub(super) struct Unpublishing<'a> {
    volumes: &'a Volumes,
    key: VolumeKey,
    pub(super) before: Option<Arc<Published>>,
    pub(super) preparation: Option<Arc<Preparation>>,
    pub(super) done: bool,
}

impl Drop for Unpublishing<'_> {
    fn drop(&mut self) {
        let mut states = self.volumes.states.lock();
        let Some(State::Unpublishing { calls, before }) = states.get_mut(&self.key) else { return };
        *calls -= 1;
        if self.done {
            *before = None;
        }
        if *calls > 0 {
            return;
        }
        match before.take() {
            Some(published) => {
                drop(states.insert(self.key.clone(), State::Published(published)));
            }
            None => drop(states.remove(&self.key)),
        }
    }
}

/// What volumes count for; one that is being unpublished does so until it is gone.
fn claims<'a>(states: &'a HashMap<VolumeKey, State>, limits: &'a NamespaceLimits) -> Claims<'a> {
    let claim = |state: &'a State| match state {
        State::Preparing(preparation) => Some(&preparation.claim),
        State::Published(published) => Some(&published.claim),
        State::Unpublishing { before, .. } => before.as_ref().map(|it| &it.claim),
    };
    Claims::new(states.values().filter_map(claim), limits)
}

/// Whether a path is the other one or lies below it. Both are in normal form, so their bytes tell:
/// this is asked of every volume of the node at every publish.
fn is_within(path: &Path, other: &Path) -> bool {
    let [path, other] = [path, other].map(|path| path.as_os_str().as_encoded_bytes());
    let other = other.strip_suffix(b"/").unwrap_or(other);
    path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn is_preparing(state: Option<&State>, preparation: &Arc<Preparation>) -> bool {
    matches!(state, Some(State::Preparing(current)) if Arc::ptr_eq(current, preparation))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("/k/pods/1/mount", "/k/pods/1/mount", true; "itself")]
    #[test_case("/k/pods/1/mount/in", "/k/pods/1/mount", true; "below")]
    #[test_case("/k/pods/1/mount", "/k/pods/1/mount/", true; "itself with a slash")]
    #[test_case("/k/pods/1/mount/in", "/k/pods/1/mount/", true; "below one with a slash")]
    #[test_case("/k/pods/1/mount/", "/k/pods/1/mount", true; "with a slash itself")]
    #[test_case("/k/pods/1/mount", "/k/pods/1/mount/in", false; "above")]
    #[test_case("/k/pods/1/mount-2", "/k/pods/1/mount", false; "a longer name")]
    #[test_case("/k/pods/1/mount", "/k/pods/2/mount", false; "beside")]
    fn paths(path: &str, other: &str, within: bool) {
        assert_eq!(is_within(Path::new(path), Path::new(other)), within);
    }
}
