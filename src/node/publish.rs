//! Publish and republish.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::{
    Node, NodeError, PublishRequest, VolumeSecretsInput,
    preparation::{Plan, Preparation, Prepared},
    registry::{Entry, Phase, VolumeKey},
    volumes::{Published, State},
};
use crate::{
    config::{AuthenticationKind, Config},
    mount::{self, SwapPolicy, TargetPath},
    problems::Problems,
    source::s3::S3Access,
    store::Medium,
    task::blocking,
    view::linkfarm::LinkFarm,
    volume::{
        PodInfo, PublishArguments, SpecContext, SpecError, ViewKind, VolumeSecrets, VolumeSpec,
        check_authentication,
    },
};

/// A target path and what is asked for there.
#[derive(Debug, Clone)]
struct Place {
    key: VolumeKey,
    target: TargetPath,
    arguments: PublishArguments,
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
        let PublishRequest { volume_id, target, attributes, mount_group, secrets, deadline } =
            request;
        let target = TargetPath::parse(&target, &self.0.kubelet)?;
        let key = VolumeKey::of(target.as_path());
        let arguments = PublishArguments::new(volume_id, &attributes, mount_group);
        let place = Place { key, target, arguments };
        if self.0.volumes.get(&place.key).is_none() {
            self.settle_unknown_mount(&place).await?;
        }
        let state = match self.0.volumes.get(&place.key) {
            Some(state) => state,
            None => self.begin(&place, &attributes, secrets)?,
        };
        match state {
            State::Unpublishing(_) => Err(NodeError::Busy),
            State::Published(published) => self.republish(place, &published).await,
            State::Preparing(preparation) => {
                same(&preparation.arguments, &place.arguments)?;
                let prepared = preparation.wait(deadline).await?;
                self.mount(place, preparation, prepared, deadline).await
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
        let cancel = self.0.tasks.token().child_token();
        let preparation = Arc::new(Preparation::new(place.arguments.clone(), cancel));
        let state = self.0.volumes.begin(&place.key, &preparation);
        if self.0.volumes.is_preparing(&place.key, &preparation) {
            let (node, key) = (self.clone(), place.key.clone());
            self.0.tasks.spawn(async move { node.prepare(key, preparation, plan).await });
        }
        Ok(state)
    }

    /// Runs a preparation to its end, and removes a finished one that nobody came for.
    async fn prepare(&self, key: VolumeKey, preparation: Arc<Preparation>, plan: Plan) {
        let outcome = preparation.run(&self.0, plan).await;
        if outcome.is_err() {
            self.0.volumes.end(&key, &preparation);
            preparation.finish(outcome);
            return;
        }
        preparation.finish(outcome);
        tokio::select! {
            biased;
            () = preparation.cancel.cancelled() => {}
            () = preparation.forgotten() => {}
        }
        let _mounting = preparation.mounting.lock().await;
        if self.0.volumes.end(&key, &preparation) {
            self.0.discard_files(key).await;
        }
    }

    /// Parses everything that a publish says.
    fn plan(
        &self,
        place: &Place,
        attributes: &BTreeMap<String, String>,
        secrets: VolumeSecretsInput,
    ) -> Result<Plan, NodeError> {
        let context = &*self.0;
        let pod = PodInfo::of(attributes);
        let namespace = pod.namespace.as_deref().filter(|_| context.config.trust.pod_info);
        let spec_context = SpecContext {
            config: &context.config,
            namespace,
            mount_group: place.arguments.mount_group(),
            now: SystemTime::now(),
        };
        let spec = VolumeSpec::parse(attributes, &spec_context);
        let (spec, secrets) = both(spec, VolumeSecrets::parse(secrets.0))?;
        // The only kind that this release has; the policy may still forbid it.
        check_authentication(AuthenticationKind::Secret, &context.config.policy)?;
        let medium = match spec.view {
            ViewKind::Tmpfs => Medium::Memory,
            ViewKind::Disk | ViewKind::Fuse => Medium::Disk,
        };
        if medium == Medium::Memory {
            mount::check_swap(context.no_swap, swap_policy(&context.config))?;
        }
        let source = context.clients.open(&S3Access {
            endpoint: &spec.endpoint,
            region: spec.region.as_deref(),
            secrets: &secrets,
            pod: pod.name_for_user_agent(),
            bucket_owner: spec.expected_bucket_owner.as_deref(),
            request_payer: spec.request_payer,
        })?;
        let store = context.stores.get(medium).expect("the node has every medium").clone();
        let directory = store.volumes().join(place.key.as_str());
        let target = place.target.as_path().to_owned();
        Ok(Plan {
            entry: Entry::publishing(target, place.arguments.clone(), spec.view, medium),
            farm: LinkFarm::new(directory, spec.layout, spec.ownership),
            spec: Arc::new(spec),
            source,
            store,
        })
    }

    /// Mounts a finished revision. Runs to its end even if the call is dropped meanwhile.
    async fn mount(
        &self,
        place: Place,
        preparation: Arc<Preparation>,
        prepared: Prepared,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let node = self.clone();
        self.0.tasks.spawn(async move {
            let mounting = Arc::clone(&preparation.mounting).lock_owned().await;
            let outcome = node.mount_once(place, &preparation, prepared).await;
            drop(mounting);
            // The caller may be gone; the outcome stands in the node's state.
            drop(sender.send(outcome));
        });
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(NodeError::ShuttingDown),
            Err(_) => Err(NodeError::Deadline { progress: "the mount is being made".into() }),
        }
    }

