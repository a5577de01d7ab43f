//! Showing a listing in one volume that is published.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Current, Member};
use crate::{
    config::Config,
    listing::{self, Changes, Listing},
    node::{
        Context, Node, NodeError,
        identity::check_grants,
        published::Published,
        quota::Coming,
        registry::{Entry, VolumeKey},
        revision::{self, Need, Recipe, View},
        volumes::TargetLock,
    },
    relpath::RelPath,
    source::SealedPrincipal,
    store::{BlobId, Medium},
    task::{blocking, for_count},
    view::linkfarm::{Leases, LinkFarm, Replaced, Retired},
    volume::WhenUnavailable,
};

/// What a refresh of a volume came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A new revision is shown.
    Changed,
    /// It shows what S3 has.
    Unchanged,
    /// It will, when the listing has stood still for that much longer.
    Settling(Duration),
    /// It shows a newer listing already.
    Overtaken,
}

/// When S3 let the principal read all of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proven {
    /// By this refresh.
    Now,
    /// A part of it by this refresh, or nothing.
    Before,
}

/// What a listing would change, and what is needed for it.
struct Plan {
    changes: Changes,
    need: Need,
}

/// All that a new revision is made of.
struct Ready {
    changed: HashSet<RelPath>,
    /// What is linked; `None` where nothing has to be here.
    leases: Option<Leases>,
    proven: Proven,
    /// Counts for the namespace until the revision does.
    _coming: Coming,
}

impl Node {
    /// Brings one volume up to a listing; ends early with `Cancelled` when it leaves the group.
    pub(super) async fn show(
        &self,
        member: &Member,
        current: &Current,
    ) -> Result<Outcome, NodeError> {
        tokio::select! {
            biased;
            () = member.ended.cancelled() => Err(NodeError::Cancelled),
            outcome = self.show_in_turn(member, current) => outcome,
        }
    }

    async fn show_in_turn(&self, member: &Member, current: &Current) -> Result<Outcome, NodeError> {
        let published = &member.published;
        let _one_at_a_time = published.refreshing.lock().await;
        // The groups of old and of new credentials list each at their own time, and what comes
        // later may be the older.
        if published.is_ahead_of(current.asked_at) {
            return Ok(Outcome::Overtaken);
        }
        match self.show_now(member, current).await {
            // What was replaced makes room before anything is refused.
            Err(error) if error.wants_room() && self.make_room(published.medium).await => {
                self.show_now(member, current).await
            }
            outcome => outcome,
        }
    }

    async fn show_now(&self, member: &Member, current: &Current) -> Result<Outcome, NodeError> {
        let (Member { published, recipe, .. }, listing) = (member, &current.listing);
        let config = self.0.config();
        check_grants(&config, recipe)?;
        if published.fused.is_some() && member.wants_one_success() {
            // What it shows stays; S3 knows the credentials that it reads with from now on.
            published.hold(recipe, &self.0.seal(recipe));
            return Ok(Outcome::Unchanged);
        }
        let Plan { changes, need } = self.plan_refresh(member, listing).await?;
        if changes.is_empty() && need.is_nothing() {
            self.confirm(member, current, Proven::Before).await?;
            return Ok(Outcome::Unchanged);
        }
        if !changes.is_empty() {
            let wait = published.settling(listing, recipe.spec.settle);
            if !wait.is_zero() {
                return Ok(Outcome::Settling(wait));
            }
        }
        revision::check_size(listing, &recipe.spec)?;
        let View::LinkFarm(_) = recipe.view else {
            let coming = self.grow(&config, member, listing).await?;
            let (changed, proven) = (changes.files, Proven::Before);
            let ready = Ready { changed, leases: None, proven, _coming: coming };
            self.swap(member, current, ready).await?;
            return Ok(Outcome::Changed);
        };
        if changes.is_empty() {
            let _leases = revision::bring(&self.0, recipe, listing, need).await?;
            self.confirm(member, current, Proven::Now).await?;
            return Ok(Outcome::Unchanged);
        }
        let coming = self.grow(&config, member, listing).await?;
        let proven = if matches!(need, Need::All) { Proven::Now } else { Proven::Before };
        let leases = revision::bring(&self.0, recipe, listing, need).await?;
        let changed = changes.files;
        let ready = Ready { changed, leases: Some(leases), proven, _coming: coming };
        self.swap(member, current, ready).await?;
        Ok(Outcome::Changed)
    }

