//! Refresh: volumes follow what S3 has.
//!
//! Volumes that resolve to the same listing for the same principal are a *group*: it has one timer,
//! with the shortest interval of its volumes, and each listing serves all of them. A listing is
//! compared with what a volume shows; only what changed is fetched, the revision is completed out of
//! sight, and then swapped in. Whatever fails leaves the volume as it is, and tells: in the log once
//! for each reason, in a metric, and in the volume condition.
//!
//! New credentials are a *trial*: the volume joins the group of the new principal and stays in its
//! old one. With the first refresh that succeeds (which proves the right to read each object:
//! nothing is shown that the new principal may not read) it leaves the old one; if S3 refuses, the
//! new one. A trial that merely cannot be made now stays on.
//!
//! So a volume may be in several groups for a while, and what they do for it may overlap. Three
//! things keep that in order. One refresh of a volume decides and acts at a time. It never goes back
//! to a listing that was asked for earlier. And a membership that has ended changes nothing any
//! more, which is looked at under the lock that unpublish takes too.
//!
//! A group is a task that ends with its last volume. Locks: `groups`, then a group's `members`;
//! neither is held across an await.

mod group;
mod show;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::group::Group;
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
    memberships: AtomicU64,
}

/// A listing and when it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) asked_at: Instant,
    pub(super) listing: Arc<Listing>,
}

/// A volume's membership in a group.
#[derive(Debug, Clone)]
pub(super) struct Member {
    key: VolumeKey,
    published: Arc<Published>,
    recipe: Arc<Recipe>,
    /// Whether it waits for its first listing in this group.
    is_new: bool,
    /// A later membership has a larger one.
    number: u64,
    /// Cancelled when it ends: what is under way for it stops, and changes nothing any more.
    ended: CancellationToken,
}

impl Member {
    fn interval(&self) -> Duration {
        published::interval(&self.recipe)
    }

    /// Whether the volume has another way to S3, which works.
    fn is_trial(&self) -> bool {
        let known = self.published.recipe();
        known.is_some_and(|known| known.access() != self.recipe.access())
    }

    /// Whether a success is all that is wanted: the volume does not follow further changes.
    fn wants_one_success(&self) -> bool {
        self.recipe.spec.refresh == Refresh::Never
    }

    /// Whether both are of one volume, which was not unpublished between them.
    fn is_of(&self, published: &Arc<Published>) -> bool {
        Arc::ptr_eq(&self.published, published)
    }
}

impl Refresher {
    /// Ends the memberships of a volume, but for the one in the group of `kept`.
    pub(super) fn withdraw(&self, published: &Arc<Published>, kept: Option<&ListingKey>) {
        for (asked, group) in &*self.groups.lock() {
            if Some(asked) != kept {
                group.remove_if(|member| member.is_of(published));
            }
        }
    }

    /// Ends the memberships of a volume that are older than this one.
    fn withdraw_before(&self, member: &Member) {
        for group in self.groups.lock().values() {
            group.remove_if(|it| it.is_of(&member.published) && it.number < member.number);
        }
    }

    /// Whether the volume is in the group of `asked`.
    pub(super) fn has(&self, asked: &ListingKey, published: &Arc<Published>) -> bool {
        self.groups.lock().get(asked).is_some_and(|group| group.has(published))
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
    /// Lets a volume follow its sources: from what it shows on (a listing that was asked for at that
    /// moment), or from a listing that is asked for now. A volume that was unpublished meanwhile
    /// does not.
    pub(super) fn follow(
        &self,
        key: VolumeKey,
        published: Arc<Published>,
        recipe: Arc<Recipe>,
        shown: Option<Current>,
    ) {
        let asked = recipe.listing_key();
        let refresher = &self.0.refresher;
        let mut groups = refresher.groups.lock();
        // An unpublish says so first and withdraws then, under the lock that is held here.
        if published.ended.is_cancelled() {
            return;
        }
        let number = refresher.memberships.fetch_add(1, Ordering::Relaxed);
        let (is_new, ended) = (shown.is_none(), CancellationToken::new());
        let member = Member { key, published, recipe, is_new, number, ended };
        if let Some(group) = groups.get(&asked) {
            return group.insert(member);
        }
        let group = Arc::new(Group::new(asked.clone()));
        group.insert(member);
        groups.insert(asked, Arc::clone(&group));
        drop(groups);
        let node = self.clone();
        self.0.tasks.spawn(async move { node.run_group(&group, shown).await });
    }
}
