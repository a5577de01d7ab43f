//! One group: its members, its timer, and the listing that they share.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use super::{Current, Member, show::Outcome};
use crate::{
    failure::{FailureKind, full_message},
    fetch::ListingKey,
    listing::Listing,
    node::{
        Node, NodeError, VolumeKey,
        identity::check_grants,
        pace::Pace,
        published::Published,
        revision::{self, Recipe},
    },
    task::for_count,
};

/// How many volumes of a group are shown a new revision at a time: linking is system calls, and
/// there are no more threads for them than this many times a few.
const AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Group {
    key: ListingKey,
    members: Mutex<HashMap<VolumeKey, Member>>,
    changed: Notify,
    /// Told when the last member leaves.
    vacated: Notify,
}

impl Group {
    pub(super) fn new(key: ListingKey) -> Self {
        let (changed, vacated) = (Notify::new(), Notify::new());
        Self { key, members: Mutex::default(), changed, vacated }
    }

    pub(super) fn key(&self) -> &ListingKey {
        &self.key
    }

    pub(super) fn insert(&self, member: Member) {
        if let Some(earlier) = self.members.lock().insert(member.key.clone(), member) {
            earlier.ended.cancel();
        }
        self.changed.notify_one();
    }

    /// Ends memberships.
    pub(super) fn remove_if(&self, goes: impl Fn(&Member) -> bool) {
        let mut members = self.members.lock();
        members.retain(|_, member| {
            let stays = !goes(member);
            if !stays {
                member.ended.cancel();
                self.changed.notify_one();
            }
            stays
        });
        if members.is_empty() {
            self.vacated.notify_one();
        }
    }

    /// Waits until there is no member: whatever is under way for them is for nobody then.
    async fn vacated(&self) {
        while !self.is_empty() {
            self.vacated.notified().await;
        }
    }

    fn remove(&self, member: &Member) {
        self.remove_if(|it| it.number == member.number);
    }

    pub(super) fn has(&self, published: &Arc<Published>) -> bool {
        self.members.lock().values().any(|member| member.is_of(published))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.lock().is_empty()
    }

    /// The shortest interval; `None` without members.
    fn interval(&self) -> Option<Duration> {
        self.members.lock().values().map(Member::interval).min()
    }

    fn members(&self) -> Vec<Member> {
        self.members.lock().values().cloned().collect()
    }

    fn new_members(&self) -> Vec<Member> {
        self.members.lock().values().filter(|member| member.is_new).cloned().collect()
    }

    /// Notes that a listing was offered to the member.
    fn is_not_new(&self, member: &Member) {
        if let Some(known) = self.members.lock().get_mut(&member.key)
            && known.number == member.number
        {
            known.is_new = false;
        }
    }
}

/// How many entries a listing may have that is kept for who comes new, and to hold one for all. Views
/// that show more do not keep it either.
const KEPT: usize = 100_000;

/// What the task of a group knows between two turns.
struct Course {
    pace: Pace,
    current: Option<Current>,
    /// Why the last listing failed, if it did.
    failed: Option<NodeError>,
}

impl Course {
    /// A group that has no listing is due at once.
    fn new(first: Option<Current>) -> Self {
        let now = Instant::now();
        let mut pace = Pace::since(first.as_ref().map_or(now, |current| current.asked_at));
        if first.is_none() {
            pace.not_after(now);
        }
        Self { pace, current: first.filter(is_kept), failed: None }
    }

    /// The listing, if it is young enough to be shown to who comes new, and takes none of them back
    /// to what was before.
    fn young(&self, interval: Duration, new: &[Member]) -> Option<Current> {
        let current = self.current.as_ref()?;
        let is_older = |member: &Member| member.published.is_ahead_of(current.asked_at);
        let is_young = current.asked_at.elapsed() < interval && !new.iter().any(is_older);
        is_young.then(|| current.clone())
    }

    /// Takes in a new listing; an equal one that is known already is kept instead, so that all
    /// volumes hold the same one.
    async fn take(&mut self, asked_at: Instant, listing: Arc<Listing>) -> Current {
        self.pace.succeeded(asked_at);
        self.failed = None;
        let known = self.current.take().map(|current| current.listing);
        let listing = match known {
            None => listing,
            Some(known) => {
                let size = listing.len();
                let choose = move || if is_same(&known, &listing) { known } else { listing };
                for_count(size, choose).await
            }
        };
        let current = Current { asked_at, listing };
        self.current = Some(current.clone()).filter(is_kept);
        current
    }
}

fn is_kept(current: &Current) -> bool {
    current.listing.len() <= KEPT
}

fn is_same(known: &Listing, new: &Listing) -> bool {
    known.skipped() == new.skipped() && new.changes_from(known).is_empty()
}