    /// Counts a listing for the volume's namespace, before anything of it is fetched.
    async fn grow(
        &self,
        config: &Config,
        member: &Member,
        listing: &Arc<Listing>,
    ) -> Result<Coming, NodeError> {
        let (recipe, counted) = (Arc::clone(&member.recipe), Arc::clone(listing));
        let share = for_count(listing.len(), move || recipe.share(&counted)).await;
        let claim = &member.published.claim;
        Ok(self.0.volumes.grow(claim, share, &config.limits.namespace)?)
    }

    /// Compares with what is shown: by the listing behind it, or, after a restart, by the files.
    ///
    /// What is unchanged needs nothing only if it was shown for this very principal.
    async fn plan_refresh(
        &self,
        member: &Member,
        listing: &Arc<Listing>,
    ) -> Result<Plan, NodeError> {
        let Member { published, recipe, .. } = member;
        if published.fused.is_some() {
            let (volume, new) = (Arc::clone(published), Arc::clone(listing));
            let shows = move || volume.fused.as_ref().is_none_or(|fused| fused.shows(&new));
            let names_differ = !for_count(listing.len(), shows).await;
            let changes = Changes { names_differ, ..Changes::default() };
            return Ok(Plan { changes, need: Need::Only(Arc::default()) });
        }
        if published.is_doubtful() {
            let files = listing.entries().map(|entry| entry.path).collect();
            let changes = Changes { files, names_differ: true };
            return Ok(Plan { changes, need: Need::All });
        }
        let changes = match published.listing() {
            Some(known) if Arc::ptr_eq(&known, listing) => Changes::default(),
            Some(known) => {
                let (new, count) = (Arc::clone(listing), listing.len());
                for_count(count, move || new.changes_from(&known)).await
            }
            None => {
                let (recipe, listing) = (Arc::clone(recipe), Arc::clone(listing));
                blocking(move || changes_on_disk(&recipe, &listing)).await?
            }
        };
        // What a record let start was proven long ago.
        let is_proven = published.principal() == Some(self.0.seal(recipe));
        let need = if is_proven && !published.is_fallback() {
            Need::Only(Arc::new(changes.files.clone()))
        } else {
            Need::All
        };
        Ok(Plan { changes, need })
    }

    /// Notes that the volume shows what S3 has, and removes replaced revisions whose time has come.
    async fn confirm(
        &self,
        member: &Member,
        current: &Current,
        proven: Proven,
    ) -> Result<(), NodeError> {
        let Member { key, published, recipe, ended, .. } = member;
        if ended.is_cancelled() {
            return Err(NodeError::Cancelled);
        }
        let record = published.confirm(recipe, current, self.0.seal(recipe));
        let retired = published.take_retired(false);
        let keeps = recipe.spec.when_unavailable == WhenUnavailable::Cached;
        if record.is_none() && retired.is_empty() && !keeps {
            return Ok(());
        }
        let lock = self.0.volumes.lock(key).await;
        if !self.0.volumes.is_published(key, published) {
            return Err(NodeError::Cancelled);
        }
        let (node, member, listing) = (self.clone(), member.clone(), Arc::clone(&current.listing));
        blocking(move || {
            let _lock: TargetLock = lock;
            node.0.write_record(record.as_ref());
            node.0.remove_retired(&member.published, retired);
            node.0.keep_for_later(&member.recipe, &listing, proven);
        })
        .await;
        Ok(())
    }

    /// Replaces the revision. Runs to its end even if the refresh is dropped meanwhile, and under
    /// the target's lock, so that an unpublish comes before or after it.
    async fn swap(
        &self,
        member: &Member,
        current: &Current,
        ready: Ready,
    ) -> Result<(), NodeError> {
        let (node, member, current) = (self.clone(), member.clone(), current.clone());
        self.to_its_end(async move {
            let lock = node.0.volumes.lock(&member.key).await;
            let stands = node.0.volumes.is_published(&member.key, &member.published);
            if !stands || member.ended.is_cancelled() {
                return Err(NodeError::Cancelled);
            }
            blocking(move || {
                let _lock: TargetLock = lock;
                let swapped = node.swap_files(&member, &current, &ready);
                // It is shown or given up, even if nobody waits any more.
                drop(ready);
                swapped
            })
            .await
        })
        .await
    }

