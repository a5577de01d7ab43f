//! One group: its members, its timer, and the listing that they share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{Member, show::Outcome};
use crate::{
    failure::{FailureKind, full_message},
    fetch::ListingKey,
    listing::Listing,
    node::{Node, NodeError, VolumeKey, pace::Pace, published::Published, revision},
};

/// How many volumes of a group are shown a new revision at a time: linking is system calls, and
/// there are no more threads for them than this many times a few.
const AT_ONCE: usize = 8;

/// A listing and when it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) asked_at: Instant,
    pub(super) listing: Arc<Listing>,
}

#[derive(Debug)]
pub(super) struct Group {
    key: ListingKey,
    members: Mutex<HashMap<VolumeKey, Member>>,
    /// What a publish had listed when it founded the group.
    first: Option<Current>,
    changed: Notify,
}

impl Group {
    pub(super) fn new(key: ListingKey, first: Option<Current>) -> Self {
        Self { key, members: Mutex::default(), first, changed: Notify::new() }
    }

    pub(super) fn key(&self) -> &ListingKey {
        &self.key
    }

    pub(super) fn insert(&self, member: Member) {
        self.members.lock().insert(member.key.clone(), member);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, key: &VolumeKey) {
        if self.members.lock().remove(key).is_some() {
            self.changed.notify_one();
        }
    }

    /// Takes a member out, if it is still the same.
    fn remove_this(&self, key: &VolumeKey, published: &Arc<Published>) {
        let mut members = self.members.lock();
        if members.get(key).is_some_and(|known| Arc::ptr_eq(&known.published, published)) {
            members.remove(key);
        }
    }

    pub(super) fn has(&self, key: &VolumeKey) -> bool {
        self.members.lock().contains_key(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.lock().is_empty()
    }

    /// The shortest interval; `None` without members. Who was unpublished is none: a republish that
    /// was under way may have brought it in once more.
    fn interval(&self) -> Option<Duration> {
        let mut members = self.members.lock();
        members.retain(|_, member| !member.published.ended.is_cancelled());
        members.values().map(Member::interval).min()
    }

    fn members(&self) -> Vec<Member> {
        self.members.lock().values().cloned().collect()
    }

    fn new_members(&self) -> Vec<Member> {
        self.members.lock().values().filter(|member| member.is_new).cloned().collect()
    }

    /// Notes that the member has been shown a listing, and whether it is on trial still.
    fn is_settled(&self, member: &Member) {
        if let Some(known) = self.members.lock().get_mut(&member.key)
            && Arc::ptr_eq(&known.published, &member.published)
        {
            (known.is_new, known.is_trial) = (false, false);
        }
    }

    fn is_not_new(&self, member: &Member) {
        if let Some(known) = self.members.lock().get_mut(&member.key) {
            known.is_new = false;
        }
    }
}

/// What the task of a group knows between two turns.
struct Course {
    pace: Pace,
    current: Option<Current>,
}

impl Course {
    /// A group that has no listing is due at once.
    fn new(first: Option<Current>) -> Self {
        let now = Instant::now();
        let mut pace = Pace::since(first.as_ref().map_or(now, |current| current.asked_at));
        if first.is_none() {
            pace.not_after(now);
        }
        Self { pace, current: first }
    }

    /// The listing, if it is young enough to be shown to who comes new.
    fn young(&self, interval: Duration) -> Option<Arc<Listing>> {
        let current = self.current.as_ref()?;
        (current.asked_at.elapsed() < interval).then(|| Arc::clone(&current.listing))
    }

    /// Takes in a new listing; an equal one that is known already is kept instead, so that all
    /// volumes hold the same one.
    fn take(&mut self, asked_at: Instant, listing: Arc<Listing>) -> Arc<Listing> {
        let known = self.current.take().map(|current| current.listing);
        let listing = known.filter(|known| is_same(known, &listing)).unwrap_or(listing);
        self.current = Some(Current { asked_at, listing: Arc::clone(&listing) });
        listing
    }
}

fn is_same(known: &Listing, new: &Listing) -> bool {
    known.skipped() == new.skipped() && new.changes_from(known).is_empty()
}

impl Node {
    /// Runs a group until it is empty or the plugin ends.
    pub(super) async fn run_group(&self, group: &Group) {
        let stop = self.0.tasks.token();
        let mut course = Course::new(group.first.clone());
        loop {
            let Some(interval) = group.interval() else {
                if self.0.refresher.close(group) {
                    return;
                }
                continue;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = group.changed.notified() => {}
                () = sleep_until(course.pace.due(interval)) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.turn(group, &mut course) => self.0.count_volumes(),
            }
        }
    }

