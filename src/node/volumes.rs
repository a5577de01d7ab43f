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
//! One lock guards all states and is never held across an await or a system call.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    preparation::Preparation,
    registry::{self, VolumeKey},
};
use crate::source::s3::S3Source;

/// A volume whose target is mounted.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) entry: registry::Entry,
    /// Held while the mount is made again.
    pub(super) mounting: Arc<tokio::sync::Mutex<()>>,
    /// The last working way to S3; none after a restart. Held so that pods of one principal share
    /// one client and its connections.
    #[expect(dead_code, reason = "held, not read, until volumes refresh")]
    pub(super) source: Option<S3Source>,
}

/// Where a target path stands.
#[derive(Debug, Clone)]
pub(super) enum State {
    Preparing(Arc<Preparation>),
    Published(Arc<Published>),
    /// The lock is held by the unpublish that is under way.
    Unpublishing(Arc<tokio::sync::Mutex<()>>),
}

/// All target paths of the node.
#[derive(Debug, Default)]
pub(super) struct Volumes(Mutex<HashMap<VolumeKey, State>>);

impl Volumes {
    pub(super) fn get(&self, key: &VolumeKey) -> Option<State> {
        self.0.lock().get(key).cloned()
    }

    /// The state of the path, after entering `preparation` if there was none.
    pub(super) fn begin(&self, key: &VolumeKey, preparation: &Arc<Preparation>) -> State {
        let mut states = self.0.lock();
        let fresh = || State::Preparing(Arc::clone(preparation));
        states.entry(key.clone()).or_insert_with(fresh).clone()
    }

    /// Takes a finished or failed preparation out, if it still is the path's state.
    pub(super) fn end(&self, key: &VolumeKey, preparation: &Arc<Preparation>) -> bool {
        let mut states = self.0.lock();
        let same = is_preparing(states.get(key), preparation);
        if same {
            states.remove(key);
        }
        same
    }

    pub(super) fn is_preparing(&self, key: &VolumeKey, preparation: &Arc<Preparation>) -> bool {
        is_preparing(self.0.lock().get(key), preparation)
    }

    /// From Preparing to Published; false if an unpublish came first.
    pub(super) fn mounted(
        &self,
        key: &VolumeKey,
        preparation: &Arc<Preparation>,
        published: Published,
    ) -> bool {
        let mut states = self.0.lock();
        let same = is_preparing(states.get(key), preparation);
        if same {
            states.insert(key.clone(), State::Published(Arc::new(published)));
        }
        same
    }

    /// Enters a volume that is mounted already (found at start, or at its republish); false if
    /// the path has a state.
    pub(super) fn adopt(&self, key: VolumeKey, published: Published) -> bool {
        match self.0.lock().entry(key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(State::Published(Arc::new(published)));
                true
            }
        }
    }

    /// To Unpublishing, from anywhere; returns what was there and the lock to hold.
    pub(super) fn unpublish(
        &self,
        key: &VolumeKey,
    ) -> (Option<State>, Arc<tokio::sync::Mutex<()>>) {
        let mut states = self.0.lock();
        let before = states.get(key).cloned();
        let lock = match &before {
            Some(State::Unpublishing(lock)) => Arc::clone(lock),
            _ => Arc::default(),
        };
        states.insert(key.clone(), State::Unpublishing(Arc::clone(&lock)));
        (before, lock)
    }

    /// Puts a volume back whose unpublish failed, so that the kubelet's next try finds it.
    pub(super) fn restore(&self, key: &VolumeKey, published: Option<Arc<Published>>) {
        let mut states = self.0.lock();
        match published {
            Some(published) => drop(states.insert(key.clone(), State::Published(published))),
            None => drop(states.remove(key)),
        }
    }

    /// How many volumes of each kind `label` names are published.
    pub(super) fn count(&self, wanted: impl Fn(&registry::Entry) -> bool) -> usize {
        let states = self.0.lock();
        let published = |state: &&State| match state {
            State::Published(published) => wanted(&published.entry),
            State::Preparing(_) | State::Unpublishing(_) => false,
        };
        states.values().filter(published).count()
    }
}

fn is_preparing(state: Option<&State>, preparation: &Arc<Preparation>) -> bool {
    matches!(state, Some(State::Preparing(current)) if Arc::ptr_eq(current, preparation))
}