    fn swap_files(
        &self,
        member: &Member,
        current: &Current,
        ready: &Ready,
    ) -> Result<(), NodeError> {
        let (Member { key, published, recipe, .. }, listing) = (member, &current.listing);
        let Ready { changed, leases, .. } = ready;
        let replaced = match (&recipe.view, leases, &published.fused) {
            (View::LinkFarm(farm), Some(leases), _) => {
                let keep = |entry: &listing::Entry| !changed.contains(&entry.path);
                let replaced = farm.replace(listing, keep, leases);
                replaced.inspect_err(|_| self.doubt(key, published))?
            }
            (_, _, Some(fused)) => {
                fused.show(listing)?;
                Replaced { revision: 0, retired: None }
            }
            _ => unreachable!("a view is linked or served"),
        };
        let entry = published.revise(recipe, current, replaced, self.0.seal(recipe));
        self.0.write_record(Some(&entry));
        self.0.remove_retired(published, published.take_retired(false));
        self.0.keep_for_later(recipe, listing, ready.proven);
        self.0.metrics.skipped_keys.inc_by(listing.skipped().count());
        tracing::info!(
            volume.id = published.arguments.volume_id(),
            revision = entry.summary.revision,
            changed = leases.is_some().then_some(changed.len()),
            "a volume shows a new revision"
        );
        Ok(())
    }

    /// After a replacement that failed: looks what is still there.
    fn doubt(&self, key: &VolumeKey, published: &Published) {
        match LinkFarm::tidy(&self.0.directory(published.medium, key)) {
            Ok(older) => published.doubt(Some(older)),
            Err(error) => {
                tracing::warn!(%error, "failed to clear up after a failed refresh");
                published.doubt(None);
            }
        }
    }

    /// Removes every replaced revision on a medium that has no room; true if there was one.
    pub(in crate::node) async fn make_room(&self, medium: Medium) -> bool {
        let mut removed = false;
        for (key, published) in self.0.volumes.published() {
            if published.medium != medium || !published.has_retired() {
                continue;
            }
            removed = true;
            let lock = self.0.volumes.lock(&key).await;
            let node = self.clone();
            blocking(move || {
                let _lock: TargetLock = lock;
                node.0.remove_retired(&published, published.take_retired(true));
            })
            .await;
        }
        removed
    }
}

impl Context {
    /// The principal of a recipe as it stands in the registry.
    pub(in crate::node) fn seal(&self, recipe: &Recipe) -> SealedPrincipal {
        self.node_key.seal(recipe.source.principal(), &recipe.listing_key().subject())
    }

    /// Keeps a listing for the time when S3 cannot be reached, if the volume wants that.
    fn keep_for_later(&self, recipe: &Recipe, listing: &Arc<Listing>, proven: Proven) {
        match (recipe.spec.when_unavailable, proven) {
            (WhenUnavailable::Fail, _) => {}
            (WhenUnavailable::Cached, Proven::Now) => self.records.keep(recipe, listing),
            (WhenUnavailable::Cached, Proven::Before) => self.records.amend(recipe, listing),
        }
    }

    /// A record that cannot be written costs a comparison after the next restart, no more.
    fn write_record(&self, entry: Option<&Entry>) {
        if let Some(entry) = entry
            && let Err(error) = self.registry.write(entry)
        {
            tracing::warn!(%error, "failed to record a revision");
        }
    }

    fn remove_retired(&self, published: &Published, retired: Vec<(Retired, Instant)>) {
        if retired.is_empty() {
            return;
        }
        let key = published.entry().key();
        let directory = self.directory(published.medium, &key);
        let mut kept = Vec::new();
        for (retired, _) in retired {
            match LinkFarm::remove_retired(&directory, retired) {
                Ok(true) => {}
                Ok(false) => kept.push(retired),
                Err(error) => {
                    tracing::warn!(%error, "failed to remove a replaced revision");
                    kept.push(retired);
                }
            }
        }
        published.put_back(kept);
    }
}

/// Compares a listing with the files of a volume. An entry is unchanged if the file at its path is
/// the very inode of its blob, as the variant that the volume shows by the configuration of now.
/// Blocks.
fn changes_on_disk(recipe: &Recipe, listing: &Listing) -> Result<Changes, NodeError> {
    let View::LinkFarm(farm) = &recipe.view else { return Ok(Changes::default()) };
    let shown = farm.read()?;
    let variant = recipe.variant();
    let blob =
        |entry: &listing::Entry| recipe.store.inode(&BlobId::of(&entry.object.version), variant);
    let is_shown = |entry: &listing::Entry| {
        let stands = shown.files.get(&entry.path);
        stands.is_some() && stands.copied() == blob(entry)
    };
    let files = listing.entries().filter(|entry| !is_shown(entry));
    let files: HashSet<_> = files.map(|entry| entry.path).collect();
    let known = listing.entries().filter(|entry| shown.files.contains_key(&entry.path)).count();
    let same_directories = shown.directories.iter().eq(listing.directories());
    Ok(Changes { files, names_differ: known < shown.files.len() || !same_directories })
}