    /// Does what is due.
    async fn turn(&self, group: &Group, course: &mut Course) {
        let Some(interval) = group.interval() else { return };
        let new = group.new_members();
        let is_due = course.pace.due(interval) <= Instant::now();
        match course.young(interval) {
            _ if is_due => self.refresh(group, course).await,
            _ if new.is_empty() => {}
            Some(listing) => drop(self.show_all(group, course, new, &listing).await),
            None => self.refresh(group, course).await,
        }
    }

    /// Lists, and shows what is new to all members; again if an object changed meanwhile.
    async fn refresh(&self, group: &Group, course: &mut Course) {
        for attempt in 0..=revision::RELISTS {
            let Some(member) = group.members().into_iter().next() else { return };
            let asked_at = Instant::now();
            let resolved = self.0.fetcher.resolve(&member.recipe.source, &member.recipe.spec).await;
            let stale = match resolved {
                Ok(listing) => {
                    course.pace.succeeded(asked_at);
                    let listing = course.take(asked_at, listing);
                    self.show_all(group, course, group.members(), &listing).await
                }
                Err(error) => {
                    course.pace.failed(Instant::now());
                    let error = NodeError::from(error);
                    for member in group.members() {
                        self.fail(group, &member, &error);
                    }
                    return;
                }
            };
            if !stale || attempt == revision::RELISTS {
                return;
            }
            sleep(revision::pause_before(attempt)).await;
        }
    }

    /// Shows a listing to these members; true if an object is not what was listed any more.
    async fn show_all(
        &self,
        group: &Group,
        course: &mut Course,
        members: Vec<Member>,
        listing: &Arc<Listing>,
    ) -> bool {
        let outcomes: Vec<_> = stream::iter(members)
            .map(|member| async move {
                let outcome = self.show(&member, listing).await;
                (member, outcome)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut stale = false;
        for (member, outcome) in outcomes {
            let kind = outcome.as_ref().err().map(NodeError::kind);
            stale |= kind == Some(FailureKind::Stale);
            match outcome {
                Ok(Outcome::Settling(wait)) => {
                    group.is_not_new(&member);
                    course.pace.not_after(Instant::now() + wait);
                }
                Ok(outcome) => self.succeed(group, &member, outcome),
                // It is unpublished.
                Err(_) if kind == Some(FailureKind::Cancelled) => {
                    group.remove_this(&member.key, &member.published);
                }
                Err(error) => self.fail(group, &member, &error),
            }
        }
        stale
    }

    fn succeed(&self, group: &Group, member: &Member, outcome: Outcome) {
        self.0.metrics.refreshes.with_label_values(&[outcome.as_str()]).inc();
        if member.wants_one_success() {
            group.remove_this(&member.key, &member.published);
        } else {
            group.is_settled(member);
        }
        if member.is_trial {
            self.0.refresher.withdraw(&member.key, Some(group.key()));
        }
    }

    /// Notes a failure. A trial that S3 refuses ends, if the volume has another way to S3.
    fn fail(&self, group: &Group, member: &Member, error: &NodeError) {
        let reason = full_message(error);
        let Member { key, published, recipe, .. } = member;
        self.0.metrics.refreshes.with_label_values(&["failed"]).inc();
        group.is_not_new(member);
        if member.is_trial && published.recipe().is_some() {
            published.reject(recipe.access(), &reason);
            group.remove_this(key, published);
            tracing::warn!(volume.id = published.arguments.volume_id(), %reason, "new credentials are not used");
            return;
        }
        if published.failed(reason.clone()) {
            let volume_id = published.arguments.volume_id();
            tracing::warn!(volume.id = volume_id, %reason, "a refresh failed; the revision stays");
        }
    }
}
