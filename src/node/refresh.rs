//! Refresh: volumes follow what S3 has.
//!
//! Volumes that resolve to the same listing for the same principal are a *group*: it has one timer,
//! with the shortest interval of its volumes, and each listing serves all of them. A listing is
//! compared with what a volume shows; only what changed is fetched, the revision is completed out of
//! sight, and then swapped in. Whatever fails leaves the volume as it is, and tells: in the log once
//! for each reason, in a metric, and in the volume condition.
//!
//! New credentials are a *trial*: the volume joins the group of the new principal and stays in its
//! old one. With the first refresh that succeeds (which fetches or compares everything anew: nothing
//! is shown that the new principal may not read) it leaves the old one; if S3 refuses, the new one.
//!
//! A group is a task that ends with its last volume. Locks: `groups`, then a group's `members`;
//! neither is held across an await.

mod group;
mod show;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::group::{Current, Group};
use super::{
    Node,
    published::{self, Published},
    registry::VolumeKey,
    revision::Recipe,
};
use crate::{fetch::ListingKey, listing::Listing, units::Refresh};

/// The groups of the node.
#[derive(Debug, Default)]
pub(super) struct Refresher {
    groups: Mutex<HashMap<ListingKey, Arc<Group>>>,
}

/// A volume in a group.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) key: VolumeKey,
    pub(super) published: Arc<Published>,
    pub(super) recipe: Arc<Recipe>,
    /// Whether nothing says yet that this principal may read what is shown.
    pub(super) is_trial: bool,
    /// Whether it waits for its first listing in this group.
    pub(super) is_new: bool,
}

impl Member {
    fn interval(&self) -> Duration {
        published::interval(&self.recipe)
    }

    /// Whether a success is all that is wanted: the volume does not follow further changes.
    fn wants_one_success(&self) -> bool {
        self.recipe.spec.refresh == Refresh::Never
    }
}

impl Refresher {
    /// Ends the refresh of a volume, but for the group of `kept`.
    pub(super) fn withdraw(&self, key: &VolumeKey, kept: Option<&ListingKey>) {
        for (group_key, group) in &*self.groups.lock() {
            if Some(group_key) != kept {
                group.remove(key);
            }
        }
    }

    /// Whether the volume is in the group of `asked`.
    pub(super) fn has(&self, asked: &ListingKey, key: &VolumeKey) -> bool {
        self.groups.lock().get(asked).is_some_and(|group| group.has(key))
    }

    /// Adds a member to its group; a group to run if it is the first.
    fn add(&self, member: Member, listing: Option<Current>) -> Option<Arc<Group>> {
        let asked = member.recipe.listing_key();
        let mut groups = self.groups.lock();
        if let Some(group) = groups.get(&asked) {
            group.insert(member);
            return None;
        }
        let group = Arc::new(Group::new(asked.clone(), listing));
        group.insert(member);
        groups.insert(asked, Arc::clone(&group));
        Some(group)
    }

    /// Removes a group if it is empty.
    fn close(&self, group: &Group) -> bool {
        let mut groups = self.groups.lock();
        let empty = group.is_empty();
        if empty {
            groups.remove(group.key());
        }
        empty
    }
}

impl Node {
    /// Lets a volume follow its sources, from `listing` on (asked for at that moment), or from a
    /// listing that is asked for now.
    pub(super) fn follow(&self, member: Member, listing: Option<(Instant, Arc<Listing>)>) {
        let current = listing.map(|(asked_at, listing)| Current { asked_at, listing });
        if let Some(group) = self.0.refresher.add(member, current) {
            let node = self.clone();
            self.0.tasks.spawn(async move { node.run_group(&group).await });
        }
    }
}