    async fn mount_once(
        &self,
        place: Place,
        preparation: &Arc<Preparation>,
        prepared: Prepared,
    ) -> Result<(), NodeError> {
        let key = place.key;
        match self.0.volumes.get(&key) {
            Some(State::Published(_)) => return Ok(()),
            Some(State::Preparing(current)) if Arc::ptr_eq(&current, preparation) => {}
            _ => return Err(self.0.cancelled()),
        }
        let Prepared { entry, source } = prepared;
        let entry = entry.in_phase(Phase::Published);
        let bound = {
            let (node, entry, target) = (self.clone(), entry.clone(), place.target);
            blocking(move || node.bind(&entry, &target)).await
        };
        if let Err(error) = bound {
            self.0.volumes.end(&key, preparation);
            preparation.cancel.cancel();
            self.0.discard_files(key).await;
            return Err(error);
        }
        let mounting = Arc::clone(&preparation.mounting);
        let published = Published { entry, mounting, source: Some(source) };
        let kept = self.0.volumes.mounted(&key, preparation, published);
        preparation.cancel.cancel();
        self.0.count_volumes();
        // An unpublish that came meanwhile waits for `mounting` and then removes this mount.
        if kept { Ok(()) } else { Err(NodeError::Cancelled) }
    }

    /// Records the volume as published and mounts its directory at the target; undone if that
    /// fails. Blocks.
    ///
    /// Recorded first: an entry without a mount is garbage after a crash, while a mount whose entry
    /// lacks the summary would be a volume without figures.
    fn bind(&self, entry: &Entry, path: &TargetPath) -> Result<(), NodeError> {
        let key = VolumeKey::of(path.as_path());
        let directory = self.0.directory(entry.medium, &key);
        let root = LinkFarm::root(&directory.expect("the node has every medium"));
        self.0.registry.write(entry)?;
        let target = self.0.kubelet.create_target(path)?;
        target.bind_read_only(&root).map_err(|error| {
            if let Err(error) = target.remove() {
                tracing::warn!(%error, "failed to remove a target that could not be mounted");
            }
            NodeError::from(error)
        })
    }

    /// Answers a publish of a published target: OK if it is the same, whatever else is wrong.
    async fn republish(&self, place: Place, published: &Arc<Published>) -> Result<(), NodeError> {
        same(&published.entry.arguments, &place.arguments)?;
        let _mounting = published.mounting.lock().await;
        let (node, entry) = (self.clone(), published.entry.clone());
        blocking(move || {
            let target = node.0.kubelet.existing_target(&place.target)?;
            if let Some(target) = target
                && target.is_mounted()?
            {
                return Ok(());
            }
            tracing::warn!(
                volume.target_path = %place.target,
                "a published target is not mounted any more; mounting it again"
            );
            node.bind(&entry, &place.target)
        })
        .await
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
        blocking(move || {
            let Some(target) = node.0.kubelet.existing_target(&place.target)? else {
                return Ok(());
            };
            if !target.is_mounted()? {
                return Ok(());
            }
            if let Some(medium) = node.0.own_mount(&place.key, place.target.as_path()) {
                return node.adopt(place, medium);
            }
            tracing::warn!(volume.target_path = %place.target, "removing a foreign mount");
            target.unmount_all()?;
            Ok(())
        })
        .await
    }

    fn adopt(&self, place: Place, medium: Medium) -> Result<(), NodeError> {
        let view = match medium {
            Medium::Memory => ViewKind::Tmpfs,
            Medium::Disk => ViewKind::Disk,
        };
        let target = place.target.as_path().to_owned();
        let entry = Entry::publishing(target, place.arguments, view, medium);
        let entry = entry.in_phase(Phase::Published);
        let published = Published { entry: entry.clone(), mounting: Arc::default(), source: None };
        if self.0.volumes.adopt(place.key, published) {
            self.0.registry.write(&entry)?;
            self.0.count_volumes();
        }
        Ok(())
    }
}

/// Whether both publishes ask for the same.
fn same(known: &PublishArguments, asked: &PublishArguments) -> Result<(), NodeError> {
    match asked.difference(known) {
        None => Ok(()),
        Some(difference) => Err(NodeError::Incompatible { difference }),
    }
}

/// Both results, or the problems of both.
fn both(
    spec: Result<VolumeSpec, SpecError>,
    secrets: Result<VolumeSecrets, Problems>,
) -> Result<(VolumeSpec, VolumeSecrets), NodeError> {
    match (spec, secrets) {
        (Ok(spec), Ok(secrets)) => Ok((spec, secrets)),
        (Err(SpecError::Invalid(mut problems)), Err(more)) => {
            problems.extend(more);
            Err(problems.into())
        }
        (Err(error), _) => Err(error.into()),
        (_, Err(problems)) => Err(problems.into()),
    }
}

fn swap_policy(config: &Config) -> SwapPolicy {
    if config.store.memory.allow_swap { SwapPolicy::Allow } else { SwapPolicy::Refuse }
}
