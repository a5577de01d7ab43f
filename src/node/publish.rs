//! Publish and republish.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::SystemTime};

use futures::FutureExt;
use tokio::time::Instant;

use super::{
    Node, NodeError, PublishRequest, VolumeSecretsInput,
    fused::Fused,
    identity::Brought,
    preparation::{Fallback, Plan, Preparation, Prepared},
    published::Published,
    quota::{Claim, Share},
    registry::{Entry, Phase, Shape, VolumeKey},
    revision::{Recipe, View},
    volumes::{Begun, State},
};
use crate::{
    config::{Config, Sharing},
    mount::{self, SwapPolicy, TargetPath},
    problems::Problems,
    store::{Medium, Sharers},
    task::{blocking, blocking_here},
    units::Refresh,
    view::linkfarm::LinkFarm,
    volume::{PublishArguments, SpecContext, SpecError, ViewKind, VolumeSpec, check_mount_options},
};

/// A target path and what is asked for there.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: VolumeKey,
    pub(super) target: TargetPath,
    pub(super) arguments: PublishArguments,
}

/// What a look at a published volume found.
enum Found {
    /// It is as it should be, or was mounted again.
    Mounted,
    /// Its files are gone.
    Missing,
    /// Another call changed the path's state meanwhile.
    Changed,
}

impl Node {
    /// Publishes a volume at its target path, or finds it published.
    ///
    /// # Errors
    /// See [`NodeError`]. Of a kind that is final for the kubelet, the target is not mounted.
    ///
    /// # Cancellation
    /// The work goes on in the background; a later call joins it.
    pub async fn publish(&self, request: PublishRequest) -> Result<(), NodeError> {
        let PublishRequest {
            volume_id,
            target,
            mut attributes,
            mount_group,
            mount_options,
            secrets,
            deadline,
        } = request;
        let secrets = secrets.with_tokens_of(&mut attributes);
        let target = TargetPath::parse(&target, &self.0.kubelet)?;
        let key = VolumeKey::of(target.as_path());
        let arguments = PublishArguments::new(volume_id, &attributes, mount_group);
        let place = Place { key, target, arguments };
        let mut secrets = Some(secrets);
        loop {
            let mut state = self.0.volumes.get(&place.key);
            if state.is_none() {
                self.settle_unknown_mount(&place).await?;
                // A mount of ours that was adopted is one to be republished.
                state = self.0.volumes.get(&place.key);
            }
            let state = if let Some(state) = state {
                state
            } else {
                // Of what is published they hold, whatever a changed PersistentVolume says.
                check_mount_options(&mount_options)?;
                // Taken before: the state that this call began is gone, so an unpublish came.
                let secrets = secrets.take().ok_or(NodeError::Busy)?;
                self.begin(&place, &attributes, secrets)?
            };
            match state {
                State::Unpublishing { .. } => return Err(NodeError::Busy),
                State::Preparing(preparation) => {
                    same(&preparation.arguments, &place.arguments)?;
                    let prepared = preparation.wait(deadline).await?;
                    return self.mount(place, preparation, prepared, deadline).await;
                }
                State::Published(published) => {
                    same(&published.arguments, &place.arguments)?;
                    match self.look_again(&place, &published).await? {
                        Found::Mounted => {
                            if let Some(secrets) = secrets {
                                self.renew(&place, &published, &attributes, secrets);
                            }
                            return Ok(());
                        }
                        Found::Missing | Found::Changed => {}
                    }
                }
            }
        }
    }