impl Node {
    /// Runs a group until it is empty or the plugin ends.
    pub(super) async fn run_group(&self, group: &Group, first: Option<Current>) {
        let stop = self.0.tasks.token();
        let mut course = Course::new(first);
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
            // A defect of ours must not end the refresh of all these volumes in silence.
            let turn = AssertUnwindSafe(self.turn(group, &mut course)).catch_unwind();
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = group.vacated() => continue,
                ended = turn => ended,
            };
            if ended.is_err() {
                self.fail_all(group, &mut course, group.members(), NodeError::Panicked);
            }
            self.0.count_volumes();
        }
    }

    /// Does what is due.
    async fn turn(&self, group: &Group, course: &mut Course) {
        let Some(interval) = group.interval() else { return };
        let new = group.new_members();
        if course.pace.due(interval) <= Instant::now() {
            return self.refresh(group, course).await;
        }
        if new.is_empty() {
            return;
        }
        if let Some(error) = &course.failed {
            // Who comes new waits as long as all others.
            return new.iter().for_each(|member| self.fail(group, member, error));
        }
        match course.young(interval, &new) {
            Some(current) => drop(self.show_all(group, course, new, &current).await),
            None => self.refresh(group, course).await,
        }
    }

    /// Lists, and shows what is new to all members; again if an object changed meanwhile.
    async fn refresh(&self, group: &Group, course: &mut Course) {
        for attempt in 0..=revision::RELISTS {
            // One asks for all: whoever the policy lets.
            let config = self.0.config();
            let asker = |member: &Member| check_grants(&config, &member.recipe);
            let members = group.members().into_iter();
            let Some(member) = members.max_by_key(|it| asker(it).is_ok()) else { return };
            let asked_at = Instant::now();
            let Recipe { source, spec, .. } = &*member.recipe;
            let resolved = match asker(&member) {
                Ok(()) => self.0.fetcher.resolve(source, spec).await.map_err(NodeError::from),
                Err(error) => Err(error),
            };
            let current = match resolved {
                Ok(listing) => course.take(asked_at, listing).await,
                Err(error) => {
                    return self.fail_all(group, course, group.members(), error);
                }
            };
            let stale = self.show_all(group, course, group.members(), &current).await;
            let Some((_, error)) = stale.first() else { return };
            if attempt == revision::RELISTS {
                return stale.iter().for_each(|(member, error)| self.fail(group, member, error));
            }
            tracing::debug!(%error, attempt, "an object changed; listing again");
            sleep(revision::pause_before(attempt)).await;
        }
    }

    /// Shows a listing to these members; gives back those for which an object is not what was
    /// listed any more.
    async fn show_all(
        &self,
        group: &Group,
        course: &mut Course,
        members: Vec<Member>,
        current: &Current,
    ) -> Vec<(Member, NodeError)> {
        let mut shown = stream::iter(members)
            .map(|member| async move {
                let outcome = self.show(&member, current).await;
                (member, outcome)
            })
            .buffer_unordered(AT_ONCE);
        let mut stale = Vec::new();
        while let Some((member, outcome)) = shown.next().await {
            let kind = outcome.as_ref().err().map(NodeError::kind);
            match outcome {
                Ok(Outcome::Changed) => self.succeed(group, &member, "changed"),
                Ok(Outcome::Unchanged) => self.succeed(group, &member, "unchanged"),
                Ok(Outcome::Settling(wait)) => {
                    group.is_not_new(&member);
                    course.pace.not_after(Instant::now() + wait);
                }
                // It shows a newer listing, by its publish or by another group.
                Ok(Outcome::Overtaken) => {}
                Err(error) if kind == Some(FailureKind::Stale) => stale.push((member, error)),
                // It left the group, or is unpublished.
                Err(_) if kind == Some(FailureKind::Cancelled) => group.remove(&member),
                Err(error) => self.fail(group, &member, &error),
            }
        }
        stale
    }

    fn succeed(&self, group: &Group, member: &Member, outcome: &str) {
        self.0.metrics.refreshes.with_label_values(&[outcome]).inc();
        self.0.refresher.withdraw_before(member);
        if member.wants_one_success() {
            group.remove(member);
        } else {
            group.is_not_new(member);
        }
    }

    /// Notes a listing that failed.
    fn fail_all(&self, group: &Group, course: &mut Course, members: Vec<Member>, error: NodeError) {
        course.pace.failed(Instant::now());
        for member in members {
            self.fail(group, &member, &error);
        }
        course.failed = Some(error);
    }

    /// Notes a failure. A trial that S3 refuses ends.
    fn fail(&self, group: &Group, member: &Member, error: &NodeError) {
        let reason = full_message(error);
        let Member { published, recipe, .. } = member;
        let volume_id = published.arguments.volume_id();
        self.0.metrics.refreshes.with_label_values(&["failed"]).inc();
        group.is_not_new(member);
        if is_refusal(error.kind()) {
            self.0.records.forget(recipe);
        }
        if !member.is_trial() {
            if published.failed(reason.clone()) {
                tracing::warn!(volume.id = volume_id, %reason, "a refresh failed; the revision stays");
            }
            return;
        }
        let is_refused = is_refusal(error.kind());
        published.note_trial(recipe.access(), reason.clone(), is_refused);
        if is_refused {
            group.remove(member);
            tracing::warn!(volume.id = volume_id, %reason, "new credentials are not used");
        }
    }
}

/// Whether S3 has answered, and will answer the same again.
fn is_refusal(kind: FailureKind) -> bool {
    match kind {
        FailureKind::Denied | FailureKind::Unauthenticated => true,
        FailureKind::Invalid
        | FailureKind::NotFound
        | FailureKind::Incompatible
        | FailureKind::Precondition
        | FailureKind::Busy
        | FailureKind::Exhausted
        | FailureKind::Unavailable
        | FailureKind::Stale
        | FailureKind::Corrupt
        | FailureKind::Deadline
        | FailureKind::Cancelled
        | FailureKind::Internal => false,
    }
}