    /// Starts the background work, unless another call was faster; returns the state that stands.
    fn begin(
        &self,
        place: &Place,
        attributes: &BTreeMap<String, String>,
        secrets: VolumeSecretsInput,
    ) -> Result<State, NodeError> {
        let plan = self.plan(place, attributes, secrets)?;
        let target = place.target.as_path();
        let cancel = self.0.tasks.token().child_token();
        let Entry { namespace, medium, .. } = &plan.entry;
        let claim = Claim::new(namespace.clone(), *medium, Share::default());
        let arguments = place.arguments.clone();
        let preparation = Preparation::new(target.to_owned(), arguments, claim, cancel);
        Ok(match self.0.volumes.begin(&place.key, &plan.limits, preparation)? {
            Begun::Existing(state) => state,
            Begun::Nested(other) => {
                return Err(NodeError::Nested { target: target.to_owned(), other });
            }
            Begun::New(preparation) => {
                let (node, key) = (self.clone(), place.key.clone());
                let running = Arc::clone(&preparation);
                self.0.tasks.spawn(async move { node.prepare(key, running, plan).await });
                State::Preparing(preparation)
            }
        })
    }

    /// Runs a preparation to its end, and removes a finished one that nobody came for.
    async fn prepare(&self, key: VolumeKey, preparation: Arc<Preparation>, plan: Plan) {
        let mut outcome = self.attempt(&preparation, &plan).await;
        // What volumes showed before makes room for what is to be shown now.
        if outcome.as_ref().is_err_and(NodeError::wants_room)
            && self.make_room(plan.entry.medium).await
        {
            outcome = self.attempt(&preparation, &plan).await;
        }
        if let Err(error) = outcome {
            self.0.discard_files(key.clone()).await;
            self.0.volumes.end(&key, &preparation);
            preparation.finish(Err(error));
            return;
        }
        preparation.finish(outcome);
        tokio::select! {
            biased;
            () = preparation.cancel.cancelled() => {}
            () = preparation.forgotten() => {}
        }
        let _lock = self.0.volumes.lock(&key).await;
        // The state goes last: once it has, a new publish makes files of its own.
        if self.0.volumes.is_preparing(&key, &preparation) {
            self.0.discard_files(key.clone()).await;
            self.0.volumes.end(&key, &preparation);
        }
    }

    async fn attempt(&self, preparation: &Preparation, plan: &Plan) -> Result<Prepared, NodeError> {
        // A defect of ours must not leave the path in a state that nothing ends.
        let running = AssertUnwindSafe(preparation.run(&self.0, plan)).catch_unwind();
        running.await.unwrap_or(Err(NodeError::Panicked))
    }

    /// Parses everything that a publish says.
    fn plan(
        &self,
        place: &Place,
        attributes: &BTreeMap<String, String>,
        secrets: VolumeSecretsInput,
    ) -> Result<Plan, NodeError> {
        let context = &*self.0;
        let config = context.config();
        let brought = Brought::parse(attributes, secrets, &config);
        let spec = spec(&config, place, attributes, brought.as_ref().ok());
        let (spec, brought) = both(spec, brought)?;
        let medium = match spec.view {
            ViewKind::Tmpfs => Medium::Memory,
            ViewKind::Disk | ViewKind::Fuse => Medium::Disk,
        };
        if medium == Medium::Memory {
            mount::check_swap(context.no_swap, swap_policy(&config))?;
        }
        let source = context.source(&config, &spec, &brought)?;
        let store = context.stores.get(medium).clone();
        let directory = store.volumes().join(place.key.as_str());
        let target = place.target.as_path().to_owned();
        let shape = Shape { layout: spec.layout, ownership: spec.ownership, xattrs: spec.xattrs };
        let entry = Entry::publishing(target, place.arguments.clone(), spec.view, medium);
        let view = match spec.view {
            ViewKind::Fuse => View::Fuse,
            ViewKind::Tmpfs | ViewKind::Disk => {
                View::LinkFarm(LinkFarm::new(directory, spec.layout, spec.ownership))
            }
        };
        let tenant = brought.tenant;
        let namespace = tenant.as_ref().map(|tenant| tenant.namespace.clone());
        let sharers = sharers(&config, namespace.as_deref(), &place.key);
        let recipe = Recipe { spec: Arc::new(spec), tenant, source, store, view, shape, sharers };
        let entry = entry.shaped(shape).counted_for(namespace);
        Ok(Plan { entry, recipe: Arc::new(recipe), limits: config.limits.namespace.clone() })
    }

    /// Mounts a finished revision. Runs to its end even if the call is dropped meanwhile.
    async fn mount(
        &self,
        place: Place,
        preparation: Arc<Preparation>,
        prepared: Prepared,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let node = self.clone();
        let mounting =
            self.to_its_end(async move { node.mount_once(place, &preparation, prepared).await });
        let timed_out = |_| NodeError::Deadline { progress: "the mount is being made".into() };
        tokio::time::timeout_at(deadline, mounting).await.map_err(timed_out)?
    }

    async fn mount_once(
        &self,
        place: Place,
        preparation: &Arc<Preparation>,
        prepared: Prepared,
    ) -> Result<(), NodeError> {
        let key = place.key;
        let lock = self.0.volumes.lock(&key).await;
        match self.0.volumes.get(&key) {
            Some(State::Published(_)) => return Ok(()),
            _ if self.0.volumes.is_preparing(&key, preparation) => {}
            // Another call failed to mount it, or an unpublish came.
            _ => return Err(preparation.failure().unwrap_or_else(|| self.0.cancelled())),
        }
        let entry = prepared.entry.clone().in_phase(Phase::Published);
        let fused = match self.make_visible(&entry, &place.target, &prepared).await {
            Ok(fused) => fused,
            Err(error) => {
                preparation.finish(Err(error.clone()));
                self.0.discard_files(key.clone()).await;
                self.0.volumes.end(&key, preparation);
                preparation.cancel.cancel();
                return Err(error);
            }
        };
        let recipe = Arc::clone(&prepared.recipe);
        let claim = Arc::clone(&preparation.claim);
        let published = Published::new(entry, claim, recipe, &prepared.shown).served_as(fused);
        let published = Arc::new(published);
        let kept = self.0.volumes.mounted(&key, preparation, &published);
        if kept {
            self.begin_refresh(key, published, prepared);
        }
        drop(lock);
        preparation.cancel.cancel();
        self.0.count_volumes();
        // An unpublish that came meanwhile waits for the lock and then removes this mount.
        if kept { Ok(()) } else { Err(NodeError::Cancelled) }
    }

    /// Mounts what was prepared at the target; undone if that fails.
    async fn make_visible(
        &self,
        entry: &Entry,
        path: &TargetPath,
        prepared: &Prepared,
    ) -> Result<Option<Fused>, NodeError> {
        let recipe = Arc::clone(&prepared.recipe);
        match recipe.view {
            View::LinkFarm(_) => blocking_here(|| self.bind(entry, path)).map(|()| None),
            View::Fuse => {
                let listing = Arc::clone(&prepared.shown.listing);
                let (node, entry, path) = (self.clone(), entry.clone(), path.clone());
                let serve = move || {
                    let fused = node.0.content(&recipe, &entry.key())?;
                    node.0.serve(&entry, &path, &fused, &listing)?;
                    Ok(Some(fused))
                };
                blocking(serve).await
            }
        }
    }

    /// Lets a volume follow its sources from what was shown first.
    fn begin_refresh(&self, key: VolumeKey, published: Arc<Published>, prepared: Prepared) {
        let Prepared { recipe, shown, fallback, .. } = prepared;
        match fallback {
            // What is shown from before is as good as a refresh that failed.
            Some(Fallback { reason, .. }) => {
                published.failed(reason);
                self.follow(key, published, recipe, None);
            }
            None if recipe.spec.refresh == Refresh::Never => {}
            None => self.follow(key, published, recipe, Some(shown)),
        }
    }

    /// Records the volume as published and mounts its directory at the target; undone if that
    /// fails. Blocks.
    ///
    /// Recorded first: an entry without a mount is garbage after a crash, while a mount whose entry
    /// lacks the summary would be a volume without figures.
    fn bind(&self, entry: &Entry, path: &TargetPath) -> Result<(), NodeError> {
        let key = VolumeKey::of(path.as_path());
        let root = LinkFarm::root(&self.0.directory(entry.medium, &key));
        self.0.registry.write(entry)?;
        let target = self.0.kubelet.create_target(path)?;
        target.bind_read_only(&root).map_err(|error| {
            if let Err(error) = target.remove() {
                tracing::warn!(%error, "failed to remove a target that could not be mounted");
            }
            NodeError::from(error)
        })
    }

    /// Looks whether a published volume is mounted, and mounts it again if not.
    async fn look_again(
        &self,
        place: &Place,
        published: &Arc<Published>,
    ) -> Result<Found, NodeError> {
        let (node, place, published) = (self.clone(), place.clone(), Arc::clone(published));
        self.to_its_end(async move {
            let lock = node.0.volumes.lock(&place.key).await;
            if !node.0.volumes.is_published(&place.key, &published) {
                return Ok(Found::Changed);
            }
            blocking(move || {
                let found = node.mount_if_lost(&place, &published);
                drop(lock);
                found
            })
            .await
        })
        .await
    }

    fn mount_if_lost(&self, place: &Place, published: &Arc<Published>) -> Result<Found, NodeError> {
        if let Some(fused) = &published.fused {
            return self.serve_if_lost(place, published, fused);
        }
        if self.0.is_mounted(&place.target)? {
            return Ok(Found::Mounted);
        }
        let medium = published.medium;
        if !LinkFarm::root(&self.0.directory(medium, &place.key)).exists() {
            self.forget(place, published);
            return Ok(Found::Missing);
        }
        tracing::warn!(
            volume.target_path = %place.target,
            "a published target is not mounted any more; mounting it again"
        );
        self.bind(&published.entry(), &place.target)?;
        Ok(Found::Mounted)
    }

    /// As for the other views; and a mount that nobody serves is replaced, which is the one change
    /// of a mount that a republish makes. Containers that run keep what they have.
    fn serve_if_lost(
        &self,
        place: &Place,
        published: &Arc<Published>,
        fused: &Fused,
    ) -> Result<Found, NodeError> {
        if fused.is_served() && self.0.is_mounted(&place.target)? {
            return Ok(Found::Mounted);
        }
        tracing::warn!(
            volume.target_path = %place.target,
            "nobody serves a published target any more; mounting it again"
        );
        if let Some(target) = self.0.kubelet.existing_target(&place.target)? {
            target.unmount_all()?;
        }
        self.0.release(&place.key);
        self.forget(place, published);
        Ok(Found::Missing)
    }

    fn forget(&self, place: &Place, published: &Arc<Published>) {
        published.ended.cancel();
        self.0.refresher.withdraw(published, None);
        self.0.volumes.forget(&place.key, published);
    }

    /// Deals with a mount at the target that we have no record of: ours is adopted, so that a pod
    /// that reads it goes on; any other is taken away, since the kubelet wants this volume there
    /// and would never ask to unpublish a target whose publish failed.
    async fn settle_unknown_mount(&self, place: &Place) -> Result<(), NodeError> {
        // The kubelet does not make the target, so as a rule there is nothing: two system calls on
        // its own directory, which no file system of ours answers, tell that.
        if self.0.kubelet.existing_target(&place.target)?.is_none() {
            return Ok(());
        }
        let (node, place) = (self.clone(), place.clone());
        self.to_its_end(async move {
            let lock = node.0.volumes.lock(&place.key).await;
            if node.0.volumes.get(&place.key).is_some() {
                return Ok(());
            }
            blocking(move || {
                let settled = node.settle(place);
                drop(lock);
                settled
            })
            .await
        })
        .await
    }

    fn settle(&self, place: Place) -> Result<(), NodeError> {
        let Some(target) = self.0.kubelet.existing_target(&place.target)? else { return Ok(()) };
        if !target.is_mounted()? {
            return Ok(());
        }
        if let Some(medium) = self.0.own_mount(&place.key, place.target.as_path()) {
            self.adopt(place, medium);
            return Ok(());
        }
        tracing::warn!(volume.target_path = %place.target, "removing a foreign mount");
        target.unmount_all()?;
        Ok(())
    }

    fn adopt(&self, place: Place, medium: Medium) {
        let view = match medium {
            Medium::Memory => ViewKind::Tmpfs,
            Medium::Disk => ViewKind::Disk,
        };
        let target = place.target.as_path().to_owned();
        let entry = Entry::publishing(target, place.arguments, view, medium);
        let entry = entry.in_phase(Phase::Published);
        // The mount is there, whatever happens to its record.
        if let Err(error) = self.0.registry.write(&entry) {
            tracing::warn!(%error, "failed to record an adopted volume");
        }
        self.0.volumes.adopt(place.key, Published::found(entry, Vec::new()));
        self.0.count_volumes();
    }
}

/// Whether both publishes ask for the same.
fn same(known: &PublishArguments, asked: &PublishArguments) -> Result<(), NodeError> {
    match asked.difference(known) {
        None => Ok(()),
        Some(difference) => Err(NodeError::Incompatible { difference }),
    }
}

/// Parses a volume's attributes.
pub(super) fn spec(
    config: &Config,
    place: &Place,
    attributes: &BTreeMap<String, String>,
    brought: Option<&Brought>,
) -> Result<VolumeSpec, SpecError> {
    let tenant = brought.and_then(|brought| brought.tenant.as_ref());
    let context = SpecContext {
        config,
        namespace: tenant.map(|tenant| tenant.namespace.as_str()),
        mount_group: place.arguments.mount_group(),
        brings: brought.map(Brought::brings),
        now: SystemTime::now(),
    };
    VolumeSpec::parse(attributes, &context)
}

/// Who may have links to the files that a volume shows. A volume whose namespace nothing vouches for
/// shares with nobody: whoever it says it is, another may be.
pub(super) fn sharers(
    config: &Config,
    namespace: Option<&str>,
    key: &VolumeKey,
) -> Option<Sharers> {
    match (config.store.share, namespace) {
        (Sharing::Node, _) => None,
        (Sharing::Namespace, Some(namespace)) => Some(Sharers::of_namespace(namespace)),
        (Sharing::Namespace, None) => Some(Sharers::of_volume(key.as_str())),
    }
}

/// Both results, or the problems of both.
fn both(
    spec: Result<VolumeSpec, SpecError>,
    brought: Result<Brought, Problems>,
) -> Result<(VolumeSpec, Brought), NodeError> {
    match (spec, brought) {
        (Ok(spec), Ok(brought)) => Ok((spec, brought)),
        (Err(SpecError::Invalid(mut problems)), Err(more)) => {
            problems.extend(more);
            Err(problems.into())
        }
        (Err(SpecError::Denied(text)), Err(mut problems)) => {
            problems.add("policy", text);
            Err(problems.into())
        }
        (Err(error), Ok(_)) => Err(error.into()),
        (Ok(_), Err(problems)) => Err(problems.into()),
    }
}

fn swap_policy(config: &Config) -> SwapPolicy {
    if config.store.memory.allow_swap { SwapPolicy::Allow } else { SwapPolicy::Refuse }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn who_shares_is_configured_and_certain() {
        let [one, two] = ["/one", "/two"].map(|path| VolumeKey::of(Path::new(path)));
        let sharers = |share, namespace, key| {
            let mut config = Config::default();
            config.store.share = share;
            sharers(&config, namespace, key)
        };
        let namespace = Sharing::Namespace;
        assert_eq!(sharers(Sharing::Node, Some("a"), &one), None);
        assert_eq!(sharers(Sharing::Node, None, &one), None);
        assert_eq!(sharers(namespace, Some("a"), &one), sharers(namespace, Some("a"), &two));
        assert_ne!(sharers(namespace, Some("a"), &one), sharers(namespace, Some("b"), &one));
        // Nobody knows whose they are.
        assert_ne!(sharers(namespace, None, &one), sharers(namespace, None, &two));
        assert_eq!(sharers(namespace, None, &one), sharers(namespace, None, &one));
        assert_ne!(sharers(namespace, Some(one.as_str()), &one), sharers(namespace, None, &one));
    }
}
